#!/usr/bin/env python3
"""Evaluate a checkpoint: kNN, retrieval, linear classification, fine-tuning, few labels, OmniBenchmark."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

try:
    import moco_plugin  # noqa: F401
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.early_checks import check_checkpoint, check_images
from moco_plugin.errors import command

W = "--weights runs/photos/checkpoints/last.ckpt"
SETS = "--train photos/train --test photos/val"
EXAMPLES = {
    "knn": ("weighted votes of the nearest neighbours", f"%(prog)s {W} {SETS} --k 10 20 200 --out knn.json"),
    "retrieve": (
        "recall: whether an image of the same class is among the nearest",
        f"%(prog)s {W} {SETS} --out retrieval.json --picture neighbours.html",
    ),
    "linear": (
        "linear classification on the frozen backbone, as the papers report it",
        f"%(prog)s {W} {SETS} --out linear.json\n"
        f"  %(prog)s {W} {SETS} --out linear.json trainer.devices=8 data.workers=12\n"
        f"  %(prog)s {W} {SETS} --fast\n\n"
        "The same command resumes an interrupted run (--out needed). --fast, a departure from the papers,\n"
        "computes features once, without random crops, and tries many learning rates on them in one pass.",
    ),
    "finetune": (
        "end-to-end fine-tuning, as the papers report it",
        f"%(prog)s {W} {SETS} --protocol inaturalist --out finetune.json\n\n"
        "The same command resumes an interrupted run (--out needed).",
    ),
    "lowshot": (
        "linear classification with few of the labels, the same share of each class, on cached features",
        f"%(prog)s {W} {SETS} --shares 0.01 0.1 --out lowshot.json\n\n"
        "To fine-tune with few labels: finetune ... data.label_share=0.01",
    ),
    "multilabel": (
        "mean average precision on images of several labels: kNN votes and logistic regressions",
        f"%(prog)s {W} --train train.csv --test test.csv --out multilabel.json\n\n"
        "Lists of path,label;label rows; an image may have no label.",
    ),
    "omnibenchmark": (
        "a linear probe in each of OmniBenchmark's realms, and their mean",
        f"%(prog)s {W} --root omnibenchmark --out omnibenchmark.json\n\n"
        "The same command continues with the next realm (--out needed).",
    ),
}


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and evaluate."""
    firsts = {name: example.splitlines()[0] for name, (_, example) in EXAMPLES.items()}
    overview = "".join("\n  " + first.replace("%(prog)s", f"%(prog)s {name}") for name, first in firsts.items())
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"examples:{overview}", formatter_class=raw)
    what = parser.add_subparsers(dest="what", required=True)
    parsers = {
        name: what.add_parser(name, help=text, description=text, epilog=f"example:\n  {example}", formatter_class=raw)
        for name, (text, example) in EXAMPLES.items()
    }
    for name, sub in parsers.items():
        sub.add_argument("--weights", required=True, help="a checkpoint of any layout that convert_to_d2 reads")
        if name == "omnibenchmark":
            sub.add_argument("--root", required=True, help="folder of the realms' folders")
        else:
            images = "a folder, a list, shards, a zip archive or an idx images file; [start:stop] takes a part"
            sub.add_argument("--train", required=True, help=f"labelled images: {images}")
            sub.add_argument(
                "--test",
                help="labelled images to classify or to find neighbours of (default: a fifth of each class of --train, "
                "as --train 'photos[:80%%]' --test 'photos[80%%:]' say)",
            )
        sub.add_argument("--encoder", choices=("query", "key"), default="query", help="default: %(default)s")
        sub.add_argument("--untrained", action="store_true", help="random weights in the same network, as a baseline")
        if name in ("knn", "retrieve", "multilabel", "omnibenchmark"):
            sub.add_argument("--image-size", type=int, help="side of the test view (default: as trained)")
            sub.add_argument("--batch-size", type=int, default=256, help="default: %(default)s")
            sub.add_argument("--workers", type=int, default=0, help="loader processes (default %(default)s)")
        else:
            sub.add_argument(
                "overrides",
                nargs="*",
                metavar="key=value",
                help="what differs from the protocol, such as optimizer.lr=3 (configs/evaluate)",
            )
        sub.add_argument("--out", help="also write the result to this JSON file")
        sub.add_argument("--overwrite", action="store_true", help="replace an earlier run")

    parsers["knn"].add_argument("--k", type=int, nargs="+", help="neighbours (default 200, less for small sets)")
    parsers["knn"].add_argument(
        "--temperature", type=float, default=0.1, help="votes weigh exp(sim / T) (default %(default)s)"
    )
    parsers["multilabel"].add_argument("--k", type=int, help="neighbours (default 200, less for small sets)")
    parsers["retrieve"].add_argument("--k", type=int, nargs="+", default=[1, 5, 10], help="default 1 5 10")
    parsers["retrieve"].add_argument(
        "--picture", help="also draw the neighbours of one image per class: an .html or a .png file"
    )
    parsers["linear"].add_argument(
        "--protocol",
        help="moco_v1 (v1 and v2), moco_v3_resnet or moco_v3_vit under configs/evaluate/linear, or a YAML file "
        "(default: by the checkpoint's method)",
    )
    parsers["linear"].add_argument("--fast", action="store_true", help="fit on features that are computed once")
    parsers["finetune"].add_argument(
        "--protocol",
        default="imagenet",
        help="imagenet or inaturalist under configs/evaluate/finetune, or a YAML file (default %(default)s)",
    )
    parsers["omnibenchmark"].add_argument(
        "--protocol",
        choices=("v1", "v2"),
        default="v2",
        help="v2 chooses L2 weights on val; v1 as the benchmark's code, by the test score (default: %(default)s)",
    )
    parsers["lowshot"].add_argument(
        "--shares", type=float, nargs="+", default=[0.01, 0.1], help="of the labels (default 0.01 0.1)"
    )
    for name in ("linear", "lowshot"):
        parsers[name].add_argument(
            "--lrs",
            type=float,
            nargs="+",
            default=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
            help="learning rates to try on cached features (default 0.001 to 10)",
        )
    given = list(sys.argv[1:] if argv is None else argv)
    # taken out first: behind an option of several values argparse would count a key=value among them
    overrides = [text for text in given if re.fullmatch(r"[a-z]\w*(\.\w+)*=.*", text)]
    args = parser.parse_args([text for text in given if text not in overrides])
    if overrides and "overrides" not in args:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    if "overrides" in args:
        args.overrides = overrides

    if args.what != "omnibenchmark" and args.test is None:
        if args.train.endswith("]"):
            parser.error("--test is missing; it is only held out of a --train without [...]")
        args.train, args.test = f"{args.train}[:80%]", f"{args.train}[80%:]"
        print("testing on a fifth of each class, drawn by seed 0, and training on the others")
    check_checkpoint(args.weights)
    for spec in () if args.what == "omnibenchmark" else (args.train, args.test):
        check_images(spec)
    arguments = vars(args)
    protocol, fast = arguments.pop("what"), arguments.pop("fast", False)
    picture = arguments.pop("picture", None)
    if fast and protocol == "linear":
        protocol = "linear --fast"
        arguments.pop("protocol")
    elif protocol == "linear":
        arguments.pop("lrs")

    if protocol not in ("linear", "finetune") and os.environ.get("RANK", "0") != "0":
        return 0  # the others take one process: under torchrun the first

    from moco_plugin import evaluation

    if protocol == "retrieve":
        from moco_plugin.data.images import ImageSet
        from moco_plugin.report.neighbours_picture import check_picture, write_neighbours

        if picture:
            check_picture(picture, args.overwrite)
        result, neighbours = evaluation.evaluate_retrieval(**arguments)
        if picture:
            train_set, test_set = (
                ImageSet(spec, result["value_range"], result["channels"]) for spec in (args.train, args.test)
            )
            write_neighbours(picture, train_set, test_set, neighbours, result)
        return 0
    functions: dict[str, Callable[..., Any]] = {
        "knn": evaluation.evaluate_knn,
        "linear": evaluation.evaluate_linear,
        "linear --fast": evaluation.evaluate_linear_fast,
        "finetune": evaluation.evaluate_finetune,
        "lowshot": evaluation.evaluate_lowshot,
        "multilabel": evaluation.evaluate_multilabel,
        "omnibenchmark": evaluation.evaluate_omnibenchmark,
    }
    functions[protocol](**arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())

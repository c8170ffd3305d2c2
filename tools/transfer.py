#!/usr/bin/env python3
"""Train detectors: a transfer experiment of the papers with their numbers, or one on your own data."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import moco_plugin.transfer  # prepares detectron2 in the processes that its launcher spawns
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.errors import UsageError, command
from moco_plugin.files import check_checkpoint
from moco_plugin.tools import new_parser

if TYPE_CHECKING:
    from moco_plugin.transfer.launch import Machines

EXAMPLES = """examples:
  %(prog)s --list
  %(prog)s --task voc_c4 --weights moco_v2_200ep --trials 5 --gpus 8
  %(prog)s --task coco_fpn_1x --weights runs/photos/checkpoints/last.ckpt --images-per-batch 4
  %(prog)s --task voc_c4 --init random --out runs/voc_c4_random SOLVER.CHECKPOINT_PERIOD 1000
  %(prog)s --train-json train.json --train-images photos --weights runs/photos/checkpoints/last.ckpt
  %(prog)s --train-labels labels --train-images photos --weights runs/photos/checkpoints/last.ckpt
  %(prog)s --train-folder yolo --weights runs/photos/checkpoints/last.ckpt --compare --out runs/comparison

The same command resumes an interrupted experiment and keeps finished trials. tools/report.py gathers the results."""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and run the trials."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("--list", action="store_true", help="show the tasks, and do nothing")
    parser.add_argument("--task", help="which experiment; --list shows them")
    own = parser.add_argument_group("own data, in place of --task")
    own.add_argument("--train-json", dest="train", metavar="FILE", help="a COCO file, or another tool's JSON")
    own.add_argument(
        "--train-folder",
        dest="train",
        metavar="PATH",
        help="a folder or file in any supported format (listed in docs/detection.md)",
    )
    own.add_argument("--train-labels", metavar="FOLDER", help="label images, for semantic segmentation")
    own.add_argument(
        "--train-images", metavar="FOLDER", help="images of the label images, or of annotations in another folder"
    )
    own.add_argument(
        "--test-json", dest="test", metavar="FILE", help="default: the test split of the data, or a held-out fifth"
    )
    own.add_argument("--test-folder", dest="test", metavar="PATH", help="as --train-folder")
    own.add_argument("--test-labels", metavar="FOLDER", help="label images to test on")
    own.add_argument("--test-images", metavar="FOLDER", help="images of the test file or of the label images")
    own.add_argument("--model", help="fpn, c4, retinanet or timm:NAME (default: fpn); fcn for label images")
    own.add_argument(
        "--compare", action="store_true", help="random, supervised, MoCo's and continued weights, one table"
    )
    own.add_argument("--supervised", metavar="FILE", help="ImageNet weights to compare with (default: timm's, fetched)")
    own.add_argument("--continued", metavar="W", help="MoCo pre-training that started from supervised weights")
    own.add_argument("--seed", type=int, default=0, help="chooses the held-out images (default: %(default)s)")
    deep = "values of black and white in images of more than 8 bits (default: by bit depth)"
    own.add_argument("--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help=deep)
    own.add_argument("--check", action="store_true", help="check the data, print a summary, and exit")
    parser.add_argument(
        "--weights",
        metavar="W",
        help="a checkpoint that convert_to_d2 reads, a released one's name (moco_v2_200ep), or a detectron2 .pkl",
    )
    parser.add_argument(
        "--init",
        choices=("moco", "supervised", "random"),
        help="whose config; supervised takes detectron2's weights unless --weights is given (default: moco)",
    )
    parser.add_argument(
        "--trials",
        type=int,
        help="default: 5, as the paper for VOC, LVIS and semantic segmentation; own data 1, or 3 with --compare",
    )
    parser.add_argument(
        "--images-per-batch",
        type=int,
        metavar="N",
        help="images of all GPUs together; scales learning rate, warm-up, drops and length (default: the paper's)",
    )
    parser.add_argument("--gpus", type=int, help="of this machine (default: all)")
    parser.add_argument("--num-machines", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine (default: %(default)s)")
    parser.add_argument("--dist-url", help="where the machines meet, such as tcp://10.0.0.1:29500")
    parser.add_argument("--out", type=Path, help="folder for everything (default: runs/transfer/TASK/INIT)")
    parser.add_argument("--overwrite", action="store_true", help="replace the trials in the folder")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="change the config, after scaling"
    )
    args = parser.parse_args(argv)
    for path in (args.weights, args.supervised, args.continued):
        check_checkpoint(path or "")

    from moco_plugin.pages.transfer_table import list_tasks, transfer_table
    from moco_plugin.transfer.tasks import find_task

    if args.list:
        print(list_tasks())
        return 0
    if args.train and args.train_labels:
        raise UsageError("--train-labels and another training set exclude each other; leave one out")
    if args.train or args.train_labels:
        return _own_data(args)
    if not args.task:
        raise UsageError("which task? pass --task NAME (--list shows them), or own data, such as --train-json FILE")
    task = find_task(args.task)
    init = args.init or "moco"
    task.config(init)

    moco_plugin.transfer.register()
    from moco_plugin.detectors.predict import draw_examples
    from moco_plugin.transfer.runner import run_trials

    out = args.out or Path("runs/transfer") / task.name / init
    result = run_trials(
        task,
        init,
        args.weights,
        out,
        trials=5 if args.trials is None else args.trials,
        machines=_machines(args),
        images_per_batch=args.images_per_batch,
        overrides=args.overrides,
        overwrite=args.overwrite,
        draw=draw_examples,
    )
    if not args.machine_rank:
        table = transfer_table(task, [result])
        print(f"\n{task.title}\n{table.caption}\n\n{table.text()}\n\nwritten: {out / 'results.json'}")
    return 0


def _machines(args: argparse.Namespace) -> "Machines":
    from moco_plugin.transfer.launch import Machines, default_gpus

    gpus = default_gpus() if args.gpus is None else args.gpus
    return Machines(gpus, args.num_machines, args.machine_rank, args.dist_url)


def _own_data(args: argparse.Namespace) -> int:
    moco_plugin.transfer.register()
    from moco_plugin.detectors.dataset import Sources
    from moco_plugin.detectors.train import Starts, train_on_own_data
    from moco_plugin.pages.comparison import compare_starts, comparison_table, write_comparison

    if args.task:
        raise UsageError(f"--task {args.task} and own data exclude each other; leave one out")
    semantic = args.train_labels is not None
    train, test = (args.train_labels, args.test_labels) if semantic else (args.train, args.test)
    out = args.out or Path("runs/detector")
    recipe, results = train_on_own_data(
        Sources(train, args.train_images, test, args.test_images, semantic, args.seed, args.value_range),
        Starts(args.weights, args.init, args.compare, args.supervised, args.continued),
        model=args.model,
        out=out,
        trials=args.trials or (3 if args.compare else 1),
        machines=_machines(args),
        overrides=args.overrides,
        overwrite=args.overwrite,
        check=args.check,
    )
    if args.check:
        print(f"checked; the prepared data are in {out / 'data'}")
    elif not args.machine_rank:
        print(f"\n{comparison_table(recipe.task, results).text()}\n")
        if args.compare:
            verdicts = compare_starts(out, recipe, results)
            print(f"{verdicts}\n\nwritten: {write_comparison(out, recipe, results, verdicts)}")
        else:
            print(f"the detector: {out / results[0]['trials'][0]['folder'] / 'model_final.pth'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

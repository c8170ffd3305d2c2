#!/usr/bin/env python3
"""Measure speed, memory and traffic, compared with a peer in the same run."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import moco_plugin  # noqa: F401
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.errors import command

EXAMPLES = """examples:
  %(prog)s views
  %(prog)s load --config runs/photos/config.yaml
  %(prog)s contrast
  %(prog)s step
  %(prog)s step --backbone resnet50 --image-size 224 --device cuda --precision bfloat16
  %(prog)s traffic --processes 2 4 8
  %(prog)s convert
  %(prog)s accuracy --minutes 15
  %(prog)s recipes --set stamps
  %(prog)s gpu-check --cpu
"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line, measure, and print a table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    what = parser.add_subparsers(dest="what", required=True)
    step = what.add_parser("step", help="a training step of MoCo v2, against its encoders alone and lightly's")
    step.add_argument("--backbone", default="resnet18", help="a timm model (default %(default)s)")
    step.add_argument("--image-size", type=int, default=64, help="pixels (default %(default)s)")
    step.add_argument("--batch-size", type=int, default=64, help="default %(default)s")
    step.add_argument("--queue-size", type=int, default=65536, help="K (default %(default)s)")
    step.add_argument("--rounds", type=int, default=30, help="steps of each (default %(default)s)")
    step.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default %(default)s")
    precisions = ["float32", "bfloat16", "float16"]
    step.add_argument("--precision", choices=precisions, default="float32", help="default %(default)s")
    step.add_argument("--compile", action="store_true", help="compile the encoders")
    views = what.add_parser("views", help="two views of JPEG files on one core, compared with other pipelines")
    views.add_argument("--root", help="images, as data.root (default: cuts of scikit-learn's two photographs)")
    views.add_argument("--image-size", type=int, default=224, help="pixels (default %(default)s)")
    views.add_argument("--images", type=int, default=32, help="images per call, at most (default %(default)s)")
    views.add_argument("--rounds", type=int, default=10, help="default %(default)s")
    views.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="device of engine=device (default %(default)s)"
    )
    contrast = what.add_parser("contrast", help="contrast with a queue, against the released formulation")
    contrast.add_argument("--batch-size", type=int, default=256, help="N (default %(default)s)")
    contrast.add_argument("--dim", type=int, default=128, help="C (default %(default)s)")
    contrast.add_argument("--queue-size", type=int, default=65536, help="K (default %(default)s)")
    contrast.add_argument("--rounds", type=int, default=10, help="default %(default)s")
    contrast.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default %(default)s")
    load = what.add_parser("load", help="which part of a run is the slowest, and what to change")
    load.add_argument("--config", help="a config file or the name of a shipped one")
    load.add_argument("--batches", type=int, default=4, help="batches of each part (default %(default)s)")
    load.add_argument("overrides", nargs="*", metavar="key=value", help="as for tools/pretrain.py")
    cost = what.add_parser(
        "cost", help="images per second that a cost model predicts for numbers of GPUs, and the limit"
    )
    cost.add_argument("--backbone", default="resnet50", help="a timm model (default %(default)s)")
    cost.add_argument("--image-size", type=int, default=224, help="pixels (default %(default)s)")
    cost.add_argument("--batch-size", type=int, default=32, help="images of each GPU (default %(default)s)")
    cost.add_argument("--queue-size", type=int, default=65536, help="K; 0 for v3 (default %(default)s)")
    cost.add_argument("--symmetric", action="store_true", help="both views are query and key, as in v3")
    cost.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 256, 1024], help="default 1 8 64 256 1024")
    cost.add_argument("--teraflops", type=float, default=100.0, help="that a GPU sustains (default %(default)s)")
    cost.add_argument("--cores", type=int, default=8, help="for each GPU's loader processes (default %(default)s)")
    cost.add_argument("--engine", choices=["fast", "device", "reference"], default="fast", help="default %(default)s")
    cost.add_argument("--gigabytes-per-second", type=float, default=10.0, help="between GPUs (default %(default)s)")
    traffic = what.add_parser(
        "traffic", help="bytes that a process sends to shuffle keys, against gathering all images"
    )
    traffic.add_argument("--processes", type=int, nargs="+", default=[2, 4, 8], help="default 2 4 8")
    traffic.add_argument("--batch-size", type=int, default=8, help="images of a process (default %(default)s)")
    traffic.add_argument("--image-size", type=int, default=64, help="pixels (default %(default)s)")
    traffic.add_argument("--rounds", type=int, default=10, help="default %(default)s")
    gpu_check = what.add_parser(
        "gpu-check", help="check a GPU: results compared with the CPU, speed, and complete runs"
    )
    gpu_check.add_argument("--cpu", dest="device", action="store_const", const="cpu", default="cuda", help="rehearse")
    convert = what.add_parser(
        "convert", help="CPU seconds and memory of a conversion to detectron2 with proof, against renaming alone"
    )
    convert.add_argument("--file", type=Path, help="an official MoCo v1/v2 checkpoint (default: random weights)")
    convert.add_argument("--backbone", default="resnet50", help="of the random weights (default %(default)s)")
    convert.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    accuracy = what.add_parser(
        "accuracy", help="accuracy of features by CPU seconds: ours, and what lightly and LightlyTrain document"
    )
    accuracy.add_argument("--minutes", type=float, default=15.0, help="CPU time of a training (default %(default)s)")
    accuracy.add_argument("--images", type=int, default=40_000, help="to train on (default %(default)s)")
    accuracy.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    accuracy.add_argument("--contestants", nargs="+", metavar="NAME", help="default: all; a wrong name lists them")
    accuracy.add_argument("--folder", type=Path, help="for images, trainings and the picture (default runs/accuracy)")
    recipes = what.add_parser("recipes", help="a search for the recipe of the best features after some CPU time")
    recipes.add_argument("--set", dest="set_name", choices=["fashion", "stamps"], default="fashion", help="of images")
    recipes.add_argument("--minutes", type=float, default=3.0, help="CPU time of a training (default %(default)s)")
    recipes.add_argument("--seeds", type=int, nargs="+", default=[0], help="of each recipe (default 0)")
    recipes.add_argument("--rounds", type=int, default=1, help="through all settings (default %(default)s)")
    recipes.add_argument("--folder", type=Path, help="for what was measured (default runs/recipes)")
    for measurement in (accuracy, recipes, views, load, contrast, step, cost, traffic, gpu_check, convert):
        measurement.add_argument("--out", type=Path, help="also write the result to this JSON file")
    args = vars(parser.parse_args(argv))
    what_to_measure, out = args.pop("what"), args.pop("out")

    from moco_plugin.files import write_json

    module = {"accuracy": "accuracy.compare", "recipes": "accuracy.recipes"}.get(
        what_to_measure, what_to_measure.replace("-", "_")
    )
    measure = importlib.import_module(f"moco_plugin.benchmarks.{module}").measure
    result = measure(**{key: value for key, value in args.items() if value is not None})
    for name, row in result["results"].items():
        values = (f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print(f"{name:>16}  " + "  ".join(values))
    for sentence in result.get("advice", ()):
        print(sentence)
    print(json.dumps({key: value for key, value in result.items() if key not in ("results", "advice")}))
    if out:
        write_json(out, result)
    return 1 if result.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())

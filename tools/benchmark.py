#!/usr/bin/env python3
"""Measure speed, memory and traffic, compared with a peer in the same run."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from moco_plugin.errors import command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.tools import add_command, new_parser, parse

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
MODULES = {"accuracy": "accuracy.compare", "recipes": "accuracy.recipes", "gpu-check": "gpu_check"} | {
    name: name for name in ("views", "load", "contrast", "step", "cost", "traffic", "convert")
}


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line, measure, and print a table."""
    parser = new_parser(__doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, module in MODULES.items():
        measurement, _ = add_command(commands, name, f"moco_plugin.benchmarks.{module}", "measure")
        measurement.add_argument("--out", type=Path, help="also write the result to this JSON file")
    args = parse(parser, list(sys.argv[1:] if argv is None else argv))
    module, out = MODULES[args.pop("what")], args.pop("out")

    from moco_plugin.files import write_json

    result = importlib.import_module(f"moco_plugin.benchmarks.{module}").measure(**args)
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

#!/usr/bin/env python3
"""Run the whole path on real images: pre-training with MoCo, evaluation, conversion and detection."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from moco_plugin.errors import command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.tools import new_parser

EXAMPLES = """examples:
  %(prog)s
  %(prog)s --quick

An interrupted demo resumes."""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and run the demo."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("--quick", action="store_true", help="every stage at toy size, to see that it works")
    parser.add_argument("--trials", type=int, help="of each detector from each initialisation (default 3, quick 1)")
    parser.add_argument("--out", type=Path, help="folder for everything (default runs/demo or runs/demo_quick)")
    parser.add_argument("--images", type=Path, help="folder with Fashion-MNIST's four files (default: found or got)")
    parser.add_argument("--seed", type=int, default=0, help="of the pre-training (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder")
    args = parser.parse_args(argv)

    from moco_plugin.demo.run import Demo

    folder = args.out or Path("runs/demo_quick" if args.quick else "runs/demo")
    if args.overwrite and folder.exists():
        shutil.rmtree(folder)
    Demo(folder, args.quick, args.images, args.seed).run(args.trials or (1 if args.quick else 3))
    return 0


if __name__ == "__main__":
    sys.exit(main())

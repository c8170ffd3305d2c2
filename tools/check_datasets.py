#!/usr/bin/env python3
"""Report for each transfer task which data sets are complete, what is missing and where to get it."""

import os
import sys
from collections.abc import Sequence

try:
    import moco_plugin.transfer
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.errors import UsageError, command
from moco_plugin.tools import new_parser

EXAMPLES = """examples:
  %(prog)s
  %(prog)s --root /data/detectron2 voc_c4 lvis

Nothing is downloaded. The exit code is 0 if everything asked for was found, else 1. Tasks are those of
tools/transfer.py; lvis stands for lvis_1x and lvis_2x, and so on."""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and print the table."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="tasks to look at (default: all)")
    parser.add_argument("--root", help="folder of the data sets (default: $DETECTRON2_DATASETS, or datasets)")
    args = parser.parse_args(argv)

    if args.root is not None:
        if not os.path.isdir(args.root):
            raise UsageError(f"--root {args.root} is not a folder")
        os.environ["DETECTRON2_DATASETS"] = args.root  # read when detectron2 is imported
    moco_plugin.transfer.register()
    from moco_plugin.transfer.checks import list_datasets

    table, whole = list_datasets(args.tasks)
    print(table)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())

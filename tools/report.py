#!/usr/bin/env python3
"""Write the page of a pre-training run, or gather results into the papers' tables and a page."""

import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from moco_plugin.errors import UsageError, command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.files import check_output
from moco_plugin.tools import new_parser

EXAMPLES = """examples:
  %(prog)s runs/photos
  %(prog)s runs/transfer
  %(prog)s runs --out results.html

A folder with one pre-training run gets that run's page. Else, found at any depth: runs of tools/transfer.py, and
JSON files that tools/evaluate.py --out wrote."""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line, print the tables and write the page."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("folder", type=Path, help="folder of results")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")
    args = parser.parse_args(argv)
    out = args.out or args.folder / "report.html"
    if out.suffix != ".html":
        raise UsageError(f"--out {out} does not end in .html, as a page does")

    check_output(out, args.overwrite)
    from moco_plugin.pages.pretraining_page import is_pretraining, write_pretraining_page
    from moco_plugin.pages.transfer_page import write_report

    print(write_pretraining_page(args.folder, out) if is_pretraining(args.folder) else write_report(args.folder, out))
    print(f"\nthe page, with curves and pictures: {out.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

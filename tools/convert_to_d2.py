#!/usr/bin/env python3
"""Convert a checkpoint to a detectron2 .pkl and prove it: short for tools/convert.py --to detectron2."""

import sys
from collections.abc import Sequence

try:
    from moco_plugin.errors import command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.files import check_checkpoint
from moco_plugin.tools import new_parser


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and convert."""
    parser = new_parser(__doc__, "example: %(prog)s moco_v2_200ep moco_v2_200ep.pkl")
    parser.add_argument("input", metavar="IN", help="a checkpoint; its layout is found by its content")
    parser.add_argument("output", metavar="OUT.pkl", help="the detectron2 file to write")
    parser.add_argument("--encoder", choices=("query", "key"), default="query", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.pkl if it exists")
    args = parser.parse_args(argv)
    check_checkpoint(args.input)

    from moco_plugin.checkpoints.convert import convert

    convert(args.input, args.output, "detectron2", encoder=args.encoder, overwrite=args.overwrite)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""LightlyTrain's own command, with MoCo (moco, moco_v1, moco_v2, moco_v3) among its methods."""

import argparse
import sys
from collections.abc import Sequence

try:
    from moco_plugin.errors import command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.tools import new_parser

EXAMPLES = """examples:
  %(prog)s list_methods
  %(prog)s pretrain out=runs/photos data=photos model=timm/resnet50 method=moco
  %(prog)s pretrain help
  %(prog)s export checkpoint=runs/photos/checkpoints/last.ckpt out=photos.pt"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Hand the command line to LightlyTrain."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND key=value", help="as of lightly-train")
    args = parser.parse_args(argv)

    from moco_plugin.integrations.lightly_train import run

    return run(args.arguments)


if __name__ == "__main__":
    sys.exit(main())

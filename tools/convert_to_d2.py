#!/usr/bin/env python3
"""Converts a MoCo checkpoint (ours, or an official v1/v2 .pth.tar) to a detectron2 .pkl, and proves it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from moco_plugin.errors import UsageError, command

EXAMPLES = """example:
  %(prog)s moco_v2_200ep_pretrain.pth.tar moco_v2_200ep.pkl
  moco-train-net --config-file voc/pascal_voc_R_50_C4_24k_moco MODEL.WEIGHTS moco_v2_200ep.pkl"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parses the command line and converts."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="IN", help="a checkpoint; its layout is found by its content")
    parser.add_argument("output", metavar="OUT.pkl", help="the detectron2 file to write")
    parser.add_argument("--encoder", choices=("query", "key"), default="query", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.pkl if it exists")
    args = parser.parse_args(argv)
    if not args.output.endswith(".pkl"):
        raise UsageError(f"{args.output} does not end in .pkl, by which detectron2 knows its own format")

    from moco_plugin.checkpoints.read import read_checkpoint
    from moco_plugin.files import check_output
    from moco_plugin.transfer.convert import convert_to_detectron2

    check_output(args.output, args.overwrite)
    checkpoint = read_checkpoint(args.input, args.encoder)
    print(
        f"{args.input}: {checkpoint.layout}, {checkpoint.architecture}, {checkpoint.method}, epoch {checkpoint.epoch}"
    )
    for stage, difference in convert_to_detectron2(checkpoint, args.output, args.overwrite).items():
        print(f"{stage}: largest difference between timm and detectron2 {difference:.2e}")
    print(f"written: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Convert any checkpoint to detectron2, timm, torchvision or LightlyTrain, and prove that it computes the same.

`inspect` says what a checkpoint is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from moco_plugin.errors import command

EXAMPLES = """examples:
  %(prog)s inspect moco_v2_200ep_pretrain.pth.tar
  %(prog)s moco_v2_200ep_pretrain.pth.tar moco_v2_200ep.pkl --to detectron2
  %(prog)s runs/photos/checkpoints/last.ckpt photos --to timm        # timm.create_model('local-dir:photos', pretrained=True)
  %(prog)s runs/photos/checkpoints/last.ckpt photos.safetensors --to timm
  %(prog)s vit-s-300ep.pth.tar vit_s.pth --to torchvision --encoder key
  %(prog)s moco_v2_200ep.pkl photos.pth --to lightly-train"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and converts or inspects."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    inspecting = arguments[:1] == ["inspect"]
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s inspect FILE [--encoder ...] [--architecture NAME]\n"
        "       %(prog)s FILE OUTPUT --to {detectron2,detectron2-timm,timm,torchvision,lightly-train}\n"
        "                  [--encoder {query,key}] [--architecture NAME] [--overwrite]",
    )
    parser.add_argument("file", metavar="FILE", help="a checkpoint; its layout is found by its content")
    if not inspecting:
        parser.add_argument(
            "output",
            metavar="OUTPUT",
            help="detectron2: .pkl; timm: .pth, .safetensors or a folder; torchvision: .pth or .safetensors; "
            "lightly-train: .pth",
        )
        parser.add_argument(
            "--to",
            required=True,
            choices=("detectron2", "detectron2-timm", "timm", "torchvision", "lightly-train"),
            help="whose file to write; detectron2: for its own ResNet, or for build_timm_backbone where the network is "
            "another; detectron2-timm: for build_timm_backbone always",
        )
        parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument(
        "--encoder", choices=("query", "key"), default="query", help="where there are two (default: %(default)s)"
    )
    parser.add_argument(
        "--architecture", metavar="NAME", help="timm's name of the backbone, where the weights do not say it"
    )
    args = parser.parse_args(arguments[inspecting:])

    if inspecting:
        from moco_plugin.checkpoints.describe import describe
        from moco_plugin.checkpoints.read import read_checkpoint

        print("\n".join(describe(read_checkpoint(args.file, args.encoder, args.architecture))))
        return 0
    from moco_plugin.conversion import convert

    convert(
        args.file, args.output, args.to, encoder=args.encoder, architecture=args.architecture, overwrite=args.overwrite
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Convert any checkpoint to detectron2, timm, torchvision, LightlyTrain or ONNX, and prove that it computes the same.

`inspect FILE` says what a checkpoint is."""

import sys
from collections.abc import Sequence
from typing import Any

try:
    from moco_plugin.errors import UsageError, command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.checkpoints import known_formats
from moco_plugin.files import check_checkpoint
from moco_plugin.safe_yaml import parse_yaml
from moco_plugin.tools import new_parser

EXAMPLES = """examples:
  %(prog)s inspect moco_v2_200ep_pretrain.pth.tar
  %(prog)s moco_v2_200ep_pretrain.pth.tar moco_v2_200ep.pkl --to detectron2
  %(prog)s runs/photos/checkpoints/last.ckpt photos-timm --to timm  # a folder for timm.create_model('local-dir:photos-timm')
  %(prog)s runs/photos/checkpoints/last.ckpt photos.safetensors --to timm
  %(prog)s vit-s-300ep.pth.tar vit_s.pth --to torchvision --encoder key
  %(prog)s moco_v2_200ep.pkl photos.pth --to lightly-train
  %(prog)s vit_s_linear.pth vit_s.pkl --to detectron2 --architecture vit_small_patch16_224 num_heads=12"""


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Return KEY=VALUE pairs as arguments, with values as YAML has them."""
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--architecture takes a name and KEY=VALUE, got {pair!r}")
    return {
        key: parse_yaml(value, f"--architecture {key}") for key, _, value in (pair.partition("=") for pair in pairs)
    }


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line, and convert or inspect."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    inspecting = arguments[:1] == ["inspect"]
    names = sorted(known_formats().names)
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("file", metavar="FILE", help="a checkpoint; its layout is found by its content")
    if not inspecting:
        parser.add_argument("output", metavar="OUTPUT", help="what its name may end in depends on --to")
        parser.add_argument(
            "--to",
            required=True,
            choices=names or None,
            help="whose file to write; detectron2: for its own ResNet, or for build_timm_backbone where the network is "
            "another; detectron2-timm: for build_timm_backbone always",
        )
        parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument(
        "--encoder", choices=("query", "key"), default="query", help="where there are two (default: %(default)s)"
    )
    parser.add_argument(
        "--architecture",
        nargs="+",
        metavar=("NAME", "KEY=VALUE"),
        help="timm's name of the backbone, where the weights do not determine it, and arguments of timm.create_model",
    )
    parser.add_argument("--prefix", help="prefix of the encoder's names, where no layout is recognised")
    args = parser.parse_args(arguments[inspecting:])
    architecture, *pairs = args.architecture or [None]
    reading = {
        "encoder": args.encoder,
        "architecture": architecture,
        "arguments": parse_arguments(pairs),
        "prefix": args.prefix,
    }
    check_checkpoint(args.file)

    from moco_plugin.checkpoints.convert import convert, describe
    from moco_plugin.checkpoints.read import read_checkpoint

    if inspecting:
        print("\n".join(describe(read_checkpoint(args.file, **reading))))
    else:
        convert(args.file, args.output, args.to, overwrite=args.overwrite, **reading)
    return 0


if __name__ == "__main__":
    sys.exit(main())

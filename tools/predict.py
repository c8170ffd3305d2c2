#!/usr/bin/env python3
"""Draw the predictions of a trained model for images into PNG files: boxes, masks, keypoints or segmentation."""

import argparse
import sys
from collections.abc import Sequence

try:
    import moco_plugin.transfer
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.errors import command
from moco_plugin.tools import new_parser

EXAMPLES = """examples:
  %(prog)s --weights runs/detector/trial_1/model_final.pth --out pictures --json found.json photos
  %(prog)s --config-file voc/pascal_voc_R_50_C4_24k_moco --weights runs/voc/model_final.pth \\
      --out pictures photos/street.jpg photos/garden.jpg
  %(prog)s --config-file demo/scenes_R_18_FPN_quarter --weights runs/scenes/model_final.pth \\
      --out pictures --threshold 0.3 datasets/scenes/JPEGImages"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and draw."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--config-file", metavar="FILE", help="what the weights were trained with (default: what the model file says)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the detections, in COCO's form")
    parser.add_argument("--coco", metavar="FILE", help="a COCO file of the images; --json uses its image ids")
    deep = "values of black and white in images of more than 8 bits (default: as in training)"
    parser.add_argument("--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help=deep)
    parser.add_argument("--weights", required=True, metavar="FILE", help="such as runs/voc/model_final.pth")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the pictures go")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="smallest score that is drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="change the config; the last option"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing pictures")
    args = parser.parse_args(argv)

    moco_plugin.transfer.register()
    from moco_plugin.detectors.predict import predict

    pictures = predict(
        args.config_file,
        args.weights,
        args.images,
        args.out,
        results=args.json,
        threshold=args.threshold,
        overrides=args.opts,
        overwrite=args.overwrite,
        value_range=args.value_range,
        coco=args.coco,
    )
    print(f"{len(pictures)} drawn into {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

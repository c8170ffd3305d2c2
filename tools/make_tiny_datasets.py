#!/usr/bin/env python3
"""Write tiny data sets of real images in the layouts of VOC, SBD, COCO, LVIS v0.5 and Cityscapes."""

import sys
from collections.abc import Sequence

try:
    from moco_plugin.errors import UsageError, command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.tools import new_parser

EXAMPLES = """examples:
  %(prog)s datasets-tiny \\
      --train 'fashion-mnist/train-images-idx3-ubyte.gz[0:1000]' \\
      --test 'fashion-mnist/t10k-images-idx3-ubyte.gz[0:1000]'
  %(prog)s datasets-tiny --images /usr/share/tuxpaint/stamps
  DETECTRON2_DATASETS=datasets-tiny tools/train_net.py --config-file voc/pascal_voc_R_50_C4_24k_random \\
      SOLVER.MAX_ITER 20 SOLVER.STEPS '()' SOLVER.IMS_PER_BATCH 2 OUTPUT_DIR runs/try

With num-test 7 or more, every class of VOC is tested. DensePose's annotations, which say where on a body each
pixel is, are not among the files."""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and write the data sets."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("output", help="folder to make, for DETECTRON2_DATASETS")
    source = "idx images file of objects to %s on, with an optional [start:stop]; its labels are in the same folder"
    parser.add_argument("--train", metavar="FILE", help=source % "train")
    parser.add_argument("--test", metavar="FILE", help=source % "test")
    parser.add_argument(
        "--images", metavar="FOLDER", help="in their place, photos of objects: PNG with transparency, by kind"
    )
    parser.add_argument("--num-train", type=int, default=8, help="training images each (default: %(default)s)")
    parser.add_argument("--num-test", type=int, default=8, help="test images each (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="height in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing tiny data sets")
    args = parser.parse_args(argv)

    from moco_plugin.demo.tiny_datasets import make_tiny_datasets
    from moco_plugin.demo.tiny_scenes import group_looks, read_photos
    from moco_plugin.sources.idx import load_idx_images

    if args.images and not args.train and not args.test:
        train, test = (group_looks(*objects) for objects in read_photos(args.images)[:2])
    elif args.train and args.test and not args.images:
        train, test = (group_looks(*load_idx_images(spec)[:2]) for spec in (args.train, args.test))
    else:
        raise UsageError("give either --train and --test, or --images")
    make_tiny_datasets(
        args.output,
        train,
        test,
        num_train=args.num_train,
        num_test=args.num_test,
        size=args.size,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    print(f"tiny data sets written; use them with DETECTRON2_DATASETS={args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

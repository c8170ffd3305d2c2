#!/usr/bin/env python3
"""Compose detection scenes with boxes and masks from object images, such as Fashion-MNIST, or from photos of objects."""

import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from moco_plugin.errors import UsageError, command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.demo.objects import make_objects
from moco_plugin.demo.scenes import make_scenes
from moco_plugin.tools import new_parser

EXAMPLES = """example:
  %(prog)s datasets/scenes \\
      --train 'fashion-mnist/train-images-idx3-ubyte.gz[40000:60000]' \\
      --test fashion-mnist/t10k-images-idx3-ubyte.gz
  %(prog)s photos --photos /usr/share/tuxpaint/stamps --num-train 70 --num-test 300"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and compose the scenes."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("output", help="folder to make; detectron2 looks for $DETECTRON2_DATASETS/scenes")
    source = "idx images file for the %s scenes, with an optional [start:stop]; its labels are in the same folder"
    parser.add_argument("--train", metavar="FILE", help=source % "training")
    parser.add_argument("--test", metavar="FILE", help=source % "test")
    parser.add_argument(
        "--photos", metavar="FOLDER", help="instead, photos of objects: PNG with transparency, a folder for each class"
    )
    parser.add_argument(
        "--objects",
        action="store_true",
        help="write pictures of one object each, at random places and sizes, as idx files",
    )
    parser.add_argument("--num-train", type=int, default=60, help="training scenes (default: %(default)s)")
    parser.add_argument("--num-test", type=int, default=100, help="test scenes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=160, help="side in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing scenes")
    args = parser.parse_args(argv)

    from moco_plugin.demo.tiny_scenes import read_photos
    from moco_plugin.sources.idx import load_idx_images

    if args.photos and not (args.train or args.test or args.objects):
        train, test, names = read_photos(args.photos)
    elif args.train and args.test and not args.photos:
        *train, names = load_idx_images(args.train)
        test = load_idx_images(args.test)[:2]
    else:
        raise UsageError("give either --train and --test, or --photos")
    if args.objects:
        make_objects(Path(args.output), train, test, args.overwrite)
        print(f"{len(train[0])} training and {len(test[0])} test pictures written to {args.output}")
        return 0
    make_scenes(
        args.output,
        train,
        test,
        names,
        num_train=args.num_train,
        num_test=args.num_test,
        size=args.size,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    print(f"{args.num_train} training and {args.num_test} test scenes written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

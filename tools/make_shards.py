#!/usr/bin/env python3
"""Pack a folder or list of images into tar shards with indexes, which are read at random, also from a server."""

import sys
from collections.abc import Sequence

try:
    from moco_plugin.errors import command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.tools import new_parser

EXAMPLES = """example:
  %(prog)s photos shards/photos
  %(prog)s photos shards/photos --short-side 320
  %(prog)s 'imagenet/train.txt[0:100000]' shards/part --images-per-shard 2000

then train with data.root=shards, or data.root='https://host/shards/photos-{0000..0099}.tar'"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and pack the images."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("images", help="folder or .txt list of images, with an optional [start:stop]")
    parser.add_argument("output", help="folder and first part of the names: shards/photos for shards/photos-0000.tar")
    parser.add_argument("--images-per-shard", type=int, default=10000, help="images per shard (default: %(default)s)")
    parser.add_argument(
        "--short-side",
        type=int,
        metavar="PIXELS",
        help="shrink larger images to this short side, as JPEG of quality 90, or TIFF where they have more "
        "than 8 bits (320 is enough for 224-pixel views)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing shards")
    args = parser.parse_args(argv)

    from moco_plugin.data.images import ImageSet
    from moco_plugin.sources.shard_writer import make_shards

    images = ImageSet(args.images)
    shards = make_shards(
        images,
        args.output,
        images_per_shard=args.images_per_shard,
        short_side=args.short_side,
        overwrite=args.overwrite,
    )
    first, last = (shard.stem.rpartition("-")[2] for shard in (shards[0], shards[-1]))
    print(f"{len(images)} images in data.root='{args.output}-{{{first}..{last}}}.tar'")
    return 0


if __name__ == "__main__":
    sys.exit(main())

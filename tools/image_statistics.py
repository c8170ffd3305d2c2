#!/usr/bin/env python3
"""Measure the mean and the standard deviation of each channel of an image set, for data.mean and data.std."""

import sys
from collections.abc import Sequence

try:
    from moco_plugin.errors import UsageError, command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.tools import new_parser

EXAMPLES = """examples:
  %(prog)s photos
  %(prog)s tiles --channels 4
  %(prog)s tiles --channels 13 --value-range 0 10000"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and measure."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("images", help="a folder, a list, shards, a zip archive or an idx images file")
    parser.add_argument("--channels", type=int, default=3, help="of the images (default: %(default)s)")
    parser.add_argument("--count", type=int, default=1000, help="images to read (default: %(default)s)")
    parser.add_argument(
        "--value-range",
        type=float,
        nargs="+",
        metavar="VALUE",
        help="of images of more than 8 bits, what becomes black and white: two values, or two per channel",
    )
    args = parser.parse_args(argv)
    if args.channels < 1 or args.count < 1:
        raise UsageError("--channels and --count must be at least 1")
    if args.value_range and len(args.value_range) not in (2, 2 * args.channels):
        raise UsageError(f"--value-range has {len(args.value_range)} values; expected two, or two per channel")

    from moco_plugin.data.images import ImageSet
    from moco_plugin.data.statistics import describe_statistics, measure_statistics

    images = ImageSet(args.images, args.value_range, args.channels)
    print(describe_statistics(*measure_statistics(images, args.count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

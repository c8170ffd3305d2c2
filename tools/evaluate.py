#!/usr/bin/env python3
"""Evaluates the frozen features of a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from moco_plugin.errors import command

EXAMPLES = """example:
  %(prog)s knn --weights runs/photos/checkpoints/last.ckpt --train photos/train --test photos/val
"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parses the command line and evaluates."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    protocols = parser.add_subparsers(dest="protocol", required=True)
    knn = protocols.add_parser(
        "knn", help="weighted votes of the nearest neighbours", epilog=EXAMPLES.replace("%(prog)s knn", "%(prog)s"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    knn.add_argument("--weights", required=True, help="a checkpoint of any layout that convert_to_d2 reads")
    knn.add_argument(
        "--train", required=True, help="labelled images that vote: a folder, or an idx images file"
    )
    knn.add_argument(
        "--test", required=True, help="labelled images to classify; [start:stop] takes a part of either"
    )
    knn.add_argument(
        "--untrained", action="store_true", help="random weights in the same network, as a baseline"
    )
    knn.add_argument("--k", type=int, default=200, help="neighbours (default %(default)s)")
    knn.add_argument(
        "--temperature", type=float, default=0.1, help="votes weigh exp(sim / T) (default %(default)s)"
    )
    knn.add_argument("--encoder", choices=("query", "key"), default="query", help="default: %(default)s")
    knn.add_argument("--image-size", type=int, help="side of the test view (default: as trained)")
    knn.add_argument("--batch-size", type=int, default=256, help="default: %(default)s")
    knn.add_argument("--workers", type=int, default=0, help="loader processes (default %(default)s)")
    knn.add_argument("--out", help="also write the result to this JSON file")
    knn.add_argument("--overwrite", action="store_true", help="replace the JSON file if it exists")
    args = parser.parse_args(argv)

    from moco_plugin.evaluation.run import evaluate_knn

    evaluate_knn(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())

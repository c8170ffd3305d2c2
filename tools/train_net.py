#!/usr/bin/env python3
"""Train and evaluate a detector: detectron2's train_net with our components, configs and checks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import moco_plugin.transfer  # noqa: F401  (prepares detectron2 in the processes that its launcher spawns)
from moco_plugin.errors import command

EXAMPLES = """examples:
  %(prog)s --config-file voc/pascal_voc_R_50_C4_24k_moco --num-gpus 8 \\
      MODEL.WEIGHTS moco_v2_200ep.pkl OUTPUT_DIR runs/voc
  %(prog)s --config-file demo/scenes_R_18_FPN_quarter OUTPUT_DIR runs/scenes
  %(prog)s --config-file demo/scenes_R_18_FPN_quarter --eval-only \\
      MODEL.WEIGHTS runs/scenes/model_final.pth OUTPUT_DIR runs/scenes-eval"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse detectron2's command line and ours, and train."""
    from moco_plugin.transfer.trainer import Machines, train  # isort: skip  (before detectron2, which it prepares)
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(epilog=EXAMPLES)
    parser.description = __doc__
    parser.add_argument("--allow-partial", action="store_true", help="let part of the backbone stay random")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that OUTPUT_DIR holds")
    args = parser.parse_args(argv)

    train(
        args.config_file,
        args.opts,
        resume=args.resume,
        eval_only=args.eval_only,
        overwrite=args.overwrite,
        allow_partial=args.allow_partial,
        machines=Machines(args.num_gpus, args.num_machines, args.machine_rank, args.dist_url),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

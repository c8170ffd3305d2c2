#!/usr/bin/env python3
"""Trains and evaluates a detector: detectron2's train_net with our components, configs and checks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from moco_plugin.config import find_config
from moco_plugin.errors import command

EXAMPLES = """examples:
  %(prog)s --config-file voc/pascal_voc_R_50_C4_24k_moco --num-gpus 8 \\
      MODEL.WEIGHTS moco_v2_200ep.pkl OUTPUT_DIR runs/voc
  %(prog)s --config-file demo/scenes_R_18_FPN_quarter OUTPUT_DIR runs/scenes
  %(prog)s --config-file demo/scenes_R_18_FPN_quarter --eval-only \\
      MODEL.WEIGHTS runs/scenes/model_final.pth OUTPUT_DIR runs/scenes-eval"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parses detectron2's command line and ours, and launches."""
    from moco_plugin.transfer import trainer  # noqa: I001  (must come before detectron2 itself)
    from detectron2.engine import default_argument_parser, launch

    parser = default_argument_parser(epilog=EXAMPLES)
    parser.description = __doc__
    parser.add_argument("--allow-partial", action="store_true", help="let part of the backbone stay random")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that OUTPUT_DIR holds")
    args = parser.parse_args(argv)

    cfg = trainer.prepare(args)
    args.config_file = str(find_config(args.config_file, "detectron2"))  # detectron2 logs what is in it
    launch(
        trainer.run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(cfg, args),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

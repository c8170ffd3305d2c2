#!/usr/bin/env python3
"""Train and evaluate a detector: detectron2's train_net with our components, configs and checks."""

import argparse
import sys
from collections.abc import Sequence

try:
    import moco_plugin.transfer  # prepares detectron2 in the processes that its launcher spawns
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.errors import command
from moco_plugin.tools import new_parser

EXAMPLES = """examples:
  %(prog)s --config-file voc/pascal_voc_R_50_C4_24k_moco --num-gpus 8 \\
      MODEL.WEIGHTS moco_v2_200ep.pkl OUTPUT_DIR runs/voc
  %(prog)s --config-file demo/scenes_R_18_FPN_quarter OUTPUT_DIR runs/scenes
  %(prog)s --config-file demo/scenes_R_18_FPN_quarter --eval-only \\
      MODEL.WEIGHTS runs/scenes/model_final.pth OUTPUT_DIR runs/scenes-eval"""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse detectron2's command line and ours, and train."""
    parser = new_parser(__doc__, EXAMPLES)
    parser.add_argument("--config-file", default="", metavar="FILE", help="a path, or a name below configs/detectron2")
    parser.add_argument("--resume", action="store_true", help="resume the run in OUTPUT_DIR, if there is one")
    parser.add_argument("--eval-only", action="store_true", help="only evaluate MODEL.WEIGHTS")
    parser.add_argument("--num-gpus", type=int, default=1, help="of each machine (default: %(default)s)")
    parser.add_argument("--num-machines", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine (default: %(default)s)")
    parser.add_argument("--dist-url", help="where the machines meet, such as tcp://10.0.0.1:29500")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="change the config, as in detectron2's train_net"
    )
    parser.add_argument("--allow-partial", action="store_true", help="let part of the backbone stay random")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in OUTPUT_DIR")
    args = parser.parse_args(argv)

    moco_plugin.transfer.register()
    from moco_plugin.transfer.launch import Machines
    from moco_plugin.transfer.trainer import Options, train

    train(
        args.config_file,
        args.opts,
        Options(args.resume, args.eval_only, args.allow_partial),
        overwrite=args.overwrite,
        machines=Machines(args.num_gpus, args.num_machines, args.machine_rank, args.dist_url),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

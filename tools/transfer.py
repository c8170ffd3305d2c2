#!/usr/bin/env python3
"""Run a transfer experiment of the papers: several trials, with mean and standard deviation beside the papers'."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import moco_plugin.transfer  # noqa: F401  (prepares detectron2 in the processes that its launcher spawns)
from moco_plugin.errors import UsageError, command

EXAMPLES = """examples:
  %(prog)s --list
  %(prog)s --task voc_c4 --weights moco_v2_200ep --trials 5 --gpus 8
  %(prog)s --task coco_fpn_1x --weights runs/photos/checkpoints/last.ckpt --images-per-batch 4
  %(prog)s --task voc_c4 --init random --out runs/voc_c4_random SOLVER.CHECKPOINT_PERIOD 1000

The same command resumes an interrupted experiment and keeps finished trials. tools/report.py gathers the results."""


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and runs the trials."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="show the tasks, and do nothing")
    parser.add_argument("--task", help="which experiment; --list shows them")
    parser.add_argument(
        "--weights",
        metavar="W",
        help="a checkpoint that convert_to_d2 reads, a released one's name (moco_v2_200ep), or a detectron2 .pkl",
    )
    parser.add_argument(
        "--init",
        choices=("moco", "supervised", "random"),
        help="whose config; supervised takes detectron2's weights unless --weights is given (default: moco)",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=5,
        help="default: %(default)s, as the paper for VOC, LVIS and semantic segmentation",
    )
    parser.add_argument(
        "--images-per-batch",
        type=int,
        metavar="N",
        help="images of all GPUs together; scales learning rate, warm-up, drops and length (default: the paper's)",
    )
    parser.add_argument("--gpus", type=int, help="of this machine (default: all)")
    parser.add_argument("--num-machines", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine (default: %(default)s)")
    parser.add_argument("--dist-url", help="where the machines meet, such as tcp://10.0.0.1:29500")
    parser.add_argument("--out", type=Path, help="folder for everything (default: runs/transfer/TASK/INIT)")
    parser.add_argument("--overwrite", action="store_true", help="throw away the trials in the folder")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="change the config, after scaling"
    )
    args = parser.parse_args(argv)

    from moco_plugin.report.transfer_table import list_tasks, transfer_table
    from moco_plugin.transfer.tasks import find_task

    if args.list:
        print(list_tasks())
        return 0
    if not args.task:
        raise UsageError("which task? pass --task NAME; --list shows them")
    task = find_task(args.task)
    init = args.init or "moco"
    task.config(init)

    from moco_plugin.transfer.runner import run_trials
    from moco_plugin.transfer.trainer import Machines, default_gpus

    gpus = default_gpus() if args.gpus is None else args.gpus
    out = args.out or Path("runs/transfer") / task.name / init
    result = run_trials(
        task,
        init,
        args.weights,
        out,
        trials=args.trials,
        machines=Machines(gpus, args.num_machines, args.machine_rank, args.dist_url),
        images_per_batch=args.images_per_batch,
        overrides=args.overrides,
        overwrite=args.overwrite,
    )
    if not args.machine_rank:
        table = transfer_table(task, [result])
        print(f"\n{task.title}\n{table.caption}\n\n{table.text()}\n\nwritten: {out / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

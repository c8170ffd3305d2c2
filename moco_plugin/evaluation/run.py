"""Evaluation of a checkpoint from the command line: reads, measures, prints, writes JSON."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

import torch

import moco_plugin
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.data.images import ImageSet, check_labels
from moco_plugin.errors import UsageError
from moco_plugin.evaluation.features import extract_features
from moco_plugin.evaluation.knn import knn_top1
from moco_plugin.files import check_output, write_json


def evaluate_knn(args: Namespace) -> dict[str, Any]:
    """Measures kNN top-1 with the arguments of ``tools/evaluate.py knn``; returns what the JSON holds."""
    if args.out:
        check_output(args.out, args.overwrite)
    if args.temperature <= 0:
        raise UsageError(f"--temperature is {args.temperature}; expected a value above 0")
    train, test = ImageSet(args.train), ImageSet(args.test)
    check_labels(train, test)
    checkpoint = read_checkpoint(args.weights, args.encoder)
    view = replace(checkpoint.view, image_size=args.image_size or checkpoint.view.image_size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = checkpoint.untrained() if args.untrained else checkpoint.backbone
    sets: list[torch.Tensor] = []
    for name, images in (("train features", train), ("test features", test)):
        sets += extract_features(
            backbone.to(device), images, view, device=device, batch_size=args.batch_size,
            workers=args.workers, progress=name,
        )  # fmt: skip
    top1 = knn_top1(sets[0], sets[1], sets[2], sets[3], k=args.k, temperature=args.temperature)
    print(
        f"kNN top-1 {top1:.2f}% (k {args.k}, T {args.temperature}, {len(train)} train, {len(test)} test images)"
    )
    result = {
        "protocol": "knn",
        "top1": top1,
        "k": args.k,
        "temperature": args.temperature,
        "train": args.train,
        "test": args.test,
        "image_size": view.image_size,
        "untrained": args.untrained,
        "weights": str(checkpoint.path),
        "weights_sha256": checkpoint.sha256,
        "architecture": checkpoint.architecture,
        "versions": {"moco_plugin": moco_plugin.__version__, "torch": torch.__version__},
    }
    if args.out:
        write_json(args.out, result)
    return result

"""Runs of the product for the oracle: a case's command, its experiment, and the comparison of both."""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml
from torch import Tensor, nn

from tests.oracle.covering import BATCH, EPOCHS, Case
from tests.oracle.images import COUNTS, read_set, spec
from tests.oracle.oracle import (
    Batch,
    Experiment,
    Outcome,
    State,
    epoch_order,
    evaluation_view,
    knn_bounds,
    normalized,
    train,
    two_views,
)

SIZE = 40
CHANNELS = [8, 16, 24, 32]
VIT: dict[str, Any] = {"depth": 1, "embed_dim": 48, "num_heads": 3, "patch_size": 8}
OPTIMIZER = {"v3_resnet": "lars", "v3_vit": "adamw"}  # sgd for all others
LR = {"sgd": 0.24, "lars": 2.4, "adamw": 0.016}
WRAPPED = "embedding_model.wrapped_model._model."  # LightlyTrain's names around a backbone
RECORD, LOOP_SCRIPT = (Path(__file__).with_name(name) for name in ("record.py", "loop.py"))


def method_arguments(case: Case) -> tuple[str, dict[str, Any]]:
    """Return the method of a case and its arguments."""
    name = {"symmetric": "moco", "v3_resnet": "moco_v3", "v3_vit": "moco_v3"}.get(case.method, case.method)
    arguments: dict[str, Any] = {"dim": 16, "momentum": 0.9, "batch_norm": case.batch_norm}
    if case.batch_norm == "split":
        arguments["batch_norm_groups"] = 2
    if case.v3:
        return name, arguments | {"hidden_dim": 32}
    return name, arguments | {"queue_size": case.queue, "symmetric": case.method == "symmetric"}


def overrides(case: Case, folder: Path, out: Path, weights: Path) -> list[str]:
    """Return the arguments of a case."""
    name, arguments = method_arguments(case)
    rate = OPTIMIZER.get(case.method, "sgd")
    given = [
        f"method={name}",
        *[f"method_args.{key}={value}" for key, value in arguments.items()],
        f"data.root={spec(folder, case.source, 'train')}",
        f"data.image_size={SIZE}",
        f"data.batch_size={BATCH}",
        f"data.workers={case.workers}",
        f"views.engine={case.engine}",
        f"optimizer.lr={LR[rate]}",
        f"optimizer.reference_batch_size={BATCH * 8}",
        "optimizer.weight_decay=0.01",
        f"schedule.epochs={EPOCHS}",
        f"schedule.warmup_epochs={int(case.schedule == 'step')}",
        f"schedule.interval={case.schedule}",
        f"channels_last={case.channels_last}",
        f"trainer.devices={case.processes}",
        f"trainer.precision={case.precision}",
        f"trainer.accumulate_grad_batches={case.accumulate}",
        "trainer.log_every_n_steps=1",
        "trainer.accelerator=cpu",
        f"compile={case.compile}",
        f"out={out}",
    ]
    given += [f"trainer.gradient_clip_val={case.clip}"] * bool(case.clip)
    given += [f"backbone_args.in_chans={case.channels}"] * (case.channels != 3)
    if case.method == "v3_vit":
        given += ["backbone=vit_tiny_patch16_224", *(f"backbone_args.{key}={value}" for key, value in VIT.items())]
    else:
        given += ["backbone=resnet18", f"backbone_args.channels={CHANNELS}", "backbone_args.layers=[1,1,1,1]"]
    if case.knn:
        given += [f"knn.{key}={spec(folder, case.source, part)}" for key, part in (("train", "knn"), ("test", "test"))]
        given.append("knn.k=9")
    return [*given, f"weights={weights}"] if case.start == "weights" else given


def lightly_train_arguments(case: Case, folder: Path, out: Path) -> list[str]:
    """Return what a user of LightlyTrain types."""
    name, arguments = method_arguments(case)
    rate = OPTIMIZER.get(case.method, "sgd")
    vit = case.method == "v3_vit"
    given: dict[str, Any] = {
        "out": out,
        "data": spec(folder, "folder", "train"),
        "model": "timm/vit_tiny_patch16_224" if vit else "timm/resnet18",
        "model_args": VIT | {"img_size": SIZE} if vit else {"channels": CHANNELS, "layers": [1, 1, 1, 1]},
        "method": name,
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "num_workers": case.workers,
        "accelerator": "cpu",
        "devices": case.processes,
        "precision": case.precision,
        "gradient_accumulation_steps": case.accumulate,
        "trainer_args": {"sync_batchnorm": True},  # as LightlyTrain asks for on GPUs; SyncBN would not run on CPUs
        "transform_args": {"image_size": [SIZE, SIZE]},
        "optim": rate,
        "optim_args": {"lr": LR[rate], "weight_decay": 0.01},
        "method_args": arguments | {"reference_batch_size": BATCH * 8},
    }
    return [f"{key}={json.dumps(value) if isinstance(value, dict) else value}" for key, value in given.items()]


def backbone(case: Case) -> nn.Module:
    """Return the untrained network of a case."""
    if case.method == "v3_vit" and case.entry == "lightly_train_cli":
        return timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=SIZE, global_pool="avg", fc_norm=False, **VIT
        )
    if case.method == "v3_vit":
        return timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=SIZE, in_chans=case.channels, **VIT)
    arguments = {"channels": tuple(CHANNELS), "layers": (1, 1, 1, 1), "in_chans": case.channels}
    return timm.create_model("resnet18", num_classes=0, **arguments)


def experiment(case: Case, channels_last: bool) -> Experiment:
    """Return what the oracle must do for a case; each value is the paper's or given by ``overrides``."""
    optimizer = "sgd" if case.entry == "loop" else OPTIMIZER.get(case.method, "sgd")
    local = BATCH // case.processes
    groups = {"auto": max(1, 8 // case.processes), "split": 2}.get(case.batch_norm, 1)
    parts = case.processes * (1 if case.v3 else min(groups, local // 2))
    bfloat16 = case.precision == "bf16-mixed"  # its rounding depends on the layout: the oracle takes the run's
    layout = torch.channels_last if bfloat16 and channels_last else torch.contiguous_format
    common = Experiment(
        "v3",
        lambda: backbone(case).to(memory_format=layout),
        VIT["embed_dim"] if case.method == "v3_vit" else CHANNELS[-1],
        queue=case.queue,
        m=0.9,
        temperature={"moco_v1": 0.07, "v3_resnet": 1.0}.get(case.method, 0.2),
        symmetric=case.method == "symmetric",
        processes=case.processes,
        parts=parts,
        shuffled=case.batch_norm != "plain",
        optimizer=optimizer,
        lr=LR[optimizer] * case.accumulate / 8,
        weight_decay=0.01,
        clip=case.clip,
        accumulate=case.accumulate,
        epochs=case.epochs,
        warmup=int(case.schedule == "step"),
        per_step=case.schedule == "step",
        precision=torch.float32 if bfloat16 else torch.float64,
        autocast=bfloat16,
        seeded_steps=case.entry != "loop",
    )
    if case.entry == "loop":  # as in README
        common = replace(common, lr=0.03, weight_decay=1e-4, warmup=0, per_step=False)
    if case.entry == "lightly_train_cli":  # the recipe's schedule, its warm-up as large a share of fewer epochs
        warmup = {"v3_resnet": 10 * EPOCHS / 100, "v3_vit": 40 * EPOCHS / 300}.get(case.method, 0)
        common = replace(common, per_step=case.v3, warmup=warmup)
    if case.method == "v3_resnet":
        return replace(common, rising_m=True)
    if case.method == "v3_vit":
        frozen = ("backbone.patch_embed.proj", "backbone.pos_embed")
        return replace(common, rising_m=True, layers=(3, 2), last_norm=True, frozen=frozen)
    if case.method == "moco_v1":
        return replace(common, version="v1", milestones=(0.6, 0.8))
    return replace(common, version="v2")


@dataclass
class Recorded:
    """What a run left: by batch the views and losses over all processes, the first state, the log and the last state."""

    views: list[Batch]
    losses: list[float]
    states: list[State]  # before each batch, and at the end
    rows: list[dict[str, float]]
    config: dict[str, Any]
    channels_last: bool  # the layout of the views


def read_record(case: Case, records: Path, out: Path) -> Recorded:
    """Read what ``record.py`` or ``loop.py`` and the run wrote."""
    views, losses, states = [], [], []
    for number in range(len(list(records.glob("*.0.pt")))):
        parts = [torch.load(records / f"{number}.{rank}.pt", weights_only=True) for rank in range(case.processes)]
        views.append(tuple(torch.cat([part["views"][i] for part in parts]) for i in (0, 1)))
        losses.append(float(np.mean([part["loss"] for part in parts])))
        states.append(_plain(parts[0]["state"]))
        for part in parts[1:] if not number else []:
            assert all(torch.equal(_plain(part["state"])[name], value) for name, value in states[0].items())
    last = bool(parts[0].get("channels_last"))
    if case.entry == "loop":
        return Recorded(views, losses, [*states, torch.load(records / "last.pt", weights_only=True)], [], {}, False)
    states.append(
        _plain(
            torch.load(out / "checkpoints" / "last.ckpt", weights_only=case.entry != "lightly_train_cli")["state_dict"]
        )
    )
    if case.entry == "lightly_train_cli":
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return Recorded(views, losses, states, rows, {}, last)
    with open(out / "metrics.csv", newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return Recorded(views, losses, states, rows, yaml.safe_load((out / "config.yaml").read_text()), last)


def _plain(state: State) -> State:
    """Return a state under our names, without the parts that Lightning and LightlyTrain put before and between them."""
    names = {name: name.removeprefix("method.").replace(WRAPPED, "") for name in state}
    unused = ("backbone.fc.", "backbone.head.")  # LightlyTrain keeps the classifier
    return {names[name]: value for name, value in state.items() if not any(part in names[name] for part in unused)}


def expected_views(case: Case, folder: Path, mean: list[float], std: list[float]) -> list[Batch]:
    """Return the views of every batch by Pillow and torchvision."""
    pictures, _ = read_set(folder, case.source, "train", case.channels)
    name = {"moco_v1": "moco_v1", "v3_resnet": "moco_v3", "v3_vit": "moco_v3"}.get(case.method, "moco_v2")
    smaller = {"min_scale": 0.08} if case.method == "v3_vit" else {}  # v3, appendix
    batches: list[Batch] = []
    for epoch in range(case.epochs):
        for images in epoch_order(len(pictures), BATCH, 0, epoch):
            both = [two_views(pictures[i], name, SIZE, 0, epoch * len(pictures) + i, **smaller) for i in images]
            first, second = (normalized(torch.stack([pair[i] for pair in both]), mean, std) for i in (0, 1))
            batches.append((first, second))
    return batches


def statistics(case: Case, folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel: ImageNet's of RGB images, else measured."""
    if case.channels == 3:
        return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    pictures, _ = read_set(folder, case.source, "train", case.channels)
    pixels = [np.stack([np.array(b) for b in (p if isinstance(p, list) else [p])]) for p in pictures]
    values = np.concatenate([array.reshape(case.channels, -1) for array in pixels], axis=1) / 255
    return values.mean(axis=1).round(4).tolist(), values.std(axis=1).round(4).tolist()


def run_oracle(
    case: Case, folder: Path, recorded: Recorded, views: list[Batch]
) -> tuple[Outcome, list[tuple[float, float]]]:
    """Train the oracle on views; return its outcome, and between which accuracies each measurement of kNN is."""
    probe, labels = None, []
    if case.knn:
        sets = [read_set(folder, case.source, part, case.channels) for part in ("knn", "test")]
        probe = normalized(
            torch.stack([_probe(p) for pictures, _ in sets for p in pictures]), *statistics(case, folder)
        )
        labels = [label for _, of_set in sets for label in of_set]
    followed = None if case.precision == "64-true" else recorded.states
    per_epoch = len(views) // case.epochs
    outcome = train(
        experiment(case, recorded.channels_last),
        recorded.states[0],
        lambda epoch, number: views[epoch * per_epoch + number],
        per_epoch,
        probe,
        followed,
    )
    if probe is None:
        return outcome, []
    return outcome, [knn_bounds(f, torch.tensor(labels), COUNTS["knn"], 9, 0.1) for f in outcome.features]


def _probe(picture: Any) -> Tensor:
    if not isinstance(picture, list):
        return evaluation_view(picture, SIZE, 0.875)
    return evaluation_view(torch.stack([torch.from_numpy(np.array(band)) for band in picture]), SIZE, 0.875)

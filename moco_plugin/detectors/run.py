"""Training of a detector on own data from one or several initialisations."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moco_plugin.detectors.dataset import prepare
from moco_plugin.detectors.recipe import Recipe, choose_recipe
from moco_plugin.detectors.semantic import prepare_semantic
from moco_plugin.errors import UsageError, UserError
from moco_plugin.transfer.launch import Machines, default_gpus
from moco_plugin.transfer.runner import run_trials

SUPERVISED = "supervised.safetensors"  # timm's ImageNet weights, as fetched


def train_on_own_data(
    train: str | Path,
    train_images: str | Path | None = None,
    test: str | Path | None = None,
    test_images: str | Path | None = None,
    *,
    semantic: bool = False,
    model: str | None = None,
    weights: str | Path | None = None,
    init: str | None = None,
    compare: bool = False,
    supervised: str | Path | None = None,
    continued: str | Path | None = None,
    out: str | Path = "runs/detector",
    trials: int = 1,
    seed: int = 0,
    machines: Machines | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> tuple[Recipe, list[dict[str, Any]]]:
    """Train and test a detector, or semantic segmentation, on own data.

    Args:
        train: A COCO file, or a VOC or YOLO folder; see ``read_detection_data``. A folder of label images for semantic
            segmentation; see ``prepare_semantic``.
        train_images: Folder of the images of a COCO file or of label images.
        test: Data to test on; None holds out a share of the training images.
        test_images: Folder of its images.
        semantic: Train semantic segmentation.
        model: "fpn" (also for None), "c4", "retinanet" or "timm:NAME"; "fcn" for semantic segmentation.
        weights: A MoCo checkpoint to start from; None for random weights.
        init: "moco", "random" or "supervised"; None for "moco" with weights, else "random".
        compare: Train from random weights, ``supervised``, ``weights`` and ``continued``, on one schedule.
        supervised: ImageNet weights in a file; None fetches timm's, where that is possible.
        continued: A MoCo checkpoint whose pre-training started from supervised weights.
        out: Folder for everything.
        trials: Of each initialisation.
        seed: Chooses the held-out images.
        machines: The processes; None for all GPUs, or the CPU.
        overrides: ``KEY VALUE`` pairs for detectron2's config.
        overwrite: Throw away earlier trials.

    Returns:
        The recipe, and what each ``results.json`` holds.

    Raises:
        UsageError: Invalid arguments.
        UserError: Invalid data or weights, or a trial that failed.
    """
    out = Path(out).expanduser()
    paths = [None if path is None else Path(path).expanduser() for path in (train, train_images, test, test_images)]
    for path in paths:
        if path is not None and not path.exists():
            raise UsageError(f"{path} does not exist; check the path")
    if paths[0] is None:
        raise UsageError("no training data; give a COCO file, or a VOC or YOLO folder")
    machines = machines or Machines(default_gpus())
    out.mkdir(parents=True, exist_ok=True)
    if semantic:
        if paths[1] is None:
            raise UsageError("label images need --train-images, the folder of their images")
        data = prepare_semantic(out / "data", paths[0], paths[1], paths[2], paths[3], seed)
    else:
        data = prepare(out / "data", paths[0], paths[1], paths[2], paths[3], seed)
    recipe = choose_recipe(model or ("fcn" if semantic else "fpn"), data, weights, machines.gpus)
    for sentence in recipe.sentences:
        print(sentence, flush=True)
    starts: dict[str, tuple[str, str | Path | None]] = {}
    if compare:
        if weights is None:
            raise UsageError("--compare needs --weights, the checkpoint of the pre-training on your images")
        starts["random"] = ("random", None)
        if file := supervised or _fetch_supervised(weights, out):
            starts["supervised"] = ("moco", file)
        starts["moco"] = ("moco", weights)
        if continued:
            starts["continued"] = ("moco", continued)
        else:
            print("MoCo continued from supervised weights: not compared; give --continued CHECKPOINT", flush=True)
    else:
        init = init or ("moco" if weights else "random")
        starts[init] = (init, weights)
    if (count := trials * len(starts)) > 1:
        faster = "; --trials 1 is faster" if trials > 1 else ""
        print(f"{count} trainings follow, and the eta shown is that of one{faster}", flush=True)
    results = []
    for name, (config, file) in starts.items():
        task = replace(recipe.task, configs={**recipe.task.configs, name: recipe.task.configs[config]})
        result = run_trials(
            task,
            config,
            None if file is None else str(file),
            out / name if compare else out,
            trials=trials,
            machines=machines,
            overrides=[*recipe.overrides, *overrides],
            overwrite=overwrite,
        )
        results.append({**result, "name": name})
    return recipe, results


def _fetch_supervised(weights: str | Path, out: Path) -> Path | None:
    """Return timm's ImageNet weights for the network of a checkpoint, or None, and print why."""
    from safetensors.torch import save_file

    from moco_plugin.backbones import create_backbone
    from moco_plugin.checkpoints.read import read_checkpoint

    file = out / SUPERVISED
    if file.is_file():
        return file
    architecture = read_checkpoint(str(weights)).architecture
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each of five retries
    try:
        network = create_backbone(architecture, pretrained=True)
    except UserError as error:
        print(f"supervised weights: not compared ({error}); give --supervised FILE", flush=True)
        return None
    save_file(network.state_dict(), file)
    return file

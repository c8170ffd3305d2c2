"""Training of a detector on own data from one or several initialisations."""

import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from moco_plugin.checkpoints.read import Checkpoint, read_checkpoint
from moco_plugin.detectors.dataset import Sources, prepare
from moco_plugin.detectors.predict import draw_examples
from moco_plugin.detectors.recipe import Recipe, choose_recipe
from moco_plugin.detectors.semantic import prepare_semantic
from moco_plugin.errors import UsageError, UserError, duration
from moco_plugin.files import read_json
from moco_plugin.transfer.components.datasets import require_dataset
from moco_plugin.transfer.config import fit_device, load_detector_config, merge
from moco_plugin.transfer.launch import Machines, default_gpus
from moco_plugin.transfer.runner import CONTEXT, run_trials
from moco_plugin.transfer.trainer import RESULTS, Trainer

SUPERVISED = "supervised.safetensors"  # timm's ImageNet weights, as fetched
TIMED = 3  # steps and test images, after a first one that is not timed
Weights = str | Checkpoint | None


@dataclass(frozen=True)
class Starts:
    """Initial weights of detectors.

    Attributes:
        weights: A MoCo checkpoint; None for random weights.
        init: "moco", "random" or "supervised"; None for "moco" with weights, else "random".
        compare: Train from random weights, ``supervised``, ``weights`` and ``continued``, on one schedule.
        supervised: ImageNet weights in a file; None fetches timm's if possible.
        continued: A MoCo checkpoint that was pre-trained from supervised weights.
    """

    weights: str | Path | None = None
    init: str | None = None
    compare: bool = False
    supervised: str | Path | None = None
    continued: str | Path | None = None

    def read(self) -> Checkpoint | None:
        """Return the checkpoint; None for weights of detectron2 and others that only the trials read."""
        if self.weights is None or str(self.weights).endswith(".pkl") or not Path(self.weights).is_file():
            return None
        try:
            return read_checkpoint(str(self.weights))
        except UserError:
            return None  # the conversion says why

    def by_name(self, checkpoint: Checkpoint | None, out: Path) -> dict[str, tuple[str, Weights]]:
        """Return the initialisation of the config and the weights of each start, by the start's name.

        Args:
            checkpoint: What ``read`` returned.
            out: Folder for weights that are fetched.
        """
        weights: Weights = checkpoint or (None if self.weights is None else str(self.weights))
        if not self.compare:
            init = self.init or ("moco" if weights else "random")
            return {init: (init, weights)}
        if weights is None:
            raise UsageError("--compare needs --weights, the checkpoint of the pre-training on your images")
        starts: dict[str, tuple[str, Weights]] = {"random": ("random", None)}
        if supervised := self.supervised or _fetch_supervised(weights, out):
            starts["supervised"] = ("moco", str(supervised))
        starts["moco"] = ("moco", weights)
        if self.continued:
            starts["continued"] = ("moco", str(self.continued))
        else:
            print("MoCo continued from supervised weights: not compared; give --continued CHECKPOINT", flush=True)
        return starts


def train_on_own_data(
    sources: Sources,
    starts: Starts = Starts(),
    *,
    model: str | None = None,
    out: str | Path = "runs/detector",
    trials: int = 1,
    machines: Machines | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    check: bool = False,
) -> tuple[Recipe, list[dict[str, Any]]]:
    """Train and test a detector, or semantic segmentation, on own data.

    Args:
        sources: Where the data are.
        starts: The initial weights.
        model: "fpn" (also for None), "c4", "retinanet" or "timm:NAME"; "fcn" for semantic segmentation.
        out: Folder for everything.
        trials: Number of trials of each initialisation.
        machines: The processes; None for all GPUs, or the CPU.
        overrides: ``KEY VALUE`` pairs for detectron2's config.
        overwrite: Delete earlier trials.
        check: Read and check the data, print the recipe, and train nothing.

    Returns:
        The recipe, and the content of each ``results.json``.

    Raises:
        UsageError: Invalid arguments.
        UserError: Invalid data or weights, or a trial that failed.
    """
    out = Path(out).expanduser()
    machines = machines or Machines(default_gpus())
    data = (prepare_semantic if sources.semantic else prepare)(out / "data", sources)
    checkpoint = starts.read()
    recipe = choose_recipe(model or ("fcn" if sources.semantic else "fpn"), data, checkpoint, machines.gpus, overrides)
    for sentence in recipe.sentences:
        print(sentence, flush=True)
    if check:
        return recipe, []
    chosen = starts.by_name(checkpoint, out)
    folders = {name: out / name if starts.compare else out for name in chosen}
    left = sum(trials - (0 if overwrite else _finished(folder)) for folder in folders.values())
    if left > 1 and not machines.machine_rank:
        init = next(iter(chosen.values()))[0]
        settings = [part for pair in recipe.settings.items() for part in pair]
        cfg = load_detector_config(recipe.task.config(init), settings)
        merge(cfg, overrides)
        print(describe_duration(cfg, machines, left, data.test_images), flush=True)
    results = []
    for name, (init, weights) in chosen.items():
        result = run_trials(
            replace(recipe.task, configs={**recipe.task.configs, name: recipe.task.config(init)}),
            init,
            weights,
            folders[name],
            trials=trials,
            machines=machines,
            settings=recipe.settings,
            overrides=overrides,
            overwrite=overwrite,
            draw=draw_examples,
        )
        results.append({**result, "name": name})
    return recipe, results


def _finished(folder: Path) -> int:
    """Return the number of trials in a folder."""
    path = folder / RESULTS
    return len(read_json(path).get("trials", ())) if path.is_file() else 0


def _fetch_supervised(weights: str | Checkpoint, out: Path) -> Path | None:
    """Return timm's ImageNet weights for the network of a checkpoint, or None and print the reason."""
    from safetensors.torch import save_file

    from moco_plugin.backbones import create_backbone

    file = out / SUPERVISED
    if file.is_file():
        return file
    checkpoint = read_checkpoint(weights) if isinstance(weights, str) else weights
    try:
        network = create_backbone(checkpoint.architecture, pretrained=True)
    except UserError as error:
        print(f"supervised weights: not compared ({str(error).partition(';')[0]}); give --supervised FILE", flush=True)
        return None
    save_file(network.state_dict(), file)
    return file


def describe_duration(cfg: CfgNode, machines: Machines, trainings: int, images: int) -> str:
    """Say how long trainings take in all.

    The steps are timed in a process of their own, on one device with its share of the batch and random weights.

    Args:
        cfg: Config of a training.
        machines: Where it will run.
        trainings: Number of trainings, which run one after another.
        images: Number of test images of each.
    """
    try:
        with ProcessPoolExecutor(1, CONTEXT) as pool:
            step, image = pool.submit(_times, cfg, machines.processes).result()
    except Exception:  # the training will say why
        return f"{trainings} trainings follow, and how long they take could not be measured"
    steps = cfg.SOLVER.MAX_ITER
    return (
        f"{trainings} trainings of {steps} steps follow, about {duration(trainings * (steps * step + images * image))} in "
        f"all ({step:.2g} s a step, {image:.2g} s a test image); the eta shown is that of one"
    )


def _times(cfg: CfgNode, processes: int) -> tuple[float, float]:
    """Return the seconds of a step and of a test image."""
    warnings.simplefilter("ignore")
    cfg.SOLVER.IMS_PER_BATCH //= processes
    fit_device(cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        require_dataset(name)
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)

    def train(batch: Any) -> None:
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    with EventStorage():  # the model's losses log into it
        step = _seconds(train, Trainer.build_train_loader(cfg))
    model.eval()
    with torch.no_grad():
        return step, _seconds(model, Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]))


def _seconds(function: Any, batches: Any) -> float:
    """Return the mean seconds of loading a batch and a call with it, without the first."""
    start, count = time.perf_counter(), 0
    for count, batch in enumerate(islice(batches, TIMED + 1)):
        function(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if not count:
            start = time.perf_counter()
    return (time.perf_counter() - start) / max(1, count)

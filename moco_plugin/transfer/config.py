"""detectron2's configs: read without running code, changed, scaled to another batch and fitted to the machine."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n

import moco_plugin.transfer.components  # noqa: F401  (adds config keys)
from moco_plugin.errors import UsageError, UserError, did_you_mean
from moco_plugin.runs.run_folder import flatten
from moco_plugin.safe_yaml import MAX_BYTES, parse_yaml, read_yaml_file
from moco_plugin.schema import find_config

NO_DENSEPOSE = (
    "this config needs detectron2's DensePose project, which is not installed; run `pip install "
    "--no-build-isolation git+https://github.com/facebookresearch/detectron2.git#subdirectory=projects/DensePose`"
)
SCALED = {"learning rate": "BASE_LR", "warm-up": "WARMUP_ITERS", "drops": "STEPS", "length": "MAX_ITER"}
"""The keys of a schedule, by their names in messages."""


def load_detector_config(config_file: str, overrides: Sequence[Any] = ()) -> CfgNode:
    """Read a detectron2 config, without running code, and check it.

    Args:
        config_file: A path, or a name below ``configs/detectron2``.
        overrides: As for :func:`merge`.

    Raises:
        UsageError: An invalid file, key or value.
        UserError: The config is for DensePose, which is not installed.
    """
    path, cfg = find_config(config_file, "detectron2"), get_cfg()
    with _mistakes(f"config {path}", cfg):
        if _check_chain(str(path)):
            _add_densepose_config(cfg)
        cfg.merge_from_file(str(path), allow_unsafe=False)
    merge(cfg, overrides)
    return cfg


def parse_detector_config(text: str, source: str, overrides: Sequence[Any] = ()) -> CfgNode:
    """Return the config in a text, as :func:`load_detector_config` does; errors name its ``source``."""
    cfg = get_cfg()
    with _mistakes(f"the config in {source}", cfg):
        content = CfgNode(parse_yaml(text, f"the config in {source}"))
        if wants_densepose(content):
            _add_densepose_config(cfg)
        cfg.merge_from_other_cfg(content)
    merge(cfg, overrides)
    return cfg


def merge(cfg: CfgNode, overrides: Sequence[Any]) -> None:
    """Change a config by ``KEY VALUE`` pairs, whose values are texts, as on detectron2's command line, or of their own type.

    Raises:
        UsageError: An invalid key or value.
    """
    if any(len(str(value)) > MAX_BYTES for value in overrides[1::2]):
        raise UsageError(f"a config override has more than {MAX_BYTES} characters")
    if len(overrides) % 2:
        raise UsageError(f"config overrides are pairs of KEY VALUE, got {' '.join(map(str, overrides))!r}")
    with _mistakes("config override", cfg):
        cfg.merge_from_list(list(overrides))


def as_overrides(settings: Mapping[str, Any]) -> str:
    """Return keys and values as they are typed on detectron2's command line."""
    words = [str(word) for pair in settings.items() for word in pair]
    return " ".join(f'"{word}"' if set(word) & set(" []()'") else word for word in words)


@contextmanager
def _mistakes(what: str, cfg: CfgNode) -> Iterator[None]:
    """Turn errors of detectron2 and YAML inside the block into a UsageError."""
    try:
        yield
    except (
        *(KeyError, ValueError, AssertionError, TypeError, AttributeError, OSError, yaml.YAMLError),
        *(SyntaxError, RecursionError, MemoryError),
    ) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        if isinstance(error, OSError):
            text = f"{error.filename} cannot be read ({error.strerror})"
        word = text.rsplit(" ", 1)[-1].strip("'\"")
        hint = did_you_mean(word, flatten(cfg)) if "existent" in text else ""
        raise UsageError(f"{what} is wrong: {text}{hint}") from error


def _check_chain(path: str, below: tuple[str, ...] = ()) -> bool:
    """Check a config file and all that it inherits from through ``_BASE_``, resolved as in fvcore.

    Returns:
        Whether one of them turns DensePose on.

    Raises:
        UsageError: One of them is not safe and valid YAML, or they form a loop.
    """
    path = os.path.normpath(path) if "://" not in path else path
    if path in below:
        raise UsageError(f"config {path} inherits from itself through its _BASE_")
    content = read_yaml_file(Path(PathManager.get_local_path(path)), f"config {path}")
    densepose = wants_densepose(content)
    bases = content.get("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UsageError(f"config {path}: _BASE_ is {base!r}; expected the path of a YAML file")
        base = os.path.expanduser(base)
        if not base.startswith(("/", "https://", "http://")):
            base = os.path.join(os.path.dirname(path), base)
        densepose |= _check_chain(base, (*below, path))
    return densepose


def wants_densepose(content: Mapping[str, Any]) -> bool:
    """Return whether a config, or the content of its file, turns DensePose on."""
    model = content.get("MODEL")
    return isinstance(model, dict) and bool(model.get("DENSEPOSE_ON"))


def _add_densepose_config(cfg: CfgNode) -> None:
    """Add the config keys of detectron2's DensePose project; the import registers its heads and data sets."""
    try:
        import densepose
    except ModuleNotFoundError as error:
        needed = f"DensePose needs {error.name}, which is not installed"
        raise UserError(NO_DENSEPOSE if error.name == "densepose" else needed) from error
    densepose.add_densepose_config(cfg)


def scale_to_batch(cfg: CfgNode, images_per_batch: int | None, overrides: Sequence[str] = ()) -> str:
    """Scale a config's schedule linearly to another batch, by detectron2's rule.

    The learning rate is multiplied by the ratio of the batches (Goyal et al. 2017, "ImageNet in 1 hour"); warm-up, drops,
    length and the periods of checkpoints and evaluations are divided by it, so that as many images are seen.

    Args:
        cfg: The config as the paper has it; changed in place.
        images_per_batch: Images of all processes together; None changes nothing.
        overrides: ``KEY VALUE`` pairs that come after; a warning is returned if they change only the batch.

    Returns:
        A sentence on what was changed, or an empty string.

    Raises:
        UsageError: A batch below 1, or given twice.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    given = dict(zip(overrides[::2], overrides[1::2], strict=False))
    own = given.get("SOLVER.IMS_PER_BATCH")
    if images_per_batch is None:
        if own is None or own == str(batch) or "SOLVER.BASE_LR" in given:
            return ""
        return (
            f"warning: SOLVER.IMS_PER_BATCH {own} with the learning rate and schedule of {batch} images per batch; "
            f"--images-per-batch {own} scales them"
        )
    if own is not None:
        raise UsageError("--images-per-batch and SOLVER.IMS_PER_BATCH were both given; choose one of them")
    if images_per_batch < 1:
        raise UsageError(f"--images-per-batch is {images_per_batch}; expected 1 or more")
    before = cfg.clone()
    before.SOLVER.REFERENCE_WORLD_SIZE = batch  # "workers" of one image each
    scaled = DefaultTrainer.auto_scale_workers(before, images_per_batch)
    if not scaled.SOLVER.MAX_ITER:
        raise UsageError(
            f"--images-per-batch {images_per_batch} leaves no iteration of the {cfg.SOLVER.MAX_ITER} with {batch}"
        )
    cfg.SOLVER, cfg.TEST = scaled.SOLVER, scaled.TEST
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0  # detectron2 does not scale once more
    cfg.SOLVER.CHECKPOINT_PERIOD = max(1, cfg.SOLVER.CHECKPOINT_PERIOD)
    if before.TEST.EVAL_PERIOD:  # 0 means never
        cfg.TEST.EVAL_PERIOD = max(1, cfg.TEST.EVAL_PERIOD)
    changes = [f"{name} {before.SOLVER[key]} to {cfg.SOLVER[key]}" for name, key in SCALED.items()]
    return f"images per batch {batch} to {images_per_batch}: {', '.join(changes)} (iterations)"


def fit_device(cfg: CfgNode, say: bool = True) -> list[str]:
    """Adapt a config that is not frozen to the machine, in place; return one sentence for each change, and log it once.

    Without CUDA, ``MODEL.DEVICE`` becomes ``cpu``; on a CPU, there is no mixed precision, and synchronised batch norm
    becomes batch norm, which is the same thing within one process.
    """
    changes = []
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        changes.append("MODEL.DEVICE: no CUDA here, so training and evaluation run on the CPU")
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED:
        cfg.SOLVER.AMP.ENABLED = False
        changes.append("SOLVER.AMP.ENABLED: detectron2 has mixed precision on CUDA alone, so it trains in float32")
    synchronized = [key for key, value in flatten(cfg).items() if key.endswith("NORM") and value == "SyncBN"]
    if cfg.MODEL.DEVICE == "cpu" and synchronized:
        cfg.merge_from_list([word for key in synchronized for word in (key, "BN")])
        changes.append(f"{', '.join(synchronized)}: SyncBN does not train on a CPU, so BN is used")
    for change in changes if say else ():
        log_first_n(logging.WARNING, change, name=__name__, key="message")
    return changes

"""Training and evaluation of detectors: detectron2's trainer, checked weights and a results.json."""

import math
import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import detectron2.utils.comm as comm
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, default_setup
from detectron2.engine.hooks import PreciseBN
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from moco_plugin.checkpoints.released import is_released
from moco_plugin.data.order import seed_of
from moco_plugin.errors import UsageError, did_you_mean
from moco_plugin.files import write_json
from moco_plugin.safe_yaml import MAX_BYTES, read_yaml_file
from moco_plugin.schema import find_config
from moco_plugin.transfer.annotations import check_annotations
from moco_plugin.transfer.brief import Brief
from moco_plugin.transfer.class_count import check_class_count
from moco_plugin.transfer.components.datasets import require_dataset
from moco_plugin.transfer.densepose import add_densepose_config, densepose_trainer, wants_densepose
from moco_plugin.transfer.device import fit_device
from moco_plugin.transfer.evaluators import build_evaluator
from moco_plugin.transfer.initial_weights import find_weights
from moco_plugin.transfer.launch import Machines, launch
from moco_plugin.transfer.semantic_mapper import SemanticMapper
from moco_plugin.transfer.train_loader import TrainLoader
from moco_plugin.transfer.weights import load_weights, read_file

RESULTS = "results.json"


def load_detector_config(config_file: str, overrides: list[str]) -> CfgNode:
    """Read a detectron2 config, without running code, and check it.

    Args:
        config_file: A path, or a name below ``configs/detectron2``.
        overrides: ``KEY VALUE`` pairs, as on detectron2's command line.

    Raises:
        UsageError: A file, key or value that cannot be right.
        UserError: The config is one for DensePose, which is not installed.
    """
    cfg = get_cfg()
    path = find_config(config_file, "detectron2")
    try:
        _check_chain(str(path))
        if wants_densepose(CfgNode.load_yaml_with_base(str(path), allow_unsafe=False)):
            add_densepose_config(cfg)
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except (KeyError, ValueError, AssertionError, TypeError, AttributeError, OSError, yaml.YAMLError) as error:
        raise UsageError(f"config {path} is wrong: {_sentence(error, cfg)}") from error
    for value in overrides[1::2]:
        if len(str(value)) > MAX_BYTES:
            raise UsageError(f"a config override has more than {MAX_BYTES} characters")
    if len(overrides) % 2:
        raise UsageError(f"config overrides are pairs of KEY VALUE, got {' '.join(overrides)!r}")
    try:
        cfg.merge_from_list(overrides)
    except (
        KeyError,
        ValueError,
        AssertionError,
        TypeError,
        AttributeError,
        SyntaxError,
        RecursionError,
        MemoryError,
    ) as error:
        raise UsageError(f"config override is wrong: {_sentence(error, cfg)}") from error
    return cfg


def _check_chain(path: str, below: tuple[str, ...] = ()) -> None:
    """Check a config file and all that it inherits from through ``_BASE_``, resolved as in fvcore.

    Raises:
        UsageError: One of them is not safe and valid YAML, or they form a loop.
    """
    path = os.path.normpath(path) if "://" not in path else path
    if path in below:
        raise UsageError(f"config {path} inherits from itself through its _BASE_")
    content = read_yaml_file(Path(PathManager.get_local_path(path)), f"config {path}")
    bases = content.get("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UsageError(f"config {path}: _BASE_ is {base!r}; expected the path of a YAML file")
        base = os.path.expanduser(base)
        if not base.startswith(("/", "https://", "http://")):
            base = os.path.join(os.path.dirname(path), base)
        _check_chain(base, (*below, path))


def _sentence(error: Exception, cfg: CfgNode) -> str:
    text = " ".join(str(error.args[0] if error.args else error).split())
    if isinstance(error, OSError):
        text = f"{error.filename} cannot be read ({error.strerror})"
    word = text.rsplit(" ", 1)[-1].strip("'\"")
    return text + (did_you_mean(word, _keys(cfg)) if "existent" in text else "")


def _keys(node: Any, prefix: str = "") -> list[str]:
    return [
        key
        for name, value in node.items()
        for key in (_keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"])
    ]


class _Description:
    """The metadata of a model file: its config and the names of its classes."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def state_dict(self) -> dict[str, Any]:
        metadata = MetadataCatalog.get(
            self.cfg.DATASETS.TEST[0] if self.cfg.DATASETS.TEST else self.cfg.DATASETS.TRAIN[0]
        )
        names = {
            key: list(getattr(metadata, key)) for key in ("thing_classes", "stuff_classes") if hasattr(metadata, key)
        }
        ids = getattr(metadata, "thing_dataset_id_to_contiguous_id", {})
        return {"config": self.cfg.dump(), "classes": names, "category_ids": list(ids)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass  # a resumed run has its own


class Trainer(DefaultTrainer):
    """detectron2's trainer with our order of images; checks that the backbone is loaded, and writes ``results.json``.

    Args:
        cfg: A detectron2 config.
        allow_partial: Train even if the weights leave part of the backbone random.
    """

    def __init__(self, cfg: CfgNode, allow_partial: bool = False) -> None:
        self.allow_partial = allow_partial
        super().__init__(cfg)
        self.checkpointer.add_checkpointable("moco_plugin", _Description(cfg))

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume the run in ``OUTPUT_DIR`` if requested and possible, else load ``MODEL.WEIGHTS``."""
        if resume and self.checkpointer.has_checkpoint():
            read_file(self.checkpointer.get_checkpoint_file())
            super().resume_or_load(resume=True)
            self._trainer.data_loader.start = self.start_iter
        else:
            load_weights(self.model, self.cfg.MODEL.WEIGHTS, self.allow_partial, self.cfg)

    def state_dict(self) -> dict[str, Any]:
        """Return detectron2's state, the optimizer's, which v0.6 leaves out, and RetinaNet's mean count of anchors."""
        mean = getattr(self.checkpointer.model, "loss_normalizer", None)
        return {"_trainer": self._trainer.state_dict(), "loss_normalizer": mean, **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state; one of v0.6's own trainer has no optimizer's."""
        super().load_state_dict(state_dict)
        if "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])
        if (mean := state_dict.get("loss_normalizer")) is not None:
            self.checkpointer.model.loss_normalizer = mean

    def run_step(self) -> None:
        """Train on a batch; what the model draws is a function of seed, iteration and process too."""
        if self.cfg.SEED >= 0:
            torch.manual_seed(seed_of(self.cfg.SEED, self.iter, comm.get_rank()))
        super().run_step()

    def build_hooks(self) -> list[HookBase]:
        """Return detectron2's hooks; precise batch norm takes the same images each time."""
        hooks: list[HookBase] = super().build_hooks()
        for hook in hooks:
            if isinstance(hook, PreciseBN):
                hook._data_loader.period = self.cfg.TEST.PRECISE_BN.NUM_ITER
        return hooks

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Return our loader, with the mapping that the task wants; DensePose's project has its own."""
        if wants_densepose(cfg):
            return densepose_trainer().build_train_loader(cfg)
        return TrainLoader(cfg, _mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Return detectron2's loader, with the mapping that the task wants."""
        if wants_densepose(cfg):
            return densepose_trainer().build_test_loader(cfg, dataset_name)
        return build_detection_test_loader(cfg, dataset_name, mapper=_mapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Return the evaluator that the data set's metadata name; for DensePose those of its project."""
        if wants_densepose(cfg):
            return densepose_trainer().build_evaluator(cfg, dataset_name, f"{cfg.OUTPUT_DIR}/inference")
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluate on ``DATASETS.TEST``; ``results.json`` gets ``{data set: {task: {metric: value}}}``."""
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            # detectron2 leaves out the name of a single data set
            named = {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results
            write_json(Path(cfg.OUTPUT_DIR) / RESULTS, _plain(named))
        return dict(results)


def _mapper(cfg: CfgNode, is_train: bool) -> SemanticMapper | None:
    """Return the mapping of data set entries; None takes detectron2's own, which has no random scale."""
    return SemanticMapper(cfg, is_train) if cfg.INPUT.SCALE_RANGE else None


def _plain(value: Any) -> Any:
    """Turn numpy numbers into Python's, and NaN into None, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if math.isnan(value) else float(value)


def train(
    config: str,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    eval_only: bool = False,
    overwrite: bool = False,
    allow_partial: bool = False,
    machines: Machines | None = None,
    brief: bool = False,
) -> None:
    """Train and evaluate a model of detectron2, or only evaluate it, on the GPUs of this machine.

    Args:
        config: A path, or a name below ``configs/detectron2``.
        overrides: ``KEY VALUE`` pairs, as on detectron2's command line.
        resume: Resume from the last checkpoint in ``OUTPUT_DIR``, if there is one.
        eval_only: Evaluate ``MODEL.WEIGHTS`` on ``DATASETS.TEST``.
        overwrite: Replace the run in ``OUTPUT_DIR``.
        allow_partial: Accept weights that leave a part of the backbone random.
        machines: The processes; None for one.
        brief: Print only progress and warnings; ``log.txt`` and ``stdout.txt`` in ``OUTPUT_DIR`` have the rest.

    Raises:
        UsageError: Invalid arguments, or a run in ``OUTPUT_DIR`` that is neither resumed nor overwritten.
        UserError: Data sets or weights that are missing or do not fit.
    """
    machines = machines or Machines()
    machines.check()
    cfg = load_detector_config(config, list(overrides))
    datasets = (*(() if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST)
    for name in datasets:
        require_dataset(name)
        check_annotations(name)
    check_class_count(cfg, datasets)
    output = Path(cfg.OUTPUT_DIR)
    earlier = [path for path in (output / RESULTS, output / "last_checkpoint") if path.exists()]
    if earlier and not (resume or overwrite):
        raise UsageError(
            f"{output} holds a run already ({earlier[0].name}) and was kept; "
            "pass --resume, --overwrite or another OUTPUT_DIR"
        )
    if overwrite and not eval_only and not resume:  # detectron2 would append to some of them
        for pattern in (RESULTS, "last_checkpoint", "model_*.pth", "metrics.json", "events.out.*", "log.txt*"):
            for path in output.glob(pattern):
                path.unlink()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=machines.machine_rank, name="moco_plugin")
    if is_released(cfg.MODEL.WEIGHTS):  # by name: fetched, and converted into the run's folder
        weights = find_weights("moco", cfg.MODEL.WEIGHTS, "")
        cfg.MODEL.WEIGHTS = weights.detectron2_file(output, machines.machine_rank)
    fit_device(cfg)
    cfg.freeze()
    # detectron2 logs the config file's content
    args = SimpleNamespace(
        config_file=str(find_config(config, "detectron2")),
        eval_only=eval_only,
        resume=resume,
        allow_partial=allow_partial,
        overrides=list(overrides),
        brief=brief,
    )
    launch(_run, machines, cfg, args)


def _run(cfg: CfgNode, args: SimpleNamespace) -> None:
    """Train and evaluate, or only evaluate, in each process that detectron2 launches."""
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="moco_plugin")
    for message in ("torch.meshgrid", "torch.jit.script", "NumPy array is not writable"):  # detectron2's to mend
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        require_dataset(name)  # registers what is named by its file, in this process too
    if not args.brief:
        _train_and_test(cfg, args)
        return
    Brief().apply(cfg.OUTPUT_DIR, comm.get_rank())
    with open(Path(cfg.OUTPUT_DIR, "stdout.txt"), "a") as file, redirect_stdout(file):  # pycocotools prints
        _train_and_test(cfg, args)


def _train_and_test(cfg: CfgNode, args: SimpleNamespace) -> None:
    default_setup(cfg, args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        load_weights(model, cfg.MODEL.WEIGHTS, args.allow_partial, cfg)
        Trainer.test(cfg, model)
        return
    trainer = Trainer(cfg, args.allow_partial)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()

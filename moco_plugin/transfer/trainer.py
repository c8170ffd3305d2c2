"""Training and evaluation of detectors: detectron2's trainer, checked weights and a results.json."""

import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
import torch
from detectron2 import evaluation
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, default_setup
from detectron2.engine.hooks import PreciseBN
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.logger import setup_logger

from moco_plugin.checkpoints.released import is_released
from moco_plugin.data.order import seed_of
from moco_plugin.errors import UsageError
from moco_plugin.files import write_json
from moco_plugin.transfer.checks import check_datasets
from moco_plugin.transfer.compat import prepare_cityscapes
from moco_plugin.transfer.components.datasets import metadata_of, require_dataset
from moco_plugin.transfer.config import fit_device, load_detector_config, wants_densepose
from moco_plugin.transfer.initial_weights import find_weights
from moco_plugin.transfer.launch import Machines, launch
from moco_plugin.transfer.mapper import Mapper
from moco_plugin.transfer.train_loader import TrainLoader
from moco_plugin.transfer.weights import building_a_network, load_weights, read_file

RESULTS = "results.json"
COCO_DETECTIONS = 100  # per image in COCO's evaluation


class _Description:
    """The metadata of a model file: its config and the names of its classes."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def state_dict(self) -> dict[str, Any]:
        metadata = metadata_of((*self.cfg.DATASETS.TEST, *self.cfg.DATASETS.TRAIN)[0])
        names = {
            key: list(getattr(metadata, key)) for key in ("thing_classes", "stuff_classes") if hasattr(metadata, key)
        }
        ids = getattr(metadata, "thing_dataset_id_to_contiguous_id", {})
        return {"config": self.cfg.dump(), "classes": names, "category_ids": list(ids)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass  # a resumed run has its own


class Trainer(DefaultTrainer):
    """detectron2's trainer with our order of images; checks that the backbone is loaded, and writes ``results.json``."""

    def __init__(self, cfg: CfgNode, allow_partial: bool = False) -> None:
        self.allow_partial = allow_partial
        self.loss_normalizers: list[float] = []
        super().__init__(cfg)
        self.checkpointer.add_checkpointable("moco_plugin", _Description(cfg))

    @classmethod
    def build_model(cls, cfg: CfgNode) -> Any:
        """Return the config's network, or raise UserError if its parts do not fit together."""
        with building_a_network():
            return super().build_model(cfg)

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume the run in ``OUTPUT_DIR`` if requested and possible; otherwise load ``MODEL.WEIGHTS``."""
        if resume and self.checkpointer.has_checkpoint():
            read_file(self.checkpointer.get_checkpoint_file())
            super().resume_or_load(resume=True)
            self._trainer.data_loader.start = self.start_iter
        else:
            load_weights(self.model, self.cfg.MODEL.WEIGHTS, self.allow_partial, self.cfg)

    def state_dict(self) -> dict[str, Any]:
        """Return the trainer's state; v0.6 leaves out the optimizer, and all versions RetinaNet's mean counts of anchors."""
        own = {"_trainer": self._trainer.state_dict(), "loss_normalizers": self.loss_normalizers}
        return {**own, **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; v0.6's own trainer saves none of the optimizer."""
        super().load_state_dict(state_dict)
        if "_trainer" in state_dict:
            if self.cfg.SOLVER.AMP.ENABLED and "grad_scaler" not in state_dict["_trainer"]:
                raise UsageError(
                    f"{self.cfg.OUTPUT_DIR} contains a run in full precision, and SOLVER.AMP.ENABLED is True; resume it "
                    "with SOLVER.AMP.ENABLED False, or start another OUTPUT_DIR"
                )
            self._trainer.load_state_dict(state_dict["_trainer"])
        if means := state_dict.get("loss_normalizers"):
            self.checkpointer.model.loss_normalizer = means[comm.get_rank() % len(means)]

    def run_step(self) -> None:
        """Train on a batch; the model's random numbers are functions of seed, iteration and process."""
        if self.cfg.SEED >= 0:
            torch.manual_seed(seed_of(self.cfg.SEED, self.iter, comm.get_rank()))
        with torch.jit.optimized_execution(False):  # RetinaNet's scripted loss rounds as in a process's first calls
            super().run_step()

    def after_step(self) -> None:
        """Run the hooks; before one saves, gather the counts of anchors, which differ between RetinaNet's processes."""
        due = (self.iter + 1) % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0 or self.iter + 1 >= self.max_iter
        if due and hasattr(self.checkpointer.model, "loss_normalizer"):
            self.loss_normalizers = comm.all_gather(self.checkpointer.model.loss_normalizer)
        super().after_step()

    def build_hooks(self) -> list[HookBase]:
        """Return detectron2's hooks; precise batch norm uses the same images each time."""
        hooks: list[HookBase] = super().build_hooks()
        for hook in hooks:
            if isinstance(hook, PreciseBN):
                hook._data_loader.period = self.cfg.TEST.PRECISE_BN.NUM_ITER
        return hooks

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Return our loader, or that of DensePose's project."""
        if wants_densepose(cfg):
            return _densepose_trainer().build_train_loader(cfg)
        return TrainLoader(cfg, Mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Return detectron2's loader with our mapping, or that of DensePose's project."""
        if wants_densepose(cfg):
            return _densepose_trainer().build_test_loader(cfg, dataset_name)
        return build_detection_test_loader(cfg, dataset_name, mapper=Mapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Return the evaluator of the data set, or that of DensePose's project."""
        if wants_densepose(cfg):
            return _densepose_trainer().build_evaluator(cfg, dataset_name, f"{cfg.OUTPUT_DIR}/inference")
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


def _densepose_trainer() -> Any:
    from densepose.engine import Trainer

    return Trainer


def _plain(value: Any) -> Any:
    """Turn numpy numbers into Python's, and NaN into None, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if math.isnan(value) else float(value)


def build_evaluator(cfg: CfgNode, name: str) -> DatasetEvaluator:
    """Return detectron2's evaluator for a data set.

    Results are percentages: AP, AP50, AP75 of boxes for Pascal VOC; the same and more of the model's boxes, masks and
    keypoints for COCO and LVIS; AP and AP50 of masks for Cityscapes' instances; IoU for Cityscapes' semantic segmentation;
    mIoU for other label images. Predictions are kept in ``inference`` of ``OUTPUT_DIR``.

    Raises:
        UsageError: The data set is of another kind.
    """
    kind = getattr(MetadataCatalog.get(name), "evaluator_type", "")
    output = {"output_dir": os.path.join(cfg.OUTPUT_DIR, "inference")}
    most = cfg.TEST.DETECTIONS_PER_IMAGE if cfg.TEST.DETECTIONS_PER_IMAGE > COCO_DETECTIONS else None
    evaluators: dict[str, tuple[type[DatasetEvaluator], dict[str, Any]]] = {
        "cityscapes_instance": (evaluation.CityscapesInstanceEvaluator, {}),
        "cityscapes_sem_seg": (evaluation.CityscapesSemSegEvaluator, {}),
        "coco": (
            evaluation.COCOEvaluator,
            {**output, "max_dets_per_image": most, "kpt_oks_sigmas": cfg.TEST.KEYPOINT_OKS_SIGMAS},
        ),
        "lvis": (evaluation.LVISEvaluator, {**output, "max_dets_per_image": cfg.TEST.DETECTIONS_PER_IMAGE}),
        "pascal_voc": (evaluation.PascalVOCDetectionEvaluator, {}),
        "sem_seg": (evaluation.SemSegEvaluator, output),
    }
    if kind not in evaluators:
        raise UsageError(f"data set {name!r} is evaluated as {kind!r}; known here are {', '.join(evaluators)}")
    if kind.startswith("cityscapes"):
        prepare_cityscapes()
    evaluator, options = evaluators[kind]
    return evaluator(name, **options)


@dataclass(frozen=True)
class Options:
    """Options of ``tools/train_net.py``; detectron2 logs them."""

    resume: bool = False  # from the last checkpoint in OUTPUT_DIR, if there is one
    eval_only: bool = False  # evaluate MODEL.WEIGHTS on DATASETS.TEST
    allow_partial: bool = False  # accept weights that leave a part of the backbone random
    brief: bool = False  # print only progress and warnings; log.txt and stdout.txt in OUTPUT_DIR have the rest


def train(
    config: str,
    overrides: Sequence[str] = (),
    options: Options = Options(),
    *,
    overwrite: bool = False,
    machines: Machines = Machines(),  # noqa: B008  (frozen)
) -> None:
    """Check a config, and train and evaluate its model, or only evaluate it.

    Args:
        config: A path, or a name below ``configs/detectron2``.
        overrides: ``KEY VALUE`` pairs, as on detectron2's command line.
        options: Whether to resume, or only to evaluate.
        overwrite: Replace the run in ``OUTPUT_DIR``.
        machines: The processes.

    Raises:
        UsageError: Invalid arguments, or a run in ``OUTPUT_DIR`` that is neither resumed nor overwritten.
        UserError: Data sets or weights are missing or do not fit.
    """
    machines.check()
    cfg = load_detector_config(config, overrides)
    check_datasets(cfg, (*(() if options.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST))
    output = Path(cfg.OUTPUT_DIR)
    earlier = [path for path in (output / RESULTS, output / "last_checkpoint") if path.exists()]
    if earlier and not (options.resume or overwrite):
        raise UsageError(
            f"{output} contains a run ({earlier[0].name}) and was kept; pass --resume, --overwrite or another OUTPUT_DIR"
        )
    if overwrite and not options.eval_only and not options.resume:  # detectron2 would append to some of them
        for pattern in (RESULTS, "last_checkpoint", "model_*.pth", "metrics.json", "events.out.*", "log.txt*"):
            for path in output.glob(pattern):
                path.unlink()
    if is_released(cfg.MODEL.WEIGHTS):  # by name: fetched, and converted into the run's folder
        cfg.MODEL.WEIGHTS, _ = find_weights("moco", cfg.MODEL.WEIGHTS, "").for_detectron2(output, machines.machine_rank)
    train_checked(cfg, options, machines)


def train_checked(cfg: CfgNode, options: Options, machines: Machines) -> None:
    """Train and evaluate the model of a checked config, or only evaluate it, in the processes of this machine."""
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=machines.machine_rank, name="moco_plugin")
    fit_device(cfg, say=not options.brief)
    cfg.freeze()
    launch(_run, machines, cfg, options)


def _run(cfg: CfgNode, options: Options) -> None:
    """Train and evaluate, or only evaluate, in each process that detectron2 launches."""
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="moco_plugin")
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        require_dataset(name)  # in this process, too, it registers data sets that are named by their files
    with _progress_alone(cfg.OUTPUT_DIR) if options.brief else nullcontext():
        default_setup(cfg, options)
        if options.eval_only:
            model = Trainer.build_model(cfg)
            load_weights(model, cfg.MODEL.WEIGHTS, options.allow_partial, cfg)
            Trainer.test(cfg, model)
            return
        trainer = Trainer(cfg, options.allow_partial)
        trainer.resume_or_load(resume=options.resume)
        trainer.train()


@contextmanager
def _progress_alone(output: str) -> Iterator[None]:
    """Show only progress and warnings in the terminal; ``log.txt`` and ``stdout.txt`` in a folder get everything."""

    def is_shown(record: logging.LogRecord) -> bool:
        progress = record.name.startswith("moco_plugin") or record.name == "detectron2.utils.events"
        return progress or record.levelno >= logging.WARNING

    for name in ("fvcore", "detectron2"):
        for handler in setup_logger(output, distributed_rank=comm.get_rank(), name=name).handlers:
            if not isinstance(handler, logging.FileHandler) and getattr(handler, "stream", None) is sys.stdout:
                handler.addFilter(is_shown)
    with open(Path(output, "stdout.txt"), "a") as file, redirect_stdout(file):  # pycocotools prints
        yield

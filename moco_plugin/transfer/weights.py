"""Loading of weights into a detector, with a count of the backbone tensors that were filled."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils.file_io import PathManager
from torch import nn

from moco_plugin.checkpoints.released import is_released
from moco_plugin.errors import UserError, reason
from moco_plugin.files import fetching
from moco_plugin.transfer.components.timm_backbone import BUILDERS, network_arguments
from moco_plugin.transfer.config import as_overrides
from moco_plugin.transfer.to_detectron2 import load_zoo_pickle
from moco_plugin.weight_files.load import load_file

logger = logging.getLogger(__name__)

ANY_WIDTH = {
    f"build_{kind}_backbone": f"build_any_width_{kind}_backbone"
    for kind in ("resnet", "resnet_fpn", "retinanet_resnet_fpn")
}
"""Our builder in the place of each of detectron2's."""
RESNET_BUILDERS = (*ANY_WIDTH, *ANY_WIDTH.values(), "build_resnet_dilated_c5_backbone")
ADVICE = "convert the file with tools/convert_to_d2.py"


@dataclass(frozen=True)
class Coverage:
    """The part of a detector's backbone that a weight file filled."""

    source: str
    tensors: tuple[str, ...]  # names of all backbone tensors in the detector
    missing: tuple[str, ...]  # those that the file did not fill: absent there, or of another shape
    unfilled: frozenset[str]  # names of all tensors in the detector, heads included, that it did not fill
    metadata: Mapping[str, Any]  # what a converter of ours wrote into the file; empty for others

    def __str__(self) -> str:
        if not self.source:
            return "weights: none, random initialisation"
        filled = len(self.tensors) - len(self.missing)
        return f"weights: {filled} of {len(self.tensors)} backbone tensors filled from {self.source}"


def backbone_tensors(model: nn.Module) -> list[str]:
    """List the pre-trainable tensors of a detector: parameters and batch norm statistics of its backbone.

    What a detector adds itself is not counted: FPN's own layers, and the extra norm of
    ``Res5ROIHeadsExtraNorm``. The res5 of a C4 detector is in its heads and is counted.

    Returns:
        Names in ``model.state_dict()``, without batch norm's step counts, which no backbone file needs.
    """
    prefixes = ["backbone.bottom_up." if hasattr(model.backbone, "bottom_up") else "backbone."]
    if hasattr(getattr(model, "roi_heads", None), "res5"):
        prefixes.append("roi_heads.res5.")
    return [
        name
        for name in model.state_dict()
        if name.startswith(tuple(prefixes))
        and not name.endswith(".num_batches_tracked")
        and not re.match(r"roi_heads\.res5\.norm\.", name)
    ]


class _CountingCheckpointer(DetectionCheckpointer):
    """detectron2's loading and name matching of safely read content; records unfilled tensors."""

    content: dict[str, Any]
    missing_keys: frozenset[str] = frozenset()

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = self.content  # detectron2 would unpickle the file again, without checks
        if not filename.endswith(".pkl"):
            return content if "model" in content else {"model": content}
        if "model" in content and "__author__" in content:
            return content
        blobs = content.get("blobs", content)  # Detectron's model zoo
        model = {name: blob for name, blob in blobs.items() if not name.endswith("_momentum")}
        return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: Any) -> Any:
        incompatible = super()._load_model(checkpoint)
        self.missing_keys = frozenset(incompatible.missing_keys)
        return incompatible


def read_file(path: str) -> dict[str, Any]:
    """Read a weight file without running any code in it.

    Raises:
        UserError: The file is missing, broken or holds more than tensors, arrays and builtins.
    """
    if is_released(path):
        raise UserError(
            f"MODEL.WEIGHTS {path} is a released checkpoint, whose layout detectron2 does not read; run "
            f"tools/convert_to_d2.py {path} {path}.pkl and give it {path}.pkl"
        )
    if not Path(path).is_file():
        raise UserError(f"weight file {path} does not exist; check MODEL.WEIGHTS")
    return load_zoo_pickle(path) if path.endswith(".pkl") else load_file(path).content


def check_input(cfg: Any, metadata: Mapping[str, Any]) -> None:
    """Compare the settings that our converters wrote into a weight file with the config.

    Colour order, pixel statistics, the position of the stride and a timm network's name and arguments (a ViT's number of
    heads, for one) change what the weights compute, but no shape; of a ResNet of fewer blocks each tensor is in the file
    of a deeper one. Nothing else would show such a mistake.

    Args:
        cfg: A detectron2 config.
        metadata: The file's ``moco_plugin``; what it lacks is not compared.

    Raises:
        UserError: They contradict each other; names the keys, the first one's values and the way out.
    """
    settings, own = dict(metadata.get("settings") or {}), cfg.MODEL.BACKBONE.NAME
    builder = settings.pop("MODEL.BACKBONE.NAME", "build_resnet_backbone")
    if settings and (own in BUILDERS) != (builder in BUILDERS):
        way = "choose one of them" if own not in BUILDERS else "convert with tools/convert.py --to detectron2-timm"
        raise UserError(
            f"MODEL.BACKBONE.NAME is {own}, and the weight file holds {metadata.get('architecture')} for {builder} and its "
            f"like; {way}"
        )
    if "MODEL.RESNETS.DEPTH" in settings:
        settings = {"MODEL.RESNETS.NUM_BLOCKS": [], "MODEL.RESNETS.NORM": "BN", **settings}
    known = own in BUILDERS or own in RESNET_BUILDERS  # others may take other keys
    compared = {key: value for key, value in settings.items() if known or not key.startswith("MODEL.RESNETS.")}
    if builder in ANY_WIDTH.values() and own in ANY_WIDTH:
        compared = {"MODEL.BACKBONE.NAME": ANY_WIDTH[own], **compared}
    wrong = {key: value for key, value in compared.items() if not _fits(key, value, _value(cfg, key), cfg)}
    if wrong:
        key, value = next(iter(wrong.items()))
        if key == "MODEL.TIMM.ARGS":
            wrong[key] = [part for pair in (network_arguments(cfg) | _arguments(value)).items() for part in pair]
        raise UserError(
            f"{key} is {_value(cfg, key)}, and the weight file was made with {value}; choose the config that ends in "
            f"_moco, or pass {as_overrides(wrong)}"
        )


def _value(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg.get(part, [])
    return cfg


def _fits(key: str, in_file: Any, in_config: Any, cfg: Any) -> bool:
    if key == "MODEL.TIMM.NAME":  # timm's tags, behind a dot, name pre-trained weights
        return str(in_file).partition(".")[0] == str(in_config).partition(".")[0]
    if key == "MODEL.TIMM.ARGS":
        given = network_arguments(cfg)
        return all(_equal(value, given.get(name)) for name, value in _arguments(in_file).items())
    if key == "MODEL.RESNETS.NORM":
        return "BN" in in_config  # trained, synchronised or frozen
    return _equal(in_file, in_config)


def _arguments(pairs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of timm.create_model that change the weights or what they compute."""
    idle = ("dynamic_img_size", "strict_img_size", "num_classes")
    named = dict(zip(pairs[::2], pairs[1::2], strict=True))
    return {name: value for name, value in named.items() if "drop" not in name and name not in idle}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return isinstance(b, (int, float)) and abs(a - b) < 0.01  # configs round pixel statistics
    return bool(a == b)


def load_weights(model: nn.Module, path: str, allow_partial: bool = False, cfg: Any = None) -> Coverage:
    """Read a weight file and :func:`fill` a detector.

    Args:
        model: A detector with a ``backbone``.
        path: File or address as in ``MODEL.WEIGHTS``; empty keeps the random initialisation.
        allow_partial: Accept weights that fill only a part of the backbone.
        cfg: The detector's config, compared with what the file says of its weights.

    Raises:
        UserError: The file is missing or unsafe, contradicts the config, or leaves the backbone random in part.
    """
    local = str(fetch(path)) if "://" in path and not is_released(path) else path
    return fill(model, path, read_file(local) if path else None, allow_partial, cfg)


def fetch(address: str) -> Path:
    """Return the file that is at an address as in ``MODEL.WEIGHTS``, such as ``detectron2://...``.

    Raises:
        UserError: It cannot be fetched.
    """
    try:
        with fetching():
            return Path(PathManager.get_local_path(address))
    except Exception as error:  # downloads raise many errors
        raise UserError(
            f"weights {address} cannot be fetched ({reason(error)}); get the file elsewhere and give its path"
        ) from error


def fill(
    model: nn.Module, path: str, content: dict[str, Any] | None, allow_partial: bool = False, cfg: Any = None
) -> Coverage:
    """Load the content of a weight file into a detector as detectron2 does, and refuse a backbone that stays random in part.

    Returns:
        What was filled; also logged.

    Raises:
        UserError: The content contradicts the config, or leaves the backbone random in part.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    tensors = tuple(backbone_tensors(model))
    if content is None:
        coverage = Coverage("", tensors, tensors, frozenset(model.state_dict()), {})
        logger.info(str(coverage))
        return coverage
    metadata = content.get("moco_plugin")
    metadata = metadata if isinstance(metadata, dict) else {}
    try:
        if cfg is not None:
            check_input(cfg, metadata)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: its entry moco_plugin is invalid ({error}); convert the weights again") from error
    checkpointer = _CountingCheckpointer(model)
    checkpointer.content = content
    lists = logging.getLogger("fvcore.common.checkpoint")  # of the heads' tensors; the coverage below counts them
    level = lists.level
    lists.setLevel(logging.ERROR)
    try:
        checkpointer.load(path, checkpointables=[])
    except (ValueError, AttributeError, TypeError, KeyError, RuntimeError, AssertionError) as error:
        raise UserError(f"{path} is not in a layout of detectron2's ({error}); {ADVICE}") from error
    finally:
        lists.setLevel(level)
    missing = tuple(name for name in tensors if name in checkpointer.missing_keys)
    coverage = Coverage(path, tensors, missing, checkpointer.missing_keys, metadata)
    logger.info(str(coverage))
    if coverage.missing and not allow_partial:
        first = ", ".join(coverage.missing[:3]) + (", ..." if len(coverage.missing) > 3 else "")
        raise UserError(
            f"{coverage}; not filled and so random: {first}; {ADVICE}, choose the config that fits it, "
            "or pass train_net's --allow-partial"
        )
    return coverage


class CheckWeights(HookBase):
    """A hook for detectron2's own trainer: refuses weights that leave a part of the backbone random, or that do not fit."""

    def before_train(self) -> None:
        """Load ``MODEL.WEIGHTS`` once more, checked, unless the run is resumed.

        Raises:
            UserError: As :func:`load_weights`.
        """
        trainer: Any = self.trainer
        if not trainer.start_iter:
            load_weights(trainer.model, trainer.cfg.MODEL.WEIGHTS, cfg=trainer.cfg)

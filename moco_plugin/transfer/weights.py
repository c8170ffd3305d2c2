"""Loading of weights into a detector, with a count of the backbone tensors that were filled."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from moco_plugin.checkpoints.released import is_released
from moco_plugin.errors import UserError
from moco_plugin.transfer.components.timm_backbone import BUILDERS, network_arguments
from moco_plugin.transfer.to_detectron2 import load_zoo_pickle
from moco_plugin.weight_files.load import load_file

logger = logging.getLogger(__name__)

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
    """Compare the metadata that our converters wrote into a weight file with the config.

    Colour order, pixel statistics, the position of the stride and a timm network's name and arguments (a ViT's number of
    heads, for one) change what the weights compute, but no shape, so that nothing else would show a mistake.

    Args:
        cfg: A detectron2 config.
        metadata: The file's ``moco_plugin``; what it lacks is not compared.

    Raises:
        UserError: They contradict each other; names the key, both values and the way out.
    """
    model, advice = cfg.MODEL, "choose the config that ends in _moco, or pass"
    _compare("INPUT.FORMAT", metadata.get("input_format"), cfg.INPUT.FORMAT, advice)
    for key, name in (("PIXEL_MEAN", "pixel_mean"), ("PIXEL_STD", "pixel_std")):
        _compare(f"MODEL.{key}", metadata.get(name), list(model[key]), advice)
    is_timm = model.BACKBONE.NAME in BUILDERS
    if "target" in metadata and is_timm != ("timm_name" in metadata):
        other, way = "build_timm_fpn_backbone", "choose one of them"
        if is_timm:
            other = "build_any_width_resnet_fpn_backbone"
            way += ", or convert with tools/convert.py --to detectron2-timm"
        raise UserError(
            f"MODEL.BACKBONE.NAME is {model.BACKBONE.NAME}, and the weight file holds "
            f"{metadata.get('architecture')} for {other} and its like; {way}"
        )
    if not is_timm:
        if model.RESNETS.DEPTH >= 50:  # blocks of two layers have no 1 x 1 convolution to stride in
            stride = metadata.get("stride_in_1x1")
            _compare("MODEL.RESNETS.STRIDE_IN_1X1", stride, model.RESNETS.STRIDE_IN_1X1, advice)
        return
    if "timm_name" in metadata:  # timm's tags, behind a dot, name pre-trained weights
        name, own = metadata["timm_name"].partition(".")[0], model.TIMM.NAME.partition(".")[0]
        _compare("MODEL.TIMM.NAME", name, own, "pass")
    wanted = {k: v for k, v in dict(metadata.get("timm_arguments") or {}).items() if _matters(k)}
    given = network_arguments(cfg)
    if any(not _equal(value, given.get(key)) for key, value in wanted.items()):
        pairs = [part for pair in (given | wanted).items() for part in pair]
        raise UserError(
            f"MODEL.TIMM.ARGS is {list(model.TIMM.ARGS)}, and the weight file was made with {wanted}; pass "
            f'MODEL.TIMM.ARGS "{pairs}"'
        )


def _compare(key: str, in_file: Any, in_config: Any, advice: str) -> None:
    if in_file is not None and not _equal(in_file, in_config):
        shown = [round(v, 3) for v in in_file] if isinstance(in_file, (list, tuple)) else in_file
        raise UserError(
            f"{key} is {in_config}, and the weight file was made with {shown}; {advice} {key} "
            + (f'"{shown}"' if isinstance(shown, list) else str(shown))
        )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return isinstance(b, (int, float)) and abs(a - b) < 0.01  # configs round pixel statistics
    return bool(a == b)


def _matters(argument: str) -> bool:
    """Return whether an argument of timm.create_model changes the weights or what they compute."""
    return "drop" not in argument and argument not in ("dynamic_img_size", "strict_img_size", "num_classes")


def load_weights(model: nn.Module, path: str, allow_partial: bool = False, cfg: Any = None) -> Coverage:
    """Load weights into a detector as detectron2 does, and refuse a backbone that stays partly random.

    Args:
        model: A detector with a ``backbone``.
        path: File or address as in ``MODEL.WEIGHTS``; empty keeps the random initialisation.
        allow_partial: Accept weights that fill only a part of the backbone.
        cfg: The detector's config, compared with what the file says of its weights' input.

    Returns:
        What was filled; also logged.

    Raises:
        UserError: The file is missing or unsafe, contradicts the config, or leaves the backbone random in part.
    """
    content = None
    if path:
        try:
            local = path if is_released(path) else PathManager.get_local_path(path)
        except Exception as error:  # downloads raise many errors
            raise UserError(f"weights {path} cannot be fetched: {error}") from error
        content = read_file(local)
    return fill(model, path, content, allow_partial, cfg)


def fill(
    model: nn.Module, path: str, content: dict[str, Any] | None, allow_partial: bool = False, cfg: Any = None
) -> Coverage:
    """Load the content of a weight file into a detector; as :func:`load_weights`, but the file is not read."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    tensors = tuple(backbone_tensors(model))
    if content is None:
        coverage = Coverage("", tensors, tensors, frozenset(model.state_dict()), {})
        logger.info(str(coverage))
        return coverage
    metadata = content.get("moco_plugin")
    metadata = metadata if isinstance(metadata, dict) else {}
    if cfg is not None and metadata:
        try:
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

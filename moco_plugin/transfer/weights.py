"""Loading of weights into a detector, with a count of the backbone tensors that were filled."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
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
    """The part of a detector that a weight file filled."""

    source: str
    tensors: tuple[str, ...]  # names of the backbone's tensors
    missing: tuple[str, ...]  # those that the file did not fill: absent there, or of another shape
    unfilled: frozenset[str]  # the same of all tensors, heads included
    metadata: Mapping[str, Any]  # written by our converters; empty in other files

    def __str__(self) -> str:
        if not self.source:
            return "weights: none, random initialisation"
        filled = len(self.tensors) - len(self.missing)
        return f"weights: {filled} of {len(self.tensors)} backbone tensors filled from {self.source}"


@contextmanager
def building_a_network() -> Iterator[None]:
    """Raise UserError for what detectron2 raises if the parts of a config's network do not fit together."""
    try:
        yield
    except (AssertionError, KeyError, IndexError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {reason(error)}"
        raise UserError(f"the config's network cannot be built ({found}); check the keys of MODEL") from error


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
        and not name.startswith("roi_heads.res5.norm.")
    ]


def read_file(path: str) -> dict[str, Any]:
    """Read a weight file without running any code in it.

    Raises:
        UserError: The file is missing or broken, or contains more than tensors, arrays and builtins.
    """
    if is_released(path):
        raise UserError(
            f"MODEL.WEIGHTS {path} is a released checkpoint, whose layout detectron2 does not read; run "
            f"tools/convert_to_d2.py {path} {path}.pkl and give it {path}.pkl"
        )
    if not Path(path).is_file():
        raise UserError(f"weight file {path} does not exist; check MODEL.WEIGHTS")
    return load_file(path).content


def check_input(cfg: Any, metadata: Mapping[str, Any]) -> None:
    """Compare the settings that our converters wrote into a weight file with the config.

    Colour order, pixel statistics, the position of the stride and a timm network's arguments (such as a ViT's number of
    heads) change the features, but no shape. A file of a deeper ResNet fills each tensor of a shallower one.

    Args:
        cfg: A detectron2 config.
        metadata: The file's ``moco_plugin``; missing entries are not compared.

    Raises:
        UserError: They contradict each other.
    """
    settings, own = dict(metadata.get("settings") or {}), cfg.MODEL.BACKBONE.NAME
    builder = settings.pop("MODEL.BACKBONE.NAME", "build_resnet_backbone")
    if settings and (own in BUILDERS) != (builder in BUILDERS):
        way = "choose one of them" if own not in BUILDERS else "convert with tools/convert.py --to detectron2-timm"
        raise UserError(
            f"MODEL.BACKBONE.NAME is {own}, and the weight file contains {metadata.get('architecture')} for {builder} and "
            f"its like; {way}"
        )
    if "MODEL.RESNETS.DEPTH" in settings:
        settings = {"MODEL.RESNETS.NUM_BLOCKS": [], "MODEL.RESNETS.NORM": "BN", **settings}
    known = own in BUILDERS or own in RESNET_BUILDERS  # others may take other keys
    compared = {key: value for key, value in settings.items() if known or not key.startswith("MODEL.RESNETS.")}
    if builder in ANY_WIDTH.values() and own in ANY_WIDTH:
        compared = {"MODEL.BACKBONE.NAME": ANY_WIDTH[own], **compared}
    wrong = {key: value for key, value in compared.items() if not _fits(cfg, key, value)}
    if wrong:
        key, value = next(iter(wrong.items()))
        if key == "MODEL.TIMM.ARGS":
            wrong[key] = [part for pair in (network_arguments(cfg) | _arguments(value)).items() for part in pair]
        raise UserError(
            f"{key} is {_value(cfg, key)}, and the weight file was made with {value}; choose the config that ends in "
            f"_moco, or pass {as_overrides(wrong)}"
        )


def _value(cfg: Any, key: str) -> Any:
    return reduce(lambda node, part: node.get(part, []), key.split("."), cfg)


def _fits(cfg: Any, key: str, in_file: Any) -> bool:
    in_config = _value(cfg, key)
    if key == "MODEL.TIMM.NAME":  # timm's tags, behind a dot, name pre-trained weights
        return str(in_file).partition(".")[0] == str(in_config).partition(".")[0]
    if key == "MODEL.TIMM.ARGS":
        given = network_arguments(cfg)
        return all(_equal(value, given.get(name)) for name, value in _arguments(in_file).items())
    if key == "MODEL.RESNETS.NORM":
        return "BN" in in_config  # trained, synchronised or frozen
    return _equal(in_file, in_config)


def _arguments(pairs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of timm.create_model that change the weights or the features."""
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
        cfg: The detector's config, compared with the settings in the file.

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
    checkpointer = DetectionCheckpointer(model)
    model = checkpointer.model  # without DistributedDataParallel
    tensors, unfilled = tuple(backbone_tensors(model)), frozenset(model.state_dict())
    metadata: Any = {}
    if content is not None:
        metadata = content.get("moco_plugin")
        metadata = metadata if isinstance(metadata, dict) else {}
        try:
            if cfg is not None:
                check_input(cfg, metadata)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: its entry moco_plugin is invalid ({error}); convert the weights again") from error
        try:
            unfilled = frozenset(checkpointer._load_model(_in_detectron2s_layout(path, content)).missing_keys)
        except (ValueError, AttributeError, TypeError, KeyError, RuntimeError, AssertionError) as error:
            raise UserError(f"{path} is not in a layout of detectron2's ({error}); {ADVICE}") from error
    missing = tuple(name for name in tensors if name in unfilled)
    coverage = Coverage("" if content is None else path, tensors, missing, unfilled, metadata)
    logger.info(str(coverage))
    if missing and content is not None and not allow_partial:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(
            f"{coverage}; not filled and so random: {first}; {ADVICE}, choose the config that fits it, "
            "or pass train_net's --allow-partial"
        )
    return coverage


def _in_detectron2s_layout(path: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return content as detectron2's own reader does, which would run code in the file."""
    if not path.endswith(".pkl"):
        return dict(content) if "model" in content else {"model": content}
    if "model" in content and "__author__" in content:
        return dict(content)
    blobs = content.get("blobs", content)  # Detectron's model zoo
    model = {name: blob for name, blob in blobs.items() if not name.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


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

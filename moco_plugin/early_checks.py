"""Fast checks of command-line values, without importing torch or timm."""

import importlib.util
import re
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from moco_plugin.errors import UsageError, UserError, did_you_mean

EXPECTED_IMAGES = (
    "expected a folder of images, a .txt or .csv list of them, tar shards, a .zip archive or an idx images file"
)


def formats() -> EntryPoints:
    """Return the formats that checkpoints are converted to, by name: entry points, which load a ``Format``."""
    return entry_points(group="moco_plugin.formats")


def check_overrides(given: Any, paths: bool = True) -> None:
    """Check the names and paths in the overrides of a pre-training run.

    Args:
        given: The value of ``parse_overrides``.
        paths: Check them as well.

    Raises:
        UsageError: No timm model has the name.
        UserError: Nothing is at the path.
    """
    images = ("data.root", "knn.train", "knn.test") if paths else ()
    checks = [("backbone", check_backbone), *((key, check_images) for key in images)]
    if paths:
        checks.append(("weights", check_checkpoint))
    for key, check in checks:
        if isinstance(value := OmegaConf.select(given, key), str) and value:
            check(value)


def check_images(spec: str) -> None:
    """Raise UserError if an image set names a path where nothing is; URLs and ranges of shards are not checked."""
    source = re.sub(r"\[[^\[\]]*:[^\[\]]*\]$", "", spec)
    if not re.search(r"://|\{", source) and not Path(source).expanduser().exists():
        raise UserError(f"{source}: found nothing, {EXPECTED_IMAGES}; check the path")


def check_checkpoint(path: str) -> None:
    """Raise UserError if a path does not exist and is not the name of a released checkpoint."""
    if re.search(r"[./\\]", path) and "://" not in path and not Path(path).expanduser().exists():
        raise UserError(f"{path}: no such file; expected a checkpoint")


def check_backbone(name: str) -> None:
    """Raise UsageError if a name does not occur in the source of timm's models."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations or ":" in name:
        return
    folder = Path(spec.submodule_search_locations[0]) / "models"
    source = "".join(path.read_text(errors="replace") for path in folder.glob("*.py"))
    if source and not re.search(rf"\b{re.escape(name.partition('.')[0])}\b", source):
        known = re.findall(r"^@register_model\s+def (\w+)", source, re.M)
        hint = did_you_mean(name, known) or "; timm.list_models() lists them"
        raise UsageError(f"unknown backbone {name!r}: timm has no model of that name{hint}")

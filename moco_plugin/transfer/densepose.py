"""DensePose through detectron2's own project: its config keys, its loaders and its evaluators, where it is installed."""

from typing import Any

from detectron2.config import CfgNode

from moco_plugin.errors import UserError

MISSING = (
    "this config wants detectron2's DensePose project, which is not installed; run `pip install "
    "--no-build-isolation git+https://github.com/facebookresearch/detectron2.git#subdirectory=projects/DensePose`"
)


def wants_densepose(content: dict[str, Any]) -> bool:
    """Return whether a config, or what is in its file, turns DensePose on."""
    model = content.get("MODEL")
    return isinstance(model, dict) and bool(model.get("DENSEPOSE_ON"))


def add_densepose_config(cfg: CfgNode) -> None:
    """Add DensePose's config keys; the import registers its heads and data sets.

    Raises:
        UserError: DensePose is not installed.
    """
    try:
        import densepose
    except ModuleNotFoundError as error:
        if error.name != "densepose":
            raise UserError(f"DensePose needs {error.name}, which is not installed") from error
        raise UserError(MISSING) from error
    densepose.add_densepose_config(cfg)


def densepose_trainer() -> Any:
    """Return the trainer class of the project; its class methods build loaders and evaluators for DensePose."""
    from densepose.engine import Trainer

    return Trainer

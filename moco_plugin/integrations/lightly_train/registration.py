"""Registration of our methods with LightlyTrain, and its command line."""

import functools
from collections.abc import Callable, Sequence

import lightly_train
from lightly_train._methods import method_helpers
from lightly_train._methods.method import Method
from lightly_train._optim.optimizer_args import OptimizerArgs
from lightly_train.errors import LightlyTrainError
from omegaconf import OmegaConf

from moco_plugin.errors import UsageError, UserError
from moco_plugin.integrations.lightly_train.method import MoCoMethod
from moco_plugin.integrations.lightly_train.versions import unknown_version
from moco_plugin.methods import METHODS


@functools.cache
def lightly_train_method(name: str) -> type[MoCoMethod]:
    """Return LightlyTrain's class of one of METHODS."""
    return type("MoCoMethod", (MoCoMethod,), {"method_name": name, "__doc__": f"{METHODS.get(name).title}."})


def register() -> None:
    """Add METHODS to LightlyTrain's table of methods; a second call changes nothing.

    Raises:
        UserError: LightlyTrain has no such table any more.
    """
    known: Callable[[], dict[str, type[Method]]] | None = getattr(method_helpers, "_method_name_to_cls", None)
    if known is not None and "moco" not in known():
        ours = {name: lightly_train_method(name) for name in METHODS.names()}
        method_helpers._method_name_to_cls = lambda: {**known(), **ours}
    if not set(METHODS.names()) <= set(lightly_train.list_methods()):
        raise unknown_version("it does not look methods up in _method_name_to_cls")
    if not hasattr(OptimizerArgs, "resolve_auto"):
        raise unknown_version("its optimizer arguments have no resolve_auto")


def run(arguments: Sequence[str]) -> int:
    """Run LightlyTrain's command line; return the exit code.

    Args:
        arguments: Such as ``["pretrain", "out=run", "data=photos", "model=timm/resnet50", "method=moco"]``.

    Raises:
        UsageError: An argument that is not key=value.
    """
    from lightly_train._cli import cli

    try:
        config = OmegaConf.from_cli(list(arguments))
    except Exception as error:  # of OmegaConf, YAML and its grammar
        raise UsageError(f"{' '.join(arguments)}: {' '.join(str(error).split())}") from error
    try:
        cli(config)
    except (UserError, LightlyTrainError, ValueError, OSError) as error:
        # LightlyTrain has said what is wrong
        return error.exit_code if isinstance(error, UserError) else 2
    return 0

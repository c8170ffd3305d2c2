"""Our methods as LightlyTrain builds them."""

import importlib
from types import SimpleNamespace
from typing import Any

helpers = importlib.import_module("lightly_train._commands.train_helpers")


packages = importlib.import_module("lightly_train._models.package_helpers")


CHANNELS = [8, 16, 24, 32]


def network(name: str = "resnet18", **arguments: Any) -> Any:
    """A network as LightlyTrain wraps it."""
    return packages.get_wrapped_model(f"timm/{name}", num_input_channels=3, model_args=arguments)


def make(
    name: str,
    wrapped: Any = None,
    optim: str = "auto",
    optim_args: dict[str, Any] | None = None,
    images: int = 1_000_000,
    epochs: int = 200,
    batch: int = 256,
    **method_args: Any,
) -> Any:
    """One of our methods, built by LightlyTrain's functions in the order of its command."""
    wrapped = network(channels=CHANNELS) if wrapped is None else wrapped
    cls = helpers.method_helpers.get_method_cls(name)
    optimizer = helpers.get_optimizer_args(helpers.get_optimizer_type(optim), optim_args, cls, wrapped)
    scaling = helpers.get_scaling_info(images, epochs)
    arguments = helpers.get_method_args(cls, method_args, scaling, optimizer, wrapped)
    embedding = helpers.get_embedding_model(wrapped)
    method = helpers.get_method(cls, arguments, optimizer, embedding, batch, 3)
    method.trainer = SimpleNamespace(
        global_step=0,
        current_epoch=0,
        estimated_stepping_batches=10 * epochs,
        max_epochs=epochs,
        accumulate_grad_batches=1,
    )
    return method

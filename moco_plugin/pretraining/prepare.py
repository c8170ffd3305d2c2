"""The config of a run from what was typed: the recipe, and what fits the set and the machine without one named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from moco_plugin.data.spec import check_images
from moco_plugin.errors import UserError
from moco_plugin.files import check_checkpoint
from moco_plugin.pretraining.config import PretrainConfig, image_channels, merge_config
from moco_plugin.runs.run_folder import check_unlocked
from moco_plugin.schema import find_config, parse_overrides, read_yaml

if TYPE_CHECKING:
    from torch import nn

    from moco_plugin.data.images import ImageSet
    from moco_plugin.methods import Method

SMALL_SET = 100_000  # images below which ``queue_for`` takes a shorter queue and a smaller momentum
CPU_BACKBONE, CPU_IMAGE_SIZE, CPU_BATCH, CPU_QUEUE = "resnet18", 96, 64, 512
CPU_STEPS = 500  # of a run whose length was not named


@dataclass
class PreparedRun:
    """A config that is ready for ``pretrain``.

    Attributes:
        config: The config.
        images: The value of ``open_images(config)`` where they were listed already.
        choices: A line on the recipe and on each group of settings that were chosen, with the reason.
    """

    config: PretrainConfig
    images: ImageSet | None = None
    choices: list[str] = field(default_factory=list)


def _check_paths(given: Any) -> None:
    """Raise UserError if nothing is at a path, or another process is in the run's folder; torch is not imported yet."""
    checks = dict.fromkeys(("data.root", "knn.train", "knn.test"), check_images) | {"weights": check_checkpoint}
    for key, check in checks.items():
        if isinstance(value := OmegaConf.select(given, key), str) and value:
            check(value)
    if out := given.get("out"):
        check_unlocked(Path(str(out)).expanduser())


def prepare_run(overrides: Sequence[str], name: str | Path | None = None, dry: bool = False) -> PreparedRun:
    """Build the config of a run; without a named one, fit the recipe of the method to the set and the machine.

    Args:
        overrides: Such as ``["method=moco", "data.root=photos"]``.
        name: As for ``load_config``; None for the method's recipe, see ``recipe_for`` and ``adapt_recipe``.
        dry: The run will not start: where the images cannot be opened, the recipe is not fitted to them.

    Raises:
        UsageError: As for ``load_config``, or an unknown method or backbone.
        UserError: Nothing is at a path, or the images cannot be opened.
    """
    given = parse_overrides(overrides, PretrainConfig)
    named = None if name is None else merge_config(name, given)
    if not dry:
        _check_paths(given if named is None else OmegaConf.structured(named))
    if named is not None:
        return PreparedRun(named)
    import torch

    recipe = recipe_named_by(given)
    run = PreparedRun(merge_config(recipe, given))
    run.choices.append(describe_recipe(recipe, run.config))
    try:
        run.images = open_images(run.config)
    except UserError as error:
        if not dry:
            raise
        run.choices.append(f"not fitted to the set and the machine: {error}")
        return run
    cpu = run.config.trainer.get("accelerator") == "cpu" or not torch.cuda.is_available()
    run.choices += adapt_recipe(run.config, given, len(run.images), cpu)
    return run


def open_images(config: PretrainConfig) -> ImageSet:
    """Open a run's images."""
    from moco_plugin.data.images import ImageSet

    return ImageSet(config.data.root, config.data.value_range, image_channels(config))


def recipe_named_by(given: Any) -> str:
    """Return the recipe of the method and the backbone in parsed overrides; MoCo v2's by default.

    Raises:
        UsageError: The method is unknown.
    """
    import timm
    import torch

    from moco_plugin.methods import METHODS

    method = METHODS.get(str(given.get("method", "moco")))
    if isinstance(method.recipe, str):
        return method.recipe
    backbone, arguments = str(given.get("backbone", "resnet50")), given.get("backbone_args")
    if not timm.is_model(backbone):
        backbone = "resnet50"  # create_backbone refuses the unknown one
    with torch.device("meta"):
        network = timm.create_model(backbone, num_classes=0)
    recipe = recipe_for(method, network, OmegaConf.is_dict(arguments) and bool(arguments.get("pretrained")))
    # the paper's ViT-S has 12 heads where timm's has 6
    small = recipe == "moco_v3_vit" and backbone.partition(".")[0] == "vit_small_patch16_224"
    return "moco_v3_vit_small" if small else recipe


def recipe_for(method: type[Method], network: nn.Module, trained: bool) -> str:
    """Return the name of a method's recipe for a network.

    Args:
        method: The method's class; its ``recipe`` is a name, or a name by the kind of the network.
        network: Any network; its weights are not read.
        trained: Whether it starts from trained weights, whose position embedding and patches are kept as they are.
    """
    from moco_plugin.backbones import is_plain_vit
    from moco_plugin.methods.batch_norm import has_batch_norm

    if isinstance(method.recipe, str):
        return method.recipe
    if has_batch_norm(network):
        return method.recipe["batch_norm"]
    return method.recipe["plain_vit" if is_plain_vit(network) and not trained else "layer_norm"]


def describe_recipe(name: str, config: PretrainConfig) -> str:
    """Return one line with a recipe's name and the settings in which the recipes of one method differ."""
    optimizer, temperature = config.optimizer, config.method_args.get("temperature")
    arguments = [f"{key}={value}" for key, value in config.backbone_args.items() if value]
    return (
        f"recipe {name}: {optimizer.name}, learning rate {optimizer.lr:g} for {optimizer.reference_batch_size} images, "
        + (f"T {temperature}, " if temperature is not None else "")
        + f"{config.schedule.epochs} epochs"
        + (f"; backbone_args: {', '.join(arguments)}" if arguments else "")
    )


def queue_for(images: int, keys: int = 1, recipe: Mapping[str, Any] | None = None, most: float = inf) -> dict[str, Any]:
    """Return ``queue_size`` and, if the method has one, ``momentum`` for a set of images.

    They are the recipe's from ``SMALL_SET`` images on, below those of the authors' CIFAR-10 demo (50,000 images), but the
    queue is at most an eighth of the set: a longer one often contains a key of the same image from the last epoch.

    Args:
        images: In the set.
        keys: Of a batch, which the queue must hold.
        recipe: Arguments of the method; None for those of v2.
        most: Largest queue, unless a batch has more keys.
    """
    if images < SMALL_SET or recipe is None:
        name = "moco_v2" if images >= SMALL_SET else "moco_cifar10_resnet18"
        recipe = read_yaml(find_config(name, "pretrain")).method_args
    values = {key: recipe[key] for key in ("queue_size", "momentum") if key in recipe}
    values["queue_size"] = max(keys, min(values["queue_size"], images // 8, most))
    return values


def has_native_bfloat16() -> bool:
    """Return whether this CPU multiplies in bfloat16, in which a step takes about half of the time of float32."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def keys_of_batch(batch_size: int, arguments: Mapping[str, Any]) -> int:
    """Return how many keys a batch enqueues, over all processes, with some arguments of a method."""
    return batch_size * (2 if arguments.get("symmetric") else 1)


def queue_warning(method: Any, images: int) -> str:
    """Return a sentence if the queue of a method is longer than a quarter of the set, else an empty string."""
    if (method.queue_size or 0) <= images / 4:
        return ""
    smaller = f"method_args.queue_size={queue_for(images)['queue_size']}, or the keys of a batch, avoids it"
    found = f"the queue contains {method.queue_size} keys and there are {images} images"
    return f"warning: {found}, so that earlier keys of an image are among its negatives; {smaller}"


def adapt_recipe(config: PretrainConfig, given: Any, images: int, cpu: bool) -> list[str]:
    """Change unnamed settings to values for a small set, or for a CPU.

    The queue and the momentum are those of ``queue_for``. On a CPU network, images, batch, length and queue shrink, and
    the precision is bfloat16 where ``has_native_bfloat16``.

    Args:
        config: The recipe with its overrides; changed in place.
        given: The parsed overrides, which stay.
        images: In the set.
        cpu: Whether it trains on a CPU.

    Returns:
        A line for each group of changes, with the reason.
    """

    def choose(section: Any, prefix: str, **values: Any) -> list[str]:
        changed = []
        for name, value in values.items():
            before = section.get(name) if isinstance(section, dict) else getattr(section, name)
            if OmegaConf.select(given, f"{prefix}{name}") is None and before != value:
                if isinstance(section, dict):
                    section[name] = value
                else:
                    setattr(section, name, value)
                changed.append(f"{prefix}{name}={value}")
        return changed

    lines, sizes, data, arguments = list[str](), list[str](), config.data, config.method_args
    largest = min(data.batch_size, images // 8 * 8 or images)
    if cpu:
        sizes += choose(config, "", backbone=CPU_BACKBONE) + choose(data, "data.", image_size=CPU_IMAGE_SIZE)
        sizes += choose(config.trainer, "trainer.", precision="bf16-mixed") if has_native_bfloat16() else []
    sizes += choose(data, "data.", batch_size=max(1, min(CPU_BATCH, largest) if cpu else largest))
    if cpu and not config.schedule.steps:
        epochs = min(config.schedule.epochs, max(1, -(-CPU_STEPS // max(1, images // data.batch_size))))
        sizes += choose(config.schedule, "schedule.", epochs=epochs)
    if sizes:
        why = "a CPU" if cpu else f"{images} images"
        lines.append(f"for {why}: {' '.join(sizes)}; name a key to override it, or a recipe by --config")
    if "queue_size" in arguments:
        values = queue_for(images, keys_of_batch(data.batch_size, arguments), arguments, CPU_QUEUE if cpu else inf)
        eighth = "K at most an eighth of the images" + f" and {CPU_QUEUE} on a CPU" * cpu
        reasons = {"queue_size": eighth, "momentum": "m of the authors' CIFAR-10 demo"}
        if queue := choose(arguments, "method_args.", **values):
            why = ", ".join(reason for key, reason in reasons.items() if any(f".{key}=" in text for text in queue))
            lines.append(f"for {images} images: {' '.join(queue)} ({why})")
    return lines

"""Recipe changes for small sets and CPUs, and the memory of a training step."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from moco_plugin.errors import UsageError
from moco_plugin.methods import Method
from moco_plugin.pretraining.config import SMALL_SET, PretrainConfig, queue_for
from moco_plugin.schema import parse_overrides

CPU: dict[str, Any] = {"backbone": "resnet18", "data.image_size": 96, "data.batch_size": 64}
CPU_STEPS = 500  # of a run whose length was not named
PROBED = 8  # images of the step that is measured
SAFE_SHARE = 0.9  # of the free memory


def fit_recipe(config: PretrainConfig, overrides: Sequence[str], images: int, cpu: bool) -> list[str]:
    """Change unnamed settings to values for a small set, or for a CPU.

    Below ``SMALL_SET`` images the queue and the momentum are those of the authors' CIFAR-10 demo, and the queue holds
    no more keys than there are images. On a CPU the network, the images, the batch and the length shrink.

    Args:
        config: The recipe with its overrides; changed in place.
        overrides: What was named, as for ``load_config``.
        images: In the set.
        cpu: Whether it trains on a CPU.

    Returns:
        A line for each group of changes, with the reason.
    """
    given = parse_overrides(overrides)

    def choose(values: dict[str, Any]) -> list[str]:
        changed = []
        for key, value in values.items():
            if OmegaConf.select(given, key) is None and OmegaConf.select(OmegaConf.structured(config), key) != value:
                section, _, name = key.rpartition(".")
                target = getattr(config, section) if section else config
                if isinstance(target, dict):
                    target[name] = value
                else:
                    setattr(target, name, value)
                changed.append(f"{key}={value}")
        return changed

    lines = []
    largest = images // 8 * 8 or images
    sizes = choose({"backbone": CPU["backbone"], "data.image_size": CPU["data.image_size"]}) if cpu else []
    batch = min(CPU["data.batch_size"] if cpu else config.data.batch_size, config.data.batch_size, largest)
    sizes += choose({"data.batch_size": max(1, batch)})
    if cpu and not config.schedule.steps:
        steps = max(1, images // config.data.batch_size)
        sizes += choose({"schedule.epochs": min(config.schedule.epochs, max(1, -(-CPU_STEPS // steps)))})
    if sizes:
        why = "a CPU" if cpu else f"{images} images"
        lines.append(f"for {why}: {' '.join(sizes)}; name a key to override it, or a recipe by --config")
    if images < SMALL_SET and "queue_size" in config.method_args:
        values = queue_for(images)
        keys = config.data.batch_size * (2 if config.method_args.get("symmetric") else 1)  # of a batch
        values["queue_size"] = max(keys, min(values["queue_size"], images))
        if queue := choose({f"method_args.{name}": value for name, value in values.items()}):
            lines.append(
                f"for {images} images, below {SMALL_SET:,}: {' '.join(queue)}, as in the authors' CIFAR-10 demo"
            )
    return lines


def step_memory(method: Method, image_size: int, batch_size: int, channels: int = 3) -> int:
    """Return bytes that a training step is expected to take: weights, gradients, momentum, queue and activations.

    The activations are those that the query encoder keeps of a small batch for its backward pass, times the batch.

    Args:
        method: On the CPU; its state does not change.
        image_size: Side of a view in pixels.
        batch_size: Images of this process.
        channels: Of the images.
    """
    images = min(PROBED, batch_size)
    kept: dict[tuple[int, int], int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in method.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr(), storage.nbytes()] = storage.nbytes()
        return tensor

    state = {name: value.clone() for name, value in method.encoder.state_dict().items()}
    random = torch.get_rng_state()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        method.encoder(torch.randn(images, channels, image_size, image_size)).sum()
    method.encoder.load_state_dict(state)
    torch.set_rng_state(random)
    weights = sum(parameter.nbytes for parameter in method.parameters())
    trained = sum(parameter.nbytes for parameter in method.parameters() if parameter.requires_grad)
    buffers = sum(buffer.nbytes for buffer in method.buffers())
    inputs = 4 * 2 * batch_size * channels * image_size**2
    activations = sum(kept.values()) * batch_size / images * method.queries_per_image
    return round(weights + 2 * trained + buffers + inputs + activations)


def available_memory(device: torch.device) -> int | None:
    """Return bytes that are free on a device; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    if (meminfo := Path("/proc/meminfo")).is_file():
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found.append(1024 * int(rows["MemAvailable"].split()[0]))
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        group = Path("/sys/fs/cgroup")
        if (group / limit).is_file() and (text := (group / limit).read_text().strip()).isdecimal():
            found.append(int(text) - int((group / used).read_text()))
    return min(found) if found else None


def check_memory(
    method: Method, image_size: int, batch_size: int, device: torch.device, processes: int, channels: int = 3
) -> str:
    """Return a sentence on the memory of a step.

    Args:
        method: On the CPU.
        image_size: Side of a view in pixels.
        batch_size: Images of all processes.
        device: Where this process trains.
        processes: On this machine; on a CPU they share its memory.
        channels: Of the images.

    Raises:
        UsageError: A step does not fit; the batch that would is named.
    """
    share = processes if device.type == "cpu" else 1
    own = batch_size // processes
    needed, there = step_memory(method, image_size, own, channels) * share, available_memory(device)
    if there is None:
        return f"a step takes about {_gigabytes(needed)}"
    sentence = f"a step takes about {_gigabytes(needed)} of the {_gigabytes(there)} that are free"
    if device.type != "cpu" or needed <= SAFE_SHARE * there:  # a full GPU raises its own error immediately
        return sentence
    two, one_probe = (step_memory(method, image_size, turns * PROBED, channels) for turns in (2, 1))
    one = (two - one_probe) / PROBED
    rest = needed / share - own * one
    least = method.groups(processes) * processes * 2
    fits = int((SAFE_SHARE * there / share - rest) / one) * processes // least * least
    advice = f"choose data.batch_size={fits}" if fits > 0 else "choose a smaller backbone or data.image_size"
    raise UsageError(f"{sentence}; {advice}, trainer.accumulate_grad_batches for a larger one, or fewer pixels")


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"

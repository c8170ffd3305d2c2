"""The memory of a training step, and what is free."""

import os
from pathlib import Path

import torch
from torch import Tensor

from moco_plugin.errors import UsageError
from moco_plugin.methods import Method
from moco_plugin.pretraining.config import PretrainConfig, image_channels

PROBED = 8  # images of the step that is measured
SAFE_SHARE = 0.9  # of the free memory


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
    free = []
    if (meminfo := Path("/proc/meminfo")).is_file():
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free.append(1024 * int(rows["MemAvailable"].split()[0]))
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        group = Path("/sys/fs/cgroup")
        if (group / limit).is_file() and (text := (group / limit).read_text().strip()).isdecimal():
            free.append(int(text) - int((group / used).read_text()))
    return min(free) if free else None


def check_memory(config: PretrainConfig, method: Method, device: torch.device, processes: int) -> str:
    """Return a sentence on the memory of a step.

    Args:
        config: The run.
        method: On the CPU.
        device: Where this process trains.
        processes: On this machine; on a CPU they share its memory.

    Raises:
        UsageError: A step does not fit; the batch that would is named.
    """
    size, channels = config.data.image_size, image_channels(config)
    share = processes if device.type == "cpu" else 1
    own = config.data.batch_size // processes
    needed, there = step_memory(method, size, own, channels) * share, available_memory(device)
    if there is None:
        return f"a step takes about {_gigabytes(needed)}"
    sentence = f"a step takes about {_gigabytes(needed)} of the {_gigabytes(there)} that are free"
    if device.type != "cpu" or needed <= SAFE_SHARE * there:  # a full GPU raises its own error immediately
        return sentence
    two, one_probe = (step_memory(method, size, probes * PROBED, channels) for probes in (2, 1))
    one = (two - one_probe) / PROBED
    rest = needed / share - own * one
    least = method.groups(processes) * processes * 2
    fits = int((SAFE_SHARE * there / share - rest) / one) * processes // least * least
    advice = f"choose data.batch_size={fits}" if fits > 0 else "choose a smaller backbone or data.image_size"
    raise UsageError(f"{sentence}; {advice}, trainer.accumulate_grad_batches for a larger one, or fewer pixels")


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"

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


def step_memory(
    method: Method, image_size: int, batch_size: int, channels: int = 3, precision: str = "32-true", device: str = "cpu"
) -> int:
    """Return bytes that a training step is expected to take: weights, gradients, momentum, queue and activations.

    The activations are those that the query encoder keeps of a small batch for its backward pass, times the batch.

    Args:
        method: On the CPU; its state does not change.
        image_size: Side of a view in pixels.
        batch_size: Images of this process.
        channels: Of the images.
        precision: Lightning's name of the precision; 64 bits double all sizes.
        device: Type of the device. 16 bits halve the activations on a GPU; a CPU also keeps them in 32 bits.
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
    mixed = torch.autocast("cpu", torch.bfloat16, enabled="mixed" in precision and device == "cpu")
    # compiling for this batch would take minutes
    with mixed, torch.compiler.set_stance("force_eager"), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        method.encoder(torch.randn(images, channels, image_size, image_size)).sum()
    method.encoder.load_state_dict(state)
    torch.set_rng_state(random)
    weights = sum(parameter.nbytes for parameter in method.parameters())
    trained = sum(parameter.nbytes for parameter in method.parameters() if parameter.requires_grad)
    buffers = sum(buffer.nbytes for buffer in method.buffers())
    inputs = 4 * 2 * batch_size * channels * image_size**2
    activations = sum(kept.values()) * batch_size / images * method.queries_per_image
    activations /= 2 if "mixed" in precision and device != "cpu" else 1
    return round((2 if precision.startswith("64") else 1) * (weights + 2 * trained + buffers + inputs + activations))


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


def check_memory(config: PretrainConfig, method: Method, device: torch.device, processes: int, here: int) -> str:
    """Return a sentence on the memory of a step.

    Args:
        config: The run.
        method: On the CPU.
        device: Where this process trains.
        processes: Number of processes on all machines.
        here: Number of processes on this machine; on a CPU they share its memory.

    Raises:
        UsageError: A step does not fit; the message suggests a batch size.
    """
    share = here if device.type == "cpu" else 1
    needed = _step(config, method, config.data.batch_size // processes, device) * share
    there = available_memory(device)
    if there is None:
        return f"a step takes about {_gigabytes(needed)}"
    held = process_memory() if device.type == "cpu" else 0
    used = f" ({'each' if here > 1 else 'the'} process already uses {_gigabytes(held)})" if held else ""
    sentence = f"a step takes about {_gigabytes(needed)} of {_gigabytes(there)} of free memory{used}"
    if device.type != "cpu" or needed <= SAFE_SHARE * there:  # a full GPU raises its own error immediately
        return sentence
    raise UsageError(f"{sentence}; {advice(config, method, processes, there / share, device)}")


def advice(config: PretrainConfig, method: Method, processes: int, memory: float, device: torch.device) -> str:
    """Return advice on how to make a step fit into so many bytes per process."""
    two, one_probe = (_step(config, method, probes * PROBED, device) for probes in (2, 1))
    one = (two - one_probe) / PROBED
    rest = one_probe - PROBED * one
    least = method.groups(processes) * processes * 2
    fits = int((SAFE_SHARE * memory - rest) / one) * processes // least * least
    choice = f"choose data.batch_size={fits}" if fits > 0 else "choose a smaller backbone or data.image_size"
    return f"{choice}, with trainer.accumulate_grad_batches for larger batches, or smaller images"


def _step(config: PretrainConfig, method: Method, batch_size: int, device: torch.device) -> int:
    precision = str(config.trainer.get("precision", "32-true"))
    return step_memory(method, config.data.image_size, batch_size, image_channels(config), precision, device.type)


def process_memory() -> int:
    """Return the memory of this process in bytes; 0 if unknown."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.is_file() else 0


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"

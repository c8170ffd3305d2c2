"""Communication of a training process with its device and with other processes."""

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on ``device``, to which it is copied without waiting for it."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def world_size() -> int:
    """Return the number of training processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_number() -> int:
    """Return this process's rank, 0 to world_size - 1."""
    return dist.get_rank() if world_size() > 1 else 0


def batch_sizes(batch: Tensor, even: bool = False) -> list[int]:
    """Return the number of rows that ``batch`` has on each process.

    Args:
        batch: Rows of this process.
        even: All processes have the same number; otherwise they exchange the numbers.
    """
    if even or world_size() == 1:
        return [len(batch)] * world_size()
    sizes = batch.new_zeros(world_size(), dtype=torch.int64)
    sizes[process_number()] = len(batch)
    dist.all_reduce(sizes)
    return cast(list[int], sizes.tolist())


@torch.no_grad()
def all_gather(rows: Tensor, sizes: list[int]) -> Tensor:
    """Return the rows of all processes in the order of their ranks; takes no gradient.

    Args:
        rows: N x C, where N may differ between processes.
        sizes: N of each process.
    """
    if world_size() == 1:
        return rows
    # all_gather wants equal shapes: pad to the largest
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


@torch.no_grad()
def exchange(images: Tensor, order: Tensor, sizes: list[int]) -> Tensor:
    """Redistribute the images of several processes: the r-th process gets its share of ``all_images[order]``.

    Each process sends each of its images to the one process that needs it: it sends and receives one batch, for any
    number of processes. (The released code gathers all images on each.)

    Args:
        images: This process's images, N x ..., in any memory layout.
        order: Permutation of the images of all processes in the order of their ranks, int64, on the CPU, the same on
            all processes.
        sizes: N of each process.

    Returns:
        N x ..., in the memory layout of ``images``.
    """
    me = process_number()
    owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))  # rank of each image
    shares = order.split(sizes)  # what each process receives
    to_send = [share[owners[share] == me] - sum(sizes[:me]) for share in shares]
    senders = owners[shares[me]]
    # collectives copy memory and ignore strides: rows are sent contiguous, and get the layout of ``images`` afterwards
    sent = images[send(torch.cat(to_send), images.device)].contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(
        received,
        sent,
        output_split_sizes=senders.bincount(minlength=len(sizes)).tolist(),
        input_split_sizes=[len(rows) for rows in to_send],
    )
    # rows arrive sorted by sender; put each in its place in the share
    result = torch.empty_like(images)
    result[send(senders.argsort(stable=True), images.device)] = received
    return result

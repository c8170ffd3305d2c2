"""Which images come when, and with which random numbers: functions of the seed, never of what ran before.

So a run gives the same result with any number of loader processes, and goes on exactly where it was cut off.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler


def seed_of(*numbers: int) -> int:
    """Mixes numbers (a run's seed, a step, ...) into one seed of 32 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seeds torch's, numpy's and Python's generators inside the block, and puts them back after it."""
    seed = seed_of(*numbers)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


class EpochOrder(Sampler[int]):
    """A new order of the images each epoch, drawn from the seed and the epoch, for one of several processes.

    It yields positions, ``epoch * length + image``, so that a dataset can draw new views of an image each
    epoch (``divmod(position, length)`` gives both back). The batches over all processes are the same whatever
    the number of processes; a last smaller one is left out.

    Args:
        length: Images in the set.
        seed: The run's.
        batch_size: Images a step over all processes, a multiple of ``processes``.
        rank: This process's number, from 0.
        processes: Number of processes.
    """

    def __init__(
        self, length: int, seed: int, batch_size: int = 1, rank: int = 0, processes: int = 1
    ) -> None:
        self.length = length
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.processes = processes
        self.epoch = 0
        self.done = (0, 0)

    def skip(self, epoch: int, batches: int) -> None:
        """Leaves out the first batches of one epoch, which a resumed run has had already."""
        self.done = (epoch, batches)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.batch_size * self.batch_size // self.processes

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        whole = order[: self.length // self.batch_size * self.batch_size]
        mine = whole.view(-1, self.processes, self.batch_size // self.processes)[
            :, self.rank
        ]  # steps x batch
        start = self.done[1] if self.done[0] == self.epoch else 0
        return iter((self.epoch * self.length + mine[start:].flatten()).tolist())

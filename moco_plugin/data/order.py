"""Deterministic sample order and per-sample seeds.

Both are functions of the seed, the epoch and the position, never of what ran before. A run therefore gives the same
result with any number of loader processes, and resumes exactly where it was interrupted.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler


def seed_of(*numbers: int) -> int:
    """Mix numbers (a run's seed, a step, ...) into one 32-bit seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the generators of torch, NumPy and Python inside the block, and restore them after it."""
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
    epoch (``divmod(position, length)`` returns both). The batches over all processes do not depend on their number.

    Args:
        length: Images in the set.
        seed: The run's seed.
        batch_size: Images per step over all processes, a multiple of ``processes``.
        rank: Which of the processes this is, from 0.
        processes: Number of processes.
        drop_last: Drop a last smaller batch. Otherwise it is kept, and padded with its own first images where the
            processes do not divide it.
    """

    def __init__(
        self, length: int, seed: int, batch_size: int = 1, rank: int = 0, processes: int = 1, drop_last: bool = True
    ) -> None:
        self.length, self.seed, self.batch_size = length, seed, batch_size
        self.rank, self.processes, self.drop_last = rank, processes, drop_last
        self.epoch = 0
        self.done = (0, 0)

    def resume(self, epoch: int, batches: int) -> None:
        """Continue in ``epoch``, after its first ``batches`` batches."""
        # loader processes ask for images before Lightning calls set_epoch
        self.epoch, self.done = epoch, (epoch, batches)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of another epoch (called by Lightning)."""
        self.epoch = epoch

    def counts(self, batch: int) -> tuple[int, int]:
        """Return the number of images of an epoch's n-th batch over all processes, and of this process's part.

        The part's images come first; the rest of it is padding.
        """
        images = min(self.batch_size, self.length - batch * self.batch_size)
        share = -(-images // self.processes)
        return images, max(0, min(share, images - share * self.rank))

    def __len__(self) -> int:
        whole, rest = divmod(self.length, self.batch_size)
        padded = 0 if self.drop_last else -(-rest // self.processes)
        return whole * (self.batch_size // self.processes) + padded

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        batches = torch.randperm(self.length, generator=generator).split(self.batch_size)
        start = self.done[1] if self.done[0] == self.epoch else 0
        for batch in batches[start:]:
            if self.drop_last and len(batch) < self.batch_size:
                return
            share = -(-len(batch) // self.processes)
            padded = batch.repeat(-(-share * self.processes // len(batch)))
            mine = padded[share * self.rank : share * (self.rank + 1)]
            yield from (self.epoch * self.length + mine).tolist()

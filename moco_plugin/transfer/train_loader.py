"""Loader of training images; order, batches and augmentation are functions of the seed and the iteration."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import detectron2.utils.comm as comm
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.build import _train_loader_from_config, trivial_batch_collator
from torch.utils.data import DataLoader, Dataset

from moco_plugin.data.order import seeded
from moco_plugin.errors import UsageError

Entry = dict[str, Any]


class _Images(Dataset[Entry]):
    """Entries by position and index, augmented with generators that are seeded by the position."""

    def __init__(self, entries: Sequence[Entry], mapper: Callable[[Entry], Entry], seed: int) -> None:
        self.entries, self.mapper, self.seed = entries, mapper, seed

    def __getitem__(self, key: tuple[int, int]) -> Entry:
        position, index = key
        with seeded(self.seed, position):
            return self.mapper(self.entries[index])


def global_batches(order: Iterable[int], wide: Sequence[bool], size: int) -> Iterator[list[int]]:
    """Group images into batches, as detectron2 does on one process.

    Args:
        order: Indices of images.
        wide: Which images are wider than high: a batch has one kind; empty to mix them.
        size: Images in a batch.
    """
    batches: defaultdict[bool, list[int]] = defaultdict(list)
    for index in order:
        batch = batches[bool(wide) and wide[index]]
        batch.append(index)
        if len(batch) == size:
            yield batch[:]
            batch.clear()


class TrainLoader:
    """Batches of one process: its share of global batches that do not depend on the number of (loader) processes.

    detectron2's loader seeds the augmentation and groups images by orientation in each process.

    Args:
        cfg: A detectron2 config; a negative ``SEED`` draws one, the same in all processes.
        mapper: Turns an entry of a data set into the model's input; None for detectron2's.

    Attributes:
        start: The first iteration; it can be changed before the first batch.
        period: Repeat after this number of batches; None for never.

    Raises:
        UsageError: The batch cannot be spread evenly over the processes.
    """

    def __init__(self, cfg: CfgNode, mapper: Callable[[Entry], Entry] | None = None) -> None:
        self.start, self.workers = 0, cfg.DATALOADER.NUM_WORKERS
        self.period: int | None = None
        self.rank, processes, self.size = comm.get_rank(), comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
        if self.size % processes:
            raise UsageError(f"{self.size} images per batch cannot be spread evenly over {processes} processes")
        self.share = self.size // processes
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        with seeded(seed):  # detectron2 draws its samplers' seeds
            parts = _train_loader_from_config(cfg, mapper)
        entries, self.sampler = parts["dataset"], parts["sampler"]
        self.wide = [entry["width"] > entry["height"] for entry in entries if parts["aspect_ratio_grouping"]]
        entries = DatasetFromList(entries, copy=False) if isinstance(entries, list) else entries
        self.images = _Images(entries, parts["mapper"], seed)

    def _positions(self) -> Iterator[tuple[int, int]]:
        """Yield the positions of this process in the global order, and the indices of the images there."""
        batches = global_batches(self.sampler._infinite_indices(), self.wide, self.size)
        for iteration, batch in enumerate(islice(batches, self.start, self.period), self.start):
            first = self.rank * self.share
            yield from enumerate(batch[first : first + self.share], iteration * self.size + first)

    def __iter__(self) -> Iterator[list[Entry]]:
        while True:
            images = iter(
                DataLoader(
                    self.images,  # one by one: fewer are in memory than in whole batches
                    batch_size=None,
                    sampler=self._positions(),
                    num_workers=self.workers,
                    collate_fn=trivial_batch_collator,
                    generator=torch.Generator(),  # it draws a seed, not from the generator that the model draws from
                    prefetch_factor=max(2, self.share // self.workers) if self.workers else None,
                )
            )
            while batch := list(islice(images, self.share)):
                yield batch

"""Order and random numbers depend on the seed alone."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from moco_plugin.data.datasets import TrainImages
from moco_plugin.data.images import ImageSet
from moco_plugin.data.order import EpochOrder, seeded
from moco_plugin.data.views import ENGINES, Views
from tests.conftest import TRAIN


def test_each_epoch_has_every_image_once_in_another_order() -> None:
    order, epochs = EpochOrder(20, seed=1), []
    for epoch in range(2):
        order.set_epoch(epoch)
        positions = list(order)
        assert sorted(positions) == list(range(20 * epoch, 20 * epoch + 20))
        epochs.append([position % 20 for position in positions])
    assert epochs[0] != epochs[1]
    assert list(EpochOrder(20, seed=1)) == epochs[0] != list(EpochOrder(20, seed=2))


def test_batches_do_not_depend_on_the_number_of_processes() -> None:
    alone = list(EpochOrder(22, 3, batch_size=4))
    assert len(alone) == len(EpochOrder(22, 3, batch_size=4)) == 20
    shares = [list(EpochOrder(22, 3, batch_size=4, rank=rank, processes=2)) for rank in (0, 1)]
    together = [p for step in range(5) for share in shares for p in share[2 * step : 2 * step + 2]]
    assert together == alone


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_last_batch_is_kept_and_its_padding_known(processes: int) -> None:
    orders = [EpochOrder(29, 3, 12, rank, processes, drop_last=False) for rank in range(processes)]
    shares = [list(order) for order in orders]
    assert (
        {len(share) for share in shares} == {len(order) for order in orders} == {24 // processes + -(-5 // processes)}
    )
    whole = list(EpochOrder(29, 3, 12, drop_last=False))
    for batch, images in enumerate((12, 12, 5)):
        own: list[int] = []
        for order, share in zip(orders, shares, strict=True):
            assert order.counts(batch)[0] == images
            start = batch * 12 // processes
            own += share[start : start + order.counts(batch)[1]]
        assert sorted(own) == sorted(whole[12 * batch : 12 * batch + images])
    orders[0].resume(0, 2)
    assert list(orders[0]) == shares[0][24 // processes :]


def test_seeded_gives_the_generators_back() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    def seed() -> None:
        for generator in (torch.manual_seed, np.random.seed, random.seed):
            generator(0)

    with seeded(3, 4):
        inside = draw()
    seed()
    expected = draw()
    seed()
    with seeded(3, 4):
        assert draw() == inside
    assert draw() == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_views_do_not_depend_on_the_number_of_workers(engine: str) -> None:
    views = Views("moco_v2", 16, engine)
    dataset = TrainImages(ImageSet(f"{TRAIN}[0:12]"), views, seed=5)
    batches = []
    for workers in (0, 1, 2):
        order = EpochOrder(12, 5)
        loader = DataLoader(dataset, 4, sampler=order, num_workers=workers, collate_fn=views.collate)
        batches.append(torch.stack([torch.stack(views.finish(arrays, plans)) for arrays, plans, _ in loader]))
    assert torch.equal(batches[0], batches[1]) and torch.equal(batches[0], batches[2])
    assert not np.array_equal(dataset[0][0][0], dataset[12][0][0])  # another epoch, another view

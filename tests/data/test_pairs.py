"""Pairs of views for custom loops: those that a run trains on."""

from pathlib import Path

import pytest
import torch

from moco_plugin import PairLoader
from moco_plugin.data.images import ImageSet
from moco_plugin.data.normalize import normalize
from moco_plugin.errors import UsageError
from moco_plugin.pretraining.config import load_config
from moco_plugin.pretraining.run import build_views, train_loader
from tests.helpers.image_sets import save_images

NAMES = [f"{number}.png" for number in range(5)]


@pytest.mark.parametrize("workers", [0, 1])
def test_pairs_are_those_of_a_run(tmp_path: Path, workers: int) -> None:
    folder = save_images(tmp_path / "photos", *NAMES)
    pairs = PairLoader(str(folder), 2, 32, workers=workers, seed=3)
    epochs = [list(pairs), list(pairs)]
    assert [len(epoch) for epoch in epochs] == [len(pairs)] * 2 == [2, 2]

    overrides = [f"data.root={folder}", "data.batch_size=2", "data.image_size=32", "data.workers=0", "seed=3"]
    config = load_config("moco_v2", overrides)
    images = ImageSet(str(folder))
    loader, views = train_loader(config, images), build_views(config, images)
    for number, epoch in enumerate(epochs):
        loader.sampler.set_epoch(number)
        for (arrays, plans, _), pair in zip(loader, epoch, strict=True):
            for view, expected in zip(pair, views.finish(arrays, plans), strict=True):
                assert view.shape == (2, 3, 32, 32)
                torch.testing.assert_close(
                    view, normalize(expected.permute(0, 3, 1, 2), config.data.mean, config.data.std)
                )


def test_batch_larger_than_the_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"batch_size is 6 and .* contains 5 images"):
        PairLoader(str(save_images(tmp_path, *NAMES)), 6)

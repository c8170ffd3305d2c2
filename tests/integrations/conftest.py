"""What the tests of LightlyTrain and lightly share: folders of real images."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from moco_plugin.data.images import ImageSet
from tests.conftest import TEST, TRAIN


@pytest.fixture(scope="session", autouse=True)
def quiet_lightly_train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """LightlyTrain reports no usage, and keeps its cache out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "LIGHTLY_TRAIN_EVENTS_DISABLED", "1")
        patch.setitem(os.environ, "LIGHTLY_TRAIN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of class folders: ``train`` with 64 images, ``val`` with 32."""
    folder = tmp_path_factory.mktemp("photos")
    for part, spec in (("train", f"{TRAIN}[0:64]"), ("val", f"{TEST}[0:32]")):
        images = ImageSet(spec)
        for i, label in enumerate([] if images.labels is None else images.labels):
            path = folder / part / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.load(i).save(path)
    return folder

"""Fixtures for the tests of detectors on own data; without detectron2 none of them is collected."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.detectors.own_coco import Change, Prepared, coco
from tests.detectors.samples import photo
from tests.transfer.conftest import one_thread, tiny_catalog, tiny_datasets  # noqa: F401

if importlib.util.find_spec("detectron2") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        photo(folder / f"bild ä {number}.jpg", number)
    return folder


@pytest.fixture
def prepared(tmp_path: Path, photos: Path) -> Prepared:
    """Prepares a COCO file ``train.json`` of the photos; see ``Prepared``."""
    from moco_plugin.detectors.dataset import Sources, prepare

    def run(change: Change = lambda content: None, **options: Any) -> Any:
        return prepare(tmp_path / "data", Sources(coco(tmp_path / "train.json", photos, change), photos, **options))

    return run

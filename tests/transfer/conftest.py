"""Fixtures for the tests that need detectron2; without it none of them is collected."""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moco_plugin.sources.idx import load_idx_images
from tests.conftest import TEST, TRAIN

if importlib.util.find_spec("detectron2") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import moco_plugin.transfer  # noqa: F401


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tests run side by side, and precise batch norm and its like would each take all cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for DETECTRON2_DATASETS with tiny data sets in all layouts; only to be read."""
    from moco_plugin.demo.tiny_datasets import make_tiny_datasets
    from moco_plugin.demo.tiny_scenes import group_looks

    train, test = (group_looks(*load_idx_images(f"{spec}[0:200]")[:2]) for spec in (TRAIN, TEST))
    root = tmp_path_factory.mktemp("datasets") / "tiny"
    return make_tiny_datasets(root, train, test, num_train=6, num_test=7, progress=False)


@pytest.fixture
def tiny_catalog(tiny_datasets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """``tiny_datasets``, found in this process by the names of the real data sets, as ``coco_2017_train``."""
    yield from catalog_of(tiny_datasets, monkeypatch)


def catalog_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Register all data sets below ``root`` for a while: detectron2 itself does so once, when it is imported."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import builtin

    from moco_plugin.transfer.components.datasets import register_datasets

    catalogs = (DatasetCatalog, MetadataCatalog)
    before = [dict(catalog.data) for catalog in catalogs]
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    for catalog in catalogs:
        catalog.data.clear()
    try:
        importlib.reload(builtin)
        register_datasets()
        yield root
    finally:
        for catalog, content in zip(catalogs, before, strict=True):
            catalog.data.clear()
            catalog.data.update(content)

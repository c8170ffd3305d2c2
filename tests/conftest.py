"""What tests share: real images, a tiny run, and tools as a user types them."""

import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import ImageFile

from tests.helpers.processes import Tool, run_tool

# before torch is loaded: the recorded v3 run amplifies rounding a thousandfold, and torch, oneDNN and MKL each round as
# their newest code for this CPU does; held to AVX2 they round on every x86 CPU as they did where the run was recorded
os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests themselves run side by side

TESTS = Path(__file__).parent
FASHION_MNIST = TESTS / "data" / "fashion-mnist"
TRAIN = str(FASHION_MNIST / "train-images-idx3-ubyte.gz")
TEST = str(FASHION_MNIST / "t10k-images-idx3-ubyte.gz")
FAST = ("methods/test_traces.py", "data/", "test_config.py", "test_papers.py")  # what `pytest -m fast` runs
TINY = [
    "method=moco",
    "backbone=resnet18",
    "backbone_args.channels=[8,16,24,32]",
    f"data.root={TRAIN}[0:64]",
    "data.image_size=32",
    "views.engine=device",
    "data.batch_size=16",
    "data.crop_ratio=1.0",
    "method_args.queue_size=64",
    "method_args.dim=16",
    "schedule.epochs=2",
    "trainer.log_every_n_steps=1",
    f"knn.train={TRAIN}[0:100]",
    f"knn.test={TEST}[0:50]",
    "knn.k=100",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS) and item.path.relative_to(TESTS).as_posix().startswith(FAST):
            item.add_marker(pytest.mark.fast)


@pytest.fixture(autouse=True)
def broken_off_images_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Pillow has it; LightlyTrain changes that for the whole process as soon as it is imported."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)


@pytest.fixture(autouse=True)
def no_log_handlers_are_left() -> Iterator[None]:
    """Remove the handlers that detectron2's setup_logger adds; they write to the stdout that pytest captured."""
    yield
    for name in ("moco_plugin", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """``tool(NAME, *ARGUMENTS, code=0, processes=1, **ENVIRONMENT)``, see ``tests.helpers.processes.run_tool``."""
    return functools.partial(run_tool, tmp_path_factory.mktemp("tools"))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tool: Tool) -> Path:
    """A finished pre-training run of eight steps, made with the tool."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    tool("pretrain", *TINY, f"out={out}")
    return out

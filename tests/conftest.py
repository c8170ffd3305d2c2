"""What tests share: real images, a tiny run, and tools as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# before torch is loaded: the recorded v3 run amplifies rounding a thousandfold, and MKL rounds as its newest code
# for this CPU does; held to AVX2 it rounds on every x86 CPU as it did where the run was recorded
os.environ.setdefault("MKL_ENABLE_INSTRUCTIONS", "AVX2")

FASHION_MNIST = Path(__file__).parent / "data" / "fashion-mnist"
TRAIN = str(FASHION_MNIST / "train-images-idx3-ubyte.gz")
TEST = str(FASHION_MNIST / "t10k-images-idx3-ubyte.gz")
TINY = [
    "method=moco", "backbone=resnet18", "backbone_args.channels=[8,16,24,32]", f"data.root={TRAIN}[0:64]",
    "data.image_size=32", "data.batched_views=true", "data.batch_size=16", "data.crop_ratio=1.0",
    "method_args.queue_size=64", "method_args.dim=16", "schedule.epochs=2", "trainer.log_every_n_steps=1",
    f"knn.train={TRAIN}[0:100]", f"knn.test={TEST}[0:50]",
]  # fmt: skip

Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tool() -> Tool:
    """Runs ``tools/NAME.py ARGUMENTS`` from another folder and returns what it printed."""

    def run(
        name: str, *arguments: str | Path, code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        script = Path(__file__).parents[1] / "tools" / f"{name}.py"
        result = subprocess.run(
            [sys.executable, str(script), *map(str, arguments)],
            capture_output=True, text=True, cwd="/", stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert result.returncode == code, (
            f"exit code {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
        )
        if code:
            assert "Traceback" not in result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tool: Tool) -> Path:
    """A finished pre-training run of eight steps, made with the tool."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    tool("pretrain", *TINY, f"out={out}")
    return out

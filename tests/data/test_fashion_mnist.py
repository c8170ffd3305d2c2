"""Where Fashion-MNIST comes from, and what is said when it cannot be had."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moco_plugin.data import fashion_mnist
from moco_plugin.errors import UserError
from tests.conftest import FASHION_MNIST


def test_debians_copy_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", FASHION_MNIST)
    assert fashion_mnist.get_fashion_mnist(tmp_path) == FASHION_MNIST


def test_a_download_is_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "absent")
    shutil.copytree(FASHION_MNIST, tmp_path / "FashionMNIST" / "raw")
    assert fashion_mnist.get_fashion_mnist(tmp_path) == tmp_path / "FashionMNIST" / "raw"


def test_both_ways_are_named_when_neither_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error downloading")

    tried = []
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "absent")
    monkeypatch.setattr(fashion_mnist, "_apt_get_install", lambda: tried.append("apt-get"))
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", offline)
    with pytest.raises(
        UserError, match=r"Debian's dataset-fashion-mnist, or put .*torchvision.datasets.FashionMNIST"
    ):
        fashion_mnist.get_fashion_mnist(tmp_path)
    assert tried == ["apt-get"]

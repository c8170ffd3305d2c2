"""The sources of Fashion-MNIST, and the advice if there is none."""

import shutil
from pathlib import Path

import pytest

from moco_plugin.demo import images as fashion_mnist
from moco_plugin.errors import UserError
from tests.conftest import FASHION_MNIST


def test_debians_copy_goes_first_and_a_download_is_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", FASHION_MNIST)
    assert fashion_mnist.get_fashion_mnist(tmp_path) == FASHION_MNIST
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "absent")
    shutil.copytree(FASHION_MNIST, tmp_path / "FashionMNIST" / "raw")
    assert fashion_mnist.get_fashion_mnist(tmp_path) == tmp_path / "FashionMNIST" / "raw"


def test_advice_when_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "absent")
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded from https://.*; run `apt-get install dataset-fashion"):
        fashion_mnist.get_fashion_mnist(tmp_path)


def test_download_is_https_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, str] = {}

    def download(url: str, download_root: str, filename: str, md5: str) -> None:
        asked[url] = md5
        shutil.copy(FASHION_MNIST / filename, download_root)

    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "absent")
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", download)
    monkeypatch.setattr(fashion_mnist.FashionMNIST, "_load_data", lambda self: (None, None))
    monkeypatch.setattr(fashion_mnist.FashionMNIST, "_check_exists", lambda self: bool(asked))
    assert fashion_mnist.get_fashion_mnist(tmp_path) == tmp_path / "FashionMNIST" / "raw"
    assert len(asked) == 4 and all(url.startswith("https://") and len(md5) == 32 for url, md5 in asked.items())

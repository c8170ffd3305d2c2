"""Finds Fashion-MNIST, or gets it: Debian's package, else torchvision's download."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from moco_plugin.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FILES = tuple(
    f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _apt_get_install() -> None:
    """Tries to install Debian's package, as root or with a sudo that asks for no password."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if not shutil.which("apt-get") or (as_root and not shutil.which("sudo")):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (
        ["update", "-qq"],
        ["install", "-y", "-qq", "--no-install-recommends", "dataset-fashion-mnist"],
    ):
        subprocess.run([*as_root, "apt-get", *arguments], env=environment, capture_output=True)


def get_fashion_mnist(cache: Path) -> Path:
    """Returns a folder with Fashion-MNIST's four gzipped idx files.

    Looks where Debian's ``dataset-fashion-mnist`` puts them, installs that package where apt-get is there and
    permitted, else downloads with torchvision.

    Args:
        cache: Folder that a download goes to.

    Raises:
        UserError: Neither way worked; both are named.
    """
    downloaded = cache / "FashionMNIST" / "raw"
    if not _complete(DEBIAN) and not _complete(downloaded):
        print("getting Fashion-MNIST (30 MB)", flush=True)
        _apt_get_install()
    if _complete(DEBIAN):
        return DEBIAN
    if not _complete(downloaded):
        from torchvision.datasets import FashionMNIST

        try:
            FashionMNIST(str(cache), download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                "Fashion-MNIST is not here and could not be had: install Debian's dataset-fashion-mnist, or put "
                f"its four .gz files (torchvision.datasets.FashionMNIST downloads them) in {downloaded}"
            ) from error
    return downloaded

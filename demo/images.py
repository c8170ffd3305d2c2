"""Fashion-MNIST from Debian's package or a download."""

from pathlib import Path

from torchvision.datasets import FashionMNIST

from moco_plugin.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SOURCE = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/949006594cc2f804a93b9155849734564c3545ec"
MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


class _Download(FashionMNIST):
    """torchvision's download, over https; it compares each file with its MD5."""

    mirrors = (f"{SOURCE}/data/fashion/",)
    resources = list(MD5.items())  # noqa: RUF012

    @property
    def raw_folder(self) -> str:
        return str(Path(self.root, "FashionMNIST", "raw"))


def get_fashion_mnist(cache: Path) -> Path:
    """Return a folder with the four gzipped idx files of Fashion-MNIST.

    Args:
        cache: Folder for a download.

    Raises:
        UserError: It is not installed and cannot be downloaded.
    """
    downloaded = cache / "FashionMNIST" / "raw"
    for folder in (DEBIAN, downloaded):
        if all((folder / name).is_file() for name in MD5):
            return folder
    print("downloading Fashion-MNIST (30 MB)", flush=True)
    try:
        _Download(str(cache), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Fashion-MNIST was not found and cannot be downloaded from {SOURCE}; run `apt-get install "
            f"dataset-fashion-mnist` on Debian or Ubuntu, or put {', '.join(MD5)} in {downloaded}"
        ) from error
    return downloaded

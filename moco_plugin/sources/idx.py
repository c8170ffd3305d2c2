"""idx files, the format of MNIST and Fashion-MNIST: a big-endian header, then raw bytes."""

import gzip
import math
import re
import zlib
from pathlib import Path

import numpy as np

from moco_plugin.data.source import ArraySource, open_source
from moco_plugin.errors import UserError
from moco_plugin.files import open_file

MOST_COMPRESSED = 1040  # deflate packs at most 1032 bytes into one
_EXPECTED = "expected a file such as train-images-idx3-ubyte.gz"
_NAME = re.compile(r"[-.]idx\d-ubyte(\.gz)?$")
FASHION_MNIST_CLASSES = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))


def read_idx(path: str | Path) -> np.ndarray:
    """Read an idx file of unsigned bytes.

    Args:
        path: An idx file, gzipped or not.

    Returns:
        A uint8 array, N x H x W for images, N for labels.

    Raises:
        UserError: The file cannot be read, is not an idx file of bytes, or is shorter than its header says.
    """
    path = Path(path)
    try:
        with open_file(path) as stored:
            packed = stored.read(2) == b"\x1f\x8b"
            stored.seek(0)
            with gzip.open(stored) if packed else stored as file:
                head = file.read(4)
                head += file.read(4 * head[3]) if len(head) == 4 else b""
                whole = len(head) >= 4 and head[:3] == b"\0\0\x08" and head[3] < 8 and len(head) == 4 + 4 * head[3]
                shape = np.frombuffer(head, ">u4", offset=4).tolist() if whole else []
                most = path.stat().st_size * (MOST_COMPRESSED if packed else 1)
                body = file.read(min(math.prod(shape), most) + 1) if whole else b""
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); is the file whole?") from error
    if not whole:
        raise UserError(f"{path} is not an idx file of unsigned bytes; {_EXPECTED}")
    if len(body) != math.prod(shape):
        more = "or more " if len(body) > math.prod(shape) else ""
        raise UserError(f"{path} has {len(body)} {more}bytes, and its header {math.prod(shape)}; get the file again")
    return np.frombuffer(body, np.uint8).reshape(shape)


def open_idx(source: str) -> ArraySource | None:
    """Open an ``...images-idx3-ubyte[.gz]`` file and, from the same folder, the file of its labels.

    The classes are named if the path says that it is Fashion-MNIST. None for files of other names.
    """
    path = Path(source).expanduser()
    if not _NAME.search(path.name) or not path.is_file():
        return None
    images = read_idx(path)
    if images.ndim != 3 or not images.size:
        shape = " x ".join(map(str, images.shape))
        raise UserError(f"{path} contains an array of {images.ndim} dimensions, {shape}; expected images (N x H x W)")
    labels_path = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if labels_path == path or not labels_path.exists():
        return ArraySource(source, images, None)
    labels = read_idx(labels_path).astype(np.int64)
    if len(labels) != len(images):
        raise UserError(f"{labels_path} has {len(labels)} labels for the {len(images)} images of {path.name}")
    fashion = "fashion" in str(path.resolve()).lower() and labels.max(initial=0) < 10
    return ArraySource(source, images, labels, FASHION_MNIST_CLASSES if fashion else None)


def load_idx_images(spec: str) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...] | None]:
    """Return the images (uint8, N x H x W), labels (int64, N, or None) and classes (or None) of an idx file.

    Args:
        spec: Path of an ``...images-idx3-ubyte[.gz]`` file, with an optional ``[start:stop]``.
    """
    source = open_source(spec)
    if not isinstance(source, ArraySource):
        raise UserError(f"{spec} is not an idx file; {_EXPECTED}")
    return source.array, source.labels, source.classes

"""Packing of image files into tar shards with their indexes."""

import io
import re
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from moco_plugin.data.decode import SUFFIXES, CannotDecode, decode
from moco_plugin.errors import UsageError, UserError
from moco_plugin.sources.shard_index import INDEX_SUFFIX, scan_shard

QUALITY = 90  # of JPEG files that are encoded once more


def make_shards(
    output: str | Path,
    paths: Sequence[Path],
    labels: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    *,
    images_per_shard: int = 10000,
    short_side: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Pack image files, byte for byte or shrunk, into ``OUTPUT-0000.tar`` and so on, atomically, with their indexes.

    The same files give the same bytes.

    Args:
        output: Folder and first part of the shards' names.
        paths: The image files, in the order they are to have.
        labels: The index of each image's class; it becomes a ``.cls`` member.
        classes: Names of the labels; they go into the indexes.
        images_per_shard: Images in each shard but the last.
        short_side: Encode images whose short side is longer once more, shrunk to it, as JPEG of quality ``QUALITY``;
            None keeps the files unchanged.
        overwrite: Replace shards of that name.
        progress: Show a progress bar.

    Returns:
        The shards.

    Raises:
        UsageError: An argument cannot be right, or there are shards of that name.
        UserError: An image cannot be read, or nothing can be written there.
    """
    output = Path(output).expanduser()
    if images_per_shard < 1:
        raise UsageError(f"expected at least one image per shard, got {images_per_shard}")
    if short_side is not None and short_side < 1:
        raise UsageError(f"the short side is {short_side}; expected 1 pixel or more")
    pattern = re.compile(re.escape(output.name) + r"-\d+\.tar(" + re.escape(INDEX_SUFFIX) + ")?")
    old = [file for file in output.parent.glob("*") if pattern.fullmatch(file.name)]
    if old and not overwrite:
        raise UsageError(f"{min(old)} exists already and was kept; pass --overwrite or choose another output")
    names = None if labels is None else tuple(classes or map(str, range(int(labels.max()) + 1)))
    count = -(-len(paths) // images_per_shard)
    digits, key_digits = max(4, len(str(count - 1))), max(8, len(str(len(paths) - 1)))
    shards = [f"{output.name}-{index:0{digits}d}.tar" for index in range(count)]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary,
            tqdm(total=len(paths), desc="packing", unit="image", disable=not progress) as bar,
        ):
            for index, shard in enumerate(shards):
                first = index * images_per_shard
                part = slice(first, first + images_per_shard)
                _pack(
                    Path(temporary, shard),
                    paths[part],
                    None if labels is None else labels[part],
                    names,
                    [f"{key:0{key_digits}d}" for key in range(len(paths))[part]],
                    short_side,
                    bar,
                )
            for file in old:
                file.unlink()
            for file in sorted(Path(temporary).iterdir()):
                file.replace(output.parent / file.name)
    except OSError as error:
        raise UserError(f"cannot write {output}-*.tar: {error.strerror}; choose another output") from error
    return [output.parent / shard for shard in shards]


def _pack(
    shard: Path,
    paths: Sequence[Path],
    labels: np.ndarray | None,
    classes: tuple[str, ...] | None,
    keys: list[str],
    short_side: int | None,
    bar: Any,
) -> None:
    """Write one shard and its index."""
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as archive:
        for index, (path, key) in enumerate(zip(paths, keys, strict=True)):
            if path.suffix.lower() not in SUFFIXES:
                raise UserError(f"{path} does not end as images do, in {', '.join(SUFFIXES)}; rename it")
            try:
                data = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path} cannot be read ({error.strerror}); repair or remove it") from error
            if labels is not None:
                _add(archive, f"{key}.cls", str(labels[index]).encode())
            suffix = path.suffix.lower()
            if short_side is not None:
                data, suffix = _shrink(data, suffix, path, short_side)
            _add(archive, key + suffix, data)
            bar.update()
    shard_index = scan_shard(str(shard), shard.stat().st_size)
    if labels is not None and classes is not None:
        shard_index = replace(shard_index, labels=labels, classes=classes)
    shard.with_name(shard.name + INDEX_SUFFIX).write_text(shard_index.dump())


def _shrink(data: bytes, suffix: str, path: Path, short_side: int) -> tuple[bytes, str]:
    """Return an image file no larger than needed, and its suffix; one that cannot be decoded is kept unchanged."""
    try:
        image = decode(io.BytesIO(data), str(path))
    except CannotDecode:
        return data, suffix
    if min(image.size) <= short_side:
        return data, suffix
    scale = short_side / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    encoded = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue(), ".jpg"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and group 0
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))

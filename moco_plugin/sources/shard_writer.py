"""Packing of image files into tar shards with their indexes."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from moco_plugin.data.decode import SUFFIXES, CannotDecode, decode_pixels
from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import read_file
from moco_plugin.sources.shard_index import INDEX_SUFFIX, PACKED, SET_LIST, files_of_set, scan_shard, settle

QUALITY = 90  # of JPEG files that are encoded once more


def make_shards(
    images: ImageSet,
    output: str | Path,
    *,
    images_per_shard: int = 10000,
    short_side: int | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Pack image files, byte for byte or shrunk, into ``OUTPUT-0000.tar`` and so on, atomically, with their indexes.

    The same files give the same bytes.

    Args:
        images: A folder or a list. Labels become ``.cls`` members; the names of classes go into the indexes.
        output: Folder and first part of the shards' names.
        images_per_shard: Images in each shard but the last.
        short_side: Shrink images with a longer short side to it, and encode them as JPEG of quality ``QUALITY``, or as
            TIFF if they have more than 8 bits or other channels; None keeps the files unchanged.
        overwrite: Replace shards of that name.

    Returns:
        The shards.

    Raises:
        UsageError: An argument is invalid, or shards of that name exist.
        UserError: An image cannot be read, or nothing can be written there.
    """
    output = Path(output).expanduser()
    if not images.paths:
        raise UsageError(f"{images.spec} is not a folder or list of image files; there is nothing to pack")
    if images.labels is not None and images.labels.ndim > 1:
        raise UsageError(f"{images.spec} has several labels per image, and a shard stores one; expected one or none")
    if images_per_shard < 1:
        raise UsageError(f"expected at least one image per shard, got {images_per_shard}")
    if short_side is not None and short_side < 1:
        raise UsageError(f"the short side is {short_side}; expected 1 pixel or more")
    if output.parent.is_dir():
        settle(output.parent)
    old = files_of_set(output.parent, output.name) if output.parent.is_dir() else []
    if old and not overwrite:
        raise UsageError(f"{min(old)} exists already and was kept; pass --overwrite or choose another output")
    starts = range(0, len(images), images_per_shard)
    digits = max(4, len(str(len(starts) - 1)))
    shards = [f"{output.name}-{index:0{digits}d}.tar" for index in range(len(starts))]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with (
            TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.", ignore_cleanup_errors=True) as temporary,
            tqdm(total=len(images), desc="packing", unit="image") as bar,
        ):
            for shard, start in zip(shards, starts, strict=True):
                part = slice(start, start + images_per_shard)
                _pack(Path(temporary, shard), images, part, short_side, bar)
            names = sorted(file.name for file in Path(temporary).iterdir())
            Path(temporary, SET_LIST).write_text("\n".join(names))
            # atomic step from the old set to the new one; if interrupted, the next reader does the rest
            Path(temporary).rename(output.parent / f".{output.name}{PACKED}")
            settle(output.parent)
    except OSError as error:
        raise UserError(f"cannot write {output}-*.tar: {error.strerror}; choose another output") from error
    return [output.parent / shard for shard in shards]


def _pack(shard: Path, images: ImageSet, part: slice, short_side: int | None, bar: Any) -> None:
    """Write one shard, of a part of the images, and its index."""
    labels, paths = images.labels, images.paths
    digits = max(8, len(str(len(paths) - 1)))
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as archive:
        for index in range(len(paths))[part]:
            path = paths[index]
            suffix = path.suffix.lower()
            if suffix not in SUFFIXES:
                raise UserError(f"{path} does not end as images do, in {', '.join(SUFFIXES)}; rename it")
            data = read_file(path, what="an image")
            key = f"{index:0{digits}d}"
            if labels is not None:
                _add(archive, f"{key}.cls", str(labels[index]).encode())
            if short_side is not None:
                data, suffix = _shrink(data, suffix, path, short_side)
            _add(archive, key + suffix, data)
            bar.update()
    index_of_shard = scan_shard(str(shard), shard.stat().st_size)
    if labels is not None:
        classes = images.classes or tuple(map(str, range(int(labels.max()) + 1)))
        index_of_shard = replace(index_of_shard, labels=labels[part], classes=classes)
    shard.with_name(shard.name + INDEX_SUFFIX).write_text(index_of_shard.dump())


def _shrink(data: bytes, suffix: str, path: Path, short_side: int) -> tuple[bytes, str]:
    """Return an image file no larger than needed, and its suffix: JPEG, or TIFF for more bits or channels.

    Files that cannot be decoded are kept unchanged, as are arrays and images with a bit depth or nodata pixels that a
    plain TIFF file cannot represent.
    """
    if suffix == ".npy":
        return data, suffix
    try:
        pixels = decode_pixels(data, str(path))
    except CannotDecode:
        return data, suffix
    height, width, count = pixels.values.shape
    scale = short_side / min(width, height)
    if scale >= 1:
        return data, suffix
    size, encoded = (round(width * scale), round(height * scale)), io.BytesIO()
    if pixels.values.dtype == np.uint8 and count - pixels.alpha in (1, 3):
        image = Image.fromarray(pixels.as_8_bits(str(path), 3))
        image.resize(size, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=QUALITY)
        return encoded.getvalue(), ".jpg"
    if pixels.usual not in (None, (0.0, 65535.0)) or pixels.missing is not None:
        return data, suffix
    import tifffile  # slow to import

    bands = [Image.fromarray(pixels.values[..., band].astype(np.float32)) for band in range(count)]
    values = np.dstack([np.asarray(band.resize(size, Image.Resampling.LANCZOS)) for band in bands])
    kind = pixels.values.dtype
    if kind.kind != "f":
        values = values.round().clip(np.iinfo(kind).min, np.iinfo(kind).max)
    tifffile.imwrite(
        encoded,
        values.astype(kind) if count > 1 else values[..., 0].astype(kind),
        compression="zlib",
        photometric="rgb" if pixels.grey and count > 2 else "minisblack",
        planarconfig="contig" if count > 1 else None,
        extrasamples=["unassalpha"] if pixels.alpha else None,
        metadata=None,
        software=False,
    )
    return encoded.getvalue(), ".tif"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and group 0
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))

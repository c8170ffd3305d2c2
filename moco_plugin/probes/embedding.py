"""Files of image features, of near duplicates and of nearest images."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack

from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UsageError
from moco_plugin.evaluation import neighbours
from moco_plugin.evaluation.features import FeatureSet, gather_features, map_from_disk, own_share
from moco_plugin.evaluation.subject import ShownOptions, read_subject
from moco_plugin.files import atomic_path, check_output
from moco_plugin.methods.distributed import process_number, world_size
from moco_plugin.runs.processes import joined

ROWS = 16384  # rows of a Parquet file that are written at once


@dataclass
class Embedding:
    """Features and their images.

    Attributes:
        features: float32, N x D, on the CPU.
        paths: Path of each image, or its name or index in a file of several images.
        labels: Class name of each image; None if images have no label, or several.
    """

    features: Tensor
    paths: list[str]
    labels: list[str] | None


def embed(
    weights: str | Path,
    images: str,
    out: str | Path | None,
    *,
    pixels: bool = False,
    nearest: str | Path | None = None,
    k: int = 10,
    duplicates: str | Path | None = None,
    similarity: float = 0.95,
    **options: Unpack[ShownOptions],
) -> Embedding | None:
    """Write the features of images to a file.

    Under torchrun each process computes a share of the features, and the first process writes them.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        images: Any images: a folder, a list, shards, a zip archive or an idx images file; [start:stop] takes a part.
        out: An .npy file (float32, N x D; paths go to a .csv file of the same name), or a .parquet file (columns path,
            label and features; needs pyarrow). None writes no features.
        pixels: Write raw pixels, at most 32 x 32, instead of the network's features.
        nearest: Also write a .csv file of each image's nearest images by cosine similarity: path, nearest, similarity.
        k: Number of nearest images.
        duplicates: Also write a .csv file of pairs of near duplicates: path, duplicate, similarity.
        similarity: Smallest cosine similarity of near duplicates.
        **options: See ``ShownOptions``.

    Returns:
        The features and the paths on the first process; None on the others.

    Raises:
        UserError: The images or the checkpoint cannot be read, or a file cannot be written.
        UsageError: A file already exists, or an argument is out of range.
    """
    named = {"nearest": nearest, "duplicate": duplicates}
    tables = {name: Path(path).expanduser() for name, path in named.items() if path}
    files = [] if out is None else _files(Path(out).expanduser())
    written = [*files, *tables.values()]
    for path in written:
        check_output(path, options.get("overwrite", False))
        if path not in files and path.suffix != ".csv":
            raise UsageError(f"{path} does not end in .csv; choose a .csv file for pairs of images")
        if written.count(path) > 1:
            raise UsageError(f"{path} would be written twice; choose another name for one of the files")
    if not 0 < similarity <= 1:
        raise UsageError(f"similarity is {similarity:g}; expected a cosine similarity above 0 and up to 1")
    subject = read_subject(weights, **options)
    subject = subject.pixels() if pixels else subject
    opened = ImageSet(images)
    if tables:
        neighbours.check_neighbours([k if nearest else 1], len(opened), same=True)
    if len(opened) < world_size():
        raise UsageError(f"{images} contains {len(opened)} images for {world_size()} processes; use fewer processes")
    with joined():
        progress = "features" if process_number() == 0 else None
        own = subject.features(opened, progress, normalized=False, disk=True, indices=own_share(len(opened)))
        own = FeatureSet(own.features.cpu(), own.labels, own.indices)
        whole = gather_features(own)
    if whole is None:
        return None
    paths = [opened.name(index) for index in whole.indices.tolist()]
    labels = None
    if opened.labels is not None and opened.labels.ndim == 1:
        labels = [opened.classes[label] if opened.classes else str(label) for label in whole.labels.tolist()]
    result = Embedding(whole.features, paths, labels)
    with ExitStack() as stack:  # all files appear together, once the last is complete
        if files:
            _write(result, [stack.enter_context(atomic_path(path)) for path in files])
        tables = {name: stack.enter_context(atomic_path(path)) for name, path in tables.items()}
        if tables:
            _write_pairs(result, tables, k, similarity, subject.device)
    print(f"{len(paths)} images, {whole.features.shape[1]} features each: {', '.join(map(str, written))}")
    return result


def _files(out: Path) -> list[Path]:
    """Return the files of the features and of the paths."""
    if out.suffix == ".npy":
        return [out, out.with_suffix(".csv")]
    if out.suffix != ".parquet":
        raise UsageError(f"{out} ends in neither .npy nor .parquet; choose one of them for the features")
    if find_spec("pyarrow") is None:
        raise UsageError(f"{out} needs pyarrow, which is not installed; pip install pyarrow, or choose an .npy file")
    return [out]


def _write(embedding: Embedding, files: Sequence[Path]) -> None:
    features, paths, labels = embedding.features.numpy(), embedding.paths, embedding.labels
    if files[0].suffix == ".npy":
        with open(files[0], "wb") as file:
            np.save(file, features)
        rows = zip(paths, labels, strict=True) if labels else zip(paths, strict=True)
        _write_csv(files[1], ["path", "label"] if labels else ["path"], rows)
        return
    import pyarrow
    from pyarrow import parquet

    names = [path.encode(errors="backslashreplace").decode() for path in paths]  # Parquet strings are UTF-8
    columns = {"path": pyarrow.string()} | ({"label": pyarrow.string()} if labels else {})
    kind = pyarrow.list_(pyarrow.float32(), features.shape[1])
    schema = pyarrow.schema([*columns.items(), ("features", kind)])
    with parquet.ParquetWriter(files[0], schema) as writer:
        for start in range(0, len(paths), ROWS):
            part = slice(start, start + ROWS)
            flat = pyarrow.array(np.ascontiguousarray(features[part]).ravel())
            values = pyarrow.FixedSizeListArray.from_arrays(flat, type=kind)
            texts = [names[part], *([labels[part]] if labels else [])]
            writer.write_table(pyarrow.table([*texts, values], schema=schema))


def _write_csv(path: Path, columns: Sequence[str], rows: Any) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def _write_pairs(embedding: Embedding, tables: Mapping[str, Path], k: int, similarity: float, device: str) -> None:
    """Write the requested tables of ``nearest`` images and ``duplicate`` pairs from a single search."""
    paths, alike = embedding.paths, dict[tuple[int, int], float]()

    def rows() -> Iterator[tuple[str, str, str]]:
        features = map_from_disk(F.normalize(part, dim=1) for part in embedding.features.split(ROWS))
        count = min(k, len(paths) - 1)
        found = neighbours.nearest(features, features, count, same=True, device=device, progress="neighbours")
        for part, similarities, indices in found:
            for row, near, values in zip(range(part.start, part.stop), indices, similarities, strict=True):
                for other, value in zip(near.tolist(), values.tolist(), strict=True):
                    if value >= similarity:
                        alike[min(row, other), max(row, other)] = value
                    yield paths[row], paths[other], f"{value:.4f}"

    _write_csv(tables.get("nearest", Path(os.devnull)), ["path", "nearest", "similarity"], rows())
    if "duplicate" in tables:
        pairs = sorted(alike.items(), key=lambda pair: (-pair[1], pair[0]))
        named = ((paths[one], paths[other], f"{value:.4f}") for (one, other), value in pairs)
        _write_csv(tables["duplicate"], ["path", "duplicate", "similarity"], named)
        count = len({index for pair in alike for index in pair})
        print(f"near duplicates: {len(pairs)} pairs of {count} images (similarity of {similarity:g} or more)")

"""Objects checked against their images, and turned into rows of a COCO file."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moco_plugin.detectors.records import Object, Runs

FAR = 1.0  # sides of the image by which a mask or a keypoint may be outside of it
ODD_MASK = (
    "objects with a mask that is none (polygons of less than three points, or coordinates far outside of the image)"
)
ODD_RUNS = "objects with run lengths that do not fit their image"
ODD_BOX = "objects with a box that is not four finite numbers, or of a negative side"
SMALL = "boxes of less than a pixel, or outside of their image"
Size = tuple[int, int]  # width, height


def coco_row(
    item: Object, size: Size, raw: Size, orientation: int, relative: bool, points: int
) -> dict[str, Any] | str:
    """Return an object as a row of a COCO file, without ids; or why it is left out.

    Args:
        item: The object.
        size: Width and height of the image, upright.
        raw: Width and height that its coordinates are of: as stored, if the tool did not turn the image.
        orientation: EXIF orientation by which coordinates are turned too; 1 for none.
        relative: Coordinates are shares of the image's sides.
        points: Number of keypoints of an object; other numbers are left out.
    """
    scale = raw if relative else (1, 1)
    segmentation: Any = None
    polygons = [_scaled(part, scale) for part in item.polygons if len(part) >= 6 and len(part) % 2 == 0]
    polygons = [part for part in polygons if _near(part, raw)]
    runs: Any = None
    if item.polygons and not polygons:
        return ODD_MASK
    if item.runs is not None and (runs := _whole_runs(item.runs, raw)) is None:
        return ODD_RUNS
    box = item.box
    if box is None and polygons:
        box = _around([number for part in polygons for number in part])
    elif box is None and runs is not None:
        box = _box_of_runs(runs, raw)
    elif box is not None and len(box) == 4:
        box = [number * side for number, side in zip(box, 2 * scale, strict=True)]
    if box is None or len(box) != 4 or not all(map(math.isfinite, box)) or max(map(abs, box)) > 1e7 or min(box[2:]) < 0:
        return ODD_BOX
    keypoints: list[float] = []
    if points and len(item.keypoints) == 3 * points and all(map(math.isfinite, item.keypoints)):
        keypoints = [value * (*scale, 1)[place % 3] for place, value in enumerate(item.keypoints)]
        if not _near([value for place, value in enumerate(keypoints) if place % 3 < 2], raw):
            keypoints = []
    if orientation != 1:
        polygons = [turned(part, raw, orientation) for part in polygons]
        left, top, width, height = box
        box = _around(turned([left, top, left + width, top + height], raw, orientation))
        places = turned([value for place, value in enumerate(keypoints) if place % 3 < 2], raw, orientation)
        keypoints = [
            value for n in range(len(keypoints) // 3) for value in (*places[2 * n : 2 * n + 2], keypoints[3 * n + 2])
        ]
        runs = _turned_runs(runs, raw, orientation) if runs is not None else None
    if (inside := _cut(box, size)) is None:
        return SMALL
    row: dict[str, Any] = {"bbox": inside, "iscrowd": int(item.crowd)}
    segmentation = polygons or ({"size": [size[1], size[0]], "counts": runs} if runs is not None else None)
    if segmentation:
        row["segmentation"] = segmentation
    if keypoints:
        row |= {"keypoints": keypoints, "num_keypoints": sum(value > 0 for value in keypoints[2::3])}
    stated = (
        item.area
        if item.area is not None and math.isfinite(item.area) and 0 <= item.area <= size[0] * size[1]
        else None
    )
    row["area"] = inside[2] * inside[3] if stated is None else stated
    return row


def _scaled(numbers: Sequence[float], scale: tuple[float, float]) -> list[float]:
    return [number * scale[place % 2] for place, number in enumerate(numbers)]


def _near(numbers: Sequence[float], size: Size) -> bool:
    """Return whether points are not far outside of an image; pycocotools does not survive those that are."""
    return all(
        math.isfinite(number) and -FAR * side <= number <= (1 + FAR) * side
        for number, side in zip(numbers, (len(numbers) // 2) * size, strict=True)
    )


def _around(numbers: Sequence[float]) -> list[float]:
    left, top = min(numbers[::2]), min(numbers[1::2])
    return [left, top, max(numbers[::2]) - left, max(numbers[1::2]) - top]


def _cut(box: Sequence[float], size: Size) -> list[float] | None:
    """Return the part of a box that is inside of its image; None if that is less than a pixel wide or high."""
    left, top, width, height = box
    right, bottom = min(left + width, size[0]), min(top + height, size[1])
    left, top = max(left, 0.0), max(top, 0.0)
    return None if right - left < 1 or bottom - top < 1 else [left, top, right - left, bottom - top]


def turned(points: Sequence[float], raw: Size, orientation: int) -> list[float]:
    """Return points of an image as stored in the image that is upright by its EXIF orientation (5 to 8)."""
    width, height = raw
    turns = {5: lambda x, y: (y, x), 6: lambda x, y: (height - y, x), 7: lambda x, y: (height - y, width - x)}
    turn = turns.get(orientation, lambda x, y: (y, width - x))
    return [number for x, y in zip(points[::2], points[1::2], strict=True) for number in turn(x, y)]


def _turned_runs(counts: list[int], raw: Size, orientation: int) -> list[int]:
    mask = _mask(counts, raw[1], raw[0], by_rows=False)
    turns = {5: mask.T, 6: np.rot90(mask, -1), 7: np.rot90(mask, 2).T, 8: np.rot90(mask)}
    return _counts(turns[orientation])


# ------------------------------------------------------------------------------------------------------ run lengths
def _whole_runs(runs: Runs, size: Size) -> list[int] | None:
    """Return run lengths of the whole image by columns, as COCO has them; None if they do not fit."""
    width, height = size
    left, top, across, down = runs.frame or (0, 0, width, height)
    if runs.size is not None and runs.size != (height, width):
        return None
    if left < 0 or top < 0 or across < 1 or down < 1 or left + across > width or top + down > height:
        return None
    counts = decompress(runs.counts) if isinstance(runs.counts, str) else list(runs.counts)
    if counts is None or not counts or min(counts) < 0 or (total := sum(counts)) > across * down:
        return None
    if total < across * down and not runs.open and runs.frame is None:
        return None
    counts += [across * down - total] * (total < across * down)
    if runs.frame is None and not runs.by_rows:
        return counts
    mask = np.zeros((height, width), bool)
    mask[top : top + down, left : left + across] = _mask(counts, down, across, runs.by_rows)
    return _counts(mask)


def decompress(text: str) -> list[int] | None:
    """Return the run lengths of COCO's compressed form: numbers of 5 bits a character, less the one before last."""
    codes = np.frombuffer(text.encode("ascii", errors="replace"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    first = np.concatenate([[0], np.flatnonzero((codes & 32) == 0)[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(first, np.diff(np.concatenate([first, [len(codes)]])))
    if place.max() > 6:
        return None
    values = np.add.reduceat((codes & 31) << (5 * place), first)
    last = np.concatenate([first[1:], [len(codes)]]) - 1
    values -= np.where(codes[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)  # two's complement
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    counts: list[int] = values.tolist()
    return counts


def _mask(counts: Sequence[int], height: int, width: int, by_rows: bool) -> np.ndarray:
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(height, width) if by_rows else flat.reshape(width, height).T


def _counts(mask: np.ndarray) -> list[int]:
    """Return the run lengths of a mask by columns."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[int] = np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()
    return lengths


def _box_of_runs(counts: Sequence[int], size: Size) -> list[float] | None:
    mask = _mask(counts, size[1], size[0], by_rows=False)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return [float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1)]

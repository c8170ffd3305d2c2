"""Conversion of objects to rows of a COCO file, checked against their images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from moco_plugin.data.pixels import upright
from moco_plugin.detectors.images import Opened
from moco_plugin.detectors.records import Object, Runs

FAR = 1.0  # sides of the image by which a mask or a keypoint may be outside of it
ODD_MASK = "objects with an invalid mask (polygons of less than three points, or coordinates far outside of the image)"
ODD_RUNS = "objects with run lengths that do not fit their image"
ODD_BOX = "objects with a box that is not four finite numbers, or of a negative side"
SMALL = "boxes of less than a pixel, or outside of their image"
Size = tuple[int, int]  # width, height


def coco_row(item: Object, image: Opened, relative: bool, points: int) -> dict[str, Any] | str:
    """Return an object as a row of a COCO file, without ids, or the reason for which it is left out.

    Args:
        item: The object.
        image: Its image.
        relative: Coordinates are shares of the image's sides.
        points: Number of keypoints of an object; keypoints of another number are left out.
    """
    size, raw, orientation = image.size, image.raw, image.orientation
    scale = raw if relative else (1, 1)
    polygons = [np.reshape(part, (-1, 2)) * scale for part in item.polygons if len(part) >= 6 and len(part) % 2 == 0]
    polygons = [part for part in polygons if _near(part, raw)]
    if item.polygons and not polygons:
        return ODD_MASK
    runs = None if item.runs is None else _whole_runs(item.runs, raw)
    if item.runs is not None and runs is None:
        return ODD_RUNS
    box = np.array(item.box or ())
    if len(box) == 4:
        box = box * (*scale, *scale)
    elif item.box is None and polygons:
        corners = np.concatenate(polygons)
        box = np.concatenate([corners.min(0), np.ptp(corners, 0)])
    elif item.box is None and runs is not None:
        box = coco_mask.toBbox(coco_mask.frPyObjects({"counts": runs, "size": raw[::-1]}, raw[1], raw[0]))
    if len(box) != 4 or not (np.abs(box) <= 1e7).all() or box[2:].min() < 0:
        return ODD_BOX
    corners = np.array([box[:2], box[:2] + box[2:]])
    keypoints = np.reshape(item.keypoints if len(item.keypoints) == 3 * points else (), (-1, 3)) * (*scale, 1)
    if not np.isfinite(keypoints).all() or not _near(keypoints[:, :2], raw):
        keypoints = keypoints[:0]
    if orientation != 1:
        polygons = [_turned(part, raw, orientation) for part in polygons]
        corners = np.sort(_turned(corners, raw, orientation), axis=0)
        keypoints[:, :2] = _turned(keypoints[:, :2], raw, orientation)
        runs = runs and run_lengths(upright(_mask(runs, raw[1], raw[0], by_rows=False), orientation).T)
    corners = corners.clip(0, size)
    sides = corners[1] - corners[0]
    if sides.min() < 1:
        return SMALL
    row: dict[str, Any] = {"bbox": [*corners[0].tolist(), *sides.tolist()], "iscrowd": int(item.crowd)}
    if polygons:
        row["segmentation"] = [part.ravel().tolist() for part in polygons]
    elif runs is not None:
        row["segmentation"] = {"size": [size[1], size[0]], "counts": runs}
    if len(keypoints):
        row |= {"keypoints": keypoints.ravel().tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum())}
    stated = item.area if item.area is not None and 0 <= item.area <= size[0] * size[1] else None
    row["area"] = float(sides.prod()) if stated is None else stated
    return row


def _near(points: np.ndarray, size: Size) -> bool:
    """Return whether points (N x 2) are not far outside of an image; others crash pycocotools."""
    return bool((np.abs(points / size - 0.5) <= 0.5 + FAR).all())


def _turned(points: np.ndarray, raw: Size, orientation: int) -> np.ndarray:
    """Rotate points (N x 2) of a stored image by its EXIF orientation (5 to 8)."""
    (x, y), (width, height) = points.T, raw
    turns = {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}
    return np.stack(turns[orientation], axis=1)


# ------------------------------------------------------------------------------------------------------ run lengths
def _whole_runs(runs: Runs, size: Size) -> list[int] | None:
    """Return run lengths of the whole image by columns, as COCO has them; None if they do not fit."""
    width, height = size
    left, top, across, down = runs.frame or (0, 0, width, height)
    if runs.size is not None and runs.size != (height, width):
        return None
    if min(left, top) < 0 or min(across, down) < 1 or left + across > width or top + down > height:
        return None
    counts = decompress(runs.counts) if isinstance(runs.counts, str) else list(runs.counts)
    if not counts or min(counts) < 0 or (rest := across * down - sum(counts)) < 0:
        return None
    if rest and not runs.open and runs.frame is None:
        return None
    counts += [rest] * (rest > 0)
    if runs.frame is None and not runs.by_rows:
        return counts
    mask = np.zeros((height, width), bool)
    mask[top : top + down, left : left + across] = _mask(counts, down, across, runs.by_rows)
    return run_lengths(mask.T)


def decompress(text: str) -> list[int] | None:
    """Return the run lengths of COCO's compressed form, 5 bits a character; pycocotools does not check their number."""
    counts: list[int] = []
    value = shift = 0
    for code in text.encode(errors="replace"):
        if not 48 <= code < 112 or shift > 30:
            return None
        value |= (code - 48 & 31) << shift
        shift += 5
        if not code - 48 & 32:  # the last character of a number
            value -= (code - 48 & 16) << shift - 4  # its sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts if not shift else None


def _mask(counts: Sequence[int], height: int, width: int, by_rows: bool) -> np.ndarray:
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(height, width) if by_rows else flat.reshape(width, height).T


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return the lengths of the alternating runs of 0 and 1 of a mask (bool), by rows."""
    flat = np.concatenate([[False], mask.ravel()])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[int] = np.diff(ends, prepend=0, append=mask.size).tolist()
    return lengths

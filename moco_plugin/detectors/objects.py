"""Objects checked against their images, and turned into rows of a COCO file."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from moco_plugin.data.pixels import upright
from moco_plugin.detectors.records import Object, Runs

FAR = 1.0  # sides of the image by which a mask or a keypoint may be outside of it
ODD_MASK = "objects with an invalid mask (polygons of less than three points, or coordinates far outside of the image)"
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
        runs = _turned_runs(runs, raw, orientation) if runs is not None else None
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
    """Return whether points (N x 2) are not far outside of an image; pycocotools does not survive those that are."""
    return bool((np.abs(points / size - 0.5) <= 0.5 + FAR).all())


def _turned(points: np.ndarray, raw: Size, orientation: int) -> np.ndarray:
    """Return points (N x 2) of an image as stored in the image that is upright by its EXIF orientation (5 to 8)."""
    (x, y), (width, height) = points.T, raw
    turns = {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}
    return np.stack(turns[orientation], axis=1)


def _turned_runs(counts: list[int], raw: Size, orientation: int) -> list[int]:
    return run_lengths(upright(_mask(counts, raw[1], raw[0], by_rows=False), orientation).T)


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
    return run_lengths(mask.T)


def decompress(text: str) -> list[int] | None:
    """Return the run lengths of COCO's compressed form: numbers of 5 bits a character, less the one before last."""
    codes = np.frombuffer(text.encode("ascii", errors="replace"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    first = np.concatenate([[0], np.flatnonzero((codes & 32) == 0)[:-1] + 1])
    position = np.arange(len(codes)) - np.repeat(first, np.diff(np.concatenate([first, [len(codes)]])))
    if position.max() > 6:
        return None
    values = np.add.reduceat((codes & 31) << (5 * position), first)
    last = np.concatenate([first[1:], [len(codes)]]) - 1
    values -= np.where(codes[last] & 16, np.int64(1) << (5 * (position[last] + 1)), 0)  # two's complement
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    counts: list[int] = values.tolist()
    return counts


def _mask(counts: Sequence[int], height: int, width: int, by_rows: bool) -> np.ndarray:
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(height, width) if by_rows else flat.reshape(width, height).T


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return the lengths of runs of 0 and 1 in turn of a mask (bool), by rows."""
    flat = np.concatenate([[False], mask.ravel()])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    lengths: list[int] = np.diff(ends, prepend=0, append=mask.size).tolist()
    return lengths

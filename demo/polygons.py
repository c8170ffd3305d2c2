"""Polygons of masks, as COCO and Cityscapes store them."""

import numpy as np

# the sides of a pixel, clockwise as seen: where to look for the neighbour (row, column), start and end (x, y)
_SIDES = (((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (1, 1)), ((1, 0), (1, 1), (0, 1)), ((0, -1), (0, 1), (0, 0)))


def mask_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Trace the outlines of a mask along the edges of its pixels; holes are filled.

    Rasterised as COCO does, the polygons give back exactly the mask without its holes.

    Args:
        mask: bool, H x W.

    Returns:
        One polygon a connected part, the largest first: corners (int64, M x 2) as x and y from 0 to W and H,
        clockwise as seen, without corners on a straight line.
    """
    height, width = mask.shape
    padded = np.pad(mask, 1)
    ends: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (down, right), start, end in _SIDES:
        outside = ~padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        for y, x in zip(*(axis.tolist() for axis in np.nonzero(mask & outside)), strict=True):
            ends.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    outlines = []
    while ends:
        outline = _follow(ends)
        if signed_area(outline) > 0:  # holes run the other way
            outlines.append(outline)
    return sorted(outlines, key=signed_area, reverse=True)


def _follow(ends: dict[tuple[int, int], list[tuple[int, int]]]) -> np.ndarray:
    """Remove one closed outline from the pixel sides, given as start: ends."""
    first = point = next(iter(ends))
    corners: list[tuple[int, int]] = []
    step = (0, 0)
    while True:
        # where two pixels touch at a corner only, turn right, which keeps them apart
        right = (point[0] - step[1], point[1] + step[0])
        following = right if right in ends[point] else ends[point][0]
        ends[point].remove(following)
        if not ends[point]:
            del ends[point]
        if (turned := (following[0] - point[0], following[1] - point[1])) != step:
            corners.append(point)
        point, step = following, turned
        if point == first:
            return np.array(corners, np.int64)


def signed_area(polygon: np.ndarray) -> float:
    """Return the area that a polygon (M x 2, x and y) encloses, positive if its corners run clockwise as seen."""
    x, y = polygon.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def pixel_centres(polygon: np.ndarray) -> np.ndarray:
    """Move the corners of an outline by :func:`mask_polygons` to the outermost pixels inside (x, y from 0).

    Cityscapes' polygons run through pixels: drawn with their outline, they cover the mask.
    """
    after = np.sign(np.roll(polygon, -1, axis=0) - polygon)
    before = np.roll(after, 1, axis=0)
    along = after + before
    inward = np.stack([-along[:, 1], along[:, 0]], axis=1)
    moved: np.ndarray = polygon + (inward - 1) // 2
    return moved

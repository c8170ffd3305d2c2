"""Views by OpenCV and torch on uint8 arrays, one image at a time, for loader processes."""

import math

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from moco_plugin.data.views.plan import LUMA, Step, ViewPlan

# Pillow truncates where OpenCV rounds; less than a half, so that whole numbers stay.
TRUNCATE = -0.499


def crop(image: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Cut out and resize, antialiased as Pillow does.

    Args:
        image: H x W or H x W x C, uint8.
        box: Left, top, width and height.
        size: Side of the result in pixels.

    Returns:
        ``size`` x ``size``, or ``size`` x ``size`` x C, uint8.
    """
    left, top, width, height = box
    cut = image[top : top + height, left : left + width]
    if width <= size and height <= size and cut[:1, :1].size <= 4:  # the most channels that OpenCV resizes
        return cv2.resize(cut, (size, size))
    # 1 x C x H x W in channels-last layout, which torch resizes without unpacking
    batch = torch.from_numpy(np.ascontiguousarray(cut)).view(1, height, width, -1).permute(0, 3, 1, 2)
    if height > size:  # rows first: torch starts with columns, of which there are more
        batch = F.interpolate(batch, (size, width), mode="bilinear", antialias=True)
    resized = F.interpolate(batch, (size, size), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().view(size, size, *image.shape[2:]).numpy()


def turn(view: np.ndarray, plan: ViewPlan) -> np.ndarray:
    """Flip and rotate as the plan says."""
    if plan.flip or plan.vertical_flip:
        view = cv2.flip(view, -1 if plan.flip and plan.vertical_flip else 1 if plan.flip else 0)
    if not plan.rotation:
        return view
    if view.ndim == 3 and view.shape[2] != 3:
        return np.dstack([np.array(Image.fromarray(band).rotate(plan.rotation)) for band in np.moveaxis(view, 2, 0)])
    return np.array(Image.fromarray(view).rotate(plan.rotation))


def make_view(image: np.ndarray, plan: ViewPlan, size: int, channels: int = 3) -> np.ndarray:
    """Return one view, ``size`` x ``size`` x ``channels``, of an image, H x W or H x W x C; both uint8.

    Colours are changed in the first three channels, or in a grey image's one; the others are cropped and blurred.
    """
    view = turn(crop(image, plan.box, size), plan)
    if channels not in (1, 3):
        return _make_bands(view, plan.steps)
    for step in plan.steps:
        view = _apply(view, step) if step else view
    if channels == 1:
        return view[..., None]
    return view if view.ndim == 3 else cv2.cvtColor(view, cv2.COLOR_GRAY2RGB)


def _make_bands(view: np.ndarray, steps: tuple[Step | None, ...]) -> np.ndarray:
    colours = 3 if view.shape[2] > 3 else 0
    rgb, rest = np.ascontiguousarray(view[..., :colours]), np.ascontiguousarray(view[..., colours:])
    for step in filter(None, steps):
        rgb = _apply(rgb, step) if colours else rgb
        if step[0] == "blur":
            rest = np.dstack([_apply(np.ascontiguousarray(band), step) for band in np.moveaxis(rest, 2, 0)])
    rgb = cv2.cvtColor(rgb, cv2.COLOR_GRAY2RGB) if rgb.ndim == 2 else rgb
    return np.dstack([rgb, rest])


def _apply(view: np.ndarray, step: Step) -> np.ndarray:
    """Apply one operation to a view of three channels, or of one that stands for three equal ones."""
    name, factor = step
    if name == "brightness":
        return _affine(view, factor, 0.0)
    if name == "contrast":
        red, green, blue, _ = cv2.mean(view)
        mean = red if view.ndim == 2 else LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
        return _affine(view, factor, (1 - factor) * int(mean + 0.5))
    if name == "blur":
        side = 2 * math.ceil(2 * factor) + 1
        kernel = cv2.getGaussianKernel(side, factor)  # twice as fast this way as by cv2.GaussianBlur
        return cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    if name == "solarize":
        return cv2.min(view, cv2.bitwise_not(view))
    if view.ndim == 2:  # a grey view has no colour to change
        return view
    if name == "grey":
        return cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
    if name == "saturation":
        red, green, blue = ((1 - factor) * weight for weight in LUMA)
        rows = [
            [red + factor, green, blue, TRUNCATE],
            [red, green + factor, blue, TRUNCATE],
            [red, green, blue + factor, TRUNCATE],
        ]
        return cv2.transform(view, np.array(rows))
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
    turn = np.tile(np.array([int(factor * 255) % 256, 0, 0], np.uint8), view.shape[1])
    rows_of_hsv = hsv.reshape(len(hsv), -1)
    np.add(rows_of_hsv, turn, out=rows_of_hsv)  # modulo 256
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _affine(view: np.ndarray, factor: float, shift: float) -> np.ndarray:
    shift += TRUNCATE
    if view.ndim == 2:
        return cv2.transform(view, np.array([[factor, shift]]))
    return cv2.transform(view, np.array([[factor, 0, 0, shift], [0, factor, 0, shift], [0, 0, factor, shift]]))

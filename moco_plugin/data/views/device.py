"""Views computed by torch on whole batches, on the training device.

Each operation of a plan runs once on all images that have it in the same step. Crop, resize and flip are one pair of
small matrices per image, blur another pair, so the work is a few batched products.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from moco_plugin.data.views.plan import LUMA, ViewPlan

BLUR_PASSES = 3  # Pillow's


class PackedPlans(NamedTuple):
    """The plans of a batch of N views as arrays, which stay on the CPU.

    ``operations`` holds indices of ``OPERATIONS``, N x steps, -1 for none.
    """

    boxes: np.ndarray
    flips: np.ndarray
    operations: np.ndarray
    factors: np.ndarray


def pack(plans: Sequence[ViewPlan]) -> PackedPlans:
    """Return plans as arrays; their rotations and vertical flips are left out, which loader processes carry out."""
    steps = [step or ("", 0.0) for plan in plans for step in plan.steps]
    shape = len(plans), len(plans[0].steps)
    return PackedPlans(
        np.array([plan.box for plan in plans], np.float32),
        np.array([plan.flip for plan in plans]),
        np.array([_INDICES[name] for name, _ in steps], np.int8).reshape(shape),
        np.array([factor for _, factor in steps], np.float32).reshape(shape),
    )


def finish(arrays: Sequence[Tensor], plans: Sequence[PackedPlans], size: int, channels: int = 3) -> list[Tensor]:
    """Return the views of a batch, each uint8, N x ``size`` x ``size`` x ``channels``.

    Args:
        arrays: The crops of each view, N x ``size`` x ``size`` x C, or the images of all, N x H x W x C; uint8, C 1 for
            grey images or ``channels``. Without plans, the views themselves.
        plans: Of each view.
        size: Side of a view in pixels.
        channels: Of the views. Colours are changed in the first three, or in a grey image's one.
    """
    if not plans:
        return list(arrays)
    whole = len(arrays) < len(plans)
    return [_finish(arrays[0 if whole else view], packed, size, channels, whole) for view, packed in enumerate(plans)]


def _finish(arrays: Tensor, plans: PackedPlans, size: int, channels: int, whole: bool) -> Tensor:
    views = arrays.permute(0, 3, 1, 2).float()
    if whole:
        views = _crop(views, torch.from_numpy(plans.boxes).to(views.device), size)
    colours = {1: 1, 2: 0}.get(views.shape[1], 3)  # two channels are no colours
    flipped = _indices(plans.flips, views)
    views[flipped] = views[flipped].flip(dims=(3,))
    for operations, factors in zip(plans.operations.T, plans.factors.T, strict=True):
        for index in sorted(set(operations.tolist()) - {-1}):
            chosen = _indices(operations == index, views)
            factor = torch.from_numpy(factors[operations == index]).to(views.device)
            changed = views.shape[1] if OPERATIONS[index] is blur else colours
            if changed:
                views[chosen, :changed] = OPERATIONS[index](views[chosen, :changed], factor[:, None, None, None])
    return views.round().clamp(0, 255).to(torch.uint8).expand(-1, channels, -1, -1).permute(0, 2, 3, 1)


def _indices(mask: np.ndarray, views: Tensor) -> Tensor:
    return torch.from_numpy(mask.nonzero()[0]).to(views.device)


def _crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    left, top, width, height = boxes.unbind(dim=1)
    rows = resize_matrix(top, height, images.shape[2], size)
    columns = resize_matrix(left, width, images.shape[3], size)
    return rows[:, None] @ images @ columns[:, None].transpose(2, 3)


def resize_matrix(start: Tensor, length: Tensor, source: int, target: int) -> Tensor:
    """Return the matrices (N x target x source) that cut out and resize along one axis.

    Antialiased bilinear interpolation, as Pillow's resize of the cut: a triangle filter as wide as the
    shrinking factor, never reaching outside the cut.

    Args:
        start: First pixel of each cut, N.
        length: Pixels in each cut, N.
        source: Pixels along the axis.
        target: Pixels after resizing.
    """
    scale = (length / target)[:, None, None]  # N x 1 x 1
    position = torch.arange(target, device=start.device)[:, None] + 0.5  # target x 1
    pixel = torch.arange(source, device=start.device)  # source
    distance = (pixel + 0.5 - start[:, None, None] - position * scale).abs()
    weight = (1 - distance / scale.clamp(min=1)).clamp(min=0)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])  # N x source
    weight = weight * inside[:, None]
    return weight / weight.sum(dim=2, keepdim=True)


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Return the matrices (N x size x size) of Pillow's Gaussian blurs along one axis, edge pixels repeated.

    Pillow blurs three times with a box whose ends weigh less, its radius chosen so that the variance is
    sigma squared (Gwosdek et al. 2011).

    Args:
        sigma: Standard deviations in pixels, N, all above 0.
        size: Pixels along the axis.
    """
    variance = sigma**2 / BLUR_PASSES  # of one box
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = (whole + part)[:, None]  # N x 1
    reach = math.ceil(float(radius.max()))
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    weight = (radius + 1 - offset.abs()).clamp(0, 1) / (2 * radius + 1)  # N x offsets
    column = (torch.arange(size, device=sigma.device)[:, None] + offset).clamp(0, size - 1)  # size x offsets
    box = torch.zeros(len(sigma), size, size, device=sigma.device)
    box.scatter_add_(2, column.expand(len(sigma), -1, -1), weight[:, None].expand(-1, size, -1))
    return cast(Tensor, torch.linalg.matrix_power(box, BLUR_PASSES))


def grey(images: Tensor, factor: Tensor | None = None) -> Tensor:
    """Return the luma of images with one or three channels, N x C x H x W in 0 to 255, as all functions here."""
    if images.shape[1] == 1:
        return images
    luma = (images * images.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True).round()
    return luma.expand(-1, 3, -1, -1)


def _blend(images: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    # a little more than the truncated value, so that round-off does not lower whole numbers
    return (factor * images + (1 - factor) * other + 1e-3).clamp(0, 255).floor()  # Pillow truncates


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale brightness; factor N x 1 x 1 x 1, as in all functions here."""
    return _blend(images, 0.0, factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean luma."""
    return _blend(images, grey(images)[:, :1].mean(dim=(2, 3), keepdim=True).round(), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(images, grey(images), factor)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Shift the hue by ``factor`` of a full circle (-0.5 to 0.5)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    value, chroma = images.amax(dim=1), images.amax(dim=1) - images.amin(dim=1)
    safe = chroma.clamp(min=1e-8)
    sextant = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    hue = torch.where(value == red, (green - blue) / safe, sextant)
    corner = torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]  # HSV to RGB, one channel each
    k = (corner + (hue[:, None] + 6 * factor)) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur as Pillow does."""
    matrix = blur_matrix(sigma.flatten(), images.shape[2])[:, None]
    return matrix @ images @ matrix.transpose(2, 3)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert values from ``threshold`` on."""
    return torch.where(images < threshold, images, 255 - images)


OPERATIONS: list[Callable[[Tensor, Tensor], Tensor]] = [
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
    grey,
    blur,
    solarize,
]
_INDICES = {"": -1} | {function.__name__.removeprefix("adjust_"): index for index, function in enumerate(OPERATIONS)}

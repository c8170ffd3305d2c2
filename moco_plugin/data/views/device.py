"""Views computed by torch on whole batches, on the training device.

Both views of all images are one batch. Crop and resize are a pair of small matrices per image, blur another pair. In each
step of the plans, brightness, contrast and saturation are one weighted sum of image, luma and mean, for all images; hue
and blur run on the images that have them. Parameters are computed on the CPU and copied to the device at once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from moco_plugin.data.views.plan import LUMA, ViewPlan
from moco_plugin.methods.distributed import send

BLUR_PASSES = 3  # Pillow's
OPERATIONS = ("brightness", "contrast", "saturation", "hue", "grey", "blur", "solarize")
BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, BLUR, SOLARIZE = range(len(OPERATIONS))

Job = tuple[Callable[..., Tensor], list[np.ndarray]]  # (views, arrays on their device) -> views


class PackedPlans(NamedTuple):
    """The plans of a batch of N views as arrays, which stay on the CPU.

    ``operations`` contains indices of ``OPERATIONS``, N x steps, -1 for none.
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
        np.array([OPERATIONS.index(name) if name else -1 for name, _ in steps], np.int8).reshape(shape),
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
    boxes, flips, operations, factors = (np.concatenate(of_views) for of_views in zip(*plans, strict=True))
    jobs: list[Job] = [(partial(_crop, size=size), list(boxes.T))] if whole else []
    if flips.any():
        jobs.append((_flip, [flips.nonzero()[0]]))
    for of_step, their_factors in zip(operations.T, factors.T, strict=True):
        jobs += _jobs(of_step, their_factors, size, arrays[0].shape[-1])
    sent = _send([numbers for _, of_job in jobs for numbers in of_job], arrays[0].device)
    views = torch.cat([*arrays, *arrays] if whole else list(arrays)).permute(0, 3, 1, 2).float()
    for function, of_job in jobs:
        views = function(views, *(next(sent) for _ in of_job))
    made = views.round().to(torch.uint8).expand(-1, channels, -1, -1).permute(0, 2, 3, 1)
    return list(made.chunk(len(plans)))


def _jobs(operations: np.ndarray, factors: np.ndarray, size: int, bands: int) -> Iterator[Job]:
    """Yield the operations of one step on the views of all images."""
    of = {index: (operations == index).nonzero()[0] for index in range(len(OPERATIONS))}
    blended = np.isin(operations, (BRIGHTNESS, CONTRAST, SATURATION, GREY))
    if bands != 2 and blended.any():  # two channels have no colour
        other = np.where(blended, 1 - factors, 0)
        luma, mean = other * np.isin(operations, (SATURATION, GREY)), other * (operations == CONTRAST)
        yield blend, [np.stack([np.where(blended, factors, 1), luma, mean]), np.array(LUMA)]
    if bands > 2 and len(of[HUE]):
        yield turn_hue, [of[HUE], 6 * factors[of[HUE], None] + np.array([5.0, 3.0, 1.0])]
    if len(of[BLUR]):
        yield blur, [of[BLUR], *box_blur(factors[of[BLUR]], size)]
    if bands != 2 and len(of[SOLARIZE]):
        yield solarize, [np.where(operations == SOLARIZE, factors, 256)]


def _send(arrays: list[np.ndarray], device: torch.device) -> Iterator[Tensor]:
    """Yield arrays on a device, float32 or int64, copied at once; integers are below 2^24."""
    if not arrays:
        return
    piece = torch.from_numpy(np.concatenate([array.ravel() for array in arrays], dtype=np.float32, casting="unsafe"))
    floats = send(piece, device)
    parts = [of_type.split([array.size for array in arrays]) for of_type in (floats, floats.long())]
    for array, as_float, as_whole in zip(arrays, *parts, strict=True):
        yield (as_whole if array.dtype == np.int64 else as_float).view(array.shape)


def _crop(images: Tensor, left: Tensor, top: Tensor, width: Tensor, height: Tensor, size: int) -> Tensor:
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


def box_blur(sigma: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Pillow's Gaussian blurs along one axis as box filters: weights, N x offsets, and their pixel indices.

    Pillow blurs three times with a box whose ends weigh less, its radius chosen so that the variance is
    sigma squared (Gwosdek et al. 2011). Edge pixels are repeated.

    Args:
        sigma: Standard deviations in pixels, N, all above 0.
        size: Pixels along the axis.
    """
    variance = sigma.astype(np.float64) ** 2 / BLUR_PASSES  # of one box
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = (whole + part)[:, None]  # N x 1
    offset = np.arange(-math.ceil(radius.max()), math.ceil(radius.max()) + 1)
    weight = (radius + 1 - np.abs(offset)).clip(0, 1) / (2 * radius + 1)
    return weight, (np.arange(size)[:, None] + offset).clip(0, size - 1)


def blur_matrix(weight: Tensor, column: Tensor) -> Tensor:
    """Return the matrices (N x size x size) of ``box_blur``."""
    images, size = len(weight), len(column)
    box = weight.new_zeros(images, size, size, dtype=torch.float32)
    box.scatter_add_(2, column.expand(images, -1, -1), weight.float()[:, None].expand(-1, size, -1))
    return cast(Tensor, torch.linalg.matrix_power(box, BLUR_PASSES))


def _flip(views: Tensor, chosen: Tensor) -> Tensor:
    return views.index_copy_(0, chosen, views.index_select(0, chosen).flip(dims=(3,)))


def _on_colours(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``function`` on the first three channels of views with more."""

    @wraps(function)
    def run(views: Tensor, *numbers: Tensor) -> Tensor:
        if views.shape[1] <= 3:
            return function(views, *numbers)
        return torch.cat([function(views[:, :3], *numbers), views[:, 3:]], dim=1)

    return run


@_on_colours
def blend(views: Tensor, shares: Tensor, luma_shares: Tensor) -> Tensor:
    """Return views, N x C x H x W in 0 to 255 as all functions here, blended with their luma and its mean.

    Args:
        views: Of one channel, or of red, green and blue.
        shares: Weights of the view, its luma and the luma's mean, 3 x N. Brightness weighs the view, contrast also the
            mean, saturation and grey also the luma; 1, 0, 0 leaves a view unchanged.
        luma_shares: Weights of red, green and blue in the luma.
    """
    share, of_luma, of_mean = shares[..., None, None, None]
    luma = views if views.shape[1] == 1 else (views * luma_shares[:, None, None]).sum(dim=1, keepdim=True).round_()
    # Pillow truncates; the small offset keeps round-off from lowering integers
    shift = luma.mean(dim=(2, 3), keepdim=True).round_().mul_(of_mean).add_(1e-3)
    return torch.addcmul(shift, views, share).addcmul_(luma, of_luma).clamp_(0, 255).floor_()


@_on_colours
def turn_hue(views: Tensor, chosen: Tensor, turns: Tensor) -> Tensor:
    """Return views with the hue of selected views shifted by ``turns`` sixths of a circle, plus each channel's corner."""
    images = views.index_select(0, chosen)
    value, largest = images.max(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    around = torch.cat([images, images[:, :2]], dim=1)
    sides = around[:, 1:4] - around[:, 2:]  # green - blue, blue - red, red - green
    hue = (sides.gather(1, largest) / chroma.clamp(min=1e-8)).add_(largest, alpha=2)
    k = (hue + turns[..., None, None]) % 6  # HSV to RGB, one channel each
    turned = torch.addcmul(value, chroma, torch.minimum(k, 4 - k).clamp_(0, 1), value=-1)
    return views.index_copy(0, chosen, turned.round_())


def blur(views: Tensor, chosen: Tensor, weight: Tensor, column: Tensor) -> Tensor:
    """Return views with the selected ones blurred as in Pillow."""
    matrix = blur_matrix(weight, column)[:, None]
    return views.index_copy_(0, chosen, matrix @ views.index_select(0, chosen) @ matrix.transpose(2, 3))


@_on_colours
def solarize(views: Tensor, thresholds: Tensor) -> Tensor:
    """Return views with values at or above each view's threshold inverted."""
    return torch.where(views < thresholds[:, None, None, None], views, 255 - views)

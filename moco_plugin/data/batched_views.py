"""The views of a whole batch at once, on any device, with the distribution of lightly's transforms.

Each image draws its own crop, flip, jitter (in its own order), grey and blur. Crop, resize and flip are one
pair of small matrices an image, blur another pair, so the work is a few batched products. For images of one
size, such as those of idx files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from moco_plugin.errors import UsageError

RATIO = (3 / 4, 4 / 3)  # RandomResizedCrop's default
TRIES = 10  # RandomResizedCrop's, before it takes the centre
BLUR_PASSES = 3  # Pillow's
LUMA = (0.299, 0.587, 0.114)


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
    place = torch.arange(target, device=start.device)[:, None] + 0.5  # target x 1
    pixel = torch.arange(source, device=start.device)  # source
    distance = (pixel + 0.5 - start[:, None, None] - place * scale).abs()
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


def grey(images: Tensor) -> Tensor:
    """Return the luma, N x 1 x H x W, of images with one or three channels."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * images + (1 - factor) * other).clamp(0, 1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale brightness; images in 0 to 1, factor N x 1 x 1 x 1, as in all adjust functions here."""
    return (images * factor).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean luma."""
    return _blend(images, grey(images).mean(dim=(2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(images, grey(images), factor)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by ``factor`` of a full circle (-0.5 to 0.5)."""
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


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


class BatchedViews:
    """Turns N x C x H x W uint8 images (C 1 or 3) into two batches of N x 3 x size x size uint8 views.

    Args:
        arguments: All arguments of lightly's transform for each of the two views, from ``view_arguments``.
        grey_first: Grey comes before the jitter, as in v1.

    Raises:
        UsageError: Rotation or vertical flips, which this path does not have.
    """

    def __init__(self, arguments: Sequence[dict[str, Any]], grey_first: bool = False) -> None:
        for key in ("vf_prob", "rr_prob"):
            if arguments[0][key]:
                raise UsageError(f"data.view_args.{key} is {arguments[0][key]}; it needs data.batched_views=false")
        self.views = [_View(view, grey_first) for view in arguments]

    def __call__(self, images: Tensor) -> list[Tensor]:
        images = images.float() / 255
        return [view(images) for view in self.views]


class _View:
    """One of the two."""

    def __init__(self, arguments: dict[str, Any], grey_first: bool) -> None:
        self.arguments = arguments
        self.grey_first = grey_first

    def __call__(self, images: Tensor) -> Tensor:
        views = self._crop_and_flip(images)
        steps = (self._grey, self._jitter) if self.grey_first else (self._jitter, self._grey)
        for step in (*steps, self._blur, self._solarize):
            views = step(views)
        return (views * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)

    def _chosen(self, images: Tensor, probability: float) -> Tensor:
        """Return the numbers of the images that a random step applies to."""
        return (torch.rand(len(images), device=images.device) < probability).nonzero()[:, 0]

    def _crop_and_flip(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        size, device = self.arguments["input_size"], images.device
        area = height * width * torch.empty(n, TRIES, device=device).uniform_(self.arguments["min_scale"], 1)
        ratio = torch.empty(n, TRIES, device=device).uniform_(math.log(RATIO[0]), math.log(RATIO[1])).exp()
        w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.int().argmax(dim=1, keepdim=True)  # the first try that fits
        # no try fits: the largest centre crop of an allowed ratio
        centre_w, centre_h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
        any_fits = fits.any(dim=1)
        w = torch.where(any_fits, w.gather(1, first)[:, 0], centre_w)
        h = torch.where(any_fits, h.gather(1, first)[:, 0], centre_h)
        x = torch.where(any_fits, (torch.rand(n, device=device) * (width - w + 1)).floor(), (width - w) // 2)
        y = torch.where(any_fits, (torch.rand(n, device=device) * (height - h + 1)).floor(), (height - h) // 2)
        rows, columns = resize_matrix(y, h, height, size), resize_matrix(x, w, width, size)
        flip = self._chosen(images, self.arguments["hf_prob"])
        columns[flip] = columns[flip].flip(dims=(1,))
        return rows[:, None] @ images @ columns[:, None].transpose(2, 3)

    def _jitter(self, views: Tensor) -> Tensor:
        chosen = self._chosen(views, self.arguments["cj_prob"])
        jittered, strength = views[chosen], self.arguments["cj_strength"]
        order = torch.rand(len(chosen), len(ADJUSTMENTS), device=views.device).argsort(dim=1)
        spans = [strength * self.arguments[key] for key in ("cj_bright", "cj_contrast", "cj_sat", "cj_hue")]
        factors = []
        for adjust, span in zip(ADJUSTMENTS, spans, strict=True):
            low, high = (-span, span) if adjust is adjust_hue else (max(0.0, 1 - span), 1 + span)
            factors.append(torch.empty(len(chosen), 1, 1, 1, device=views.device).uniform_(low, high))
        for turn in order.unbind(dim=1):  # every image has its own order
            for number, adjust in enumerate(ADJUSTMENTS):
                if spans[number] and not (views.shape[1] == 1 and number >= 2):  # grey has no colour to change
                    now = (turn == number).nonzero()[:, 0]
                    jittered[now] = adjust(jittered[now], factors[number][now])
        views[chosen] = jittered
        return views

    def _grey(self, views: Tensor) -> Tensor:
        chosen = self._chosen(views, self.arguments["random_gray_scale"])
        views[chosen] = grey(views[chosen]).expand(-1, views.shape[1], -1, -1)
        return views

    def _blur(self, views: Tensor) -> Tensor:
        chosen = self._chosen(views, self.arguments["gaussian_blur"])
        if len(chosen):
            sigma = torch.empty(len(chosen), device=views.device).uniform_(*self.arguments["sigmas"])
            matrix = blur_matrix(sigma, views.shape[2])[:, None]
            views[chosen] = matrix @ views[chosen] @ matrix.transpose(2, 3)
        return views

    def _solarize(self, views: Tensor) -> Tensor:
        probability = self.arguments.get("solarization_prob", 0.0)  # v3's transforms have it
        if not probability:
            return views
        chosen = self._chosen(views, probability)
        views[chosen] = torch.where(views[chosen] < 128 / 255, views[chosen], 1 - views[chosen])
        return views

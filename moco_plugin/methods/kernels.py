"""Triton kernels of grouped batch norm: three launches forward and three backward for any number of groups.

Rows are the H x W positions of all images, image by image; a group is a range of images. Sums are accumulated in
float32 (float64 for float64 inputs), first over parts of a group, in a fixed order, so that results are deterministic.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _group(group, images, groups, area):  # type: ignore[no-untyped-def]
    """Return a group's first row and its number of rows; the first groups get the remaining images."""
    each, more = images // groups, images % groups
    return (group * each + tl.minimum(group, more)) * area, (each + (group < more).to(tl.int32)) * area


@triton.jit
def _places(rows, channels, area, channel_count, LAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the offsets in memory of rows x channels."""
    rows = rows.to(tl.int64)[:, None]
    if LAST:  # channels-last
        return rows * channel_count + channels[None, :]
    return (rows // area * channel_count + channels[None, :]) * area + rows % area


@triton.jit
def _first_row(  # type: ignore[no-untyped-def]
    x, start, channels, channel_count, area, TYPE: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    """Return the first row of a group; subtracting it keeps sums of squares accurate for large means."""
    places = _places(tl.zeros((1,), tl.int32) + start, channels, area, channel_count, LAST)
    return tl.sum(tl.load(x + places, (channels < channel_count)[None, :], 0.0).to(TYPE), 0)


@triton.jit
def _partial_sums(  # type: ignore[no-untyped-def]
    x, y, means, sums, images, channel_count, area, groups,
    TYPE: tl.constexpr, LAST: tl.constexpr, BACKWARD: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write sums over parts of a group, parts x 2 x groups x C: of x and x squared, minus the first row; or of y and xy."""
    part, parts, group = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    channels = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    valid = channels < channel_count
    start, count = _group(group, images, groups, area)
    if BACKWARD:
        shift = tl.load(means + group * channel_count + channels, valid, 0.0)
    else:
        shift = _first_row(x, start, channels, channel_count, area, TYPE, LAST)
    one, two = tl.zeros((ROWS, CHANNELS), TYPE), tl.zeros((ROWS, CHANNELS), TYPE)
    for block in range(part * ROWS, count, parts * ROWS):
        rows = block + tl.arange(0, ROWS)
        mask = (rows < count)[:, None] & valid[None, :]
        places = _places(start + rows, channels, area, channel_count, LAST)
        centred = tl.where(mask, tl.load(x + places, mask, 0.0).to(TYPE) - shift[None, :], 0.0)
        other = centred
        if BACKWARD:
            other = tl.load(y + places, mask, 0.0).to(TYPE)
        one += other
        two += other * centred
    place = sums + (part * 2 * groups + group) * channel_count + channels
    tl.store(place, tl.sum(one, 0), valid)
    tl.store(place + groups * channel_count, tl.sum(two, 0), valid)


@triton.jit
def _sum_parts(sums, group, channels, channel_count, groups, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return both sums of a group over its parts."""
    place = sums + (tl.arange(0, PARTS)[:, None] * 2 * groups + group) * channel_count + channels[None, :]
    valid = (channels < channel_count)[None, :]
    return tl.sum(tl.load(place, valid, 0.0), 0), tl.sum(tl.load(place + groups * channel_count, valid, 0.0), 0)


@triton.jit
def _statistics(  # type: ignore[no-untyped-def]
    x, sums, means, deviations, running_mean, running_var, tracked, images, channel_count, area, groups,
    TYPE: tl.constexpr, LAST: tl.constexpr, TRACKS: tl.constexpr, EPS: tl.constexpr, RATE: tl.constexpr,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write means and inverse standard deviations, groups x C; update running statistics and count the step."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = channels < channel_count
    all_means, all_variances = tl.zeros((CHANNELS,), TYPE), tl.zeros((CHANNELS,), TYPE)
    for group in range(groups):
        start, count = _group(group, images, groups, area)
        one, two = _sum_parts(sums, group, channels, channel_count, groups, PARTS)
        mean = one / count
        squares = tl.maximum(two - one * mean, 0.0)
        mean += _first_row(x, start, channels, channel_count, area, TYPE, LAST)
        tl.store(means + group * channel_count + channels, mean, valid)
        tl.store(deviations + group * channel_count + channels, 1 / tl.sqrt(squares / count + EPS), valid)
        all_means += mean / groups
        all_variances += squares / (count - 1) / groups
    if TRACKS:
        old_mean = tl.load(running_mean + channels, valid, 0.0).to(TYPE)
        old_variance = tl.load(running_var + channels, valid, 0.0).to(TYPE)
        tl.store(running_mean + channels, old_mean + RATE * (all_means - old_mean), valid)
        tl.store(running_var + channels, old_variance + RATE * (all_variances - old_variance), valid)
        if tl.program_id(0) == 0:
            tl.store(tracked, tl.load(tracked) + 1)


@triton.jit
def _affine_gradients(  # type: ignore[no-untyped-def]
    sums, deviations, totals, grad_weight, grad_bias, channel_count, groups,
    TYPE: tl.constexpr, AFFINE: tl.constexpr, PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the sums over parts, 2 x groups x C, and the gradients of weight and bias, summed over the groups."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = channels < channel_count
    weight, bias = tl.zeros((CHANNELS,), TYPE), tl.zeros((CHANNELS,), TYPE)
    for group in range(groups):
        of_group = group * channel_count + channels
        one, two = _sum_parts(sums, group, channels, channel_count, groups, PARTS)
        tl.store(totals + of_group, one, valid)
        tl.store(totals + groups * channel_count + of_group, two, valid)
        weight += two * tl.load(deviations + of_group, valid, 0.0)
        bias += one
    if AFFINE:
        tl.store(grad_weight + channels, weight, valid)
        tl.store(grad_bias + channels, bias, valid)


@triton.jit
def _apply(  # type: ignore[no-untyped-def]
    x, y, output, weight, bias, means, deviations, sums, images, channel_count, area, groups,
    TYPE: tl.constexpr, LAST: tl.constexpr, BACKWARD: tl.constexpr, AFFINE: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the normalised x; or, given the output's gradient y, the gradient of x."""
    group = tl.program_id(1)
    channels = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    valid = channels < channel_count
    start, count = _group(group, images, groups, area)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = (rows < count)[:, None] & valid[None, :]
    places = _places(start + rows, channels, area, channel_count, LAST)
    of_group = group * channel_count + channels
    deviation = tl.load(deviations + of_group, valid, 0.0)
    scale = deviation
    if AFFINE:
        scale *= tl.load(weight + channels, valid, 0.0).to(TYPE)
    value = tl.load(x + places, mask, 0.0).to(TYPE) - tl.load(means + of_group, valid, 0.0)[None, :]
    if BACKWARD:
        one = tl.load(sums + of_group, valid, 0.0) / count
        two = tl.load(sums + groups * channel_count + of_group, valid, 0.0) * deviation * deviation / count
        value = tl.load(y + places, mask, 0.0).to(TYPE) - one[None, :] - value * two[None, :]
    value *= scale[None, :]
    if AFFINE and not BACKWARD:
        value += tl.load(bias + channels, valid, 0.0).to(TYPE)[None, :]
    tl.store(output + places, value, mask)


class _Sizes:
    """Memory layout of an input, N x C x ..., and its division among programs."""

    def __init__(self, input: Tensor, groups: int) -> None:
        images, channels = input.shape[:2]
        area = input[0, 0].numel()
        last = input.stride(1) == 1
        self.sizes = images, channels, area, groups
        self.shared = {"TYPE": tl.float64 if input.dtype == torch.float64 else tl.float32}
        self.layout = {**self.shared, "LAST": last}
        self.block = {"ROWS": 32 if last else 1024, "CHANNELS": 64 if last else 1}
        self.columns = triton.cdiv(channels, self.block["CHANNELS"])
        self.rows = triton.cdiv(triton.cdiv(images, groups) * area, self.block["ROWS"])
        # enough parts to fill a GPU, of at least eight blocks of rows
        wanted = min(64, triton.cdiv(self.rows, 8), triton.cdiv(1024, groups * self.columns))
        self.parts = triton.next_power_of_2(wanted)
        self.sums = input.new_empty(
            self.parts, 2, groups, channels, dtype=torch.promote_types(input.dtype, torch.float32)
        )
        self.over_parts = {"PARTS": self.parts, "CHANNELS": 32}
        self.over_channels = (triton.cdiv(channels, 32),)


def dense(input: Tensor) -> Tensor:
    """Return ``input`` in a layout that the kernels support: contiguous or channels-last."""
    last = input.movedim(1, -1)
    return input if last.is_contiguous() else input.contiguous()


def forward(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running: Any, groups: int, eps: float, rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised input, means and inverse standard deviations, groups x C; update the running statistics.

    Args:
        input: N x C x ..., ``dense``.
        weight: C, or None.
        bias: C, or None.
        running: Running mean, running variance and number of steps; each may be None.
        groups: Contiguous groups of the N images.
        eps: Value added to the variances.
        rate: Weight of the new statistics in the running ones (momentum).
    """
    s = _Sizes(input, groups)
    output = torch.empty_like(input)
    means, deviations = torch.empty_like(s.sums[0]).unbind()
    none, affine = {"BACKWARD": False}, {"AFFINE": weight is not None}
    _partial_sums[s.parts, groups, s.columns](input, input, means, s.sums, *s.sizes, **s.layout, **none, **s.block)
    tracks = {"TRACKS": running[0] is not None, "EPS": eps, "RATE": rate}
    _statistics[s.over_channels](
        input, s.sums, means, deviations, *running, *s.sizes, **s.layout, **tracks, **s.over_parts
    )
    _apply[s.rows, groups, s.columns](
        input, input, output, weight, bias, means, deviations, s.sums, *s.sizes, **s.layout, **none, **affine, **s.block
    )
    return output, means, deviations


def backward(
    grad: Tensor, input: Tensor, weight: Tensor | None, means: Tensor, deviations: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of input, weight and bias; ``grad`` has the layout of ``input``."""
    groups = len(means)
    s = _Sizes(input, groups)
    output, totals = torch.empty_like(input), torch.empty_like(s.sums[0])
    grad_weight, grad_bias = (None, None) if weight is None else (torch.empty_like(weight), torch.empty_like(weight))
    back, affine = {"BACKWARD": True}, {"AFFINE": weight is not None}
    _partial_sums[s.parts, groups, s.columns](input, grad, means, s.sums, *s.sizes, **s.layout, **back, **s.block)
    _affine_gradients[s.over_channels](
        s.sums, deviations, totals, grad_weight, grad_bias, s.sizes[1], groups, **s.shared, **affine, **s.over_parts
    )
    _apply[s.rows, groups, s.columns](
        input,
        grad,
        output,
        weight,
        weight,
        means,
        deviations,
        totals,
        *s.sizes,
        **s.layout,
        **back,
        **affine,
        **s.block,
    )
    return output, grad_weight, grad_bias

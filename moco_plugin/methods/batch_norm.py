"""Batch norm layers that do not leak which key belongs to which query (v1, section 3.3).

Batch statistics that a query and its key share reveal the pair. The papers normalise the batch of each GPU
separately and shuffle the keys between GPUs. Within one process, groups of the batch take the place of GPUs: each
group is normalised separately, and the keys are shuffled over the groups (and over the processes, if there are
several).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Running = tuple[Tensor | None, Tensor | None, Tensor | None]  # mean, variance, number of steps


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether any layer normalises over the batch."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def _precise(input: Tensor) -> torch.dtype:
    """Return the type of an input's statistics: float32, or float64 where the input is."""
    return torch.promote_types(input.dtype, torch.float32)


def _in_parts(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize contiguous groups of the batch separately; return the result, and means and variances, groups x C.

    Uses plain operations, which torch.compile fuses.
    """
    each, more = divmod(len(input), groups)
    outputs, means, variances = [], [], []
    larger, smaller = input.tensor_split([more * (each + 1)])
    for images, count in ((larger, more), (smaller, groups - more)):
        if not count:
            continue
        grouped = images.to(_precise(input)).unflatten(0, (count, -1))
        of_channel = (1, *range(3, grouped.ndim))
        variance, mean = torch.var_mean(grouped, of_channel, correction=0, keepdim=True)
        normal = ((grouped - mean) * (variance + eps).rsqrt()).flatten(0, 1)
        if weight is not None and bias is not None:
            shape = (-1, *[1] * (input.ndim - 2))
            normal = normal * weight.view(shape) + bias.view(shape)
        values = grouped[0, :, 0].numel()
        outputs.append(normal.to(input.dtype))
        means.append(mean.flatten(1))
        variances.append(variance.flatten(1) * (values / (values - 1)))
    return torch.cat(outputs), torch.cat(means), torch.cat(variances)


@cache
def kernels(device: torch.device) -> ModuleType | None:
    """Return the Triton kernels if they run on a device and agree with torch, else None, with a warning on CUDA."""
    if device.type != "cuda":
        return None
    try:
        from moco_plugin.methods import kernels

        input = torch.arange(10 * 40 * 9, device=device).sin().view(10, 3, 3, 40).permute(0, 3, 1, 2).requires_grad_()
        weight, bias = (row.clone().requires_grad_() for row in input.detach()[:2, :, 0, 0])
        with torch.enable_grad():
            expected, *_ = _in_parts(input, weight, bias, 4, 1e-5)
            grads = torch.autograd.grad(expected, (input, weight, bias), input)
        output, *saved = kernels.forward(input, weight, bias, (None, None, None), 4, 1e-5, 0.1)
        found = output, *kernels.backward(input.detach(), input, weight, *saved)
        for one, other in zip(found, (expected, *grads), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    except Exception as error:  # compilers, drivers and GPUs fail in many ways
        reason = (str(error).split("\n") or [""])[0]
        warnings.warn(
            f"the kernels of grouped batch norm do not work on {device} ({type(error).__name__}: {reason}); "
            "using torch's batch norm for each group, which is slower",
            stacklevel=2,
        )
        return None
    return kernels


class _GroupedBatchNorm(torch.autograd.Function):
    """``_in_parts`` and the update of the running statistics, without copies of the groups.

    CUDA uses our Triton kernels; other devices call torch's for each group, writing to a single output.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running, groups: int, eps: float,
        rate: float,
    ) -> Tensor:  # fmt: skip
        if ours := kernels(input.device):
            input = ours.dense(input)
            output, means, deviations = ours.forward(input, weight, bias, running, groups, eps, rate)
        else:
            output = torch.empty_like(input)
            # returned as running statistics with momentum 1, and as saved for backward
            statistics = input.new_zeros(4, groups, input.shape[1], dtype=_precise(input))
            parts = zip(input.tensor_split(groups), output.tensor_split(groups), statistics.unbind(1), strict=True)
            for part, place, of_group in parts:
                mean, variance, saved_mean, deviation = of_group.unbind()
                torch.ops.aten.native_batch_norm.out(
                    part, weight, bias, mean, variance, True, 1.0, eps,
                    out=place, save_mean=saved_mean, save_invstd=deviation,
                )  # fmt: skip
            all_means, variances, means, deviations = statistics
            _move(running, all_means, variances, rate)
        ctx.save_for_backward(input, weight, means, deviations)
        ctx.eps = eps
        return cast(Tensor, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, means, deviations = ctx.saved_tensors
        output_grad = torch.empty_like(input).copy_(grads[0]) if grads[0].stride() != input.stride() else grads[0]
        if ours := kernels(input.device):
            return *ours.backward(output_grad, input, weight, means, deviations), None, None, None, None
        grad, affine = torch.empty_like(input), weight is not None
        parts = (tensor.tensor_split(len(means)) for tensor in (output_grad, input, grad))
        of_affine: list[tuple[Tensor, Tensor]] = []
        for part_grad, part, place, *saved in zip(*parts, means.unbind(), deviations.unbind(), strict=True):
            part_of = torch.ops.aten.native_batch_norm_backward(
                part_grad, part, weight, None, None, *saved, True, ctx.eps, [True, affine, affine]
            )
            place.copy_(part_of[0])
            of_affine.append(part_of[1:])
        sums = (
            [torch.stack(of_groups).sum(dim=0) for of_groups in zip(*of_affine, strict=True)] if affine else [None] * 2
        )
        return grad, *sums, None, None, None, None


def _move(running: Running, means: Tensor, variances: Tensor, rate: float) -> None:
    """Update running statistics with the mean over the groups, and count the step."""
    mean, variance, tracked = running
    if mean is not None and variance is not None and tracked is not None:
        mean.lerp_(means.mean(dim=0).to(mean.dtype), rate)
        variance.lerp_(variances.mean(dim=0).to(variance.dtype), rate)
        tracked.add_(1)


class _Replacement(_BatchNorm):
    """A batch norm with the state of the layer that it replaces, and timm's dropout and activation, if it has any."""

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self.load_state_dict(layer.state_dict(), strict=False)
        self.after = nn.Sequential(*filter(None, (getattr(layer, name, None) for name in ("drop", "act"))))


class SplitBatchNorm(_Replacement):
    """Batch norm computed independently over ``groups`` contiguous chunks of at least two images.

    Running statistics follow the mean over the groups, so that one step moves them as far as a step of the
    layer it replaces. In eval mode it is that layer. State dict names do not change.
    """

    groups = 1

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # any shape with channels second

    def forward(self, input: Tensor) -> Tensor:
        groups = min(self.groups, len(input) // 2)
        if groups <= 1 or not self.training:
            return cast(Tensor, self.after(super().forward(input)))
        running = self.running_mean, self.running_var, self.num_batches_tracked
        rate = self.momentum
        if rate is None:  # the mean over all steps
            rate = 1.0 if self.num_batches_tracked is None else 1 / (int(self.num_batches_tracked) + 1)
        if torch.compiler.is_compiling():
            output, means, variances = _in_parts(input, self.weight, self.bias, groups, self.eps)
            _move(running, means, variances, rate)
        else:
            output = _GroupedBatchNorm.apply(input, self.weight, self.bias, running, groups, self.eps, rate)
        return cast(Tensor, self.after(output))


class SyncBatchNorm(_Replacement, nn.SyncBatchNorm):
    """torch's synchronised batch norm; torch's own converter drops timm's activations.

    Attributes:
        alone: Take the statistics of this process, as the layer that it replaces.
    """

    alone = False

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, self.after(_BatchNorm.forward(self, input) if self.alone else super().forward(input)))


def replace_batch_norm(module: nn.Module, replacement: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    """Return ``module`` with the replacement, such as a ``SplitBatchNorm``, of every batch norm in it."""
    if isinstance(module, _BatchNorm):
        return replacement(module)
    for name, child in module.named_children():
        setattr(module, name, replace_batch_norm(child, replacement))
    return module


class _Steps:
    """A layer's ``num_batches_tracked`` while the host counts."""

    count = 0

    def add_(self, more: int) -> None:
        self.count += more


@contextmanager
def counted_together(*modules: nn.Module) -> Iterator[None]:
    """Count the steps of all batch norm layers by one operation at the end, instead of one in each forward pass.

    Compiled modules count in each pass: their code is compiled for one count.
    """
    eager = [module for module in modules if module._compiled_call_impl is None]
    layers = [layer for module in eager for layer in module.modules() if isinstance(layer, _BatchNorm)]
    layers = [layer for layer in layers if layer.training and layer.momentum is not None and layer.track_running_stats]
    steps = [_Steps() for _ in layers]
    for layer, of_layer in zip(layers, steps, strict=True):
        vars(layer)["num_batches_tracked"] = of_layer  # found before the buffer
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["num_batches_tracked"]
    if layers:
        torch._foreach_add_(
            [layer.get_buffer("num_batches_tracked") for layer in layers], [of_layer.count for of_layer in steps]
        )


def set_groups(module: nn.Module, groups: int) -> None:
    """Set the number of groups of every SplitBatchNorm in ``module``."""
    for layer in module.modules():
        if isinstance(layer, SplitBatchNorm):
            layer.groups = groups

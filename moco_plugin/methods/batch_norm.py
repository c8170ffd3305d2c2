"""Batch norm layers that do not leak which key belongs to which query (v1, section 3.3).

Batch statistics shared by a query and its key betray the pair. The papers normalise the batch of each GPU
separately and shuffle the keys between GPUs. Within one process, groups of the batch take the place of GPUs: each
group is normalised separately, and the keys are shuffled over the groups (and over the processes, if there are
several).
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether any layer normalises over the batch."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def _precise(input: Tensor) -> torch.dtype:
    """Return the type of an input's statistics: float32, or float64 where the input is."""
    return torch.promote_types(input.dtype, torch.float32)


def _in_parts(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize contiguous groups of the batch separately; return them, and their means and variances, groups x C."""
    means, variances = input.new_zeros(2, groups, input.shape[1], dtype=_precise(input))
    parts = [
        # with momentum 1 the buffers come back as this group's own statistics
        F.batch_norm(part, mean, variance, weight, bias, True, 1.0, eps)
        for part, mean, variance in zip(input.tensor_split(groups), means, variances, strict=True)
    ]
    return torch.cat(parts), means, variances


class _GroupedBatchNorm(torch.autograd.Function):
    """``_in_parts`` with the same kernels, which write into one output instead of parts to be copied."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        output = torch.empty_like(input)
        # as running statistics with momentum 1, and as saved for backward
        zeros = input.new_zeros(4, groups, input.shape[1], dtype=_precise(input))
        means, variances, saved_means, saved_deviations = zeros
        for group, (part, place) in enumerate(
            zip(input.tensor_split(groups), output.tensor_split(groups), strict=True)
        ):
            statistics = {"save_mean": saved_means[group], "save_invstd": saved_deviations[group]}
            torch.ops.aten.native_batch_norm.out(
                part, weight, bias, means[group], variances[group], True, 1.0, eps, out=place, **statistics
            )
        ctx.save_for_backward(input, weight, saved_means, saved_deviations)
        ctx.groups, ctx.eps = groups, eps
        ctx.mark_non_differentiable(means, variances)
        return output, means, variances

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        input, weight, means, deviations = ctx.saved_tensors
        grad, affine = torch.empty_like(input), weight is not None
        output_grad = torch.empty_like(input).copy_(grads[0]) if grads[0].stride() != input.stride() else grads[0]
        parts = (tensor.tensor_split(ctx.groups) for tensor in (input, output_grad, grad))
        grad_weight, grad_bias = torch.zeros_like(means[:2]) if affine else (None, None)
        for group, (part, part_grad, place) in enumerate(zip(*parts, strict=True)):
            saved = (None, None, means[group], deviations[group], True, ctx.eps, [True, affine, affine])
            part_of = torch.ops.aten.native_batch_norm_backward(part_grad, part, weight, *saved)
            place.copy_(part_of[0])
            if affine:
                grad_weight += part_of[1]
                grad_bias += part_of[2]
        return grad, grad_weight, grad_bias, None, None


class SplitBatchNorm(_BatchNorm):
    """Batch norm computed independently over ``groups`` contiguous chunks of at least two images.

    Running statistics follow the mean over the groups, so that one step moves them as far as a step of the
    layer it replaces. In eval mode it is that layer. State dict names do not change.
    """

    def __init__(self, layer: _BatchNorm, groups: int) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self.load_state_dict(layer.state_dict(), strict=False)
        self.groups = groups
        self.drop, self.act = _drop_and_activation(layer)

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # any shape with channels second

    def forward(self, input: Tensor) -> Tensor:
        groups = min(self.groups, len(input) // 2)
        if groups <= 1 or not self.training:
            return cast(Tensor, self.act(self.drop(super().forward(input))))
        normalize = _in_parts if torch.compiler.is_compiling() else _GroupedBatchNorm.apply
        output, means, variances = normalize(input, self.weight, self.bias, groups, self.eps)
        if self.running_mean is not None and self.running_var is not None:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            rate = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
            self.running_mean.lerp_(means.mean(dim=0), rate)
            self.running_var.lerp_(variances.mean(dim=0), rate)
        return cast(Tensor, self.act(self.drop(output)))


def _drop_and_activation(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return dropout and activation of timm's BatchNormAct2d; identities for other layers."""
    return getattr(layer, "drop", None) or nn.Identity(), getattr(layer, "act", None) or nn.Identity()


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's synchronised batch norm with the dropout and the activation of the layer that it replaces."""

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self.load_state_dict(layer.state_dict(), strict=False)
        self.drop, self.act = _drop_and_activation(layer)

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, self.act(self.drop(super().forward(input))))


def sync_batch_norm(module: nn.Module) -> nn.Module:
    """Return ``module`` with every batch norm synchronised; torch's own converter drops timm's activations."""
    return _replace(module, SyncBatchNorm)


def split_batch_norm(module: nn.Module, groups: int) -> nn.Module:
    """Return ``module`` with every batch norm in it replaced by a SplitBatchNorm."""
    return _replace(module, lambda layer: SplitBatchNorm(layer, groups))


def _replace(module: nn.Module, replacement: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    """Return ``module`` with the replacement of every batch norm in it."""
    if isinstance(module, _BatchNorm):
        return replacement(module)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, replacement))
    return module


def set_groups(module: nn.Module, groups: int) -> None:
    """Set the number of groups of every SplitBatchNorm in ``module``."""
    for layer in module.modules():
        if isinstance(layer, SplitBatchNorm):
            layer.groups = groups

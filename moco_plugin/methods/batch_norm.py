"""Batch norm layers that do not leak which key belongs to which query (v1, section 3.3).

Batch statistics shared by a query and its key betray the pair. The papers normalise the batch of each GPU
separately and shuffle the keys between GPUs. Within one process, groups of the batch take the place of GPUs: each
group is normalised separately, and the keys are shuffled over the groups (and over the processes, if there are
several).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


def has_batch_norm(module: nn.Module) -> bool:
    """Tell whether any layer normalises over the batch."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


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
        parts, means, variances = [], [], []
        for part in input.tensor_split(groups):
            mean, variance = (torch.zeros(self.num_features, device=input.device) for _ in range(2))
            # with momentum 1 the buffers come back as this group's own statistics
            parts.append(F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps))
            means.append(mean)
            variances.append(variance)
        if self.running_mean is not None and self.running_var is not None:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            rate = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum  # type: ignore[arg-type]
            self.running_mean.lerp_(torch.stack(means).mean(dim=0), rate)
            self.running_var.lerp_(torch.stack(variances).mean(dim=0), rate)
        return cast(Tensor, self.act(self.drop(torch.cat(parts))))


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
    if isinstance(module, _BatchNorm):
        return SyncBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, sync_batch_norm(child))
    return module


def split_batch_norm(module: nn.Module, groups: int) -> nn.Module:
    """Return ``module`` with every batch norm in it replaced by a SplitBatchNorm."""
    if isinstance(module, _BatchNorm):
        return SplitBatchNorm(module, groups)
    for name, child in module.named_children():
        setattr(module, name, split_batch_norm(child, groups))
    return module


def set_groups(module: nn.Module, groups: int) -> None:
    """Set the number of groups of every SplitBatchNorm in ``module``."""
    for layer in module.modules():
        if isinstance(layer, SplitBatchNorm):
            layer.groups = groups

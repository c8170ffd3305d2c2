"""MoCo v1 (arXiv 1911.05722) and v2 (2003.04297): contrast a query with its key and a queue of past keys."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moco_plugin.methods.batch_norm import has_batch_norm, set_groups, split_batch_norm, sync_batch_norm
from moco_plugin.methods.contrast import queue_contrast
from moco_plugin.methods.distributed import all_gather, batch_sizes, exchange, rank, shared_permutation
from moco_plugin.methods.heads import linear_head, mlp_head
from moco_plugin.methods.key_queue import KeyQueue
from moco_plugin.methods.momentum import check_momentum, momentum_at, momentum_copy, update_momentum

BATCH_NORM = ("auto", "shuffle", "split", "sync", "plain")


class Encoder(nn.Module):
    """A backbone and its projection head; N x 3 x H x W images to N x C vectors of unit length."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.backbone(images)), dim=1)


class MoCo(nn.Module):
    """Momentum Contrast; the defaults are MoCo v2's.

    Args:
        backbone: Maps N x 3 x H x W images to N x ``feature_dim`` features. The method takes it over.
        feature_dim: Width of the backbone's features.
        dim: C, width of the contrast.
        queue_size: K, number of negative keys, at least the batch over all processes.
        momentum: m, how much of the key encoder stays at each step, 0 to 1.
        momentum_schedule: "constant", or "cosine" to raise m to 1 over training.
        temperature: T, above 0.
        mlp: Two-layer head (v2) instead of a linear one (v1).
        symmetric: Both views are query and key in turn, and the two losses are added.
        batch_norm: What keeps batch norm from leaking, where the backbone has any.
            "auto": ``batch_norm_groups`` groups over all processes (at least one each), normalised apart,
            keys shuffled over groups and processes; 8 groups are the papers' 8 GPUs.
            "shuffle": each process normalises its own batch, keys shuffled over processes.
            "split": ``batch_norm_groups`` groups on each process, keys shuffled over all.
            "sync": statistics over all processes (CUDA only), nothing shuffled.
            "plain": the backbone's batch norm as it is, nothing shuffled.
        batch_norm_groups: Groups of "auto" (over all processes) and "split" (on each).
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        *,
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        momentum_schedule: str = "constant",
        temperature: float = 0.2,
        mlp: bool = True,
        symmetric: bool = False,
        batch_norm: str = "auto",
        batch_norm_groups: int = 8,
    ) -> None:
        super().__init__()
        check_momentum(momentum, momentum_schedule, temperature)
        if batch_norm not in BATCH_NORM:
            raise ValueError(f"batch_norm is {batch_norm!r}; expected {', '.join(BATCH_NORM)}")
        if batch_norm_groups < 1:
            raise ValueError(f"batch_norm_groups is {batch_norm_groups}; expected 1 or more")
        encoder = Encoder(backbone, mlp_head(feature_dim, dim) if mlp else linear_head(feature_dim, dim))
        self.shuffles = batch_norm in ("auto", "shuffle", "split") and has_batch_norm(encoder)
        if self.shuffles:
            split_batch_norm(encoder, 1)
        elif batch_norm == "sync":
            sync_batch_norm(encoder)
        self.encoder_q = encoder
        self.encoder_k = momentum_copy(encoder)
        self.queue = KeyQueue(queue_size, dim)
        self.momentum = momentum
        self.momentum_schedule = momentum_schedule
        self.temperature = temperature
        self.symmetric = symmetric
        self.batch_norm = batch_norm
        self.batch_norm_groups = batch_norm_groups

    @property
    def backbone(self) -> nn.Module:
        """The network that training is for: the query encoder's backbone."""
        return cast(nn.Module, self.encoder_q.backbone)

    def groups(self, processes: int) -> int:
        """Returns how many parts each of ``processes`` processes normalises its batch in."""
        if not self.shuffles or self.batch_norm == "shuffle":
            return 1
        return (
            self.batch_norm_groups
            if self.batch_norm == "split"
            else max(1, self.batch_norm_groups // processes)
        )

    def forward(
        self, im_q: Tensor, im_k: Tensor, progress: float = 0.0, update_key_encoder: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One training step's loss (v1, Algorithm 1).

        Args:
            im_q: First views, N x 3 x H x W; N may differ between processes.
            im_k: Second views of the same images.
            progress: Share of training done, 0 to 1, for the momentum schedule.
            update_key_encoder: False for all but the first part of a batch whose gradients are accumulated.

        Returns:
            The mean loss, and metrics over the batch: ``top1`` and ``top5`` of the (K + 1)-way
            classification in percent, ``feature_std``, the standard deviation of the queries times sqrt(C)
            (1 when spread over the whole sphere, 0 when collapsed), and ``queue_filled``, the share of the
            queue that came from images.
        """
        sizes = batch_sizes(im_q)
        set_groups(self, self.groups(len(sizes)))

        q = self.encoder_q(im_q)  # queries: N x C
        if update_key_encoder:
            m = momentum_at(self.momentum, self.momentum_schedule, progress)
            update_momentum(self.encoder_q, self.encoder_k, m)
        k, all_keys = self._encode_keys(im_k, sizes)  # keys: N x C, and those of all processes
        loss, rank_of_positive = queue_contrast(q, k, self.queue.keys, self.temperature)
        if self.symmetric:
            k, other_keys = self._encode_keys(im_q, sizes)
            other_loss, _ = queue_contrast(self.encoder_q(im_k), k, self.queue.keys, self.temperature)
            loss = loss + other_loss
            all_keys = torch.cat([all_keys, other_keys])
        self.queue.enqueue(all_keys)

        return loss.mean(), {
            "top1": (rank_of_positive < 1).float().mean() * 100,
            "top5": (rank_of_positive < 5).float().mean() * 100,
            "feature_std": feature_std(q),
            "queue_filled": self.queue.filled / len(self.queue),
        }

    @torch.no_grad()
    def _encode_keys(self, images: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Returns the keys of this process's images and those of all, in the order of the ranks."""
        if self.shuffles:
            order = shared_permutation(sum(sizes), images.device)
            shuffled = self.encoder_k(exchange(images, order, sizes))
            all_keys = all_gather(shuffled, sizes)[order.argsort()]
        else:
            all_keys = all_gather(self.encoder_k(images), sizes)
        start = sum(sizes[: rank()])
        return all_keys[start : start + len(images)], all_keys


def feature_std(features: Tensor) -> Tensor:
    """Returns the standard deviation of N x C unit vectors over the batch times sqrt(C): 1 spread, 0 collapsed."""
    return cast(Tensor, features.detach().float().std(dim=0).mean() * features.shape[1] ** 0.5)


def moco_v1(backbone: nn.Module, feature_dim: int, **arguments: Any) -> MoCo:
    """MoCo with v1's linear head and temperature 0.07; any argument of MoCo overrides."""
    return MoCo(backbone, feature_dim, **{"mlp": False, "temperature": 0.07, **arguments})

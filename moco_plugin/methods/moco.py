"""MoCo v1 (arXiv 1911.05722) and v2 (2003.04297): contrast a query with its key and a queue of past keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moco_plugin.methods.batch_norm import has_batch_norm, split_batch_norm
from moco_plugin.methods.contrast import queue_contrast
from moco_plugin.methods.heads import linear_head, mlp_head
from moco_plugin.methods.key_queue import KeyQueue
from moco_plugin.methods.momentum import momentum_copy, update_momentum


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
        queue_size: K, number of negative keys.
        momentum: m, how much of the key encoder stays at each step, 0 to 1.
        temperature: T, above 0.
        mlp: Two-layer head (v2) instead of a linear one (v1).
        batch_norm: "split" normalises ``batch_norm_groups`` groups of the batch apart and shuffles the keys
            over them; "plain" leaves batch norm as it is; "auto" is "split" where the backbone has batch
            norm, else "plain".
        batch_norm_groups: Groups of "split"; 8 stands for the papers' 8 GPUs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        *,
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        mlp: bool = True,
        batch_norm: str = "auto",
        batch_norm_groups: int = 8,
    ) -> None:
        super().__init__()
        if batch_norm not in ("auto", "split", "plain"):
            raise ValueError(f"batch_norm is {batch_norm!r}; expected auto, split or plain")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}; expected 0 to 1")
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; expected a value above 0")
        head = mlp_head(feature_dim, dim) if mlp else linear_head(feature_dim, dim)
        encoder = Encoder(backbone, head)
        self.split = batch_norm == "split" or (batch_norm == "auto" and has_batch_norm(encoder))
        if self.split:
            split_batch_norm(encoder, batch_norm_groups)
        self.encoder_q = encoder
        self.encoder_k = momentum_copy(encoder)
        self.queue = KeyQueue(queue_size, dim)
        self.momentum = momentum
        self.temperature = temperature

    @property
    def backbone(self) -> nn.Module:
        """The network that training is for: the query encoder's backbone."""
        return self.encoder_q.backbone

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One training step's loss (v1, Algorithm 1).

        Args:
            im_q: First views, N x 3 x H x W.
            im_k: Second views of the same images.

        Returns:
            The mean loss, and metrics over the batch: ``top1`` and ``top5`` of the (K + 1)-way
            classification in percent, ``feature_std``, the standard deviation of the queries times sqrt(C)
            (1 when spread over the whole sphere, 0 when collapsed), and ``queue_filled``, the share of the
            queue that came from images.
        """
        q = self.encoder_q(im_q)  # queries: N x C
        with torch.no_grad():
            update_momentum(self.encoder_q, self.encoder_k, self.momentum)
            k = self._encode_keys(im_k)  # keys: N x C
        loss, rank = queue_contrast(q, k, self.queue.keys, self.temperature)
        self.queue.enqueue(k)
        return loss.mean(), {
            "top1": (rank < 1).float().mean() * 100,
            "top5": (rank < 5).float().mean() * 100,
            "feature_std": q.detach().float().std(dim=0).mean() * q.shape[1] ** 0.5,
            "queue_filled": self.queue.filled / len(self.queue),
        }

    def _encode_keys(self, images: Tensor) -> Tensor:
        if not self.split:
            return self.encoder_k(images)  # type: ignore[no-any-return]
        order = torch.randperm(len(images), device=images.device)
        return self.encoder_k(images[order])[order.argsort()]  # type: ignore[no-any-return]


def moco_v1(backbone: nn.Module, feature_dim: int, **arguments: Any) -> MoCo:
    """MoCo with v1's linear head and temperature 0.07; any argument of MoCo overrides."""
    return MoCo(backbone, feature_dim, **{"mlp": False, "temperature": 0.07, **arguments})

"""MoCo v1 (arXiv 1911.05722) and v2 (2003.04297): contrast a query with its key and a queue of past keys."""

from typing import Any

import torch
from torch import Tensor, nn

from moco_plugin.methods.base import Method
from moco_plugin.methods.contrast import batch_metrics, queue_contrast
from moco_plugin.methods.encoder import Encoder, check_arguments, momentum_at, momentum_copy, update_momentum
from moco_plugin.methods.heads import mlp_head
from moco_plugin.methods.key_queue import KeyQueue
from moco_plugin.methods.registry import METHODS
from moco_plugin.methods.shuffling import KeyShuffle


@METHODS.register("moco", "moco_v2")
class MoCo(Method):
    """Momentum Contrast; the defaults are MoCo v2's.

    Args:
        backbone: Maps N x 3 x H x W images to N x ``feature_dim`` features. The method changes it in place.
        feature_dim: Width of the backbone's features.
        dim: C, width of the contrast.
        queue_size: K, number of negative keys, at least the batch over all processes.
        momentum: m, how much of the key encoder stays at each step, 0 to 1.
        momentum_schedule: "constant", or "cosine" to raise m to 1 over training.
        temperature: T, above 0.
        mlp: Two-layer head (v2) instead of a linear one (v1).
        symmetric: Use each view as query and as key, and add the two losses.
        batch_norm: What keeps batch norm from leaking, where the backbone has any.
            "auto": ``batch_norm_groups`` groups over all processes (at least one each), normalised apart,
            keys shuffled over groups and processes; 8 groups are the papers' 8 GPUs.
            "shuffle": each process normalises its own batch, keys shuffled over processes.
            "split": ``batch_norm_groups`` groups on each process, keys shuffled over all.
            "sync": statistics over all processes (CUDA only), nothing shuffled.
            "plain": the backbone's batch norm unchanged, nothing shuffled.
        batch_norm_groups: Groups of "auto" (over all processes) and "split" (on each).
    """

    title = "MoCo v2"
    recipe = "moco_v2"

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
        check_arguments(momentum, momentum_schedule, temperature)
        head = mlp_head(feature_dim, dim) if mlp else nn.Linear(feature_dim, dim)
        self.encoder_q = Encoder(backbone, head, normalized=True)
        self.key_shuffle = KeyShuffle(self.encoder_q, batch_norm, batch_norm_groups)
        self.encoder_k = momentum_copy(self.encoder_q)
        self.queue = KeyQueue(queue_size, dim)
        self.momentum = momentum
        self.momentum_schedule = momentum_schedule
        self.temperature = temperature
        self.symmetric = symmetric
        self.queue_size = queue_size
        self.keys_per_image = self.queries_per_image = 2 if symmetric else 1

    def forward(
        self, im_q: Tensor, im_k: Tensor, progress: float = 0.0, update_key_encoder: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one training step (v1, Algorithm 1); see ``Method.forward``.

        Returns:
            The mean loss, and metrics over the batch: ``top1`` and ``top5`` of the (K + 1)-way
            classification in percent, ``feature_std``, the standard deviation of the queries times sqrt(C)
            (1 when spread over the whole sphere, 0 when collapsed), and ``queue_filled``, the share of the
            queue that came from images.
        """
        sizes = self.key_shuffle.start(im_q, self.even_batches, self.encoder_q, self.encoder_k)

        q = self.encoder_q(im_q)  # queries: N x C
        if self.training and update_key_encoder:
            m = momentum_at(self.momentum, self.momentum_schedule, progress)
            update_momentum(self.encoder_q, self.encoder_k, m)
        k, all_keys = self.key_shuffle.encode(self.encoder_k, im_k, sizes)  # keys: N x C, and of all processes
        loss, positions = queue_contrast(q, k, self.queue.keys, self.temperature)
        if self.symmetric:
            k, other_keys = self.key_shuffle.encode(self.encoder_k, im_q, sizes)
            other_loss, _ = queue_contrast(self.encoder_q(im_k), k, self.queue.keys, self.temperature)
            loss = loss + other_loss
            all_keys = torch.cat([all_keys, other_keys])
        if self.training:
            self.queue.enqueue(all_keys)

        filled = self.queue.filled / len(self.queue)
        return loss.mean(), {**batch_metrics(positions, q), "queue_filled": filled}

    def seed_step(self, seed: int) -> None:
        """Seed the permutations of the next step's keys."""
        self.key_shuffle.generator.manual_seed(seed)

    def groups(self, processes: int) -> int:
        """Return the number of groups in which each of ``processes`` processes normalises its batch."""
        return self.key_shuffle.groups(processes)


@METHODS.register("moco_v1")
class MoCoV1(MoCo):
    """MoCo v1: a linear head and temperature 0.07; takes all arguments of MoCo."""

    title = "MoCo v1"
    views = "moco_v1"
    recipe = "moco_v1"

    def __init__(
        self, backbone: nn.Module, feature_dim: int, *, mlp: bool = False, temperature: float = 0.07, **arguments: Any
    ) -> None:
        super().__init__(backbone, feature_dim, mlp=mlp, temperature=temperature, **arguments)

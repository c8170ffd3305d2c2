"""InfoNCE losses: tell the key of the same image among many others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

QUEUE_BLOCK = 8192  # keys scored at a time: N x 8192 floats live at once, not N x K


class _QueueContrast(torch.autograd.Function):
    """Cross-entropy over (1 + K) logits with the softmax, and so the gradient, summed block by block.

    The keys take no gradient, hence the loss's gradient by a query is known as soon as its softmax is:
    (sum_i p_i key_i - positive key) / T. One pass gives both, the queue may change afterwards, and neither
    the N x K logits nor a copy of the queue is kept for backward.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        positive = (q * k).sum(dim=1) / temperature  # N
        highest = positive.clone()  # N, the largest logit so far
        total = torch.ones_like(positive)  # N, sum of exp(logit - highest)
        mean_key = k.clone()  # N x C, sum of exp(logit - highest) * key
        position = torch.zeros_like(positive, dtype=torch.int64)  # N, negatives as good as the positive or better
        for keys in queue.split(QUEUE_BLOCK):
            logits = q @ keys.T / temperature  # N x block
            position += (logits >= positive[:, None]).sum(dim=1)
            new_highest = torch.maximum(highest, logits.amax(dim=1))
            scale = (highest - new_highest).exp()
            weights = (logits - new_highest[:, None]).exp_()
            total = total * scale + weights.sum(dim=1)
            mean_key = mean_key * scale[:, None] + weights @ keys
            highest = new_highest
        loss = highest + total.log() - positive  # N
        ctx.save_for_backward((mean_key / total[:, None] - k) / temperature)
        ctx.mark_non_differentiable(position)
        return loss, position

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_q,) = ctx.saved_tensors
        return grads[0][:, None] * grad_q, None, None, None


def queue_contrast(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE of queries against their positive keys and a queue of negatives (v1, equation 1).

    A queue longer than QUEUE_BLOCK is scored block by block, with the same result to round-off. Computed in
    float32 whatever the precision around it.

    Args:
        q: Queries of unit length, N x C.
        k: Their positive keys of unit length, N x C, without gradient.
        queue: Negative keys of unit length, K x C, without gradient.
        temperature: T, above 0.

    Returns:
        The loss per query (N) and the position of the positive among the 1 + K keys by similarity (N, 0 is best; ties
        count against it, so that a collapsed network does not look perfect).
    """
    with torch.autocast(q.device.type, enabled=False):
        q, k, queue = q.float(), k.detach().float(), queue.float()
        if len(queue) > QUEUE_BLOCK:
            return _QueueContrast.apply(q, k, queue, temperature)  # type: ignore[no-any-return]
        positive = torch.einsum("nc,nc->n", q, k)[:, None]  # N x 1
        # N x K; a copy, since the queue changes before backward, laid out as the recorded runs had it
        negatives = q @ queue.T.clone(memory_format=torch.contiguous_format)
        logits = torch.cat([positive, negatives], dim=1) / temperature
        loss = F.cross_entropy(logits, logits.new_zeros(len(q), dtype=torch.int64), reduction="none")
        return loss, (logits.detach()[:, 1:] >= logits.detach()[:, :1]).sum(dim=1)


def batch_contrast(q: Tensor, keys: Tensor, first: int, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE of queries against the keys of the whole batch, times 2T (v3, Algorithm 1).

    Computed in float32 whatever the precision around it.

    Args:
        q: This process's queries of unit length, N x C.
        keys: The keys of all processes of unit length, M x C, without gradient.
        first: Row of ``keys`` that is the positive of the first query; those of the others follow.
        temperature: T, above 0.

    Returns:
        The loss per query (N) and the position of the positive among the M keys by similarity (N, 0 is best; ties
        count against it).
    """
    with torch.autocast(q.device.type, enabled=False):
        logits = q.float() @ keys.detach().float().T / temperature  # N x M
        labels = torch.arange(first, first + len(q), device=q.device)
        loss = F.cross_entropy(logits, labels, reduction="none") * (2 * temperature)
        positive = logits.detach().gather(1, labels[:, None])
        return loss, (logits.detach() >= positive).sum(dim=1) - 1  # itself

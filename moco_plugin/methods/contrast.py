"""InfoNCE losses, which find the key of the same image among many others, and their metrics."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

QUEUE_BLOCK = 1024  # keys scored at a time on the CPU: N x 1024 floats live at once, not N x K
CUDA_LOGITS = 1 << 24  # logits scored at a time on CUDA: 64 MB of float32
LARGEST_LOGIT = 40.0  # sums of exp of more could overflow in float32


class _QueueContrast(torch.autograd.Function):
    """Cross-entropy over (1 + K) logits with the softmax, and so the gradient, summed block by block.

    The keys take no gradient, hence the loss's gradient by a query is known as soon as its softmax is:
    (sum_i p_i key_i - positive key) / T. One pass gives both, the queue may change afterwards, and neither
    the N x K logits nor a copy of the queue is kept for backward.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        scaled = q / temperature
        positive = (scaled * k).sum(dim=1, keepdim=True)  # N x 1
        # unit vectors have logits of 1/T at most: only a small T needs the largest logit subtracted
        shift = None if 1 / temperature <= LARGEST_LOGIT else _largest(scaled, queue, positive)  # N x 1
        total = (positive if shift is None else positive - shift).exp()  # N x 1, sum of exp(logit - shift)
        mean_key = total * k  # N x C, sum of exp(logit - shift) * key
        # negatives as good as the positive or better, N
        position = torch.zeros(len(q), dtype=torch.int64, device=q.device)
        blocks = queue.split(_block(q))
        scores = scaled.new_empty(len(q) * len(blocks[0]))
        for keys in blocks:
            logits = torch.mm(scaled, keys.T, out=scores[: len(q) * len(keys)].view(len(q), len(keys)))
            position += (logits >= positive).sum(dim=1)
            weights = (logits if shift is None else logits.sub_(shift)).exp_()
            total += weights.sum(dim=1, keepdim=True)
            mean_key.addmm_(weights, keys)
        loss = total.log() - positive if shift is None else total.log() + shift - positive
        ctx.save_for_backward((mean_key / total - k) / temperature)
        ctx.mark_non_differentiable(position)
        return loss[:, 0], position

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_q,) = ctx.saved_tensors
        return grads[0][:, None] * grad_q, None, None, None


def _block(q: Tensor) -> int:
    """Return the number of keys scored at a time."""
    return max(QUEUE_BLOCK, CUDA_LOGITS // max(1, len(q))) if q.device.type == "cuda" else QUEUE_BLOCK


def _largest(scaled: Tensor, queue: Tensor, positive: Tensor) -> Tensor:
    """Return the largest logit of each query, N x 1."""
    for keys in queue.split(_block(scaled)):
        positive = torch.maximum(positive, (scaled @ keys.T).amax(dim=1, keepdim=True))
    return positive


def queue_contrast(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the InfoNCE loss of queries against their positive keys and a queue of negatives (v1, equation 1).

    A queue longer than ``QUEUE_BLOCK`` is scored block by block, with the same result to round-off; a shorter one with
    the operations of the released code, whose recorded runs amplify round-off. Computed in float32, also
    under autocast; float64 inputs in float64.

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
        precision = torch.promote_types(q.dtype, torch.float32)
        q, k, queue = (vectors.to(precision) for vectors in (q, k.detach(), queue))
        if len(queue) > QUEUE_BLOCK:
            return _QueueContrast.apply(q, k, queue, temperature)  # type: ignore[no-any-return]
        positive = torch.einsum("nc,nc->n", q, k)[:, None]  # N x 1
        # N x K; a copy, since the queue changes before backward, laid out as the recorded runs had it
        negatives = q @ queue.T.clone(memory_format=torch.contiguous_format)
        logits = torch.cat([positive, negatives], dim=1) / temperature
        loss = F.cross_entropy(logits, logits.new_zeros(len(q), dtype=torch.int64), reduction="none")
        return loss, (logits.detach()[:, 1:] >= logits.detach()[:, :1]).sum(dim=1)


def batch_contrast(q: Tensor, keys: Tensor, first: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the InfoNCE loss of queries against the keys of the whole batch, times 2T (v3, Algorithm 1).

    Computed in float32, also under autocast; float64 inputs in float64.

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
        precision = torch.promote_types(q.dtype, torch.float32)
        logits = q.to(precision) @ keys.detach().to(precision).T / temperature  # N x M
        labels = torch.arange(first, first + len(q), device=q.device)
        loss = F.cross_entropy(logits, labels, reduction="none") * (2 * temperature)
        positive = logits.detach().gather(1, labels[:, None])
        return loss, (logits.detach() >= positive).sum(dim=1) - 1  # itself


@torch.no_grad()
def batch_metrics(positions: Tensor, queries: Tensor) -> dict[str, Tensor]:
    """Return the metrics that all versions log.

    Args:
        positions: Position of the positive among all keys by similarity, 0 is best; any shape.
        queries: N x C, of unit length.

    Returns:
        ``top1`` and ``top5`` in percent, and ``feature_std``, the standard deviation over the batch times sqrt(C): 1 if
        spread over the whole sphere, 0 if collapsed.
    """
    return {
        "top1": (positions < 1).float().mean() * 100,
        "top5": (positions < 5).float().mean() * 100,
        "feature_std": queries.float().std(dim=0).mean() * queries.shape[1] ** 0.5,
    }

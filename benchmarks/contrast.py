"""Contrast with a queue, forward and backward, compared with the released formulation."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from moco_plugin.benchmarks.timing import at_least, check_device, compare, ratios
from moco_plugin.methods.contrast import batch_metrics, queue_contrast


def _released(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the loss as the released code formulates it, accuracies included; ``queue`` is C x K."""
    positive = torch.einsum("nc,nc->n", q, k)[:, None]
    negatives = torch.einsum("nc,ck->nk", q, queue.clone().detach())
    logits = torch.cat([positive, negatives], dim=1) / temperature
    labels = torch.zeros(len(q), dtype=torch.int64, device=q.device)
    best = logits.topk(5, dim=1).indices
    for count in (1, 5):
        (best[:, :count] == 0).any(dim=1).float().mean()
    return F.cross_entropy(logits, labels)


def measure(
    batch_size: int = 256,
    dim: int = 128,
    queue_size: int = 65536,
    rounds: int = 10,
    device: Literal["cpu", "cuda"] = "cpu",
) -> dict[str, Any]:
    """Time the contrast with a queue, compared with the released formulation.

    Gradient, top-1 and top-5 are included. No formulation can avoid the two matrix products, which are timed as well.

    Args:
        batch_size: N.
        dim: C.
        queue_size: K.
        rounds: Calls of each.
        device: Where to compute.
    """
    at_least(1, batch_size=batch_size, dim=dim, queue_size=queue_size, rounds=rounds)
    check_device(device)
    q, k, queue = (
        F.normalize(torch.randn(rows, dim, device=device), dim=1) for rows in (batch_size, batch_size, queue_size)
    )
    columns, temperature = queue.T.contiguous(), 0.2

    def with_gradient(loss: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def run() -> object:
            query = q.clone().requires_grad_()
            return torch.autograd.grad(loss(query), query)

        return run

    def ours(query: Tensor) -> Tensor:
        loss, positions = queue_contrast(query, k, queue, temperature)
        batch_metrics(positions, query)
        return loss.mean()

    contestants = {
        "released": with_gradient(lambda query: _released(query, k, columns, temperature)),
        "ours": with_gradient(ours),
        "two products": lambda: (q @ columns) @ queue,
    }
    settings = {"batch_size": batch_size, "dim": dim, "queue_size": queue_size, "rounds": rounds, "device": device}
    results = ratios(compare(contestants, rounds, device), "released", device)
    for row in results.values():
        row["faster"] = round(1 / row["ratio"], 2)
    return {"settings": settings, "threads": torch.get_num_threads(), "results": results}

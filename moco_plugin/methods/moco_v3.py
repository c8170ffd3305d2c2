"""MoCo v3 (arXiv 2104.02057): contrast in the batch, a predictor on the query side, no queue."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moco_plugin.methods.base import Method
from moco_plugin.methods.batch_norm import SyncBatchNorm, counted_together, replace_batch_norm
from moco_plugin.methods.contrast import batch_contrast, batch_metrics
from moco_plugin.methods.distributed import all_gather, batch_sizes, process_number
from moco_plugin.methods.encoder import Encoder, check_arguments, momentum_at, momentum_copy, update_momentum
from moco_plugin.methods.heads import batch_norm_mlp
from moco_plugin.methods.registry import METHODS


@METHODS.register("moco_v3")
class MoCoV3(Method):
    """Momentum Contrast v3; the defaults are those of the ResNet-50 recipe.

    Args:
        backbone: Maps N x 3 x H x W images to N x ``feature_dim`` features. The method changes it in place.
        feature_dim: Width of the backbone's features.
        dim: C, width of the contrast.
        hidden_dim: Width of the hidden layers of projector and predictor.
        projector_layers: Linear layers of the projector: 2 for ResNets, 3 for ViTs.
        predictor_layers: Linear layers of the predictor.
        predictor_last_norm: Batch norm on the predictor's output: none for ResNets, one for ViTs.
        momentum: m at the start, 0 to 1.
        momentum_schedule: "cosine" raises m to 1 over training, "constant" keeps it.
        temperature: T, above 0.
        batch_norm: "sync" takes statistics over all processes (CUDA only), "plain" over each by itself;
            "auto" is "sync" on CUDA.
    """

    queries_per_image = 2
    title = "MoCo v3"
    views = "moco_v3"
    recipe: ClassVar[dict[str, str]] = {
        "batch_norm": "moco_v3_resnet",
        "plain_vit": "moco_v3_vit",
        "layer_norm": "moco_v3_layer_norm",
    }

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        *,
        dim: int = 256,
        hidden_dim: int = 4096,
        projector_layers: int = 2,
        predictor_layers: int = 2,
        predictor_last_norm: bool = False,
        momentum: float = 0.99,
        momentum_schedule: str = "cosine",
        temperature: float = 1.0,
        batch_norm: str = "auto",
    ) -> None:
        super().__init__()
        check_arguments(momentum, momentum_schedule, temperature)
        if batch_norm not in ("auto", "sync", "plain"):
            raise ValueError(f"batch_norm is {batch_norm!r}; expected auto, sync or plain")
        projector = batch_norm_mlp(projector_layers, feature_dim, hidden_dim, dim)
        encoder = Encoder(backbone, projector, normalized=False)
        predictor = batch_norm_mlp(predictor_layers, dim, hidden_dim, dim, last_norm=predictor_last_norm)
        if batch_norm == "sync" or (batch_norm == "auto" and torch.cuda.is_available()):
            replace_batch_norm(encoder, SyncBatchNorm)
            replace_batch_norm(predictor, SyncBatchNorm)
        self.encoder_q = encoder
        self.predictor = predictor
        self.encoder_k = momentum_copy(encoder)
        self.momentum = momentum
        self.momentum_schedule = momentum_schedule
        self.temperature = temperature

    def forward(
        self, x1: Tensor, x2: Tensor, progress: float = 0.0, update_key_encoder: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one training step (v3, Algorithm 1); see ``Method.forward``.

        Returns:
            The mean loss, and metrics over the batch: ``top1`` and ``top5`` of finding the key among those of
            the whole batch, in percent, and ``feature_std`` as for MoCo.
        """
        with counted_together(self.encoder_q, self.predictor):
            q1, q2 = (F.normalize(self.predictor(self.encoder_q(x)), dim=1) for x in (x1, x2))  # queries: N x C
        if self.training and update_key_encoder:
            m = momentum_at(self.momentum, self.momentum_schedule, progress)
            update_momentum(self.encoder_q, self.encoder_k, m)
        sizes = batch_sizes(x1, self.even_batches)
        with torch.no_grad(), counted_together(self.encoder_k):  # keys of all processes
            k1, k2 = (all_gather(F.normalize(self.encoder_k(x), dim=1), sizes) for x in (x1, x2))
        first = sum(sizes[: process_number()])  # where this process's keys begin
        loss_1, positions_1 = batch_contrast(q1, k2, first, self.temperature)
        loss_2, positions_2 = batch_contrast(q2, k1, first, self.temperature)
        return (loss_1 + loss_2).mean(), batch_metrics(torch.cat([positions_1, positions_2]), q1)

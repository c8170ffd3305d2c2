"""The contract between a method and what trains it: Lightning, LightlyTrain, or a custom loop."""

from typing import ClassVar

from torch import Tensor, nn

from moco_plugin.methods.encoder import Encoder


class Method(nn.Module):
    """A pre-training method: a loss on two views of each image, and the networks that it trains.

    A subclass is called ``Class(backbone, feature_dim, **method_args)``; what ``method_args`` takes are the
    keyword-only parameters of its ``__init__``. It raises ValueError for arguments that are out of range. In eval
    mode a call changes no state.

    Attributes:
        encoder_q: The query encoder, an ``Encoder``; conversions and evaluations read its backbone.
        title: Name in messages and reports.
        views: Its two views, a name of ``moco_plugin.data.views.VIEWS``.
        recipe: Its recipe: the name of a file of ``configs/pretrain``, the path of another YAML file, or one for each
            kind of network: ``batch_norm``, ``plain_vit`` (without trained weights) and ``layer_norm`` (all others).
        queue_size: Number of keys in the queue, or None. A batch may enqueue at most as many.
        keys_per_image: Keys that each image of a batch enqueues.
        queries_per_image: Views of each image that pass the query encoder.
        even_batches: Whoever trains it has batches of one size on all processes, so that they need not be exchanged.
    """

    encoder_q: Encoder
    title: ClassVar[str]
    views: ClassVar[str] = "moco_v2"
    recipe: ClassVar[str | dict[str, str]]
    queue_size: int | None = None
    keys_per_image: int = 1
    queries_per_image: int = 1
    even_batches: bool = False

    @property
    def backbone(self) -> nn.Module:
        """The query encoder's backbone: the network that is trained to be used."""
        return self.encoder_q.backbone

    @property
    def encoder(self) -> nn.Module:
        """The query encoder: the backbone with its projection head; maps N x 3 x H x W images to N x C vectors."""
        return self.encoder_q

    def modules_to_compile(self) -> list[nn.Module]:
        """Return the modules that ``compile=true`` compiles: those with parameters."""
        return [part for part in self.children() if any(True for _ in part.parameters())]

    def seed_step(self, seed: int) -> None:
        """Seed the random choices of the next step that all processes must share; pass the same seed on each.

        A training loop that never calls it is right as well: the choices then start from seed 0 on every process.
        Call it with a function of the step, and a resumed run repeats them.
        """

    def groups(self, processes: int) -> int:
        """Return the number of parts of equal size in which each of ``processes`` processes normalises its batch."""
        return 1

    def forward(
        self, view_1: Tensor, view_2: Tensor, progress: float = 0.0, update_key_encoder: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and its metrics.

        Args:
            view_1: First views, N x 3 x H x W; N may differ between processes.
            view_2: Second views of the same images.
            progress: Share of training done, 0 to 1.
            update_key_encoder: False for all but the first part of a batch whose gradients are accumulated.

        Returns:
            The mean loss, and scalars to log.
        """
        raise TypeError(f"{type(self).__name__} does not define forward")

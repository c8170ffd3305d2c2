"""The LightningModule: a method, its optimizer and its schedule."""

from typing import Any, cast

import pytorch_lightning as pl
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer, adapt_input_conv
from torch import Tensor, nn

from moco_plugin.backbones import breaks_channels_last, check_features, create_backbone, first_convolution
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.data.normalize import normalize
from moco_plugin.data.order import seed_of
from moco_plugin.data.views import Views
from moco_plugin.errors import UsageError
from moco_plugin.methods import build_method, method_class
from moco_plugin.pretraining.config import PretrainConfig, config_dict, image_channels
from moco_plugin.runs.optimizers import build_optimizer
from moco_plugin.runs.schedules import lr_schedule, with_schedule

# Attributes of modules that change no features in eval mode.
_OF_TRAINING = frozenset(
    (
        "training momentum inplace drop_rate grad_checkpointing fused_attn num_classes track_running_stats "
        "weight_init_mode"
    ).split()
)


def accumulation(config: PretrainConfig) -> int:
    """Return how many batches' gradients make one optimizer step."""
    return int(config.trainer.get("accumulate_grad_batches", 1))


def scaled_lr(config: PretrainConfig) -> float:
    """Return the learning rate for the images of a step: linear in their number, unless scale_lr is off."""
    optimizer = config.optimizer
    images = config.data.batch_size * accumulation(config)
    scale = images / optimizer.reference_batch_size if optimizer.scale_lr else 1.0
    return optimizer.lr * scale


class PretrainModule(pl.LightningModule):
    """Trains a method on batches of views.

    A batch is what ``Views.collate`` returns.

    Args:
        config: The run.

    Attributes:
        total_steps: Optimizer steps of the whole training; set before it starts.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.total_steps = 0
        self.save_hyperparameters({"config": config_dict(config)}, logger=False)
        image_size = config.data.image_size
        backbone = create_backbone(config.backbone, image_size=image_size, **config.backbone_args)
        dim = check_features(backbone, config.backbone, image_size, image_channels(config))
        if config.weights:
            start_from(backbone, config)
        self.method = build_method(config.method, backbone, dim, **config.method_args)
        self.method.even_batches = True  # the loader drops a last smaller batch
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.method.to(memory_format=self.layout)
        if config.compile:
            for network in self.method.compiled():
                network.compile()
        self.schedule = lr_schedule(config.schedule)
        channels, arguments = image_channels(config), config.data.view_args
        self.views = Views(views_name(config), image_size, config.views.engine, channels=channels, **arguments)

    def fit_layout(self, device: torch.device) -> str:
        """Switch channels-last off where torch cannot train it on a device; return a sentence if so."""
        layer = breaks_channels_last(self.method)
        if device.type != "cpu" or self.layout is torch.contiguous_format or not layer:
            return ""
        self.layout = torch.contiguous_format
        self.method.to(memory_format=self.layout)
        return f"channels_last is off: torch's CPU convolutions fail in this layout at {layer}"

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed each step by its number, so that a resumed run draws the same random numbers."""
        trainer = self.trainer
        step = trainer.fit_loop.batch_idx + 1  # within the epoch
        self.method.seed_step(seed_of(self.config.seed, trainer.current_epoch, step))
        torch.manual_seed(seed_of(self.config.seed, trainer.current_epoch, step, self.global_rank))
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Finish the views and normalize them, on the training device."""
        arrays, plans, corrupt = batch
        data = self.config.data
        views = [normalize(view.permute(0, 3, 1, 2), data.mean, data.std) for view in self.views.finish(arrays, plans)]
        return [view.to(self.dtype).contiguous(memory_format=self.layout) for view in views], corrupt

    def training_step(self, batch: tuple[list[Tensor], list[str]], batch_idx: int) -> Tensor:
        """Run one step of the method; log its metrics."""
        (im_q, im_k), _ = batch
        progress = self.trainer.global_step / self.total_steps
        first = batch_idx % accumulation(self.config) == 0
        loss, metrics = self.method(im_q, im_k, progress, update_key_encoder=first)
        self.log_dict(metrics, sync_dist=True)
        self.log("loss", loss.detach(), prog_bar=True, sync_dist=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return cast(Tensor, loss)

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the trained parameters, and the learning rate schedule."""
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        optimizer = build_optimizer(self.config.optimizer, parameters, scaled_lr(self.config))
        return with_schedule(optimizer, self.config.schedule, self.schedule, self.total_steps)


def start_from(backbone: nn.Module, config: PretrainConfig) -> None:
    """Load the backbone of the checkpoint ``config.weights``.

    Raises:
        UsageError: It is of another architecture.
    """
    checkpoint = read_checkpoint(str(config.weights))
    try:
        backbone.load_state_dict(_adapted(checkpoint.backbone.state_dict(), backbone))
    except RuntimeError as error:
        raise UsageError(
            f"weights={config.weights} holds a {checkpoint.architecture}, which does not fit backbone={config.backbone} "
            "with these backbone_args; choose the same architecture"
        ) from error
    differences = wiring_differences(checkpoint.backbone, backbone)
    sized = ("img_size", "grid_size", "num_patches", "in_chans", "in_channels")  # of the images, see _adapted
    for name, theirs, ours in [row for row in differences if row[0].split(".")[-1] not in sized][:1]:
        raise UsageError(
            f"weights={config.weights} has {name} {theirs} and backbone={config.backbone} has {ours}, so the same weights "
            f"would compute something else; choose the same network, such as backbone_args.{name.split('.')[-1]}={theirs}"
        )


def wiring_differences(one: nn.Module, other: nn.Module) -> list[tuple[str, Any, Any]]:
    """Return differences between networks that hold the same weights: heads, strides, epsilons, activations, pooling.

    Returns:
        Name of the layer and its attribute, and the value in both; what only training uses (dropout) is left out.
    """
    first, second = _wiring(one), _wiring(other)
    names = sorted(first.keys() | second.keys(), key=lambda name: (not name.endswith("num_heads"), name))
    return [(name, a, b) for name in names if (a := first.get(name)) != (b := second.get(name))]


def _wiring(network: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, module in network.named_modules():
        kind = type(module).__name__
        found[f"{name} layer".strip()] = "Identity" if kind in ("Dropout", "DropPath", "PatchDropout") else kind
        if kind in ("Dropout", "DropPath", "PatchDropout"):
            continue
        for key, value in vars(module).items():
            if (
                isinstance(value, (bool, int, float, str, tuple))
                and not key.startswith("_")
                and key not in _OF_TRAINING
            ):
                found[f"{name}.{key}".strip(".")] = value
    return found


def _adapted(weights: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Return weights for images of other channels or another size.

    timm's rules: filters of the first convolution are repeated over the channels and scaled, or summed for one channel;
    a ViT's position embedding is resampled.
    """
    ours = backbone.state_dict()
    if first := first_convolution(backbone):
        name, channels = f"{first[0]}.weight", first[1].in_channels
        theirs = weights.get(name)
        if theirs is not None and theirs.shape[1] != channels and theirs.shape[1] in (1, 3):
            print(f"weights: {name} is adapted from {theirs.shape[1]} to {channels} channels")
            weights = {**weights, name: adapt_input_conv(channels, theirs, theirs.shape[1])}
    position = weights.get("pos_embed")
    if not isinstance(backbone, VisionTransformer) or position is None or "pos_embed" not in ours:
        return weights
    if position.shape == ours["pos_embed"].shape or position.shape[-1] != ours["pos_embed"].shape[-1]:
        return weights
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    grid = backbone.patch_embed.grid_size
    print(f"weights: the position embedding is resampled to {grid[0]} x {grid[1]} patches")
    return {**weights, "pos_embed": resample_abs_pos_embed(position, list(grid), num_prefix_tokens=prefix)}


def views_name(config: PretrainConfig) -> str:
    """Return the name of the views, with "auto" resolved to those of the method."""
    return method_class(config.method).views if config.data.views == "auto" else config.data.views

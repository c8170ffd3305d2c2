"""Features of a frozen backbone over an image set: in memory, or on disk where they are many."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from moco_plugin.data.datasets import CorruptImages, LabelledImages
from moco_plugin.data.images import ImageSet
from moco_plugin.data.loading import ended_with, training_loader_options
from moco_plugin.data.normalize import View, normalize
from moco_plugin.data.views import evaluation_transform
from moco_plugin.errors import UserError
from moco_plugin.methods.distributed import all_gather, batch_sizes, process_number, world_size

IN_MEMORY = 512 << 20  # bytes of features; those of a larger set go to disk where that is allowed


@dataclass
class FeatureSet:
    """Features of a set.

    Attributes:
        features: float32, N x D. They stay on the GPU if they fit into half of its free memory; otherwise they are on
            the CPU, in memory or mapped from a temporary file.
        labels: int64, N, -1 without labels.
        indices: int64, N: which images of the set these are, since corrupt ones are left out.
    """

    features: Tensor
    labels: Tensor
    indices: Tensor


def keep_whole(samples: list[tuple[Any, int, str]]) -> tuple[Tensor | None, Tensor, Tensor, list[str]]:
    """Collate LabelledImages: images (None if all are corrupt), their labels and positions, names of corrupt ones."""
    positions = [position for position, (image, _, _) in enumerate(samples) if image is not None]
    images = [samples[position][0] for position in positions]
    labels = torch.tensor([samples[position][1] for position in positions], dtype=torch.int64)
    corrupt = [name for _, _, name in samples if name]
    return torch.stack(images) if images else None, labels, torch.tensor(positions, dtype=torch.int64), corrupt


def extract_feature_set(
    backbone: nn.Module,
    images: ImageSet,
    view: View,
    *,
    indices: Sequence[int] | None = None,
    normalized: bool = True,
    disk: bool = False,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    workers: int | None = None,
    progress: str | None = None,
) -> FeatureSet:
    """Run a network in eval mode over a set; corrupt images are named and left out.

    Args:
        backbone: Maps N x C x H x W normalised images to N x D features. Its mode is restored afterwards.
        images: The set.
        view: How to show its images.
        indices: Which images; None for all.
        normalized: Divide each feature by its L2 norm.
        disk: Put features of more than IN_MEMORY bytes into a temporary file.
        device: Device of the network.
        batch_size: Images per batch.
        workers: Loader processes; None uses the available cores on a GPU, and no processes on a CPU.
        progress: Label of a progress bar; None shows none.
    """
    device = torch.device(device)
    chosen = torch.arange(len(images)) if indices is None else torch.as_tensor(indices)
    decoded = images.decoded_for(view.value_range, view.channels)
    shown = LabelledImages(decoded, evaluation_transform(view.image_size, view.crop_ratio))
    processes = (-1 if device.type == "cuda" else 0) if workers is None else workers
    options = training_loader_options(processes)
    dataset = Subset(shown, range(len(images)) if indices is None else indices)
    loader = DataLoader(dataset, batch_size, collate_fn=keep_whole, **options)
    corrupt = CorruptImages(len(chosen))
    dtype = next((p.dtype for p in backbone.parameters()), torch.float32)
    labels: list[Tensor] = []
    kept: list[Tensor] = []

    def batches() -> Iterator[Tensor]:
        bar = tqdm(loader, desc=progress, disable=progress is None, leave=False)
        for part, (batch, its_labels, positions, names) in zip(chosen.split(batch_size), bar, strict=True):
            corrupt.add(names)
            if batch is not None:
                labels.append(its_labels)
                kept.append(part[positions])
                with torch.no_grad():
                    batch = normalize(batch.to(device, non_blocking=True), view.mean, view.std)
                    features = backbone(batch.to(dtype)).float()
                yield F.normalize(features, dim=1) if normalized else features

    mode = backbone.training
    backbone.eval()
    with ended_with(loader):
        parts = batches()
        first = next(parts, None)
        if first is None:
            raise UserError(f"none of the {len(chosen)} images of {images.spec} can be decoded")
        size = 4 * len(chosen) * first.shape[1]
        stay = device.type == "cuda" and 2 * size < torch.cuda.mem_get_info(device)[0]
        every = (part if stay else part.cpu() for part in chain([first], parts))
        joined = map_from_disk(every) if disk and not stay and size > IN_MEMORY else torch.cat(list(every))
    backbone.train(mode)
    return FeatureSet(joined, torch.cat(labels), torch.cat(kept))


def map_from_disk(parts: Iterable[Tensor]) -> Tensor:
    """Write rows of float32 (N x D each) to a temporary file in ``TMPDIR``, and return all as a tensor mapped from it.

    Raises:
        UserError: The disk is full.
    """
    with tempfile.TemporaryFile() as file:
        width = 0
        try:
            for part in parts:
                width = part.shape[1]
                file.write(part.contiguous().float().numpy().data)
            file.flush()
        except OSError as error:
            raise UserError(
                f"features cannot be written to {tempfile.gettempdir()} ({error.strerror}); "
                "set TMPDIR to a folder with more room"
            ) from error
        # copy-on-write, since torch warns of arrays that cannot be written to
        return torch.from_numpy(np.memmap(file, np.float32, "c").reshape(-1, width))


def own_share(count: int) -> range:
    """Return the indices of this process's share of ``count`` images: contiguous, in the order of the ranks."""
    rank, processes = process_number(), world_size()
    return range(count * rank // processes, count * (rank + 1) // processes)


def gather_features(own: FeatureSet, rows: int = 65536) -> FeatureSet | None:
    """Gather the features of all processes on the first one; return None on the others.

    Args:
        own: Features of this process's share, on the CPU (for ``gloo``).
        rows: Number of features sent at a time.
    """
    if world_size() == 1:
        return own
    sizes = batch_sizes(own.labels)
    labels, indices = (all_gather(values, sizes) for values in (own.labels, own.indices))
    if process_number():
        for part in own.features.split(rows):
            torch.distributed.send(part.contiguous(), 0)
        return None

    def parts() -> Iterator[Tensor]:
        yield from own.features.split(rows)
        for rank, size in enumerate(sizes[1:], start=1):
            for start in range(0, size, rows):
                part = own.features.new_empty(min(rows, size - start), own.features.shape[1])
                torch.distributed.recv(part, rank)
                yield part

    many = 4 * sum(sizes) * own.features.shape[1] > IN_MEMORY
    return FeatureSet(map_from_disk(parts()) if many else torch.cat(list(parts())), labels, indices)

"""Images beside the two views that contrastive training makes of each."""

from __future__ import annotations

import torch
from PIL import Image

from moco_plugin.config import PretrainConfig
from moco_plugin.data.batched_views import BatchedViews
from moco_plugin.data.images import ImageSet
from moco_plugin.data.order import seeded
from moco_plugin.data.views import build_views, view_arguments
from moco_plugin.pretraining.module import views_name
from moco_plugin.report.page import Picture, tile


def view_pairs(config: PretrainConfig, count: int = 12) -> list[list[Picture]]:
    """Return images evenly spread over a run's set, each with a pair of views made as the run made them.

    Args:
        config: The run's.
        count: Images, at most; one that cannot be decoded is left out.
    """
    images = ImageSet(config.data.root, config.data.value_range)
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long().tolist()
    cards = []
    for number, index in enumerate(chosen, start=1):
        image = images.load(index)
        if image is None:
            continue
        with seeded(config.seed, index):
            first, second = _views(config, images, index, image)
        parts = (("image", image), ("view 1", first), ("view 2", second))
        cards.append([tile(part, f"Image {number}: {name}", name) for name, part in parts])
    return cards


def _views(config: PretrainConfig, images: ImageSet, index: int, image: Image.Image) -> list[Image.Image]:
    name, data = views_name(config), config.data
    if data.batched_views and images.array is not None:
        make = BatchedViews(view_arguments(name, data.image_size, **data.view_args), name == "moco_v1")
        views = [view[0] for view in make(torch.from_numpy(images.array[index].copy())[None, None])]
    else:
        views = build_views(name, data.image_size, **data.view_args)(image)
    return [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in views]

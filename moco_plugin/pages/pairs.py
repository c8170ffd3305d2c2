"""Images with the two views that contrastive training makes of each."""

from random import Random

import torch

from moco_plugin.data.images import as_picture
from moco_plugin.pages.page import Picture, tile
from moco_plugin.pretraining.config import PretrainConfig
from moco_plugin.pretraining.run import build_views, open_images


def view_pairs(config: PretrainConfig, count: int = 12) -> list[list[Picture]]:
    """Return images evenly spread over a run's set, each with a pair of views made as the run made them.

    Args:
        config: The run's.
        count: Images, at most; one that cannot be decoded is left out.
    """
    images = open_images(config)
    views = build_views(config, images)
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).long().tolist()
    cards = []
    for position, index in enumerate(chosen, start=1):
        array, _ = images.try_load_array(index)
        if array is None:
            continue
        arrays, plans, _ = views.collate([(*views(array, Random(f"{config.seed} {index}")), "")])
        first, second = (view[0].numpy() for view in views.finish(arrays, plans))
        parts = (("image", array), ("view 1", first), ("view 2", second))
        cards.append([tile(as_picture(part), f"Image {position}: {name}", name) for name, part in parts])
    return cards

"""Test images, each with the training images nearest to it in feature space."""

from __future__ import annotations

import torch
from PIL import Image

from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.data.images import ImageSet, check_labels
from moco_plugin.errors import UserError
from moco_plugin.evaluation.features import extract_features
from moco_plugin.report.page import Html
from moco_plugin.report.pictures import grid, row, tile


def nearest_neighbours(
    checkpoint: Checkpoint, train: ImageSet, test: ImageSet, rows: int = 10, count: int = 8
) -> tuple[Html, int, int]:
    """Finds the training images of the highest cosine similarity to the first test image of each class.

    Args:
        checkpoint: Whose features are compared.
        train: Labelled images to search.
        test: Labelled images to search for.
        rows: Test images, at most.
        count: Neighbours of each, at most.

    Returns:
        The pictures, how many of the neighbours have the class of their test image, and how many there are.
    """
    check_labels(train, test)
    assert train.labels is not None and test.labels is not None
    classes = train.classes or tuple(f"class {i}" for i in range(int(train.labels.max()) + 1))
    first = [int((test.labels == label).argmax()) for label in sorted(set(test.labels.tolist()))][:rows]
    train_features, test_features = _features(checkpoint, train), _features(checkpoint, test)[first]
    nearest = (test_features @ train_features.T).topk(min(count, len(train))).indices
    right, lines = 0, []
    for query, found in zip(first, nearest.tolist(), strict=True):
        name = classes[test.labels[query]]
        tiles = [tile(_image(test, query), f"Test image: {name}", name)]
        for place, index in enumerate(found, start=1):
            same = train.labels[index] == test.labels[query]
            right += int(same)
            neighbour = classes[train.labels[index]]
            alt = f"Neighbour {place} of {name}: {neighbour}, {'right' if same else 'wrong'} class"
            tiles.append(tile(_image(train, index), alt, neighbour, "right" if same else "wrong"))
        lines.append(row(tiles))
    return grid(lines), right, nearest.numel()


def _features(checkpoint: Checkpoint, images: ImageSet) -> torch.Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features, _ = extract_features(checkpoint.backbone.to(device), images, checkpoint.view, device=device)
    if len(features) != len(images):  # the rows would no longer be the images' numbers
        raise UserError(f"{images.spec} has images that cannot be decoded; repair or remove them")
    return features


def _image(images: ImageSet, index: int) -> Image.Image:
    image = images.load(index)
    assert image is not None  # it has features
    return image

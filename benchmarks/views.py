"""Two MoCo v2 views of JPEG files on one core, compared with other pipelines."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import default_collate
from torchvision import transforms

from moco_plugin.benchmarks.timing import at_least, check_device, compare, ratios
from moco_plugin.data.datasets import TrainImages
from moco_plugin.data.decode import decode_array
from moco_plugin.data.images import ImageSet
from moco_plugin.data.views import VIEWS, Views, view_arguments
from moco_plugin.errors import UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTOS = 16  # of the default set


def measure(
    root: str | None = None,
    image_size: int = 224,
    images: int = 32,
    rounds: int = 10,
    device: Literal["cpu", "cuda"] = "cpu",
) -> dict[str, Any]:
    """Time two views of JPEG files on one core, compared with other pipelines and with decoding alone.

    Args:
        root: Images, as ``data.root``; by default 500 x 375 cuts of scikit-learn's two photographs, JPEG quality 90.
        image_size: Side of a view.
        images: Images per call, at most.
        rounds: Calls of each.
        device: Device on which the ``device`` engine finishes views, from batches on the CPU.
    """
    check_device(device)
    at_least(1, image_size=image_size, images=images, rounds=rounds)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            _write_photos(Path(folder))
        photos = ImageSet(root or folder)
        if not photos.paths:
            raise UsageError(f"{root} contains no image files; expected a folder or a list of them")
        paths = photos.paths[:images]
        contestants = {name: _batch(make, paths) for name, make in _pipelines(photos, image_size).items()}
        views = Views("moco_v2", image_size, "device")
        dataset = TrainImages(photos, views, seed=0)
        arrays, plans, _ = views.collate([dataset[number] for number in range(len(paths))])
        contestants["device (finish)"] = lambda: views.finish([array.to(device) for array in arrays], plans)
        seconds = compare(contestants, rounds, device)
    results = ratios(seconds, "released", parts=len(paths))
    for row in results.values():
        row["faster"] = round(1 / row["ratio"], 2)
        row["pairs_per_second"] = round(1000 / row["cpu_milliseconds"], 1)
    settings = {"root": root or "sample photographs", "image_size": image_size, "images": len(paths), "rounds": rounds}
    return {"settings": {**settings, "device": device}, "results": results}


def _write_photos(folder: Path) -> None:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise UsageError("no photographs: give --root FOLDER, or install scikit-learn for its two") from error
    for number in range(PHOTOS):
        left, top = 9 * number, 3 * number
        photo = Image.fromarray(load_sample_images().images[number % 2])
        photo.crop((left, top, left + 500, top + 375)).save(folder / f"{number:02}.jpg", quality=90)


def _pipelines(photos: ImageSet, size: int) -> dict[str, Callable[[list[int]], object]]:
    """Return functions from numbers of images to a batch."""
    released = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([_blur], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    arguments = view_arguments("moco_v2", size)[0]
    lightly = VIEWS["moco_v2"][0](**arguments, normalize={"mean": MEAN, "std": STD})

    def by_pillow(view: Callable[[Image.Image], Any]) -> Callable[[list[int]], object]:
        def make(numbers: list[int]) -> object:
            opened = [Image.open(photos.paths[number]).convert("RGB") for number in numbers]
            return default_collate([[view(image), view(image)] for image in opened])

        return make

    def by_engine(engine: str) -> Callable[[list[int]], object]:
        views = Views("moco_v2", size, engine)
        dataset = TrainImages(photos, views, seed=0)
        return lambda numbers: views.collate([dataset[number] for number in numbers])

    pipelines = {
        "released": by_pillow(released),
        "lightly": by_pillow(lightly),
        **_lightly_train(photos, size),
        **{engine: by_engine(engine) for engine in ("reference", "fast")},
        "device (loader)": by_engine("device"),
        "decoding alone": lambda numbers: [decode_array(photos.paths[number], "") for number in numbers],
    }
    return pipelines


def _lightly_train(photos: ImageSet, size: int) -> dict[str, Callable[[list[int]], object]]:
    """Return LightlyTrain's pipeline with MoCo v2's views, where it is installed."""
    try:
        from lightly_train._data.file_helpers import open_image_numpy

        from moco_plugin.integrations.lightly_train.arguments import transform_args
        from moco_plugin.integrations.lightly_train.method import MoCoTransform
    except ImportError:
        return {}

    class Transform(MoCoTransform):
        method = "moco_v2"

    transform = Transform(transform_args("moco_v2")(image_size=(size, size), num_channels=3))

    def make(numbers: list[int]) -> object:
        arrays = [open_image_numpy(photos.paths[number]) for number in numbers]
        return default_collate([[view["image"] for view in transform({"image": array})] for array in arrays])

    return {"LightlyTrain": make}


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def _batch(make: Callable[[list[int]], object], paths: list[Path]) -> Callable[[], object]:
    generator = Random(0)

    def run() -> object:
        np.random.seed(generator.randrange(1 << 30))
        return make(list(range(len(paths))))

    return run

"""Small scenes of several objects with boxes and masks, in VOC and COCO format."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from moco_plugin.demo.voc_files import write_voc_image
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import atomic_folder, check_output

FOREGROUND = 20  # grey level of 255 above which a pixel belongs to the object; Fashion-MNIST's background is 0
MIN_VISIBLE = 0.75  # share of an object that later objects leave visible
MIN_OBJECTS, MAX_OBJECTS = 3, 6
MIN_SCALE, MAX_SCALE = 0.9, 2.2  # of the object images: 25 to 62 pixels for 28


@dataclass
class SceneObject:
    """An object of a scene: its class index from 0 and its visible pixels (bool, size x size)."""

    label: int
    mask: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels from 0, right and bottom exclusive."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def safe_class_name(name: str) -> str:
    """Turn a class name into a file name for VOC's evaluation: ``T-shirt/top`` to ``T-shirt-top``."""
    return re.sub(r"[^\w-]+", "-", name)


def compose_scene(
    images: Sequence[np.ndarray] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    size: int,
    random: np.random.Generator,
    *,
    order: Sequence[int] | None = None,
    canvas: np.ndarray | None = None,
) -> tuple[np.ndarray, list[SceneObject]]:
    """Put objects on a textured background, with little overlap.

    Args:
        images: N object images, uint8: grey on black (H x W), which are tinted, or photos with opacity
            (H x W x 4, RGBA), which are resized to the size of grey images of 28 pixels.
        labels: Class index of each, N.
        size: Side of the scene in pixels.
        random: Generator of all other choices.
        order: Indices of the images, the farthest first; by default three to six random ones.
        canvas: The background (float64, H x W x 3, 0 to 255), changed in place; by default a texture, size x size.

    Returns:
        The scene (uint8, RGB, as large as the background) and its objects, farthest first. An object without a free
        place is left out.
    """
    canvas = background(size, random) if canvas is None else canvas
    rows, columns = canvas.shape[:2]
    objects: list[SceneObject] = []
    areas: list[int] = []  # of the whole objects, to compare the visible parts with
    count = random.integers(MIN_OBJECTS, MAX_OBJECTS + 1) if order is None else len(order)
    for number in range(count):
        for _attempt in range(20):  # a crowded scene stays with fewer objects
            index = int(random.integers(len(images))) if order is None else order[number]
            image = images[index]
            longest = max(image.shape[:2])
            scale = random.uniform(MIN_SCALE, MAX_SCALE) * (28 / longest if image.ndim == 3 else 1)
            colour, alpha = _resized(image, min(scale, min(rows, columns) / longest))
            height, width = alpha.shape
            top, left = random.integers(rows - height + 1), random.integers(columns - width + 1)
            mask = np.zeros((rows, columns), bool)
            mask[top : top + height, left : left + width] = alpha >= 0.5
            visible = [(other.mask & ~mask).sum() for other in objects]
            if mask.any() and all(np.array(visible) >= MIN_VISIBLE * np.array(areas)):
                break
        else:
            continue
        if image.ndim == 2:
            colour = random.uniform(80, 255, size=3) * (0.25 + 0.75 * colour)
        window = canvas[top : top + height, left : left + width]
        window += alpha[..., None] * (colour - window)
        for other in objects:
            other.mask &= ~mask
        objects.append(SceneObject(int(labels[index]), mask))
        areas.append(int(mask.sum()))
    return canvas.round().clip(0, 255).astype(np.uint8), objects


def _resized(image: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Resize an object image by ``scale``.

    Returns:
        Grey levels (H x W x 1, 0 to 1) or colours (H x W x 3, 0 to 255), and opacity (H x W, 0 to 1).
    """
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])

    def resize(array: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture, np.float64)

    if image.ndim == 3:
        resized = resize(image)  # Pillow weights the colours by opacity
        return resized[..., :3], resized[..., 3] / 255
    mask = image > FOREGROUND
    # A hole is background with object on all four sides of it.
    after = [np.maximum.accumulate(mask, axis) for axis in (0, 1)]
    before = [np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis) for axis in (0, 1)]
    opaque = after[0] & before[0] & after[1] & before[1]
    return resize(image)[..., None] / 255, resize(opaque.astype(np.uint8) * 255) / 255


def background(size: int, random: np.random.Generator, width: int | None = None) -> np.ndarray:
    """Return a coloured texture (float64, size x (width or size) x 3, 0 to 255): noise at four scales."""
    width = width or size
    canvas = np.broadcast_to(random.uniform(40, 200, size=3), (size, width, 3)).copy()
    for cells, strength in ((2, 60), (5, 40), (20, 25), (80, 12)):
        noise = random.uniform(-1, 1, size=(cells, cells)).astype(np.float32)
        layer = np.asarray(Image.fromarray(noise).resize((width, size), Image.Resampling.BICUBIC))
        canvas += strength * layer[..., None] * random.uniform(0.5, 1.5, size=3)
    return canvas.clip(0, 255)


def make_scenes(
    output: str | Path,
    train: tuple[Sequence[np.ndarray] | np.ndarray, np.ndarray | None],
    test: tuple[Sequence[np.ndarray] | np.ndarray, np.ndarray | None],
    class_names: Sequence[str] | None = None,
    *,
    num_train: int = 60,
    num_test: int = 100,
    size: int = 160,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a detection data set of composed scenes, whole or not at all.

    The folder has VOC's layout (``JPEGImages``, ``Annotations`` and ``ImageSets``) and COCO files
    (``annotations/instances_{train,test}.json``, masks as uncompressed run lengths). The same arguments give the same
    bytes, and a scene depends only on the seed and its index, so a larger set begins with the smaller one.

    Args:
        output: Folder to make; detectron2 looks for it as ``$DETECTRON2_DATASETS/scenes``.
        train: Object images as for ``compose_scene`` and their labels (N, or None for a single class).
        test: Object images of the test scenes, other ones than for training.
        class_names: One name per label; by default ``class_0`` and so on, or ``object``.
        num_train: Number of training scenes.
        num_test: Number of test scenes, from 0.
        size: Side of the scenes in pixels; at least that of the object images.
        seed: Seed of all random choices.
        overwrite: Replace existing scenes.
        progress: Show progress bars.

    Returns:
        ``output``.

    Raises:
        UsageError: A number is out of range, or ``output`` exists.
        UserError: Images and labels do not fit together.
    """
    output = Path(output)
    check_replaceable(output, overwrite, "annotations/instances_train.json", "scenes")
    if num_train < 1 or num_test < 0 or seed < 0:
        raise UsageError(
            f"expected at least one training scene and a seed from 0, got {num_train}, {num_test} and {seed}"
        )
    splits = {"train": (*_with_labels(train), num_train), "test": (*_with_labels(test), num_test)}
    for images, _, _ in splits.values():
        side = max(images[0].shape[:2]) if images[0].ndim == 2 else 28  # of photos as ``compose_scene`` resizes them
        if size < MIN_SCALE * side:
            raise UsageError(f"scenes of {size} pixels are too small for objects of {side}")
    num_classes = 1 + max(int(labels.max()) for _, labels, _ in splits.values())
    if class_names is None:
        labelled = train[1] is not None or test[1] is not None
        class_names = [f"class_{index}" for index in range(num_classes)] if labelled else ["object"]
    if len(class_names) < num_classes:
        raise UserError(f"labels go up to {num_classes - 1}, but there are {len(class_names)} class names")
    names = [safe_class_name(name) for name in class_names]
    with atomic_folder(output) as temporary:
        for folder in ("JPEGImages", "Annotations", "annotations", "ImageSets/Main"):
            (temporary / folder).mkdir(parents=True, exist_ok=True)
        for number, (split, (images, labels, count)) in enumerate(splits.items()):
            coco = CocoRows()
            for index in tqdm(range(count), desc=f"{split} scenes", unit="scene", disable=not progress):
                random = np.random.default_rng([seed, number, index])
                image, objects = compose_scene(images, labels, size, random)
                name = f"{split}_{index:06d}"
                write_voc_image(temporary, name, image, objects, names, segmented=False)
                image_id = coco.add_image(f"{name}.jpg", image)
                for obj in objects:
                    coco.add_object(image_id, obj.label + 1, obj)
            listed = "".join(f"{Path(row['file_name']).stem}\n" for row in coco.images)
            (temporary / "ImageSets" / "Main" / f"{split}.txt").write_text(listed)
            categories = [{"id": key, "name": name} for key, name in enumerate(names, start=1)]
            coco.write(temporary / "annotations" / f"instances_{split}.json", categories)
    return output


def check_replaceable(output: Path, overwrite: bool, file: str, what: str) -> None:
    """Raise UsageError if a folder exists that may not be replaced, or does not contain a file that marks its kind."""
    check_output(output, overwrite)
    if output.exists() and not (output / file).exists():
        raise UsageError(f"{output} exists and contains no {what}, so it was kept; choose another output")


def _with_labels(
    source: tuple[Sequence[np.ndarray] | np.ndarray, np.ndarray | None],
) -> tuple[Sequence[np.ndarray] | np.ndarray, np.ndarray]:
    images, labels = source
    if not len(images) or images[0].dtype != np.uint8 or images[0].shape[2:] not in ((), (4,)):
        got = f"{images[0].dtype} {images[0].shape}" if len(images) else "none"
        raise UserError(f"expected object images as uint8, H x W or H x W x 4, got {got}")
    if labels is None:
        return images, np.zeros(len(images), np.int64)
    if len(labels) != len(images):
        raise UserError(f"there are {len(labels)} labels for {len(images)} object images")
    return images, labels


class CocoRows:
    """The images and annotations of a COCO file."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add_image(self, file_name: str, image: np.ndarray, **more: Any) -> int:
        """Add an image (H x W x 3) and return its id."""
        height, width = image.shape[:2]
        row = {"id": len(self.images) + 1, "file_name": file_name, "height": height, "width": width}
        self.images.append(row | more)
        return len(self.images)

    def add_object(self, image_id: int, category: int, item: SceneObject, **more: Any) -> dict[str, Any]:
        """Add an object, whose mask is stored as run lengths unless ``more`` gives a segmentation; return its row."""
        left, top, right, bottom = item.box
        row: dict[str, Any] = {
            "id": len(self.annotations) + 1,
            "image_id": image_id,
            "category_id": category,
            "iscrowd": 0,
        }
        row |= {"bbox": [left, top, right - left, bottom - top], "area": int(item.mask.sum())}
        self.annotations.append({**row, "segmentation": run_lengths(item.mask), **more})
        return self.annotations[-1]

    def write(self, path: Path, categories: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**more, "images": self.images, "annotations": self.annotations, "categories": categories}
        path.write_text(json.dumps(content) + "\n")


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Encode a bool mask (H x W) as COCO's uncompressed RLE: run lengths column by column, starting with background."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0, append=mask.size).tolist()}

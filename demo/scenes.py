"""Small scenes of several objects with boxes and masks, in VOC and COCO format."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from moco_plugin.demo.voc_files import write_voc_annotation
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import atomic_folder, check_output
from moco_plugin.transfer.voc_files import write_palette_png

FOREGROUND = 20  # grey level of 255 above which a pixel belongs to the object; Fashion-MNIST's ground is 0
MIN_VISIBLE = 0.75  # share of an object that later objects leave visible
MIN_OBJECTS, MAX_OBJECTS = 3, 6
MIN_SCALE, MAX_SCALE = 0.9, 2.2  # of the object images: 25 to 62 pixels for 28


@dataclass
class SceneObject:
    """One object of a scene: its class index from 0 and its visible pixels (bool, size x size)."""

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
            (H x W x 4, RGBA), which are brought to the size that grey images of 28 pixels have.
        labels: Class index of each, N.
        size: Side of the scene in pixels.
        random: Decides everything that is not given.
        order: Numbers of the images to put down one after another; by default three to six random ones.
        canvas: The ground (float64, H x W x 3, 0 to 255), changed in place; by default a texture, size x size.

    Returns:
        The scene (uint8, RGB, as large as the ground) and its objects, farthest first. An object for which
        no place is found is left out.
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

    # A hole is ground with object on all four sides of it.
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

    The folder is in VOC layout (``JPEGImages``, ``Annotations``, ``ImageSets``, ``SegmentationObject`` and
    ``SegmentationClass``) and has COCO files too (``annotations/instances_{train,test}.json``, masks as
    uncompressed run lengths). The same arguments give the same bytes, and a scene depends on the seed and on
    its number only, so that a larger set begins with the smaller one.

    Args:
        output: Folder to make; detectron2 looks for it as ``$DETECTRON2_DATASETS/scenes``.
        train: Object images as for ``compose_scene`` and their labels (N, or None for a single class).
        test: The same for the test scenes; give other images than for training.
        class_names: One name a label; by default ``class_0`` and so on, or ``object``.
        num_train: Number of training scenes.
        num_test: Number of test scenes, from 0.
        size: Side of the scenes in pixels; at least that of the object images.
        seed: Seed of all random choices.
        overwrite: Replace existing scenes.
        progress: Show progress bars.

    Returns:
        ``output``.

    Raises:
        UsageError: A number that cannot be right, or ``output`` exists.
        UserError: Images and labels that do not fit together.
    """
    output = _check_free(Path(output), overwrite)
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
        for number, (split, (images, labels, count)) in enumerate(splits.items()):
            writer = _Writer(temporary, split, names)
            for index in tqdm(range(count), desc=f"{split} scenes", unit="scene", disable=not progress):
                random = np.random.default_rng([seed, number, index])
                writer.add(f"{split}_{index:06d}", *compose_scene(images, labels, size, random))
            writer.close()
    return output


def _check_free(output: Path, overwrite: bool) -> Path:
    check_output(output, overwrite)
    if output.exists() and not (output / "annotations" / "instances_train.json").exists():
        raise UsageError(f"{output} exists and holds no scenes, so it was kept; choose another output")
    return output


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


class _Writer:
    """Writes the scenes of one split below ``root``."""

    def __init__(self, root: Path, split: str, names: Sequence[str]) -> None:
        self.root, self.split, self.names = root, split, names
        self.coco: dict[str, list] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
        }
        for folder in (
            *("JPEGImages", "Annotations", "annotations", "ImageSets/Main", "ImageSets/Segmentation"),
            *("SegmentationObject", "SegmentationClass"),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def add(self, name: str, image: np.ndarray, objects: Sequence[SceneObject]) -> None:
        height, width = image.shape[:2]
        Image.fromarray(image).save(self.root / "JPEGImages" / f"{name}.jpg", quality=95)
        image_id = len(self.coco["images"]) + 1
        entry = {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width}
        self.coco["images"].append(entry)
        for obj in objects:
            left, top, right, bottom = obj.box
            self.coco["annotations"].append(
                {
                    "id": len(self.coco["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": obj.label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(obj.mask.sum()),
                    "iscrowd": 0,
                    "segmentation": run_lengths(obj.mask),
                }
            )
        self._write_voc(name, (height, width), objects)

    def _write_voc(self, name: str, shape: tuple[int, int], objects: Sequence[SceneObject]) -> None:
        instances, classes = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        for number, obj in enumerate(objects, start=1):
            instances[obj.mask], classes[obj.mask] = number, obj.label + 1
        boxes = [(self.names[obj.label], obj.box) for obj in objects]
        write_voc_annotation(self.root / "Annotations" / f"{name}.xml", "scenes", shape, boxes)
        for folder, array in (("SegmentationObject", instances), ("SegmentationClass", classes)):
            write_palette_png(self.root / folder / f"{name}.png", array, _PALETTE)

    def close(self) -> None:
        names = "".join(f"{Path(image['file_name']).stem}\n" for image in self.coco["images"])
        for folder in ("Main", "Segmentation"):
            (self.root / "ImageSets" / folder / f"{self.split}.txt").write_text(names)
        (self.root / "annotations" / f"instances_{self.split}.json").write_text(json.dumps(self.coco) + "\n")


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """Encode a bool mask (H x W) as COCO's uncompressed RLE: run lengths column by column, ground first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


# Colours for people to look at; what counts are the numbers. 37, 91 and 53 spread neighbours apart.
_PALETTE = [0, 0, 0] + [channel for i in range(1, 256) for channel in (i * 37 % 256, i * 91 % 256, i * 53 % 256)]

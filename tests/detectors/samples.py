"""Small data sets as annotation tools write them: ten images, each with one object in the same place.

Image n has an object of class ``NAMES[n % 2]`` at ``BOX``. Where a form has splits, images 1 to 6 are of training, 7
and 8 of validation, 9 and 10 of the test; see ``SAMPLES``.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

NAMES = ("cat", "hot dog")
WIDTH, HEIGHT = 64, 48
BOX = (8, 8, 16, 20)  # x, y, width, height
POLYGON = [8, 8, 24, 8, 24, 28, 8, 28]
POINTS = [10, 10, 2, 20, 10, 2, 15, 20, 1]
TRAIN, VAL, TEST, ALL = range(1, 7), range(7, 9), range(9, 11), range(1, 11)
RELATIVE = " ".join(f"{value:.6f}" for value in (16 / 64, 18 / 48, 16 / 64, 20 / 48))
CORNERS = " ".join(f"{value / side:.6f}" for value, side in zip(POLYGON, 4 * [WIDTH, HEIGHT], strict=True))


class Sample(NamedTuple):
    """A data set in a tool's form.

    Attributes:
        tool: Whose.
        write: Writes it into a folder, and returns the arguments of tools/transfer.py, to be run there.
        test: Numbers of the images that are tested on; None if a fifth is held out.
        masks: Whether objects have masks.
        keypoints: Of an object.
        train: Numbers of the images that are trained on; None for all others.
    """

    tool: str
    write: Callable[[Path], list[str]]
    test: Iterable[int] | None = None
    masks: bool = False
    keypoints: int = 0
    train: Iterable[int] | None = None


SAMPLES: dict[str, Sample] = {}


def sample(tool: str, name: str, **about: Any) -> Callable[[Callable[[Path], list[str]]], Callable[[Path], list[str]]]:
    """Register the writer of a data set."""

    def register(write: Callable[[Path], list[str]]) -> Callable[[Path], list[str]]:
        SAMPLES[f"{tool}: {name}"] = Sample(tool, write, **about)
        return write

    return register


def put(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write a text, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def photo(path: Path, number: int) -> None:
    """Write an image of a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((WIDTH, HEIGHT)).save(path)


def photos(folder: Path, numbers: Iterable[int] = ALL, pattern: str = "{:03}.jpg") -> None:
    for number in numbers:
        photo(folder / pattern.format(number), number)


def split(number: int) -> str:
    return "train" if number in TRAIN else "val" if number in VAL else "test"


def coco(
    numbers: Iterable[int] = ALL, pattern: str = "{:03}.jpg", form: str = "polygon", **more: Any
) -> dict[str, Any]:
    """Return the content of a COCO file; ``form`` is "box", "polygon" or "runs"."""
    objects = []
    for number in numbers:
        mask: Any = {"box": [], "polygon": [POLYGON], "runs": runs()}[form]
        objects.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1 + number % 2,
                "bbox": list(BOX),
                "area": 320,
                "iscrowd": 0,
                "segmentation": mask,
                **more,
            }
        )
    return {
        "info": {},
        "licenses": [],
        "images": [{"id": n, "file_name": pattern.format(n), "width": WIDTH, "height": HEIGHT} for n in numbers],
        "annotations": objects,
        "categories": [{"id": n, "name": name, "supercategory": ""} for n, name in enumerate(NAMES, start=1)],
    }


def runs() -> dict[str, Any]:
    """Return the box as COCO's run lengths, by columns."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8:28, 8:24] = 1
    flat = mask.ravel(order="F")
    places = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    counts = np.diff(np.concatenate([[0], places, [flat.size]])).tolist()
    return {"counts": counts, "size": [HEIGHT, WIDTH]}


def voc(number: int, filename: str | None = None, folder: str = "images") -> str:
    x, y, w, h = BOX
    return (
        f"<annotation><folder>{folder}</folder><filename>{filename or f'{number:03}.jpg'}</filename>"
        f"<path>C:\\Users\\me\\{folder}\\{number:03}.jpg</path><source><database>Unknown</database></source>"
        f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size><segmented>0</segmented>"
        f"<object><name>{NAMES[number % 2]}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
        f"<ymax>{y + h}</ymax></bndbox></object></annotation>\n"
    )


def yolo(root: Path, values: str = RELATIVE, images: str = "images/{split}", labels: str = "labels/{split}") -> None:
    """Write images and label files, in folders of their splits."""
    for number in ALL:
        photos(root / images.format(split=split(number)), [number])
        put(root / labels.format(split=split(number)) / f"{number:03}.txt", f"{number % 2} {values}\n")


# --------------------------------------------------------------------------------------------------- Ultralytics
ULTRALYTICS = "path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n  0: cat\n  1: hot dog\n"


@sample("Ultralytics", "detect", test=VAL, train=TRAIN)
def ultralytics(root: Path) -> list[str]:
    yolo(root)
    put(root / "data.yaml", ULTRALYTICS)
    return ["--train-folder", "."]


@sample("Ultralytics", "the YAML itself, names as a list", test=VAL, train=TRAIN)
def ultralytics_yaml(root: Path) -> list[str]:
    yolo(root / "datasets")
    put(root / "my.yaml", "path: datasets\ntrain: images/train\nval: images/val\nnc: 2\nnames: ['cat', 'hot dog']\n")
    return ["--train-folder", "my.yaml"]


@sample("Ultralytics", "lists of images", test=VAL, train=TRAIN)
def ultralytics_lists(root: Path) -> list[str]:
    yolo(root, images="images", labels="labels")
    for name, numbers in (("train", TRAIN), ("val", VAL)):
        put(root / f"{name}.txt", "".join(f"./images/{number:03}.jpg\n" for number in numbers))
    put(root / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cat, hot dog]\n")
    return ["--train-folder", "."]


@sample("Ultralytics", "segment", test=VAL, train=TRAIN, masks=True)
def ultralytics_segment(root: Path) -> list[str]:
    yolo(root, CORNERS)
    put(root / "data.yaml", ULTRALYTICS)
    return ["--train-folder", "."]


@sample("Ultralytics", "pose", test=VAL, train=TRAIN, keypoints=3)
def ultralytics_pose(root: Path) -> list[str]:
    points = " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f} {v}" for x, y, v in np.reshape(POINTS, (3, 3)).tolist())
    yolo(root, f"{RELATIVE} {points}")
    put(root / "data.yaml", f"{ULTRALYTICS}kpt_shape: [3, 3]\nflip_idx: [1, 0, 2]\n")
    return ["--train-folder", "."]


@sample("Ultralytics", "OBB", test=VAL, train=TRAIN, masks=True)
def ultralytics_obb(root: Path) -> list[str]:
    yolo(root, CORNERS)
    put(root / "dota.yaml", ULTRALYTICS)
    return ["--train-folder", "dota.yaml"]


@sample("Ultralytics", "predictions with confidence", test=VAL, train=TRAIN)
def ultralytics_confidence(root: Path) -> list[str]:
    yolo(root, f"{RELATIVE} 0.871")
    put(root / "data.yaml", ULTRALYTICS)
    return ["--train-folder", "."]


# ------------------------------------------------------------------------------------------------------ Roboflow
@sample("Roboflow", "YOLOv8", test=VAL, train=TRAIN)
def roboflow_yolo(root: Path) -> list[str]:
    yolo(root, images="{split}/images", labels="{split}/labels")
    (root / "val").rename(root / "valid")
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    put(root / "data.yaml", f"{paths}\nnc: 2\nnames: ['cat', 'hot dog']\n\nroboflow:\n  workspace: me\n")
    return ["--train-folder", "."]


@sample("Roboflow", "COCO", test=VAL, train=TRAIN, masks=True)
def roboflow_coco(root: Path) -> list[str]:
    for name, numbers in (("train", TRAIN), ("valid", VAL), ("test", TEST)):
        photos(root / name, numbers)
        put(root / name / "_annotations.coco.json", json.dumps(coco(numbers)))
    return ["--train-folder", "."]


@sample("Roboflow", "Pascal VOC", test=VAL, train=TRAIN)
def roboflow_voc(root: Path) -> list[str]:
    for name, numbers in (("train", TRAIN), ("valid", VAL), ("test", TEST)):
        photos(root / name, numbers)
        for number in numbers:
            put(root / name / f"{number:03}.xml", voc(number, folder=""))
    return ["--train-folder", "."]


@sample("Roboflow", "TensorFlow CSV", test=VAL, train=TRAIN)
def roboflow_csv(root: Path) -> list[str]:
    for name, numbers in (("train", TRAIN), ("valid", VAL)):
        photos(root / name, numbers)
        rows = [f"{n:03}.jpg,{WIDTH},{HEIGHT},{NAMES[n % 2]},8,8,24,28\n" for n in numbers]
        put(root / name / "_annotations.csv", f"filename,width,height,class,xmin,ymin,xmax,ymax\n{''.join(rows)}")
    return ["--train-folder", "."]


@sample("Roboflow", "YOLO Darknet", test=VAL, train=TRAIN)
def roboflow_darknet(root: Path) -> list[str]:
    yolo(root, images="{split}", labels="{split}")
    (root / "val").rename(root / "valid")
    for name in ("train", "valid"):
        put(root / name / "_darknet.labels", "cat\nhot dog\n")
    return ["--train-folder", "."]


# ---------------------------------------------------------------------------------------------------------- CVAT
@sample("CVAT", "COCO 1.0", masks=True)
def cvat_coco(root: Path) -> list[str]:
    photos(root / "images" / "default")
    content = coco(attributes={"occluded": False})
    put(root / "annotations" / "instances_default.json", json.dumps(content))
    return ["--train-folder", "."]


@sample("CVAT", "COCO 1.0, brush masks", masks=True)
def cvat_brush(root: Path) -> list[str]:
    photos(root / "images")
    content = coco(form="runs", iscrowd=1, attributes={"occluded": False})
    put(root / "annotations" / "instances_default.json", json.dumps(content))
    return ["--train-json", "annotations/instances_default.json", "--train-images", "images"]


@sample("CVAT", "COCO Keypoints 1.0", masks=False, keypoints=3)
def cvat_keypoints(root: Path) -> list[str]:
    photos(root / "images")
    content = coco(form="box", keypoints=POINTS, num_keypoints=3)
    for row in content["categories"]:
        row |= {"keypoints": ["left_ear", "right_ear", "tail"], "skeleton": [[1, 3], [2, 3]]}
    put(root / "annotations" / "person_keypoints_default.json", json.dumps(content))
    return ["--train-json", "annotations/person_keypoints_default.json", "--train-images", "images"]


@sample("CVAT", "PASCAL VOC 1.1", test=VAL, train=TRAIN)
def cvat_voc(root: Path) -> list[str]:
    photos(root / "JPEGImages")
    for number in ALL:
        put(root / "Annotations" / f"{number:03}.xml", voc(number))
    for name, numbers in (("train", TRAIN), ("val", VAL)):
        put(root / "ImageSets" / "Main" / f"{name}.txt", "".join(f"{number:03}\n" for number in numbers))
        put(root / "ImageSets" / "Main" / f"cat_{name}.txt", "".join(f"{number:03} -1\n" for number in numbers))
    put(root / "labelmap.txt", "# label:color_rgb:parts:actions\ncat:128,0,0::\nhot dog:0,128,0::\n")
    return ["--train-folder", "."]


@sample("CVAT", "YOLO 1.1", test=VAL, train=TRAIN)
def cvat_yolo(root: Path) -> list[str]:
    for name, numbers in (("train", TRAIN), ("valid", VAL)):
        folder = root / f"obj_{name}_data"
        photos(folder, numbers)
        for number in numbers:
            put(folder / f"{number:03}.txt", f"{number % 2} {RELATIVE}\n")
        put(root / f"{name}.txt", "".join(f"data/obj_{name}_data/{number:03}.jpg\n" for number in numbers))
    put(root / "obj.names", "cat\nhot dog\n")
    files = "train = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    put(root / "obj.data", f"classes = 2\n{files}")
    return ["--train-folder", "."]


@sample("CVAT", "Ultralytics YOLO 1.0", test=VAL, train=TRAIN)
def cvat_ultralytics(root: Path) -> list[str]:
    yolo(root)
    for name, numbers in (("train", TRAIN), ("val", VAL)):
        put(root / f"{name}.txt", "".join(f"data/images/{name}/{number:03}.jpg\n" for number in numbers))
    put(root / "data.yaml", "names:\n  0: cat\n  1: hot dog\npath: .\ntrain: train.txt\nval: val.txt\n")
    return ["--train-folder", "."]


CVAT_SHAPES = {
    0: '<box label="{label}" source="manual" occluded="0" xtl="8.00" ytl="8.00" xbr="24.00" ybr="28.00" z_order="0"></box>',
    1: '<polygon label="{label}" source="manual" occluded="0" points="8.00,8.00;24.00,8.00;24.00,28.00;8.00,28.00"/>',
    2: '<mask label="{label}" source="manual" occluded="0" rle="0, 320" left="8" top="8" width="16" height="20"/>',
}


@sample("CVAT", "CVAT for images 1.1", test=VAL, train=TRAIN, masks=True)
def cvat_xml(root: Path) -> list[str]:
    photos(root / "images")
    rows = ""
    for number in ALL:
        subset = {"train": "Train", "val": "Validation", "test": "Test"}[split(number)]
        shape = CVAT_SHAPES[number % 3].format(label=NAMES[number % 2])
        rows += (
            f'<image id="{number}" name="{number:03}.jpg" subset="{subset}" task_id="1" width="{WIDTH}" '
            f'height="{HEIGHT}">{shape}</image>\n'
        )
    labels = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in NAMES)
    meta = f"<meta><task><id>1</id><labels>{labels}</labels></task></meta>"
    put(root / "annotations.xml", f'<?xml version="1.0"?><annotations><version>1.1</version>{meta}{rows}</annotations>')
    return ["--train-folder", "."]

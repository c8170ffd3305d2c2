"""Small data sets as annotation tools write them: ten images, each with one object in the same place.

Image n has an object of class ``NAMES[n % 2]`` at ``BOX``. If a form has splits, images 1 to 6 are for training, 7 and 8
for validation, 9 and 10 for the test; see ``SAMPLES``.
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
        write: Writes it into a folder, and returns the arguments of tools/transfer.py, to be run there.
        splits: It names its splits; else a fifth is held out.
        masks: Whether objects have masks.
        keypoints: Number of keypoints of an object.
    """

    write: Callable[[Path], list[str]]
    splits: bool = False
    masks: bool = False
    keypoints: int = 0


SAMPLES: dict[str, Sample] = {}


def sample(name: str, *arguments: str, **about: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register the writer of a data set; the arguments are those of tools/transfer.py."""

    def register(write: Callable[..., None]) -> Callable[..., None]:
        def run(root: Path) -> list[str]:
            write(root)
            return list(arguments or ("--train-folder", "."))

        SAMPLES[name] = Sample(run, **about)
        return write

    return register


def put(path: Path, content: Any, encoding: str = "utf-8") -> None:
    """Write a text, or other content as JSON, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_bytes(text.encode(encoding))


def lines(pattern: str, numbers: Iterable[int] = ALL) -> str:
    """Return a line for each image, with its number and class in the pattern."""
    return "".join(pattern.format(n, NAMES[n % 2], n % 2) + "\n" for n in numbers)


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
    counts = [8 * HEIGHT + 8, *[20, HEIGHT - 20] * 15, 20]  # by columns
    runs = {"counts": [*counts, WIDTH * HEIGHT - sum(counts)], "size": [HEIGHT, WIDTH]}
    mask = {"box": [], "polygon": [POLYGON], "runs": runs}[form]
    row = {"bbox": list(BOX), "area": 320, "iscrowd": 0, "segmentation": mask} | more
    return {
        "info": {},
        "licenses": [],
        "images": [{"id": n, "file_name": pattern.format(n), "width": WIDTH, "height": HEIGHT} for n in numbers],
        "annotations": [{"id": n, "image_id": n, "category_id": 1 + n % 2, **row} for n in numbers],
        "categories": [{"id": n, "name": name, "supercategory": ""} for n, name in enumerate(NAMES, start=1)],
    }


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
        put(root / labels.format(split=split(number)) / f"{number:03}.txt", lines(f"{{2}} {values}", [number]))


# --------------------------------------------------------------------------------------------------- Ultralytics
ULTRALYTICS = "path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n  0: cat\n  1: hot dog\n"


@sample("Ultralytics: detect", splits=True)
def ultralytics(root: Path, values: str = RELATIVE, more: str = "") -> None:
    yolo(root, values)
    put(root / "data.yaml", ULTRALYTICS + more)


@sample("Ultralytics: the YAML itself, names as a list", "--train-folder", "my.yaml", splits=True)
def ultralytics_yaml(root: Path) -> None:
    yolo(root / "datasets")
    put(root / "my.yaml", "path: datasets\ntrain: images/train\nval: images/val\nnc: 2\nnames: ['cat', 'hot dog']\n")


@sample("Ultralytics: lists of images", splits=True)
def ultralytics_lists(root: Path) -> None:
    yolo(root, images="images", labels="labels")
    for name, numbers in (("train", TRAIN), ("val", VAL)):
        put(root / f"{name}.txt", lines("./images/{:03}.jpg", numbers))
    put(root / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cat, hot dog]\n")


@sample("Ultralytics: segment", splits=True, masks=True)
def ultralytics_segment(root: Path) -> None:
    ultralytics(root, CORNERS)


@sample("Ultralytics: pose", splits=True, keypoints=3)
def ultralytics_pose(root: Path) -> None:
    points = " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f} {v}" for x, y, v in np.reshape(POINTS, (3, 3)).tolist())
    ultralytics(root, f"{RELATIVE} {points}", "kpt_shape: [3, 3]\nflip_idx: [1, 0, 2]\n")


@sample("Ultralytics: OBB", "--train-folder", "data.yaml", splits=True, masks=True)
def ultralytics_obb(root: Path) -> None:
    ultralytics(root, CORNERS)


@sample("Ultralytics: predictions with confidence", splits=True)
def ultralytics_confidence(root: Path) -> None:
    ultralytics(root, f"{RELATIVE} 0.871")


# ------------------------------------------------------------------------------------------------------ Roboflow
@sample("Roboflow: YOLOv8", splits=True)
def roboflow_yolo(root: Path) -> None:
    yolo(root, images="{split}/images", labels="{split}/labels")
    (root / "val").rename(root / "valid")
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    put(root / "data.yaml", f"{paths}\nnc: 2\nnames: ['cat', 'hot dog']\n\nroboflow:\n  workspace: me\n")


@sample("Roboflow: COCO", splits=True, masks=True)
def roboflow_coco(root: Path) -> None:
    for name, numbers in (("train", TRAIN), ("valid", VAL), ("test", TEST)):
        photos(root / name, numbers)
        put(root / name / "_annotations.coco.json", coco(numbers))


@sample("Roboflow: Pascal VOC", splits=True)
def roboflow_voc(root: Path) -> None:
    for name, numbers in (("train", TRAIN), ("valid", VAL), ("test", TEST)):
        photos(root / name, numbers)
        for number in numbers:
            put(root / name / f"{number:03}.xml", voc(number, folder=""))


@sample("Roboflow: TensorFlow CSV", splits=True)
def roboflow_csv(root: Path) -> None:
    for name, numbers in (("train", TRAIN), ("valid", VAL)):
        photos(root / name, numbers)
        rows = lines(f"{{:03}}.jpg,{WIDTH},{HEIGHT},{{}},8,8,24,28", numbers)
        put(root / name / "_annotations.csv", f"filename,width,height,class,xmin,ymin,xmax,ymax\n{rows}")


@sample("Roboflow: YOLO Darknet", splits=True)
def roboflow_darknet(root: Path) -> None:
    yolo(root, images="{split}", labels="{split}")
    (root / "val").rename(root / "valid")
    for name in ("train", "valid"):
        put(root / name / "_darknet.labels", "cat\nhot dog\n")


# ---------------------------------------------------------------------------------------------------------- CVAT
OCCLUDED = {"occluded": False}


@sample("CVAT: COCO 1.0", masks=True)
def cvat_coco(root: Path) -> None:
    photos(root / "images" / "default")
    put(root / "annotations" / "instances_default.json", coco(attributes=OCCLUDED))


BRUSH = ("--train-json", "annotations/instances_default.json", "--train-images", "images")
POSES = ("--train-json", "annotations/person_keypoints_default.json", "--train-images", "images")


@sample("CVAT: COCO 1.0, brush masks", *BRUSH, masks=True)
def cvat_brush(root: Path) -> None:
    photos(root / "images")
    put(root / "annotations" / "instances_default.json", coco(form="runs", iscrowd=1, attributes=OCCLUDED))


@sample("CVAT: COCO Keypoints 1.0", *POSES, keypoints=3)
def cvat_keypoints(root: Path) -> None:
    photos(root / "images")
    content = coco(form="box", keypoints=POINTS, num_keypoints=3)
    for row in content["categories"]:
        row |= {"keypoints": ["left_ear", "right_ear", "tail"], "skeleton": [[1, 3], [2, 3]]}
    put(root / "annotations" / "person_keypoints_default.json", content)


@sample("CVAT: PASCAL VOC 1.1", splits=True)
def cvat_voc(root: Path) -> None:
    photos(root / "JPEGImages")
    for number in ALL:
        put(root / "Annotations" / f"{number:03}.xml", voc(number))
    for name, numbers in (("train", TRAIN), ("val", VAL)):
        put(root / "ImageSets" / "Main" / f"{name}.txt", lines("{:03}", numbers))
        put(root / "ImageSets" / "Main" / f"cat_{name}.txt", lines("{:03} -1", numbers))
    put(root / "labelmap.txt", "# label:color_rgb:parts:actions\ncat:128,0,0::\nhot dog:0,128,0::\n")


@sample("CVAT: YOLO 1.1", splits=True)
def cvat_yolo(root: Path) -> None:
    for name, numbers in (("train", TRAIN), ("valid", VAL)):
        folder = root / f"obj_{name}_data"
        photos(folder, numbers)
        for number in numbers:
            put(folder / f"{number:03}.txt", lines(f"{{2}} {RELATIVE}", [number]))
        put(root / f"{name}.txt", lines(f"data/obj_{name}_data/{{:03}}.jpg", numbers))
    put(root / "obj.names", "cat\nhot dog\n")
    files = "train = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    put(root / "obj.data", f"classes = 2\n{files}")


@sample("CVAT: Ultralytics YOLO 1.0", splits=True)
def cvat_ultralytics(root: Path) -> None:
    yolo(root)
    for name, numbers in (("train", TRAIN), ("val", VAL)):
        put(root / f"{name}.txt", lines(f"data/images/{name}/{{:03}}.jpg", numbers))
    put(root / "data.yaml", "names:\n  0: cat\n  1: hot dog\npath: .\ntrain: train.txt\nval: val.txt\n")


CVAT_SHAPES = (
    '<box label="{}" source="manual" occluded="0" xtl="8.00" ytl="8.00" xbr="24.00" ybr="28.00" z_order="0"></box>',
    '<polygon label="{}" source="manual" occluded="0" points="8.00,8.00;24.00,8.00;24.00,28.00;8.00,28.00"/>',
    '<mask label="{}" source="manual" occluded="0" rle="0, 320" left="8" top="8" width="16" height="20"/>',
)


@sample("CVAT: CVAT for images 1.1", splits=True, masks=True)
def cvat_xml(root: Path) -> None:
    photos(root / "images")
    rows = ""
    for number in ALL:
        subset = {"train": "Train", "val": "Validation", "test": "Test"}[split(number)]
        about = f'id="{number}" name="{number:03}.jpg" subset="{subset}" width="{WIDTH}" height="{HEIGHT}"'
        rows += f"<image {about}>{CVAT_SHAPES[number % 3].format(NAMES[number % 2])}</image>\n"
    labels = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in NAMES)
    meta = f"<meta><task><id>1</id><labels>{labels}</labels></task></meta>"
    put(root / "annotations.xml", f'<?xml version="1.0"?><annotations><version>1.1</version>{meta}{rows}</annotations>')

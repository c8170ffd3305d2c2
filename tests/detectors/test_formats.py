"""Every form of docs/detection.md, read through the tool; the names, paths and encodings that files of others have."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moco_plugin.tools.transfer import main
from tests.detectors import samples, samples_by_others
from tests.detectors.samples import ALL, BOX, NAMES, SAMPLES, TRAIN, VAL, coco, lines, photo, photos, put, voc, yolo
from tests.helpers import safety_cases

Content = dict[str, Any]
DOCS = Path(__file__).parents[2] / "docs" / "detection.md"


class Read:
    """What the tool says and writes for data in the working folder."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        parts = [json.loads(Path("out/data", name).read_text()) for name in ("train.json", "test.json")]
        self.train, self.test = ([self._number(row["file_name"]) for row in part["images"]] for part in parts)
        self.classes = [row["name"] for row in parts[0]["categories"]]
        self.objects: dict[int, list[Content]] = {}
        for part in parts:
            names = {row["id"]: row["name"] for row in part["categories"]}
            files = {row["id"]: self._number(row["file_name"]) for row in part["images"]}
            for row in part["annotations"]:
                self.objects.setdefault(files[row["image_id"]], []).append({**row, "class": names[row["category_id"]]})

    @staticmethod
    def _number(path: str) -> int:
        return int(re.findall(r"\d+", Path(path).stem)[-1])

    def has_the_usual_objects(self) -> bool:
        return all(
            [(row["class"], row["bbox"]) for row in self.objects[number]]
            == [(NAMES[number % 2], pytest.approx(BOX, abs=1e-3))]
            for number in self.objects
        )


Check = Callable[..., Read]
Refused = Callable[..., str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def check(here: Path, capfd: pytest.CaptureFixture[str]) -> Check:
    def run(*arguments: object) -> Read:
        code = main([*map(str, arguments), "--check", "--out", "out"])
        shown = capfd.readouterr()
        assert code == 0, shown.err
        return Read(shown.out)

    return run


@pytest.fixture
def refused(here: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    def run(*arguments: object) -> str:
        assert main([*map(str, arguments), "--check", "--out", "out"]) in (1, 2)
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert not Path("out").exists()
        return line

    return run


@pytest.mark.parametrize("name", SAMPLES)
def test_what_tools_write_is_read(name: str, here: Path, check: Check) -> None:
    sample = SAMPLES[name]
    read = check(*sample.write(here))
    assert read.has_the_usual_objects() and set(read.classes) - {"_background_"} == set(NAMES)
    if sample.splits:
        assert (read.train, read.test) == (list(TRAIN), list(VAL))
    else:
        assert sorted(read.train + read.test) == list(ALL) and len(read.test) == 2
    rows = [row for part in read.objects.values() for row in part]
    assert any("segmentation" in row for row in rows) == sample.masks
    points = samples.POINTS if sample.keypoints else []
    assert all(row.get("keypoints", []) == pytest.approx(points, abs=1e-3) for row in rows)


def test_the_table_of_the_page_is_that_of_the_samples() -> None:
    section = DOCS.read_text().partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()]
    expected = [
        [
            *name.split(": ", 1),
            "keypoints" if sample.keypoints else "masks" if sample.masks else "boxes",
            "own" if sample.splits else "a fifth",
        ]
        for name, sample in SAMPLES.items()
    ]
    assert sorted(row[:4] for row in [row for row in rows if len(row) == 5][2:]) == sorted(expected)


NAMED = "train: images/train\nval: images/val\n"


@pytest.mark.parametrize(
    ("text", "kinds", "names"),
    [
        ("names: {1: cat, 2: hot dog}", (1,), {"cat"}),
        ("names: {'0': cat, '1': 'hot dog'}", (0, 1), {"cat", "hot dog"}),
        ("names:\n  7: bird\n  0: cat\n  1: hot dog", (0, 1), {"cat", "hot dog"}),
        ("names: [yes, 007]", (0, 1), {"yes", "007"}),
    ],
)
def test_yolo_names_go_by_number(text: str, kinds: tuple[int, ...], names: set[str], here: Path, check: Check) -> None:
    yolo(here)
    for path in here.rglob("*.txt"):
        put(path, "".join(f"{kind} {samples.RELATIVE}\n" for kind in kinds))
    put(here / "data.yaml", NAMED + text)
    assert {row["class"] for row in check("--train-folder", ".").objects[1]} == names


def test_names_are_those_of_the_set_alone(here: Path, check: Check) -> None:
    yolo(here / "set", images="images", labels="labels")
    put(here / "other.yaml", "train: other\nnames: [lion, tiger]\n")
    put(here / "classes.txt", "lion\ntiger\n")
    read = check("--train-folder", "set")
    assert read.classes == ["0", "1"] and "set names no classes" in read.shown
    put(here / "set" / "labels" / "classes.txt", "cat\r\nhot dog\r\n", "utf-8-sig")
    assert check("--train-folder", "set", "--overwrite").has_the_usual_objects()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings(encoding: str, here: Path, check: Check) -> None:
    photos(here / "voc")
    for number in ALL:
        put(here / "voc" / f"{number:03}.xml", voc(number).replace("hot dog", "Bär"), encoding)
    assert set(check("--train-folder", "voc").classes) == {"cat", "Bär"}
    yolo(here / "yolo")
    for path in (here / "yolo").rglob("*.txt"):
        put(path, path.read_text(), encoding)
    put(here / "yolo" / "data.yaml", f"{NAMED}names: [cat, Bär]\n", encoding)
    assert check("--train-folder", "yolo").classes == ["cat", "Bär"]
    content = coco()
    content["categories"][0]["name"] = "Bär"
    photos(here / "coco")
    put(here / "coco" / "train.json", content, encoding)
    assert check("--train-json", "coco/train.json").classes == ["Bär", "hot dog"]
    rows = lines("{:03}.jpg,Bär {},8,8,24,28")
    put(here / "coco" / "boxes.csv", f"filename,class,xmin,ymin,xmax,ymax\n{rows}", encoding)
    assert check("--train-folder", "coco/boxes.csv").classes == ["Bär cat", "Bär hot dog"]


PATTERNS = r"""
    images\{:03}.jpg C:\Users\me\images\{:03}.JPG /data/upload/3/{:03}.jpg /data/local-files/?d=images/{:03}.jpg
    http://localhost:8080/data/upload/3/0a1b2c3d-{:03}.jpg {:03} {:03}.JPEG images/images/{:03}.jpg ./images/{:03}.png
"""


@pytest.mark.parametrize("pattern", PATTERNS.split())
def test_images_are_found_by_name(pattern: str, here: Path, check: Check) -> None:
    photos(here / "set" / "images")
    put(here / "set" / "train.json", coco(pattern=pattern))
    read = check("--train-json", "set/train.json", "--train-images", "set/images")
    assert read.has_the_usual_objects() and len(read.train) == 8
    assert "10 images are not where train.json says, and were found by name: " in read.shown


def test_images_are_not_found_by_a_name_that_two_have(here: Path, refused: Refused, check: Check) -> None:
    photos(here / "a")
    photos(here / "b")
    put(here / "train.json", coco(pattern="c\\{:03}.jpg"))
    line = refused("--train-json", "train.json")
    assert r"lists 10 images, of which 10 are missing (c\001.jpg, looked for in ., and by its name below)" in line
    put(here / "train.json", coco(pattern="D:\\b\\{:03}.jpg"))
    for number in ALL:
        photo(here / "b" / f"{number:03}.jpg", 100 + number)
    check("--train-json", "train.json")
    assert "/b/001.jpg" in Path("out/data/train.json").read_text() + Path("out/data/test.json").read_text()


def test_voc_files_of_renamed_images(here: Path, check: Check) -> None:
    photos(here)
    for number in ALL:
        name = {1: "001", 2: "002.JPG", 3: "IMG_77.jpg", 4: "C:\\me\\004.jpg"}.get(number, f"{number:03}.jpg")
        put(here / f"{number:03}.xml", voc(number, name))
    assert check("--train-folder", ".").has_the_usual_objects()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ("0.5 0.5 0.2 0.2 0.45 0.45 2 0.5 0.5 2 0.55 0.5 1", r"read as keypoints"),
        ("0.5 0.5 0.2 0.2 0.45 0.45 0.5 0.5 0.55 0.5", "kpt_shape: [3, 2]"),
    ],
)
def test_keypoints_without_a_description(
    values: str, sentence: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    yolo(here, values)
    put(here / "data.yaml", f"{NAMED}names: [cat, hot dog]\n")
    main(["--train-folder", ".", "--check", "--out", "out"])
    assert sentence in "".join(capfd.readouterr())


def test_voc_lists_of_trainval_and_test(here: Path, check: Check) -> None:
    samples.cvat_voc(here)
    lists = here / "ImageSets" / "Main"
    put(lists / "trainval.txt", lines("{:03}", [*TRAIN, *VAL]))
    put(lists / "test.txt", lines("{:03}", samples.TEST))
    read = check("--train-folder", ".")
    assert (read.train, read.test) == ([*TRAIN, *VAL], list(samples.TEST))


def test_a_test_set_of_a_set_with_splits_is_its_test_split(here: Path, check: Check) -> None:
    samples.ultralytics(here)
    assert check("--train-folder", "data.yaml", "--test-folder", "data.yaml").test == list(samples.TEST)


def test_cvat_shapes(here: Path, check: Check) -> None:
    samples.cvat_xml(here)
    turned = '<box label="cat" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90.0"/>'
    others = (
        '<ellipse label="cat" cx="20" cy="20" rx="10" ry="5"/><points label="cat" points="1,1;2,2"/><tag label="cat"/>'
    )
    text = (here / "annotations.xml").read_text()
    put(here / "annotations.xml", text.replace('height="48">', f'height="48">{turned}{others}', 1))
    read = check("--train-folder", "annotations.xml")
    first, second, _ = read.objects[1]
    assert first["bbox"] == pytest.approx([15, 5, 10, 20]) and second["bbox"] == pytest.approx([10, 15, 20, 10])
    assert "left out: 1 shapes of the kind 'points', which have no area" in read.shown


def test_labelme_groups_and_shapes(here: Path, check: Check) -> None:
    samples_by_others.labelme(here)
    content = json.loads((here / "006.json").read_text())
    part = {"label": "cat", "points": [[40, 8], [50, 8], [50, 18]], "group_id": 1, "shape_type": "polygon"}
    circle = {"label": "cat", "points": [[30, 20], [30, 30]], "group_id": None, "shape_type": "circle"}
    line = {**circle, "shape_type": "linestrip"}
    content["shapes"] = [part, {**part, "points": [[52, 8], [60, 8], [60, 18]]}, circle, line]
    put(here / "006.json", json.dumps(content))
    read = check("--train-folder", ".")
    group, round_one = read.objects[6]
    assert len(group["segmentation"]) == 2 and group["bbox"] == [40, 8, 20, 10]
    assert round_one["bbox"] == pytest.approx([20, 10, 20, 20], abs=0.1)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("photos/a.jpg", "", "photos is not detection data; expected a COCO file, a YOLO set"),
        ("a.xml", "<annotations><track id='0' label='a'/></annotations>", 'export the task as "CVAT for images"'),
        ("a.zip", "PK", "a.zip is not detection data; unpack it"),
        ("a.csv", "filename,colour\n001.jpg,red\n", "a.csv has the columns filename, colour; expected filename"),
        ("a.json", [{"id": 1, "data": {"image": "001.jpg"}}], "export the project as COCO, YOLO or Pascal VOC"),
        ("a.json", [{"image": "001.jpg", "annotations": []}], "export the set as Pascal VOC, YOLO or COCO"),
        ("a.json", {"a": 1}, "a.json is not a COCO file, nor of another tool"),
    ],
)
def test_other_forms_are_refused(name: str, content: object, sentence: str, here: Path, refused: Refused) -> None:
    put(here / name, content)
    assert sentence in refused("--train-folder", name.partition("/")[0])


@pytest.mark.parametrize("kind", safety_cases.ANNOTATIONS)
def test_hostile_annotations(kind: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each ends in a sentence, or is left out."""
    name, file = safety_cases.ANNOTATIONS[kind]
    for number, data in enumerate(safety_cases.annotation_cases()[kind]):
        arguments = SAMPLES[name].write(here)
        (here / file).write_bytes(data)
        code = main([*arguments, "--check", "--out", f"out{number}"])
        errors = capfd.readouterr().err
        assert code in (0, 1, 2) and "Traceback" not in errors, (data[:200], errors)
        assert not (here / safety_cases.MARKER).exists()
        if b"<!" in data:
            assert "defines a document type or entities, which are not read" in errors

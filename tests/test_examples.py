"""Every shell and Python example of the README and the site, run on small stand-in data, or marked with why it is not."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.helpers.checkpoints import official
from tests.helpers.processes import Tool

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.M
)
CHECKPOINT = "runs/photos/checkpoints/last.ckpt"
# What makes an example small. Each is appended to the commands of its tool.
PRETRAIN = (
    "data.image_size=32 data.batch_size=8 data.workers=1 schedule.steps=2 schedule.interval=step backbone=resnet18"
)
LIGHTLY_TRAIN = "model=timm/resnet18 epochs=1 batch_size=8 num_workers=1 devices=1"
TRANSFER = [
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("TEST.PRECISE_BN.ENABLED", "False", "TEST.DETECTIONS_PER_IMAGE", "3", "DATALOADER.NUM_WORKERS", "1"),
]
PYTHON = {"batch_size=64": "batch_size=8", "range(200)": "range(1)"}
SMALL_IMAGES = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks of a language that are run."""
    found = [match for match in BLOCK.finditer(page.read_text()) if match["language"] == language]
    return [match["text"] for match in found if not match["reason"]]


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, with its variables put in."""
    variables: dict[str, str] = {}
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if assignment := re.fullmatch(r"(\w+)=(\S+)", line.strip()):
            variables[assignment[1]] = assignment[2]
        elif line.strip():
            found.append(shlex.split(re.sub(r"\$(\w+)", lambda match: variables[match[1]], line), comments=True))
    return found


def smaller(name: str, arguments: list[str]) -> list[str]:
    """The arguments of a tool with what makes it small."""
    if name == "pretrain":
        recipe = ["method_args.queue_size=64"] if "--config" in arguments else []
        return [*arguments, *PRETRAIN.split(), *recipe]
    if name == "lightly_train_cli":
        return [*arguments, *LIGHTLY_TRAIN.split(), 'transform_args={"image_size": [32, 32]}']
    if name == "evaluate" and arguments[0] in ("linear", "linear-fast", "finetune", "lowshot"):
        return [*arguments, "schedule.epochs=1", *["schedule.milestones=[0.5]"] * (arguments[0] == "linear")]
    if name == "transfer" and any(argument.startswith("--train-") for argument in arguments):
        compared = ["--supervised", CHECKPOINT, "--trials", "1"] if "--compare" in arguments else []
        sizes = ["INPUT.CROP.SIZE", "(33, 33)"] if "--train-labels" in arguments else SMALL_IMAGES
        return [*arguments, *compared, *TRANSFER, *sizes]
    if name.startswith("convert") and "inspect" not in arguments:
        return [*arguments, "--overwrite"]  # pages write the same names
    if name == "predict":
        return [*arguments, "--threshold", "0.01", "--overwrite"]
    return arguments


def picture(number: int) -> Image.Image:
    photo = load_sample_images().images[number % 2]
    left, top = 40 * (number % 12), 25 * (number % 10)
    return Image.fromarray(photo[top : top + 96, left : left + 128])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tool: Tool) -> Path:
    """A folder with what the examples name, and the run of the first of them."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("photos", "yolo/images", "yolo/labels", "labels", "tiles", "results"):
        (folder / name).mkdir(parents=True)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "temple"}, {"id": 30, "name": "flower"}],
    }
    for number in range(10):
        image, name = picture(number), f"foto ä {number}"
        for place in (folder / "photos", folder / "yolo" / "images"):
            image.save(place / f"{name}.jpg")
        (folder / "yolo" / "labels" / f"{name}.txt").write_text(f"{number % 2} 0.5 0.5 0.4 0.4\n")
        label = np.zeros((96, 128), np.uint8)
        label[30:60, 40:80] = 1 + number % 2
        Image.fromarray(label).save(folder / "labels" / f"{name}.png")
        np.save(folder / "tiles" / f"{number}.npy", np.dstack([np.asarray(image)] * 2)[..., :4].astype(np.uint16) * 40)
        content["images"].append({"id": 3 * number + 5, "file_name": f"{name}.jpg", "width": 128, "height": 96})
        polygon = [[40, 30, 80, 30, 80, 60, 40, 60]]
        row = {"id": number + 1, "image_id": 3 * number + 5, "category_id": (7, 30)[number % 2], "iscrowd": 0}
        content["annotations"].append({**row, "bbox": [40, 30, 40, 30], "area": 1200, "segmentation": polygon})
    (folder / "train.json").write_text(json.dumps(content))
    (folder / "yolo" / "classes.txt").write_text("temple\nflower\n")
    for split, count in (("train", 60), ("val", 8)):
        for number in range(count):
            path = folder / "labelled" / split / ("temple", "flower")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number + 5).save(path)
    for split in ("train", "test"):
        rows = [f"photos/foto ä {number}.jpg,{'old;red' if number % 2 else 'new'}" for number in range(10)]
        (folder / f"{split}.csv").write_text("path,labels\n" + "\n".join(rows) + "\n")
    shutil.copytree(folder / "photos", folder / "imagenet" / "train")
    for name in ("moco_v2_200ep_pretrain.pth.tar", "moco_v2_200ep"):
        torch.save(official("resnet18"), folder / name)
    run(folder, tool, shlex.split("pretrain.py method=moco data.root=photos out=runs/photos"))
    return folder


def run(folder: Path, tool: Tool, command: list[str]) -> None:
    name = Path(command[0]).stem
    tool(name, *smaller(name, command[1:]), cwd=folder, HF_HUB_OFFLINE="1")


def test_blocks_have_a_language() -> None:
    """Without one a block is not highlighted, and not run."""
    for page in PAGES:
        text = page.read_text()
        assert not re.search(r"^``\w*$", text, re.M), f"{page} has a line of two backticks"
        for match in BLOCK.finditer(text):
            plain = not match["language"]
            assert not (plain and re.match(r"(python|make|git|pip|moco-)\b", match["text"])), match["text"]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=lambda page: page.name)
def test_shell_examples(page: Path, workspace: Path, tool: Tool) -> None:
    for block in blocks(page, "bash"):
        for command in commands(block):
            assert command[0] == "python", f"{page.name}: {command} is not run by this test; say why"
            run(workspace, tool, command[1:])


def test_notebook(workspace: Path) -> None:
    """Its cells, with small values in place of the first one's."""
    notebook = json.loads((ROOT / "docs" / "examples" / "photos_to_detector.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    small = f"PRETRAINING, DETECTION = {PRETRAIN.split()}, {TRANSFER + SMALL_IMAGES}"
    # not a file: processes that are spawned would run it again
    script = "\n\n".join(["import matplotlib; matplotlib.use('Agg')", cells[0], small, *cells[1:]])
    done = subprocess.run([sys.executable, "-c", script], cwd=workspace, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert (workspace / "runs" / "notebook" / "backbone.pth").is_file()
    assert len(list((workspace / "runs" / "notebook" / "pictures").iterdir())) == 1


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_examples(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    Path("photos.pkl").unlink(missing_ok=True)  # of another page
    for block in blocks(page, "python"):
        for text, small in PYTHON.items():
            block = block.replace(text, small)
        exec(compile(block, page.name, "exec"), {})

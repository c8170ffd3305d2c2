"""Pictures of a retrieval: test images with their nearest training images, on a page or in a PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UsageError, UserError
from moco_plugin.evaluation.neighbours import Neighbours
from moco_plugin.files import atomic_path, check_output
from moco_plugin.pages.page import Page, Picture, tile
from moco_plugin.pages.tables import Table

TILE, FRAME, GAP = 96, 4, 6  # pixels of the PNG
COLOURS = {"right": "#1a7f37", "wrong": "#cf222e", "": "white"}


RECALL = "Share of the test images with an image of their class among the k nearest; chance: among k random images."


def check_picture(path: str | Path, overwrite: bool) -> None:
    """Raise UsageError unless ``path`` ends in .html or .png and no file would be overwritten."""
    if Path(path).suffix not in (".html", ".png"):
        raise UsageError(f"{path} ends in neither .html nor .png; choose one of them for the picture")
    check_output(path, overwrite)


def write_neighbours(
    path: str | Path, train: ImageSet, test: ImageSet, neighbours: Sequence[Neighbours], result: Mapping[str, Any]
) -> None:
    """Draw each test image at the left and its neighbours to the right, the nearest first.

    Args:
        path: An .html or a .png file.
        train: The images that were searched.
        test: The images that were searched for.
        neighbours: What to draw.
        result: What ``evaluate_retrieval`` has returned.
    """
    rows, sentence = neighbour_rows(train, test, neighbours)
    if Path(path).suffix == ".html":
        page = Page("Nearest neighbours", sentence)
        page.section("Recall")
        rates = [(k, f"{value:.1f}%", f"{result['chance_recall'][k]:.1f}%") for k, value in result["recall"].items()]
        page.add("text", RECALL)
        page.add("table", Table(("k", "recall", "chance"), rates))
        facts = {"checkpoint": f"{result['weights']}, SHA-256 {result['weights_sha256']}"}
        if result["untrained"]:
            facts = {"network": f"{result['architecture']} with random weights"}
        sizes = f"{result['train_images']} images to search, {result['test_images']} to search for"
        page.add("settings", {**facts, "images": sizes})
        page.section("What the network finds similar")
        page.add("rows", rows, caption(train.spec, test.spec))
        page.save(path)
        return
    with atomic_path(path) as temporary:
        _draw(rows).save(temporary)


def caption(train: str, test: str) -> str:
    """Return the caption of the rows."""
    return (
        f"Left: the first test image of each class, of {test}. Right of it: the images of {train} with the most similar "
        "features, most similar first. A solid green frame marks the same class, a dashed red one another."
    )


def neighbour_rows(
    train: ImageSet, test: ImageSet, neighbours: Sequence[Neighbours]
) -> tuple[list[list[Picture]], str]:
    """Return a row of tiles for each test image, and a sentence on how many neighbours are of its class."""
    rows, right, total = [], 0, 0
    for one in neighbours:
        query, label, name = _read(test, one.test)
        row = [tile(query, f"Test image: {name}", name)]
        for position, index in enumerate(one.train, start=1):
            image, its, other = _read(train, index)
            same = its == label
            right, total = right + same, total + 1
            alt = f"Neighbour {position} of {name}: {other}, {'right' if same else 'wrong'} class"
            row.append(tile(image, alt, other, "right" if same else "wrong"))
        rows.append(row)
    return rows, f"{right} of {total} neighbours have the class of their test image."


def _read(images: ImageSet, index: int) -> tuple[Image.Image, int, str]:
    """Return an image, its label and the name of its class."""
    if images.labels is None or not 0 <= index < len(images) or (image := images.picture(index)) is None:
        raise UserError(f"{images.spec} has no labelled image number {index}; repeat the retrieval")
    label = int(images.labels[index])
    return image, label, images.classes[label] if images.classes else f"class {label}"


def _draw(rows: Sequence[Sequence[Picture]]) -> Image.Image:
    step = TILE + 2 * FRAME + GAP
    canvas = Image.new("RGB", (max(map(len, rows)) * step + GAP, len(rows) * step + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for line, row in enumerate(rows):
        for column, picture in enumerate(row):
            x, y = GAP + column * step, GAP + line * step
            edge = TILE + 2 * FRAME - 1
            draw.rectangle((x, y, x + edge, y + edge), fill=COLOURS[picture.frame])
            small = picture.image.resize((TILE, TILE), Image.Resampling.BICUBIC)
            canvas.paste(small, (x + FRAME, y + FRAME))
    return canvas

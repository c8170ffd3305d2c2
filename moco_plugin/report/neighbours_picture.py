"""The picture of a retrieval: test images, each with its nearest training images, as a page or a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UsageError
from moco_plugin.evaluation.retrieval import Neighbours
from moco_plugin.files import atomic_path, check_output
from moco_plugin.report.page import Page
from moco_plugin.report.pictures import grid, row, tile

TILE, FRAME, GAP = 96, 4, 6  # pixels of the PNG
COLOURS = {True: "#1a7f37", False: "#cf222e"}


def check_picture(path: str | Path, overwrite: bool) -> None:
    """Raises UsageError unless ``path`` ends in .html or .png and nothing is there that would be overwritten."""
    if Path(path).suffix not in (".html", ".png"):
        raise UsageError(f"{path} ends in neither .html nor .png; choose one of them for the picture")
    check_output(path, overwrite)


def write_neighbours(path: str | Path, train: ImageSet, test: ImageSet, found: Sequence[Neighbours]) -> None:
    """Draws each test image at the left and its neighbours to the right, the nearest first.

    Args:
        path: An .html or a .png file.
        train: The images that were searched.
        test: The images that were searched for.
        found: What to draw.
    """
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".html":
            temporary.write_text(_page(train, test, found).html(), encoding="utf-8")
        else:
            _picture(train, test, found).save(temporary)


def _page(train: ImageSet, test: ImageSet, found: Sequence[Neighbours]) -> Page:
    lines, right, total = [], 0, 0
    for one in found:
        name = _class(test, one.test)
        tiles = [tile(_image(test, one.test), f"Test image: {name}", name)]
        for place, index in enumerate(one.train, start=1):
            other, same = _class(train, index), _same(train, test, one.test, index)
            right, total = right + same, total + 1
            alt = f"Neighbour {place} of {name}: {other}, {'right' if same else 'wrong'} class"
            tiles.append(tile(_image(train, index), alt, other, "right" if same else "wrong"))
        lines.append(row(tiles))
    page = Page("Nearest neighbours", f"{right} of {total} neighbours have the class of their test image.")
    page.section("What the network finds similar")
    page.figure(
        grid(lines),
        f"Left: the first test image of each class, of {test.spec}. Right of it: the images of {train.spec} with the "
        "most similar features, most similar first. A solid green frame marks the same class, a dashed red one another.",
    )  # fmt: skip
    return page


def _picture(train: ImageSet, test: ImageSet, found: Sequence[Neighbours]) -> Image.Image:
    columns = 1 + max(len(one.train) for one in found)
    step = TILE + 2 * FRAME + GAP
    canvas = Image.new("RGB", (columns * step + GAP, len(found) * step + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for line, one in enumerate(found):
        for column, index in enumerate([one.test, *one.train]):
            x, y = GAP + column * step, GAP + line * step
            image = _image(train if column else test, index).resize((TILE, TILE), Image.Resampling.BICUBIC)
            if column:
                colour = COLOURS[_same(train, test, one.test, index)]
                draw.rectangle((x, y, x + TILE + 2 * FRAME - 1, y + TILE + 2 * FRAME - 1), fill=colour)
            canvas.paste(image, (x + FRAME, y + FRAME))
    return canvas


def _same(train: ImageSet, test: ImageSet, query: int, index: int) -> bool:
    assert train.labels is not None and test.labels is not None
    return bool(train.labels[index] == test.labels[query])


def _class(images: ImageSet, index: int) -> str:
    assert images.labels is not None
    label = int(images.labels[index])
    return images.classes[label] if images.classes else f"class {label}"


def _image(images: ImageSet, index: int) -> Image.Image:
    image = images.load(index)
    assert image is not None  # it has features
    return image

"""COCO files as detectron2 reads them, checked."""

from pathlib import Path
from typing import Annotated

import msgspec

from moco_plugin.errors import UserError
from moco_plugin.files import read_json

Coordinate = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
Length = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Image(msgspec.Struct):
    id: int | str
    height: int | None = None
    width: int | None = None


class Category(msgspec.Struct):
    id: int
    name: str | float
    keypoints: list[str] = []
    skeleton: list[tuple[int, int]] = []


class RunLengths(msgspec.Struct):
    counts: list[Annotated[int, msgspec.Meta(ge=0)]] | str
    size: tuple[int, int]


class Annotation(msgspec.Struct):
    image_id: int | str
    category_id: int
    bbox: tuple[Coordinate, Coordinate, Length, Length]
    segmentation: list[Annotated[list[Coordinate], msgspec.Meta(min_length=6)]] | RunLengths = []


class CocoFile(msgspec.Struct):
    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]

    def class_names(self) -> list[str]:
        """Return the names of the categories in the order of their ids, as detectron2 numbers them."""
        return [str(category.name) for category in sorted(self.categories, key=lambda category: category.id)]


def read_coco(path: Path) -> CocoFile:
    """Read a COCO file.

    Raises:
        UserError: It is not valid.
    """
    try:
        return msgspec.convert(read_json(path), CocoFile)
    except (msgspec.ValidationError, RecursionError) as error:
        raise UserError(f"{path} is not a valid COCO file ({error}); correct the file") from error

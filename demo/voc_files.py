"""Pascal VOC's annotation files in XML."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree


def write_voc_annotation(
    path: Path, folder: str, shape: tuple[int, int], boxes: Sequence[tuple[str, tuple[int, int, int, int]]]
) -> None:
    """Write the boxes of an image as Pascal VOC does.

    Args:
        path: The XML file, called as the image is.
        folder: Name of the data set.
        shape: Height and width of the image.
        boxes: Class name and box of each object, left, top, right, bottom in pixels from 0, right and bottom exclusive.
    """
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = folder
    ElementTree.SubElement(root, "filename").text = f"{path.stem}.jpg"
    _add_fields(ElementTree.SubElement(root, "size"), width=shape[1], height=shape[0], depth=3)
    ElementTree.SubElement(root, "segmented").text = "1"
    for name, (left, top, right, bottom) in boxes:
        node = ElementTree.SubElement(root, "object")
        _add_fields(node, name=name, pose="Unspecified", truncated=0, difficult=0)
        # VOC counts pixels from 1 and includes the last one.
        _add_fields(ElementTree.SubElement(node, "bndbox"), xmin=left + 1, ymin=top + 1, xmax=right, ymax=bottom)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path)


def _add_fields(node: ElementTree.Element, **fields: str | int) -> None:
    for key, value in fields.items():
        ElementTree.SubElement(node, key).text = str(value)

"""COCO files of photos, for the tests of own data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Content = dict[str, Any]
Change = Callable[[Content], Any]
Prepared = Callable[..., Any]
"""Prepares a changed COCO file of photos, with options of ``Sources``; returns ``OwnData``."""


def coco(path: Path, photos: Path, change: Change = lambda content: None) -> Path:
    """Write a COCO file of ids that are not contiguous, with polygons, run lengths and a crowd."""
    files = sorted(photos.iterdir())
    images = [{"id": 100 + 7 * n, "file_name": file.name, "width": 64, "height": 48} for n, file in enumerate(files)]
    box = {"bbox": [8, 8, 16, 20], "area": 320, "iscrowd": 0}
    masks = {"size": [48, 64], "counts": [48 * 10, 48 * 5, 48 * 49]}, [[8, 8, 24, 8, 24, 28, 8, 28]]
    annotations = [
        {
            "id": 5 * n + 1,
            "image_id": image["id"],
            "category_id": (3, 17)[n % 2],
            **box,
            "segmentation": masks[n % 3 > 0],
        }
        for n, image in enumerate(images)
    ]
    annotations.append({**annotations[0], "id": 900, "iscrowd": 1})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 17, "name": "hot dog"}],
    }
    change(content)
    path.write_text(json.dumps(content))
    return path

"""COCO files of photos, for the tests of own data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Content = dict[str, Any]


def coco(path: Path, photos: Path, change: Callable[[Content], Any] = lambda content: None) -> Path:
    """Write a COCO file of ids that are not contiguous, with polygons, run lengths and a crowd."""
    images = [
        {"id": 100 + 7 * number, "file_name": file.name, "width": 64, "height": 48}
        for number, file in enumerate(sorted(photos.iterdir()))
    ]
    annotations: list[Content] = []
    for number, image in enumerate(images):
        polygon = [[8, 8, 24, 8, 24, 28, 8, 28]]
        runs = {"size": [48, 64], "counts": [48 * 10, 48 * 5, 48 * 49]}
        annotations.append(
            {
                "id": 5 * number + 1,
                "image_id": image["id"],
                "category_id": (3, 17)[number % 2],
                "bbox": [8, 8, 16, 20],
                "area": 320,
                "iscrowd": 0,
                "segmentation": polygon if number % 3 else runs,
            }
        )
    annotations.append({**annotations[0], "id": 900, "iscrowd": 1})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 17, "name": "hot dog"}],
    }
    change(content)
    path.write_text(json.dumps(content))
    return path

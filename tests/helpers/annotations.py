"""COCO files for the checks of annotations."""

import itertools
import json
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from moco_plugin.transfer.checks import check_annotations

_count = itertools.count()


def check(content: Any, folder: Path, classes: list[str] | None = None) -> None:
    path, name = folder / "coco.json", f"annotations_{next(_count)}"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    MetadataCatalog.get(name).set(json_file=str(path), evaluator_type="coco")
    if classes:
        MetadataCatalog.get(name).thing_classes = classes
    check_annotations(name)

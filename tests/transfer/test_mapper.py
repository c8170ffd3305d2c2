"""Images of detectors: what detectron2 reads of 8 bits, by range or depth of others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.structures import Instances
from PIL import Image

from moco_plugin.data.order import seeded
from moco_plugin.errors import UserError
from moco_plugin.transfer.config import load_detector_config
from moco_plugin.transfer.mapper import Mapper

CONFIGS = {
    "voc/pascal_voc_R_50_C4_24k": "voc_2007_trainval",
    "coco/coco_R_50_FPN_1x_moco": "coco_2017_train",
    "coco/coco_keypoint_R_50_FPN_2x_moco": "keypoints_coco_2017_train",
    "cityscapes/cityscapes_R_50_FPN_24k_moco": "cityscapes_fine_instance_seg_train",
}


def plain(value: Any) -> Any:
    """What a mapper returns as numbers, texts, lists and dicts."""
    if isinstance(value, Instances):
        return {name: plain(field) for name, field in value.get_fields().items()}
    if isinstance(value, (dict, list)):
        return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else [plain(item) for item in value]
    value = next((getattr(value, name) for name in ("tensor", "polygons") if hasattr(value, name)), value)
    return plain(value) if isinstance(value, list) else value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("is_train", [True, False])
def test_detectron2s_mapper_reads_the_same(tiny_catalog: Path, name: str, is_train: bool) -> None:
    overrides = ["INPUT.CROP.ENABLED", "True"] if "C4" in name else []
    cfg = load_detector_config(name, overrides)
    ours, theirs = (mapper(cfg, is_train) for mapper in (Mapper, DatasetMapper))
    for entry in DatasetCatalog.get(CONFIGS[name]):
        results = []
        for mapper in (ours, theirs):
            with seeded(1):
                results.append(plain(mapper(entry)))
        assert results[0] == results[1]


def test_broken_images_are_named(tmp_path: Path) -> None:
    mapper = Mapper(is_train=True, augmentations=[], image_format="RGB")
    (tmp_path / "broken.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    Image.new("RGB", (8, 8)).save(tmp_path / "whole.jpg")
    with pytest.raises(UserError, match=r"image .*broken\.jpg cannot be decoded"):
        mapper({"file_name": str(tmp_path / "broken.jpg")})
    with pytest.raises(UserError, match=r"label image .*broken\.jpg cannot be decoded"):
        mapper({"file_name": str(tmp_path / "whole.jpg"), "sem_seg_file_name": str(tmp_path / "broken.jpg")})


@pytest.mark.parametrize(
    ("value_range", "expected"), [((), [0, 4, 16]), ((0, 4000), [0, 64, 255])], ids=["depth", "range"]
)
def test_images_of_16_bits_are_scaled(value_range: tuple[int, ...], expected: list[int], tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1000, 4000]], np.uint16)).save(tmp_path / "deep.png")
    mapper = Mapper(is_train=False, augmentations=[], image_format="BGR", value_range=value_range)
    image = mapper({"file_name": str(tmp_path / "deep.png")})["image"]
    assert image.shape == (3, 1, 3) and image[0, 0].tolist() == pytest.approx(expected, abs=1)

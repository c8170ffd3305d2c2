"""Semantic segmentation: the FCN head, where its scores lie in the image, and the mapping of its data."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from PIL import Image

from moco_plugin.errors import UsageError
from moco_plugin.transfer.augmentation import GREY
from moco_plugin.transfer.components.fcn import FCNHead
from moco_plugin.transfer.config import load_detector_config
from moco_plugin.transfer.mapper import Mapper

IGNORE = 255
VOC = "voc/pascal_voc_2012_fcn_R_50_30k_random"
NARROW = [
    *"""MODEL.DEVICE cpu MODEL.RESNETS.NORM BN MODEL.SEM_SEG_HEAD.NORM BN
        MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
        MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.SEM_SEG_HEAD.CONVS_DIM 8 MODEL.WEIGHTS""".split(),
    "",
]
SHALLOW = ["MODEL.BACKBONE.NAME", "build_any_width_resnet_backbone", "MODEL.RESNETS.NUM_BLOCKS", "[1, 1, 1, 1]"]


def head(num_classes: int = 3, **options: int) -> FCNHead:
    torch.manual_seed(0)
    return FCNHead({"res5": ShapeSpec(channels=4, stride=16)}, num_classes=num_classes, **options)


def test_layers_are_the_papers() -> None:
    layers = head(21)
    for conv in layers.convs:
        assert (conv.kernel_size, conv.stride) == ((3, 3), (1, 1)) and conv.dilation == conv.padding == (6, 6)
        assert conv.bias is None and isinstance(conv.norm, torch.nn.BatchNorm2d) and conv.activation is F.relu
    assert [conv.weight.shape[:2] for conv in layers.convs] == [(256, 4), (256, 256)]
    assert layers.predictor.weight.shape == (21, 256, 1, 1)


def test_scores_lie_where_their_features_are_centred() -> None:
    # a feature map that counts its columns and, ten times as much, its rows
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing="ij")
    scores = head().upsample((10 * rows + columns)[None, None])
    assert scores.shape == (1, 1, 48, 80)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(80.0), indexing="ij")
    expected = 10 * (y / 16).clamp(max=2) + (x / 16).clamp(max=4)
    assert torch.allclose(scores[0, 0], expected, atol=1e-4)


def test_features_are_centred_on_every_sixteenth_pixel() -> None:
    """What a feature depends on has its centre of mass there, as ``upsample`` takes it, not half a stride further."""
    torch.manual_seed(0)
    model = build_model(load_detector_config(VOC, [*NARROW, *SHALLOW]))
    for parameter in model.backbone.parameters():
        parameter.data.abs_()  # else its sign decides what a pixel weighs
    image = torch.rand(1, 3, 257, 257, requires_grad=True)
    features = model.eval().backbone(image)["res5"]
    assert features.shape[-2:] == (17, 17)
    pixels = torch.arange(257.0)
    for row, column in ((6, 7), (9, 8)):
        (gradient,) = torch.autograd.grad(features[0, :, row, column].sum(), image, retain_graph=True)
        weight = gradient[0].abs().sum(0) / gradient.abs().sum()
        centre = float((weight.sum(1) * pixels).sum()), float((weight.sum(0) * pixels).sum())
        assert centre == pytest.approx((16 * row, 16 * column), abs=3)


def test_loss_is_the_mean_over_labelled_pixels() -> None:
    layers = head().train()
    features = {"res5": torch.randn(2, 4, 3, 3)}
    targets = torch.randint(0, 3, (2, 33, 33))
    targets[:, :, 20:] = IGNORE
    _, losses = layers(features, targets)
    scores, none = layers.eval()(features)
    assert scores.shape == (2, 3, 48, 48) and none == {}
    scores = layers.upsample(layers.predictor(layers.train().convs(features["res5"])))[..., :33, :33]
    expected = F.cross_entropy(scores, targets, ignore_index=IGNORE)
    assert losses["loss_sem_seg"].item() == pytest.approx(expected.item(), rel=1e-5)

    _, losses = layers(features, torch.full_like(targets, IGNORE))
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"] == 0 and layers.predictor.weight.grad.abs().max() == 0  # no NaN


def test_wrong_feature_maps_are_refused() -> None:
    with pytest.raises(UsageError, match="one feature map"):
        FCNHead({}, num_classes=3)
    with pytest.raises(UsageError, match="'res4', 'res5'"):
        FCNHead({f"res{i}": ShapeSpec(channels=4, stride=16) for i in (4, 5)}, num_classes=3)


def test_scores_are_as_large_as_the_image() -> None:
    model = build_model(load_detector_config(VOC, NARROW)).eval()
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((75, 50), (64, 97))]
    with torch.no_grad():
        results = model([{"image": image, "height": image.shape[1], "width": image.shape[2]} for image in images])
    assert [result["sem_seg"].shape for result in results] == [(21, 75, 50), (21, 64, 97)]


@pytest.fixture
def entry(tmp_path: Path) -> dict[str, object]:
    """A 60 x 40 image, dark left and bright right, with labels 3 and 7 and an ignored line between, with a palette."""
    image = np.full((40, 60, 3), (20, 30, 40), np.uint8)
    image[:, 30:] = (220, 210, 200)
    Image.fromarray(image).save(tmp_path / "image.png")
    labels = np.full((40, 60), 3, np.uint8)
    labels[:, 30:] = 7
    labels[:, 29:31] = IGNORE
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette([(value * 37) % 256 for value in range(768)])
    picture.save(tmp_path / "labels.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "height": 40,
        "width": 60,
        "image_id": "x",
    }


def test_training_scales_crops_pads_and_flips(entry: dict[str, object]) -> None:
    mapper = Mapper(load_detector_config(VOC, ["INPUT.CROP.SIZE", "(50, 50)"]), is_train=True)
    np.random.seed(0)
    heights, flips, crops = [], 0, set()
    for _ in range(200):
        result = mapper(entry)
        image, labels = result["image"], result["sem_seg"]
        assert image.shape == (3, 50, 50) and image.dtype == torch.uint8
        assert labels.shape == (50, 50) and labels.dtype == torch.int64
        assert set(labels.unique().tolist()) <= {3, 7, IGNORE}
        # labels follow the image
        assert (image[0][labels == 3] < 120).all() and (image[0][labels == 7] > 120).all()
        padding = (image == GREY).all(0)
        assert (labels[padding] == IGNORE).all()
        height = 50 - int(padding.all(1).sum())
        heights.append(height)
        line = labels[0] if height else labels[:, 0]
        known = line[line != IGNORE].tolist()
        flips += known[:1] == [7]
        crops.add(tuple(known))
    assert 20 <= min(heights) <= 22 and max(heights) == 50  # 0.5 x 40; what is larger is cut off
    assert len(crops) > 30 and 40 < flips < 160
    assert "sem_seg_file_name" in entry and "image" not in entry  # the data set's entry is left as it was


def test_scale_is_uniform_over_its_range(entry: dict[str, object]) -> None:
    mapper = Mapper(load_detector_config(VOC, ["INPUT.CROP.SIZE", "(100, 150)"]), is_train=True)
    np.random.seed(0)
    scales = [float((~(mapper(entry)["image"] == GREY).all(0)).any(1).sum()) / 40 for _ in range(300)]
    quartiles = np.quantile(scales, [0, 0.25, 0.5, 0.75, 1])
    assert quartiles == pytest.approx([0.5, 0.875, 1.25, 1.625, 2.0], abs=0.12)


def test_inference_takes_the_image_as_it_is(entry: dict[str, object]) -> None:
    cfg = load_detector_config("voc/pascal_voc_2012_fcn_R_50_30k_supervised")
    result = Mapper(cfg, is_train=False)(entry)
    assert "sem_seg" not in result and result["image"].shape == (3, 40, 60)
    assert result["image"][:, 0, 0].tolist() == [40, 30, 20]  # BGR, as the supervised weights want
    assert (result["height"], result["width"]) == (40, 60)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["INPUT.SCALE_RANGE", "[2.0, 0.5]"], "INPUT.SCALE_RANGE"),
        (["INPUT.SCALE_RANGE", "[0.5]"], "INPUT.SCALE_RANGE"),
        (["INPUT.CROP.ENABLED", "False"], "INPUT.CROP"),
        (["INPUT.CROP.TYPE", "relative"], "'relative'"),
    ],
)
def test_invalid_settings(overrides: list[str], message: str) -> None:
    cfg = load_detector_config("cityscapes/cityscapes_fcn_R_50_90k_moco", overrides)
    with pytest.raises(UsageError, match=message):
        Mapper(cfg, is_train=True)

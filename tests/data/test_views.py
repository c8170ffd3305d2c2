"""Views: the papers' arguments in lightly's transforms, and the batched path with the same distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from moco_plugin.data import batched_views as batched
from moco_plugin.data.images import ImageSet
from moco_plugin.data.normalize import normalize
from moco_plugin.data.views import VIEWS, build_views, view_arguments
from moco_plugin.errors import UsageError
from tests.conftest import TRAIN


def steps(name: str) -> list[object]:
    return list(build_views(name, 40).transforms[0].transforms)


def find(name: str, kind: type) -> object:
    return next(step for step in steps(name) if isinstance(step, kind))


@pytest.mark.parametrize(
    ("name", "probability", "hue", "blur"), [("moco_v1", 1.0, 0.4, 0.0), ("moco_v2", 0.8, 0.1, 0.5)]
)
def test_arguments_are_the_papers(name: str, probability: float, hue: float, blur: float) -> None:
    crop, jitter, grey = (find(name, v2.RandomResizedCrop), find(name, v2.RandomApply), find(name, v2.RandomGrayscale))
    assert (crop.scale, crop.size) == ((0.2, 1.0), (40, 40))
    assert jitter.p == probability
    (colours,) = jitter.transforms
    assert (colours.brightness, colours.contrast, colours.saturation) == ((0.6, 1.4),) * 3
    assert colours.hue == (-hue, hue)
    assert grey.p == 0.2
    first, arguments = view_arguments(name, 40)
    assert first == arguments
    assert (arguments["gaussian_blur"], arguments["sigmas"], arguments["hf_prob"]) == (blur, (0.1, 2), 0.5)


def test_v1_turns_grey_before_it_jitters_and_v2_after() -> None:
    def grey_first(name: str) -> bool:
        kinds = [type(step) for step in steps(name)]
        return kinds.index(v2.RandomGrayscale) < kinds.index(v2.RandomApply)

    assert grey_first("moco_v1")
    assert not grey_first("moco_v2")


def test_views_are_two_different_uint8_images() -> None:
    image = ImageSet(TRAIN).load(0)
    assert image is not None
    for name in VIEWS:
        one, two = build_views(name, 40)(image)
        assert one.dtype == two.dtype == torch.uint8 and one.shape == two.shape == (3, 40, 40)
        assert not torch.equal(one, two)


def test_normalize_is_torchvisions() -> None:
    images = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    torch.testing.assert_close(normalize(images, mean, std), tv.normalize(images / 255, mean, std))


@pytest.mark.parametrize(("start", "length", "target"), [(3, 17, 40), (0, 28, 10), (5, 20, 20)])
def test_resize_is_pillows(start: int, length: int, target: int) -> None:
    images = torch.rand(2, 3, 28, 28)
    matrix = batched.resize_matrix(torch.tensor([start] * 2), torch.tensor([length] * 2), 28, target)[:, None]
    cut = images[..., start : start + length, start : start + length]
    torch.testing.assert_close(matrix @ images @ matrix.transpose(2, 3), tv.resize(cut, [target] * 2, antialias=True))


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "hue"])
def test_adjustments_are_torchvisions(kind: str) -> None:
    images, factors = (torch.rand(3, 3, 8, 8), torch.tensor([0.45, -0.2, 0.1] if kind == "hue" else [0.6, 1.4, 1.0]))
    expected = torch.stack([getattr(tv, f"adjust_{kind}")(i, float(f)) for i, f in zip(images, factors, strict=True)])
    found = getattr(batched, f"adjust_{kind}")(images, factors[:, None, None, None])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_is_pillows(sigma: float) -> None:
    image = ImageSet(TRAIN).load(0)
    assert image is not None
    expected = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)))[..., 0] / 255
    matrix = batched.blur_matrix(torch.tensor([sigma]), 28)[0]
    found = matrix @ (torch.from_numpy(np.asarray(image).copy())[..., 0] / 255.0) @ matrix.T
    assert np.abs(found.numpy() - expected).max() < 2.5 / 255  # Pillow rounds to uint8 after each direction


def test_v3_tells_its_two_views_apart() -> None:
    first, second = view_arguments("moco_v3", 40)
    assert {key for key in first if first[key] != second[key]} == {"gaussian_blur", "solarization_prob"}
    assert (first["gaussian_blur"], first["solarization_prob"]) == (1.0, 0.0)
    assert (second["gaussian_blur"], second["solarization_prob"]) == (0.1, 0.2)
    jitter = [first[f"cj_{key}"] for key in ("prob", "strength", "bright", "contrast", "sat", "hue")]
    assert jitter == [0.8, 1.0, 0.4, 0.4, 0.2, 0.1] and first["min_scale"] == 0.2


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2", "moco_v3"])
def test_batched_views_have_lightlys_distribution(name: str) -> None:
    """Pixel by pixel, mean and spread over many views of one colour image agree within sampling error."""
    torch.manual_seed(0)
    np.random.seed(0)
    size, count = 12, 1500
    y, x = np.mgrid[0:16, 0:16] * 15
    array = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    view = build_views(name, size).transforms[1]
    one_by_one = torch.stack([view(Image.fromarray(array)) for _ in range(count)]).float()
    path = batched.BatchedViews(view_arguments(name, size), grey_first=name == "moco_v1")
    at_once = path(torch.from_numpy(array).permute(2, 0, 1).expand(count, -1, -1, -1))[1].float()
    error = (one_by_one.var(dim=0) / count + at_once.var(dim=0) / count).sqrt()
    assert ((one_by_one.mean(dim=0) - at_once.mean(dim=0)).abs() / error).max() < 5  # standard errors, 432 pixels
    ratio = one_by_one.std(dim=0).mean() / at_once.std(dim=0).mean()
    assert abs(ratio - 1) < 0.03
    saturation = [v.amax(dim=1).sub(v.amin(dim=1)).mean(dim=(1, 2)) for v in (one_by_one, at_once)]
    grey = [float((s < 2).float().mean()) for s in saturation]
    assert abs(grey[0] - grey[1]) < 0.05


def test_grey_images_give_the_same_views_with_one_channel_or_three() -> None:
    images = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)
    path = batched.BatchedViews(view_arguments("moco_v2", 20, cj_prob=0.0, gaussian_blur=0.0))
    torch.manual_seed(1)
    one = path(images)
    torch.manual_seed(1)
    three = path(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(one, three, atol=1, rtol=0)


def test_mistakes() -> None:
    with pytest.raises(UsageError, match=r"unknown views 'moco_v9'; known are moco_v1, moco_v2"):
        view_arguments("moco_v9", 40)
    with pytest.raises(UsageError, match=r"data.view_args.cj_pob; .*did you mean 'cj_prob'"):
        view_arguments("moco_v2", 40, cj_pob=1)
    with pytest.raises(UsageError, match=r"rr_prob is 0.5; it needs data.batched_views=false"):
        batched.BatchedViews(view_arguments("moco_v2", 40, rr_prob=0.5))

"""Views: the papers' arguments, lightly's distribution, and engines that make the same pictures."""

import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from moco_plugin.data.normalize import normalize
from moco_plugin.data.views import VIEWS, Views, device, fast, reference, view_arguments
from moco_plugin.data.views.plan import Step, ViewPlan, draw_plan
from moco_plugin.errors import UsageError

PHOTOS = [np.asarray(Image.fromarray(image).resize((500, 375))) for image in load_sample_images().images]
SIZE = 160
BOX = (30, 20, 400, 300)


def by_device(image: np.ndarray, plan: ViewPlan, size: int) -> np.ndarray:
    """One view as the device engine makes it."""
    crop = fast.crop(image, plan.box, size)
    if plan.vertical_flip or plan.rotation:
        crop, plan = fast.turn(crop, plan), plan._replace(flip=False)
    views = Views("moco_v2", size, "device")
    arrays, plans, _ = views.collate([([crop], [plan], "")])
    return views.finish(arrays, plans)[0][0].numpy()


ENGINES: dict[str, Callable[[np.ndarray, ViewPlan, int], np.ndarray]] = {"fast": fast.make_view, "device": by_device}


def difference(make_view: Callable[[np.ndarray, ViewPlan, int], np.ndarray], plan: ViewPlan) -> float:
    """Grey levels between an engine's view and the reference's, on average over a photograph; of two the larger."""
    pairs = [(make_view(photo, plan, SIZE), reference.make_view(photo, plan, SIZE)) for photo in PHOTOS]
    return max(float(np.abs(one.astype(int) - other.astype(int)).mean()) for one, other in pairs)


def steps(name: str) -> list[Any]:
    """The steps of lightly's transform with the arguments of the first view."""
    return list(VIEWS[name][0](**view_arguments(name, SIZE)[0], normalize=None).transform.transforms)


def find(name: str, kind: type) -> Any:
    return next(step for step in steps(name) if isinstance(step, kind))


@pytest.mark.parametrize(
    ("name", "probability", "hue", "blur"), [("moco_v1", 1.0, 0.4, 0.0), ("moco_v2", 0.8, 0.1, 0.5)]
)
def test_arguments_are_the_papers(name: str, probability: float, hue: float, blur: float) -> None:
    crop, jitter, grey = (find(name, v2.RandomResizedCrop), find(name, v2.RandomApply), find(name, v2.RandomGrayscale))
    assert (crop.scale, crop.size) == ((0.2, 1.0), (SIZE, SIZE))
    assert jitter.p == probability
    (colours,) = jitter.transforms
    assert (colours.brightness, colours.contrast, colours.saturation) == ((0.6, 1.4),) * 3
    assert colours.hue == (-hue, hue)
    assert grey.p == 0.2
    first, arguments = view_arguments(name, SIZE)
    assert first == arguments
    assert (arguments["gaussian_blur"], arguments["sigmas"], arguments["hf_prob"]) == (blur, (0.1, 2), 0.5)


OPERATIONS: list[tuple[tuple[Step, ...], bool, float]] = [
    ((), False, 1),
    ((), True, 1),
    *[
        (((name, factor),), False, 1)
        for name in ("brightness", "contrast", "saturation")
        for factor in (0.2, 0.6, 1.0, 1.8)
    ],
    *[((("hue", factor),), False, 2) for factor in (-0.5, -0.4, -0.1, 0.0, 0.03, 0.1, 0.4)],
    ((("grey", 0.0),), False, 1),
    ((("grey", 0.0), ("contrast", 0.7), ("saturation", 0.7), ("hue", 0.3), ("brightness", 1.2)), False, 1),
    ((("solarize", 128.0),), False, 1),
    *[((("blur", sigma),), False, 2) for sigma in (0.1, 0.3, 0.7, 1.0, 1.4, 2.0)],
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("operations", "flip", "most"), OPERATIONS)
def test_operations_are_the_references(engine: str, operations: tuple[Step, ...], flip: bool, most: float) -> None:
    assert difference(ENGINES[engine], ViewPlan(BOX, flip, False, 0.0, operations)) <= most


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", VIEWS)
def test_whole_views_are_the_references(engine: str, name: str) -> None:
    rng = Random(3)
    for arguments in view_arguments(name, SIZE, vf_prob=0.2, rr_prob=0.2, min_scale=0.05):
        for _ in range(15):
            plan = draw_plan(arguments, 500, 375, rng, name == "moco_v1")
            names = {step[0] for step in plan.steps if step}
            assert difference(ENGINES[engine], plan) <= (2 if names & {"hue", "blur"} else 1), plan


@pytest.mark.parametrize("engine", ENGINES)
def test_rotations_are_the_references(engine: str) -> None:
    for plan in (ViewPlan(BOX, True, False, 90.0, ()), ViewPlan(BOX, True, True, -17.0, (("brightness", 0.8),))):
        assert difference(ENGINES[engine], plan) <= 1


def test_reference_is_lightlys() -> None:
    """Each step of lightly's transform with its random choice made equals the reference's, bit by bit."""
    view = Image.fromarray(PHOTOS[0]).resize((SIZE, SIZE))
    whole = (0, 0, SIZE, SIZE)

    def made(*operations: Step, flip: bool = False) -> np.ndarray:
        return reference.make_view(np.asarray(view), ViewPlan(whole, flip, False, 0.0, operations), SIZE)

    def lightlys(**arguments: Any) -> np.ndarray:
        off = {"cj_prob": 0.0, "hf_prob": 0.0, "random_gray_scale": 0.0, "gaussian_blur": 0.0, "min_scale": 1.0}
        # a ratio of exactly 1 is not drawn: crop apart
        *chosen, _ = VIEWS["moco_v3"][1](
            **{"solarization_prob": 0.0, **off, **arguments}, normalize=None
        ).transform.transforms
        return np.asarray(v2.Compose(chosen[1:])(view))

    assert np.array_equal(lightlys(), made())
    assert np.array_equal(lightlys(hf_prob=1.0), made(flip=True))
    assert np.array_equal(lightlys(random_gray_scale=1.0), made(("grey", 0.0)))
    assert np.array_equal(lightlys(gaussian_blur=1.0, sigmas=(1.3, 1.3)), made(("blur", 1.3)))
    assert np.array_equal(lightlys(solarization_prob=1.0), made(("solarize", 128.0)))
    left, top, width, height = BOX
    cropped = tv.resized_crop(Image.fromarray(PHOTOS[0]), top, left, height, width, [SIZE, SIZE])
    assert np.array_equal(
        np.asarray(cropped), reference.make_view(PHOTOS[0], ViewPlan(BOX, False, False, 0.0, ()), SIZE)
    )
    for name, factor in (("brightness", 0.7), ("contrast", 1.3), ("saturation", 0.4), ("hue", 0.2)):
        expected = getattr(tv, f"adjust_{name}")(view, factor)
        assert np.array_equal(np.asarray(expected), made((name, factor)))


def plans(name: str, count: int, **overrides: Any) -> Iterator[ViewPlan]:
    rng, arguments = Random(0), view_arguments(name, SIZE, **overrides)[1]
    for _ in range(count):
        yield draw_plan(arguments, 200, 150, rng, name == "moco_v1")


def same(ours: list[float], theirs: list[float]) -> bool:
    """Whether two samples have the same mean within five standard errors, and the same spread within 10%."""
    one, two = np.array(ours, float), np.array(theirs, float)
    error = math.sqrt(one.var() / len(one) + two.var() / len(two))
    return abs(one.mean() - two.mean()) <= 5 * error + 1e-9 and abs(one.std() - two.std()) <= 0.1 * two.std() + 1e-9


@pytest.mark.parametrize("scale", [0.2, 0.9])
def test_crops_have_torchvisions_distribution(scale: float) -> None:
    torch.manual_seed(0)
    count, image = 3000, torch.zeros(3, 150, 200)
    theirs = [v2.RandomResizedCrop(SIZE, (scale, 1)).make_params([image]) for _ in range(count)]
    ours = [plan.box for plan in plans("moco_v2", count, min_scale=scale)]
    for number, key in enumerate(("left", "top", "width", "height")):
        assert same([box[number] for box in ours], [box[key] for box in theirs]), key


@pytest.mark.parametrize("name", VIEWS)
def test_colours_have_lightlys_distribution(name: str) -> None:
    arguments = view_arguments(name, SIZE)[1]
    drawn = list(plans(name, 4000))
    chosen = [[step for step in plan.steps if step] for plan in drawn]
    spans = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2 if name == "moco_v3" else 0.4}
    hue = 0.4 if name == "moco_v1" else 0.1
    probabilities = {
        **dict.fromkeys((*spans, "hue"), arguments["cj_prob"]),
        "grey": 0.2,
        "blur": arguments["gaussian_blur"],
        "solarize": arguments.get("solarization_prob", 0.0),
    }
    for key, probability in probabilities.items():
        share = np.mean([any(step[0] == key for step in steps) for steps in chosen])
        assert abs(share - probability) <= 5 * math.sqrt(probability * (1 - probability) / len(drawn))
    factors = {key: [factor for steps in chosen for name, factor in steps if name == key] for key in probabilities}
    uniform = np.linspace(0, 1, 1001)
    for key, span in spans.items():
        assert same(factors[key], list(1 - span + 2 * span * uniform))
    assert same(factors["hue"], list(hue * (2 * uniform - 1)))
    assert not factors["blur"] or same(factors["blur"], list(0.1 + 1.9 * uniform))
    assert abs(np.mean([plan.flip for plan in drawn]) - 0.5) < 0.04
    orders = [tuple(step[0] for step in steps if step[0] in (*spans, "hue")) for steps in chosen]
    counts = [orders.count(order) for order in set(orders) - {()}]
    assert len(counts) == 24 and max(counts) < 1.5 * min(counts)
    grey_first = [
        [step[0] for step in steps].index("grey") == 0 for steps in chosen if ("grey", 0.0) in steps and len(steps) > 4
    ]
    assert all(grey_first) if name == "moco_v1" else not any(grey_first)


@pytest.mark.parametrize("engine", ["fast", "reference", "device"])
def test_views_are_functions_of_image_and_seed(engine: str) -> None:
    views = Views("moco_v2", 40, engine)
    first, _ = views(PHOTOS[0], Random("1 7"))
    again, _ = views(PHOTOS[0], Random("1 7"))
    other, _ = views(PHOTOS[0], Random("1 8"))
    assert all(view.dtype == np.uint8 and view.shape == (40, 40, 3) for view in first)
    assert np.array_equal(first, again) and not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, other)


def test_grey_images_give_the_views_of_their_three_channels() -> None:
    grey = PHOTOS[0][..., 1]
    for plan in plans("moco_v2", 20):
        for make_view in (fast.make_view, reference.make_view, by_device):
            one = make_view(grey, plan, 40)
            three = make_view(np.repeat(grey[..., None], 3, axis=2), plan, 40)
            assert one.shape == (40, 40, 3) and np.abs(one.astype(int) - three).mean() < 1


def test_images_of_one_size_are_cropped_on_the_device() -> None:
    images = [photo[:150, :200].copy() for photo in PHOTOS]
    views = Views("moco_v2", 40, "device", whole=True)
    items = [(*views(image, Random(number)), "") for number, image in enumerate(images)]
    made = views.finish(*views.collate(items)[:2])
    for number, image in enumerate(images):
        for view, arguments in zip(made, [items[number][1][0], items[number][1][1]], strict=True):
            assert np.abs(view[number].numpy().astype(int) - by_device(image, arguments, 40)).mean() < 1


def test_jpeg_scaling_leaves_crops_as_large_as_views() -> None:
    views = Views("moco_v2", 224)
    assert [views.shrink(*size) for size in ((500, 375), (2000, 1500), (4000, 3000), (9000, 7000), (9000, 300))] == [
        1, 2, 4, 8, 1
    ]  # fmt: skip
    for width, height in ((4000, 3000), (3000, 4000), (8000, 1000)):
        rng, arguments = Random(0), views.arguments[0]
        boxes = [draw_plan(arguments, width, height, rng).box for _ in range(500)]
        divisor = views.shrink(width, height)
        assert min(min(w, h) for _, _, w, h in boxes) / divisor >= 223


def test_normalize_is_torchvisions() -> None:
    images = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    torch.testing.assert_close(normalize(images, mean, std), tv.normalize(images / 255, mean, std))


@pytest.mark.parametrize(("start", "length", "target"), [(3, 17, 40), (0, 28, 10), (5, 20, 20)])
def test_resize_is_pillows(start: int, length: int, target: int) -> None:
    images = torch.rand(2, 3, 28, 28)
    matrix = device.resize_matrix(torch.tensor([start] * 2), torch.tensor([length] * 2), 28, target)[:, None]
    cut = images[..., start : start + length, start : start + length]
    torch.testing.assert_close(matrix @ images @ matrix.transpose(2, 3), tv.resize(cut, [target] * 2, antialias=True))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_matrix_is_pillows(sigma: float) -> None:
    image = Image.fromarray(PHOTOS[0][:48, :48, 0])
    expected = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma))) / 255
    matrix = device.blur_matrix(*map(torch.from_numpy, device.box_blur(np.array([sigma], np.float32), 48)))[0]
    found = matrix @ (torch.from_numpy(np.asarray(image).copy()) / 255.0) @ matrix.T
    assert np.abs(found.numpy() - expected).max() < 2.5 / 255  # Pillow rounds to uint8 after each direction


def test_v3_tells_its_two_views_apart() -> None:
    first, second = view_arguments("moco_v3", 40)
    assert {key for key in first if first[key] != second[key]} == {"gaussian_blur", "solarization_prob"}
    assert (first["gaussian_blur"], first["solarization_prob"]) == (1.0, 0.0)
    assert (second["gaussian_blur"], second["solarization_prob"]) == (0.1, 0.2)
    jitter = [first[f"cj_{key}"] for key in ("prob", "strength", "bright", "contrast", "sat", "hue")]
    assert jitter == [0.8, 1.0, 0.4, 0.4, 0.2, 0.1] and first["min_scale"] == 0.2


def test_mistakes() -> None:
    with pytest.raises(UsageError, match=r"unknown views 'moco_v9'; known are moco_v1, moco_v2"):
        view_arguments("moco_v9", 40)
    with pytest.raises(UsageError, match=r"data.view_args.cj_pob; .*did you mean 'cj_prob'"):
        view_arguments("moco_v2", 40, cj_pob=1)
    with pytest.raises(UsageError, match=r"views.engine is 'quick'; expected fast, reference, device"):
        Views("moco_v2", 40, "quick")

"""The random choices of a view, drawn once and carried out by any engine."""

import math
from random import Random
from typing import Any, NamedTuple

RATIO = (3 / 4, 4 / 3)  # RandomResizedCrop's default
TRIES = 10  # RandomResizedCrop's, before it takes the centre
JITTER = {"brightness": "cj_bright", "contrast": "cj_contrast", "saturation": "cj_sat", "hue": "cj_hue"}
LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in grey, as in Pillow

Step = tuple[str, float]  # operation and its factor: of the jitter, sigma of a blur, threshold of a solarization


class ViewPlan(NamedTuple):
    """The operations that make one view of an image, in this order."""

    box: tuple[int, int, int, int]
    """Left, top, width and height of the crop, in pixels of the image."""
    flip: bool
    vertical_flip: bool
    rotation: float
    """Degrees, counter-clockwise."""
    steps: tuple[Step | None, ...]
    """Colour operations, None for one that is left out; all plans of one view have the same number."""


def draw_plan(arguments: dict[str, Any], width: int, height: int, rng: Random, grey_first: bool = False) -> ViewPlan:
    """Draw a view with the distribution of lightly's transform.

    Args:
        arguments: All arguments of the transform, from ``view_arguments``.
        width: Of the image, in pixels.
        height: Of the image, in pixels.
        rng: Source of all random numbers.
        grey_first: Grey comes before the jitter.
    """
    box = _draw_box(arguments["min_scale"], width, height, rng)
    flip = rng.random() < arguments["hf_prob"]
    vertical_flip = rng.random() < arguments["vf_prob"]
    rotation = _draw_rotation(arguments["rr_degrees"], rng) if rng.random() < arguments["rr_prob"] else 0.0
    jitter = _draw_jitter(arguments, rng)
    grey = ("grey", 0.0) if rng.random() < arguments["random_gray_scale"] else None
    blur = ("blur", rng.uniform(*arguments["sigmas"])) if rng.random() < arguments["gaussian_blur"] else None
    solarized = rng.random() < arguments.get("solarization_prob", 0.0)  # v3's transforms have it
    colours = (grey, *jitter) if grey_first else (*jitter, grey)
    return ViewPlan(box, flip, vertical_flip, rotation, (*colours, blur, ("solarize", 128.0) if solarized else None))


def _draw_box(min_scale: float, width: int, height: int, rng: Random) -> tuple[int, int, int, int]:
    for _ in range(TRIES):
        area = width * height * rng.uniform(min_scale, 1)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1)), w, h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def _draw_rotation(degrees: Any, rng: Random) -> float:
    if degrees is None:
        return 90.0
    low, high = (-degrees, degrees) if isinstance(degrees, (int, float)) else degrees
    return rng.uniform(low, high)


def _draw_jitter(arguments: dict[str, Any], rng: Random) -> list[Step | None]:
    """Return brightness, contrast, saturation and hue in random order; None for those of no strength."""
    if rng.random() >= arguments["cj_prob"]:
        return [None] * len(JITTER)
    steps: list[Step | None] = []
    for name, key in JITTER.items():
        span = arguments["cj_strength"] * arguments[key]
        low, high = (-span, span) if name == "hue" else (max(0.0, 1 - span), 1 + span)
        steps.append((name, rng.uniform(low, high)) if span else None)
    rng.shuffle(steps)
    return steps

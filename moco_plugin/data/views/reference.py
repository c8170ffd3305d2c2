"""Views by Pillow and torchvision, as lightly's transforms make them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from moco_plugin.data.views.plan import Step, ViewPlan


def make_view(image: np.ndarray, plan: ViewPlan, size: int) -> np.ndarray:
    """Return one view, ``size`` x ``size`` x 3, of an image, H x W or H x W x 3; both uint8."""
    left, top, width, height = plan.box
    view = Image.fromarray(image)
    view = view if view.mode == "RGB" else view.convert("RGB")
    view = F.resized_crop(view, top, left, height, width, [size, size], InterpolationMode.BILINEAR)
    view = F.hflip(view) if plan.flip else view
    view = F.vflip(view) if plan.vertical_flip else view
    view = F.rotate(view, plan.rotation) if plan.rotation else view
    for step in plan.steps:
        view = _apply(view, step) if step else view
    return np.array(view)


def _apply(view: Image.Image, step: Step) -> Image.Image:
    name, factor = step
    if name == "grey":
        return F.rgb_to_grayscale(view, num_output_channels=3)  # type: ignore[no-any-return]
    if name == "blur":
        return view.filter(ImageFilter.GaussianBlur(factor))
    if name == "solarize":
        return ImageOps.solarize(view, int(factor))
    return getattr(F, f"adjust_{name}")(view, factor)  # type: ignore[no-any-return]

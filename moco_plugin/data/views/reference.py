"""Views by Pillow and torchvision, as lightly's transforms make them."""

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from moco_plugin.data.views.plan import Step, ViewPlan


def make_view(image: np.ndarray, plan: ViewPlan, size: int, channels: int = 3) -> np.ndarray:
    """Return one view, ``size`` x ``size`` x ``channels``, of an image, H x W or H x W x C; both uint8."""
    if channels == 1:
        return _make_view(Image.fromarray(image), plan, size)[..., None]
    if channels == 3:
        return _make_view(Image.fromarray(image).convert("RGB"), plan, size)
    plain = plan._replace(steps=tuple(step for step in plan.steps if step and step[0] == "blur"))
    colours = 3 if channels > 3 else 0
    rgb = [_make_view(Image.fromarray(np.ascontiguousarray(image[..., :3])), plan, size)] if colours else []
    rest = [_make_view(Image.fromarray(band), plain, size) for band in np.moveaxis(image, 2, 0)[colours:]]
    return np.dstack([*rgb, *rest])


def _make_view(view: Image.Image, plan: ViewPlan, size: int) -> np.ndarray:
    left, top, width, height = plan.box
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
        return F.rgb_to_grayscale(view, num_output_channels=3) if view.mode == "RGB" else view
    if name == "blur":
        return view.filter(ImageFilter.GaussianBlur(factor))
    if name == "solarize":
        return ImageOps.solarize(view, int(factor))
    return getattr(F, f"adjust_{name}")(view, factor)  # type: ignore[no-any-return]

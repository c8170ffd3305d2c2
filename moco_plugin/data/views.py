"""Two random views of an image, built from lightly's transforms with the papers' arguments.

Views leave here as uint8; they are normalised on the training device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.simclr_transform import SimCLRViewTransform
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from moco_plugin.errors import UsageError, did_you_mean

_JITTER = {"cj_prob": 0.8, "cj_bright": 0.4, "cj_contrast": 0.4, "cj_sat": 0.4, "cj_hue": 0.1}
# lightly's transform of the first and of the second view, and the paper's arguments where they differ from its own
VIEWS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "moco_v1": (
        SimCLRViewTransform,
        SimCLRViewTransform,
        {**_JITTER, "cj_prob": 1.0, "cj_hue": 0.4, "min_scale": 0.2, "gaussian_blur": 0.0},
    ),
    "moco_v2": (SimCLRViewTransform, SimCLRViewTransform, {**_JITTER, "min_scale": 0.2, "gaussian_blur": 0.5}),
    # blur 1.0 and 0.1, solarize 0 and 0.2 are what tells the two apart; ViTs take min_scale 0.08
    "moco_v3": (BYOLView1Transform, BYOLView2Transform, {**_JITTER, "cj_sat": 0.2, "min_scale": 0.2}),
}


def view_arguments(name: str, image_size: int, **overrides: Any) -> list[dict[str, Any]]:
    """Return every argument of both views called ``name``: lightly's defaults, the paper's, then overrides.

    Raises:
        UsageError: Unknown name or argument.
    """
    if name not in VIEWS:
        raise UsageError(f"unknown views {name!r}; known are {', '.join(VIEWS)}{did_you_mean(name, VIEWS)}")
    *transforms, paper = VIEWS[name]
    both = []
    for transform in transforms:
        parameters = inspect.signature(transform).parameters
        defaults = {key: parameter.default for key, parameter in parameters.items() if key != "normalize"}
        for key in overrides:
            if key not in defaults:
                raise UsageError(
                    f"unknown key data.view_args.{key}; valid are {', '.join(defaults)}{did_you_mean(key, defaults)}"
                )
        both.append({**defaults, **paper, "input_size": image_size, **overrides})
    return both


def build_views(name: str, image_size: int, **overrides: Any) -> Callable[[Image.Image], list[Tensor]]:
    """Return a transform from a PIL image to two uint8 views, 3 x ``image_size`` x ``image_size``.

    Args:
        name: "moco_v1", "moco_v2" or "moco_v3".
        image_size: Side of a view in pixels.
        **overrides: Arguments of lightly's transforms that differ from the paper's, for both views.
    """
    views = []
    for transform, arguments in zip(VIEWS[name][:2], view_arguments(name, image_size, **overrides), strict=True):
        *steps, _to_float = transform(**arguments, normalize=None).transform.transforms
        if name == "moco_v1":  # the paper's order: grey comes before the jitter, which then works on grey images
            grey = next(step for step in steps if isinstance(step, v2.RandomGrayscale))
            steps.remove(grey)
            steps.insert(1, grey)
        views.append(v2.Compose([*steps, v2.PILToTensor()]))
    return cast(Callable[[Image.Image], list[Tensor]], MultiViewTransform(views))


def evaluation_transform(image_size: int, crop_ratio: float) -> Callable[[Image.Image], Tensor]:
    """Return the usual test view, uint8: short side to image_size / crop_ratio, then the centre."""
    steps = [v2.Resize(round(image_size / crop_ratio)), v2.CenterCrop(image_size), v2.PILToTensor()]
    return cast(Callable[[Image.Image], Tensor], v2.Compose(steps))

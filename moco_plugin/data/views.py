"""Two random views of an image, built from lightly's transforms with the papers' arguments.

Views leave here as uint8; they are normalised on the training device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

from lightly.transforms import MoCoV1Transform, MoCoV2Transform
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from moco_plugin.errors import UsageError, nearest

# lightly's defaults are v2's; its v1 jitters with probability 0.8 where the paper always does
VIEWS: dict[str, tuple[Callable[..., MultiViewTransform], dict[str, Any]]] = {
    "moco_v1": (MoCoV1Transform, {"cj_prob": 1.0}),
    "moco_v2": (MoCoV2Transform, {}),
}


def view_arguments(name: str, image_size: int, **overrides: Any) -> dict[str, Any]:
    """Returns every argument of the views called ``name``: lightly's defaults, the paper's, then overrides.

    Raises:
        UsageError: Unknown name or argument.
    """
    if name not in VIEWS:
        raise UsageError(f"unknown views {name!r}; known are {', '.join(VIEWS)}{nearest(name, VIEWS)}")
    transform, paper = VIEWS[name]
    parameters = inspect.signature(transform).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items() if key != "normalize"}
    for key in overrides:
        if key not in defaults:
            raise UsageError(
                f"unknown key data.view_args.{key}; valid are {', '.join(defaults)}{nearest(key, defaults)}"
            )
    return {**defaults, **paper, "input_size": image_size, **overrides}


def build_views(name: str, image_size: int, **overrides: Any) -> Callable[[Image.Image], list[Tensor]]:
    """Returns a transform from a PIL image to two uint8 views, 3 x ``image_size`` x ``image_size``.

    Args:
        name: "moco_v1" or "moco_v2".
        image_size: Side of a view in pixels.
        **overrides: Arguments of lightly's transform that differ from the paper's.
    """
    views = VIEWS[name][0](**view_arguments(name, image_size, **overrides), normalize=None)
    for view in {id(view): view for view in views.transforms}.values():  # lightly's two are one object
        *steps, _to_float = view.transform.transforms
        if (
            name == "moco_v1"
        ):  # the paper's order: grey comes before the jitter, which then works on grey images
            grey = next(s for s in steps if isinstance(s, v2.RandomGrayscale))
            steps.remove(grey)
            steps.insert(1, grey)
        view.transform = v2.Compose([*steps, v2.PILToTensor()])
    return cast(Callable[[Image.Image], list[Tensor]], views)


def evaluation_transform(image_size: int, crop_ratio: float) -> Callable[[Image.Image], Tensor]:
    """Returns the usual test view, uint8: short side to image_size / crop_ratio, then the centre."""
    steps = [v2.Resize(round(image_size / crop_ratio)), v2.CenterCrop(image_size), v2.PILToTensor()]
    return cast(Callable[[Image.Image], Tensor], v2.Compose(steps))

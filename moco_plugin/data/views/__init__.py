"""Two random views of an image, with the distribution of lightly's transforms and the papers' arguments.

One function draws what is done to an image (``plan``). An engine carries it out: ``reference`` and ``fast`` in loader
processes, ``device`` on batches. Views leave here as uint8; they are normalised on the training device.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, cast

import numpy as np
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from lightly.transforms.simclr_transform import SimCLRViewTransform
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

from moco_plugin.data.views import device, fast, reference
from moco_plugin.data.views.plan import ViewPlan, draw_plan
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
    # blur 1.0 and 0.1, solarize 0 and 0.2 are the only differences between the two; ViTs take min_scale 0.08
    "moco_v3": (BYOLView1Transform, BYOLView2Transform, {**_JITTER, "cj_sat": 0.2, "min_scale": 0.2}),
}
GREY_FIRST = {"moco_v1"}  # the paper's order: grey comes before the jitter, which then works on grey images
ENGINES = ("fast", "reference", "device")


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


class Views:
    """Makes the two views of an image; with the engine ``device``, ``finish`` makes them of a batch.

    Args:
        name: "moco_v1", "moco_v2" or "moco_v3".
        image_size: Side of a view in pixels.
        engine: One of ``ENGINES``.
        whole: Leave the crop to the device as well, for images of one size.
        channels: Of the images and the views. Colours are changed in the first three, or in a grey image's one.
        **overrides: Arguments of lightly's transforms that differ from the paper's, for both views.

    Raises:
        UsageError: Unknown name, engine or argument.
    """

    def __init__(
        self, name: str, image_size: int, engine: str = "fast", whole: bool = False, channels: int = 3, **overrides: Any
    ) -> None:
        if engine not in ENGINES:
            raise UsageError(
                f"views.engine is {engine!r}; expected {', '.join(ENGINES)}{did_you_mean(engine, ENGINES)}"
            )
        self.arguments = view_arguments(name, image_size, **overrides)
        self.grey_first = name in GREY_FIRST
        self.image_size, self.engine, self.channels = image_size, engine, channels
        self.turned = any(arguments[key] for arguments in self.arguments for key in ("vf_prob", "rr_prob"))
        self.whole = whole and engine == "device" and not self.turned

    def __call__(self, image: np.ndarray, rng: Random) -> tuple[list[np.ndarray], list[ViewPlan]]:
        """Return uint8 arrays, and the part of the plans that is left to the device.

        Args:
            image: H x W for grey ones, or H x W x ``channels``, uint8.
            rng: Source of all random numbers.

        Returns:
            Two views, ``image_size`` x ``image_size`` x ``channels``, and no plans. With the engine ``device``, two
            crops, or only the image if ``whole``, and two plans.
        """
        height, width = image.shape[:2]
        plans = [draw_plan(arguments, width, height, rng, self.grey_first) for arguments in self.arguments]
        if self.whole:
            return [image], plans
        if self.engine == "device":
            crops = [fast.crop(image, plan.box, self.image_size) for plan in plans]
            if self.turned:  # what the device does not do
                crops = [fast.turn(crop, plan) for crop, plan in zip(crops, plans, strict=True)]
                plans = [plan._replace(flip=False) for plan in plans]
            return crops, plans
        make_view = fast.make_view if self.engine == "fast" else reference.make_view
        return [make_view(image, plan, self.image_size, self.channels) for plan in plans], []

    def collate(
        self, items: Sequence[tuple[list[np.ndarray], list[ViewPlan], str]]
    ) -> tuple[list[Tensor], list[device.PackedPlans], list[str]]:
        """Return a batch of ``TrainImages``: what ``finish`` takes, and the names of corrupt images.

        In mixed batches, grey images get three channels.
        """
        views, plans, corrupt = zip(*items, strict=True)
        batches = []
        for arrays in zip(*views, strict=True):
            channels = max(1 if array.ndim == 2 else array.shape[2] for array in arrays)
            alike = [a if a.ndim == 3 else np.repeat(a[..., None], channels, axis=2) for a in arrays]
            batches.append(default_collate(alike))
        return batches, [device.pack(of_view) for of_view in zip(*plans, strict=True)], list(corrupt)

    def finish(self, arrays: Sequence[Tensor], plans: Sequence[device.PackedPlans]) -> list[Tensor]:
        """Return the two views of a batch, N x ``image_size`` x ``image_size`` x ``channels``, uint8, on its device."""
        return device.finish(arrays, plans, self.image_size, self.channels)

    def shrink(self, width: int, height: int) -> int:
        """Return the largest of 1, 2, 4 and 8 that leaves every crop of an image as large as its view."""
        scale = min(arguments["min_scale"] for arguments in self.arguments)
        least = min(math.sqrt(scale * width * height * 3 / 4), width, height)  # 3/4 is the narrowest crop's ratio
        return max((divisor for divisor in (2, 4, 8) if least >= divisor * self.image_size), default=1)


def evaluation_transform(image_size: int, crop_ratio: float) -> Callable[[Image.Image | Tensor], Tensor]:
    """Return the usual test view, uint8: short side to image_size / crop_ratio, then the centre."""
    steps = [v2.Resize(round(image_size / crop_ratio)), v2.CenterCrop(image_size), v2.PILToTensor()]
    return cast(Callable[[Image.Image | Tensor], Tensor], v2.Compose(steps))

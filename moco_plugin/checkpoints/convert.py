"""Conversion of any checkpoint to any format, with a proof that the result computes the same features."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from moco_plugin.checkpoints import known_formats
from moco_plugin.checkpoints.formats import Format, Network, random_images, stages_of
from moco_plugin.checkpoints.read import Checkpoint, read_checkpoint
from moco_plugin.errors import UsageError, UserError, did_you_mean, reason
from moco_plugin.files import atomic_folder, atomic_path, check_output

# Share of a stage's largest feature. Rounding in float64 gives differences of 1e-15, a wrong weight of 1e-3.
TOLERANCE = 1e-6
FOLDER_FILES = {"config.json", "model.safetensors"}  # of timm's folders


def convert(
    source: str | Path | Checkpoint,
    output: str | Path,
    to: str = "detectron2",
    *,
    overwrite: bool = False,
    **reading: Any,
) -> dict[str, Any]:
    """Convert a checkpoint, and print its description and the differences of both networks' features.

    The features are compared first, since the file contains the result. The file is then written under another name,
    read back, compared tensor by tensor, and renamed.

    Args:
        source: A checkpoint of any layout that ``read_checkpoint`` knows: a path, a released one's name, or as read.
        output: The file or folder to write: detectron2 ``.pkl``; timm ``.pth``, ``.pt``, ``.safetensors`` or a folder;
            torchvision ``.pth``, ``.pt`` or ``.safetensors``; lightly-train ``.pth`` or ``.pt``; onnx ``.onnx``.
        to: "detectron2" (its own ResNet, or ``build_timm_backbone`` for other networks), "detectron2-timm"
            (``build_timm_backbone`` for all), "timm", "torchvision", "lightly-train" or "onnx".
        overwrite: Replace an existing output.
        reading: Of ``read_checkpoint`` where it reads the source: ``encoder``, ``architecture``, ``arguments``, ``prefix``.

    Returns:
        The file's metadata: its source, how the target builds the network, and the ``proof``.

    Raises:
        UsageError: An unknown target, the output's ending, or the output exists.
        UserError: The source cannot be read, the target has no such network, or its features differ.
    """
    output = Path(output).expanduser()
    format = find_format(to)
    _check_output(format, output, overwrite)
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source, **reading)
    print("\n".join(describe(checkpoint)))
    if checkpoint.view.channels != 3 and not format.any_channels:
        raise UserError(
            f"{output} was not written: {format.name} reads RGB images, and this network takes images of "
            f"{checkpoint.view.channels} channels; convert it to timm or onnx"
        )
    target = format.target(checkpoint, output)
    original = _own_network(checkpoint, target.network.framework)
    if target.source_stages:
        original.stages = target.source_stages(list(original.stages))
    try:
        proof = prove(original, target.network, random_images(checkpoint.backbone))
    except UserError as error:
        raise UserError(f"{output} was not written: {error}") from error
    metadata = {**_source_metadata(checkpoint), **target.details, "proof": asdict(proof)}
    with atomic_path(output) if output.suffix else atomic_folder(output) as temporary:
        target.write(temporary, metadata, target.state)
        written = target.read(temporary)
        for name, value in target.state.items():
            one, other = torch.as_tensor(value), torch.as_tensor(written.get(name, ()))
            if one.dtype != other.dtype or not torch.equal(one, other):
                raise UserError(f"{output} was not written: read back, its {name} differs from what was written")
    for stage, difference in proof.largest_differences.items():
        print(f"{stage}: largest difference between {proof.source} and {proof.target} {difference:.2e}")
    print(f"written: {output}\nopens with: {target.opens}")
    return metadata


def describe(checkpoint: Checkpoint) -> list[str]:
    """Return the lines that describe a checkpoint: a name, blanks to column 14, and the value."""
    view, backbone = checkpoint.view, checkpoint.backbone
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (view.mean, view.std))
    size = f"{view.image_size} x {view.image_size}, centre crop {view.crop_ratio:g}"
    arguments = ", ".join(f"{name}={value}" for name, value in checkpoint.arguments.items())
    parameters = sum(p.numel() for p in backbone.parameters())
    rows = [
        ("file", str(checkpoint.path)),
        ("layout", checkpoint.layout),
        ("architecture", checkpoint.architecture + (f" ({arguments})" if arguments else "")),
        ("method", checkpoint.method or "unknown"),
        ("epoch", "unknown" if checkpoint.epoch is None else str(checkpoint.epoch)),
        ("encoders", f"{' and '.join(checkpoint.encoders)}; read: {checkpoint.encoder}"),
        ("backbone", f"{parameters:,} parameters, {len(backbone.state_dict())} tensors"),
        ("head", ", ".join(f"{n} {tuple(v.shape)}" for n, v in checkpoint.head.items()) or "none with the encoder"),
        ("images", f"{size}, mean {mean}, std {std}"),
        ("sha256", checkpoint.sha256),
        *(("note", note) for note in checkpoint.notes),
    ]
    if checkpoint.unused:
        rows.append(("unused", f"{len(checkpoint.unused)} tensors, neither read nor known to be heads or queues:"))
        rows += [("", name) for name in checkpoint.unused]
    return [f"{name:<14}{value}" for name, value in rows]


def find_format(name: str) -> Format:
    """Return the format of a name.

    Raises:
        UsageError: There is none.
        UserError: A package is not installed.
    """
    known = known_formats()
    if name not in known.names:
        names = sorted(known.names)
        raise UsageError(f"to is {name!r}; expected one of {', '.join(names)}{did_you_mean(name, names)}")
    try:
        format: Format = known[name].load()
    except ModuleNotFoundError as error:
        how = "moco-install-detectron2" if error.name == "detectron2" else f"pip install {error.name}"
        raise UserError(f"conversion to {name} needs {error.name}, which is not installed; run `{how}`") from error
    return format


def _check_output(format: Format, output: Path, overwrite: bool) -> None:
    """Raise UsageError if the output has a wrong suffix, or exists and must be kept."""
    if output.suffix not in format.suffixes:
        *first, last = (suffix or "no ending (a folder)" for suffix in format.suffixes)
        expected = f"{', '.join(first)} or {last}" if first else last
        raise UsageError(f"{output} does not end in {expected}, as files for {format.name} do")
    check_output(output, overwrite)
    if output.is_dir() and not {path.name for path in output.iterdir()} <= FOLDER_FILES:
        raise UsageError(f"{output} contains other files than a timm model and was kept; choose another output")


def _own_network(checkpoint: Checkpoint, target: str) -> Network:
    """Return the network of the source's framework, else torchvision's or timm's, but never the target's own."""
    for framework in (checkpoint.framework, "torchvision") if checkpoint.framework != "timm" else ():
        if framework != target:
            try:
                if build := find_format(framework).source:
                    return build(checkpoint)
            except UserError:  # a deep stem, other widths, a missing framework
                pass
    return Network("timm", checkpoint.backbone, stages_of(checkpoint.backbone))


def _source_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the metadata of every written file: the source of the weights, and the images that they need."""
    return {
        "source": checkpoint.path.name,
        "source_sha256": checkpoint.sha256,
        "layout": checkpoint.layout,
        "architecture": checkpoint.architecture,
        "encoder": checkpoint.encoder,
        "method": checkpoint.method or "",
        "epoch": checkpoint.epoch if checkpoint.epoch is not None else -1,
        "input_format": "RGB",
        "pixel_mean": [255 * value for value in checkpoint.view.mean],
        "pixel_std": [255 * value for value in checkpoint.view.std],
        "image_size": checkpoint.view.image_size,
        "crop_ratio": checkpoint.view.crop_ratio,
        "value_range": checkpoint.view.value_range,
        "version": version("moco-plugin"),
    }


class _Float64(TorchFunctionMode):
    """Computes in float64 with float32 weights, which are converted one by one to save memory."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, (args, kwargs or {}))
        return function(*args, **kwargs)


@torch.no_grad()
def stage_features(network: Network, images: Tensor) -> dict[str, Tensor]:
    """Return the outputs, in float64, of those stages of a network that return one tensor.

    Raises:
        UserError: The network does not take such images.
    """
    features: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            features[name] = output.clone()  # the next layer may work in place

    hooks = [network.module.get_submodule(name).register_forward_hook(partial(keep, name)) for name in network.stages]
    try:
        with _Float64():
            network.module(images)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        shape = " x ".join(map(str, images.shape))
        raise UserError(f"{network.framework}'s network does not take images of {shape}: {reason(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return features


@dataclass
class Proof:
    """The result of a comparison; it is written into the file.

    Attributes:
        source: Framework of the network with the weights that were read.
        target: Framework of the network with the weights to write.
        images: N, C, H and W of the random images.
        largest_differences: By the target's stages, as a share of the source's largest feature there.
        tolerance: Largest difference that is allowed.
        arithmetic: Type of the computation.
    """

    source: str
    target: str
    images: list[int]
    largest_differences: dict[str, float]
    tolerance: float = TOLERANCE
    arithmetic: str = "float64"


def prove(source: Network, target: Network, images: Tensor) -> Proof:
    """Compare two networks on the same images (N x C x H x W, float64), stage by stage.

    Raises:
        UserError: The features of a stage differ by more than ``TOLERANCE`` of the largest, are of different shapes,
            or are all zero.
    """
    differences = {}
    all_expected, all_found = stage_features(source, images), stage_features(target, images)
    for source_stage, target_stage in zip(source.stages, target.stages, strict=True):
        if source_stage not in all_expected or target_stage not in all_found:
            continue
        stage, expected, found = target_stage or "output", all_expected[source_stage], all_found[target_stage]
        if expected.shape != found.shape:
            shapes = f"{tuple(found.shape)}, {source.framework}'s of {tuple(expected.shape)}"
            raise UserError(f"{target.framework}'s {stage} is of shape {shapes}")
        largest = expected.abs().max()
        if not largest:  # equal zeros would prove nothing
            raise UserError(f"the network's {stage} features are all zero, so its weights are not trained")
        differences[stage] = difference = float((expected - found).abs().max() / largest)
        if not difference <= TOLERANCE:  # NaN is not small either
            raise UserError(
                f"{target.framework}'s {stage} differs by {difference:.3g} of its largest feature from "
                f"{source.framework}'s, more than {TOLERANCE:g}"
            )
    if not differences:
        raise UserError(f"{source.framework}'s network has no stages to compare")
    return Proof(source.framework, target.framework, list(images.shape), differences)

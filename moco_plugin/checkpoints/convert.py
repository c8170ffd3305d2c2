"""Conversion of any checkpoint to any format, after a proof that the result computes the same features.

Formats are entry points of the group ``moco_plugin.formats``, so that another package can add one.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
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

# Share of a stage's largest feature. Two ways to compute the same leave 1e-15 in float64; a wrong weight leaves 1e-3.
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
    """Convert a checkpoint, and print what it was and how exactly the result computes the same.

    The features of both networks are compared first, since the file contains the result. The file is then written
    under another name, read back, compared tensor by tensor, and moved to its place.

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
            f"{checkpoint.view.channels} channels; timm and onnx files can hold it"
        )
    target = format.target(checkpoint, output)
    original = _own_network(checkpoint, target.network.framework)
    if target.source_stages:
        original.stages = target.source_stages(list(original.stages))
    try:
        proof = prove(original, target.network, random_images(checkpoint.backbone))
    except UserError as error:
        raise UserError(f"{output} was not written: {error}") from error
    metadata = {**_source_metadata(checkpoint), **target.details, "proof": dataclasses.asdict(proof)}
    with atomic_path(output) if output.suffix else atomic_folder(output) as temporary:
        target.write(temporary, metadata, target.state)
        written = target.read(temporary)
        for name, value in target.state.items():
            if name not in written or not _same(value, written[name]):
                raise UserError(f"{output} was not written: read back, its {name} was not what was written")
    for stage, difference in proof.largest_differences.items():
        print(f"{stage}: largest difference between {proof.source} and {proof.target} {difference:.2e}")
    print(f"written: {output}\nopens with: {target.opens}")
    return metadata


def describe(checkpoint: Checkpoint) -> list[str]:
    """Return the lines that describe a checkpoint: a name, blanks to column 14, and the value."""
    view, backbone = checkpoint.view, checkpoint.backbone
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
        (
            "images",
            f"{view.image_size} x {view.image_size}, centre crop {view.crop_ratio:g}, "
            f"mean {_listed(view.mean)}, std {_listed(view.std)}",
        ),
        ("sha256", checkpoint.sha256),
        *(("note", note) for note in checkpoint.notes),
    ]
    if checkpoint.unused:
        rows.append(("unused", f"{len(checkpoint.unused)} tensors, neither read nor known to be heads or queues:"))
        rows += [("", name) for name in checkpoint.unused]
    return [f"{name:<14}{value}" for name, value in rows]


def _listed(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def find_format(name: str) -> Format:
    """Return the format that ``to`` names.

    Raises:
        UsageError: There is none of that name.
        UserError: A package is not installed.
    """
    known = known_formats()
    if not known:
        raise UserError("moco_plugin was installed before formats became entry points; install it again")
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
    """Raise UsageError if the output's suffix is wrong, or a file exists that must be kept."""
    if output.suffix not in format.suffixes:
        *first, last = (suffix or "no ending (a folder)" for suffix in format.suffixes)
        expected = f"{', '.join(first)} or {last}" if first else last
        raise UsageError(f"{output} does not end in {expected}, as files for {format.name} do")
    check_output(output, overwrite)
    if output.is_dir() and not {path.name for path in output.iterdir()} <= FOLDER_FILES:
        raise UsageError(f"{output} holds other things than a timm model and was kept; choose another output")


def _own_network(checkpoint: Checkpoint, target: str) -> Network:
    """Return the network of the framework in whose names the weights came; torchvision's or timm's if it has none.

    It is never the target's own, which would prove nothing.
    """
    for framework in (checkpoint.framework, "torchvision") if checkpoint.framework != "timm" else ():
        if framework != target:
            try:
                if build := find_format(framework).source:
                    return build(checkpoint)
            except UserError:  # a deep stem, other widths, a framework that is not installed
                pass
    return Network("timm", checkpoint.backbone, stages_of(checkpoint.backbone))


def _source_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what every written file says about where its weights come from and what images they want."""
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


def _same(a: Any, b: Any) -> bool:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.dtype == b.dtype and torch.equal(a, b)


class _Float64(TorchFunctionMode):
    """Lets float32 weights take part in float64 arithmetic one by one: no network is copied to float64 whole."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, _to_float64, (args, kwargs or {}))
        return function(*args, **kwargs)


def _to_float64(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor


@torch.no_grad()
def stage_features(network: Network, images: Tensor) -> dict[str, Tensor]:
    """Return the outputs of those of a network's stages that give one tensor, computed in float64.

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
    """What a comparison found; written into the file that it is about.

    Attributes:
        source: Whose network held the weights as they came.
        target: Whose network held the weights as they go out.
        images: N, C, H and W of the random images.
        largest_differences: By the target's stages, as a share of the source's largest feature there.
        tolerance: The most that was allowed.
        arithmetic: What was computed in.
    """

    source: str
    target: str
    images: list[int]
    largest_differences: dict[str, float]
    tolerance: float = TOLERANCE
    arithmetic: str = "float64"


def prove(source: Network, target: Network, images: Tensor) -> Proof:
    """Compare two networks on the same images, stage by stage.

    Args:
        source: Holds the weights as they came.
        target: Holds the weights as they go out.
        images: N x C x H x W, float64.

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
            raise UserError(
                f"{target.framework}'s {stage} is of shape {tuple(found.shape)}, {source.framework}'s of "
                f"{tuple(expected.shape)}"
            )
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

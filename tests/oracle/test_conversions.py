"""The same weights in the layouts of many frameworks: each conversion writes the same bytes."""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from moco_plugin.checkpoints import convert
from moco_plugin.checkpoints.metadata import IMAGENET_VIEW
from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.exports.to_torchvision import torchvision_name
from tests.helpers import foreign, foreign_lightly, foreign_methods
from tests.helpers.foreign import SAMPLES
from tests.helpers.networks import seen

ABOUT_THE_SOURCE = {"source", "source_sha256", "layout", "architecture", "method", "epoch"}
RESNETS = """official_v2 official_v3_resnet lightly_sequential lightly_benchmark lightly_train_timm lightly_train_moco
    lightly_train_export lightly_train_whole solo_learn_old mmselfsup vissl torchvision_plain detectron2_pickle densecl
    pixpro byol barlow_twins vicreg vicregl swav simsiam model_and_ema hugging_face_resnet""".split()
VITS = "official_v3_vit_small torchvision_vit mae dino hugging_face_vit".split()
FORMATS = {
    "detectron2": ".pkl",
    "detectron2-timm": ".pkl",
    "timm": "",
    "torchvision": ".pth",
    "lightly-train": ".pt",
    "onnx": ".onnx",
}


Files = dict[str, dict[str, Path]]


@functools.cache
def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "resnet":
        return seen(timm.create_model("resnet18", num_classes=0, layers=(1, 1, 1, 1), zero_init_last=False))
    return seen(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, img_size=64))


def in_timm(*_: Any, kind: str, **__: Any) -> nn.Module:
    """The network, with its weights in channels-last memory."""
    return copy.deepcopy(network(kind)).to(memory_format=torch.channels_last)


def resnet_in_torchvision(*_: Any, **__: Any) -> nn.Module:
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    model.fc = nn.Identity()
    model.load_state_dict(network("resnet").state_dict())
    return model.eval().to(memory_format=torch.channels_last)


def vit_in_torchvision() -> nn.Module:
    model = torchvision.models.VisionTransformer(64, 16, 2, 3, 192, 768)
    model.heads = nn.Identity()
    model.load_state_dict({torchvision_name(name): value for name, value in network("vit").state_dict().items()})
    return model.eval()


def write_timm_folder(kind: str, path: Path) -> None:
    """Write a folder as timm does; its images are shown as those of the layouts that do not say how."""
    model: Any = copy.deepcopy(network(kind))
    view = {"crop_pct": IMAGENET_VIEW.crop_ratio, "mean": IMAGENET_VIEW.mean, "std": IMAGENET_VIEW.std}
    model.pretrained_cfg = {**model.pretrained_cfg, **view}
    layers = {"layers": (1, 1, 1, 1)} if kind == "resnet" else {"depth": 2, "img_size": 64}
    timm.models.save_for_hf(model, path, model_args=layers, safe_serialization=True)


def write_own(kind: str, path: Path, memory: torch.memory_format) -> None:
    """Write what the reader needs of a checkpoint of our own run."""
    names = {"resnet": ("resnet18", {"layers": [1, 1, 1, 1]}), "vit": ("vit_tiny_patch16_224", {"depth": 2})}
    backbone, arguments = names[kind]
    side = 64 if kind == "vit" else IMAGENET_VIEW.image_size
    data: dict[str, Any] = {"image_size": side, "crop_ratio": IMAGENET_VIEW.crop_ratio}
    data |= {"mean": IMAGENET_VIEW.mean, "std": IMAGENET_VIEW.std}
    config = {"method": "moco", "seed": 0, "backbone": backbone, "backbone_args": arguments, "data": data}
    state = {
        f"method.encoder_{encoder}.backbone.{name}": value.to(memory_format=memory, copy=True)
        if value.ndim == 4
        else value.clone()
        for encoder in "qk"
        for name, value in network(kind).state_dict().items()
    }
    content = {"pytorch-lightning_version": "2.5", "epoch": 1, "state_dict": state}
    torch.save({**content, "hyper_parameters": {"config": config}}, path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The weights of a ResNet and of a ViT in every layout; all but the first and those of safetensors channels-last."""
    root = tmp_path_factory.mktemp("layouts")
    paths: Files = {"resnet": {}, "vit": {}}
    with pytest.MonkeyPatch.context() as patch:
        for module in (foreign, foreign_lightly, foreign_methods):
            patch.setattr(module, "narrow_resnet", functools.partial(in_timm, kind="resnet"), raising=False)
            patch.setattr(module, "tiny_vit", functools.partial(in_timm, kind="vit"), raising=False)
            patch.setattr(module, "torchvision_resnet", resnet_in_torchvision, raising=False)
            patch.setattr(module, "torchvision_vit", vit_in_torchvision, raising=False)
            patch.setattr(module, "other", copy.deepcopy, raising=False)
        for kind, names in (("resnet", RESNETS), ("vit", VITS)):
            plain = {name: value.contiguous() for name, value in network(kind).state_dict().items()}
            writers: dict[str, Callable[[Path], Any]] = {
                "moco_plugin": functools.partial(write_own, kind, memory=torch.contiguous_format),
                "moco_plugin_channels_last": functools.partial(write_own, kind, memory=torch.channels_last),
                "timm_folder": functools.partial(write_timm_folder, kind),
                "safetensors": functools.partial(safetensors.torch.save_file, plain),
                **{name: SAMPLES[name]().write for name in names},
            }
            for name, write in writers.items():
                paths[kind][name] = root / f"{kind}_{name}"
                write(paths[kind][name])
    return paths


@pytest.fixture
def without_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the metadata about the source out of files, so that all others must be equal, byte for byte."""
    metadata, prove = convert._source_metadata, convert.prove
    monkeypatch.setattr(
        convert, "_source_metadata", lambda c: {k: v for k, v in metadata(c).items() if k not in ABOUT_THE_SOURCE}
    )
    monkeypatch.setattr(convert, "prove", lambda *of: replace(prove(*of), source="", largest_differences={}))


def converted(source: Path, to: str, folder: Path) -> dict[str, bytes]:
    """The bytes of the files that a conversion writes; without projection heads, which only some layouts have."""
    output = folder / f"weights{FORMATS[to]}"
    convert.convert(replace(read_checkpoint(source), head={}), output, to, overwrite=True)
    if to == "onnx":
        return {"": onnx.load(output).SerializeToString(deterministic=True)}
    return {path.name: path.read_bytes() for path in (sorted(output.iterdir()) if output.is_dir() else [output])}


@pytest.mark.usefixtures("without_source")
@pytest.mark.parametrize("kind", ["resnet", "vit"])
@pytest.mark.parametrize("to", FORMATS)
def test_every_layout_gives_the_same_bytes(files: Files, to: str, kind: str, tmp_path: Path) -> None:
    first, *others = files[kind]
    if to == "onnx":  # an export takes seconds
        others = others[:1]
    elif to != "timm":  # all formats are written from what one reader gives
        others = others[::3]
    expected = converted(files[kind][first], to, tmp_path)
    for name in others:
        assert converted(files[kind][name], to, tmp_path) == expected, f"{name} gives other bytes than {first}"

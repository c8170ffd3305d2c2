"""The same labelled images in every source that the package reads, and checkpoints of tiny networks to evaluate."""

import gzip
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import timm
import torch
from PIL import Image
from torch import nn

from moco_plugin.tools.make_shards import main as make_shards
from tests.helpers.networks import seen

CLASSES = range(5, 12)  # as texts, 10 and 11 come before 5
SIDE, CROP = 32, 0.6
MEAN, STD = [0.45, 0.5, 0.4, 0.55], [0.3, 0.25, 0.2, 0.35]
RANGE = [100.0, 3000.0]  # of the images of four channels
RESNET = {"channels": (8, 16, 24, 32), "zero_init_last": False}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet18", RESNET),
    "bands": ("resnet18", {**RESNET, "in_chans": 4}),
    "vit": ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": SIDE, "patch_size": 8}),
}


def network(kind: str) -> nn.Module:
    """A network whose batch norm has statistics of its own, in eval mode."""
    name, arguments = NETWORKS[kind]
    torch.manual_seed(1)
    return seen(timm.create_model(name, num_classes=0, **arguments))


def write_checkpoint(path: Path, kind: str, channels_last: bool) -> None:
    """Write what pre-training with this network leaves, as far as an evaluation reads it."""
    name, arguments = NETWORKS[kind]
    channels = arguments.get("in_chans", 3)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    state = {
        f"method.encoder_q.backbone.{key}": value.contiguous(memory_format=layout) if value.ndim == 4 else value
        for key, value in network(kind).state_dict().items()
    }
    data: dict[str, Any] = {"image_size": SIDE, "crop_ratio": CROP, "mean": MEAN[:channels], "std": STD[:channels]}
    data["value_range"] = RANGE if kind == "bands" else None
    config = {"backbone": name, "backbone_args": arguments, "seed": 0, "method": "moco", "data": data}
    torch.save({"state_dict": state, "hyper_parameters": {"config": config}}, path)


def pictures(seed: int, count: int, channels: int, sides: tuple[int, int] | None = None) -> list[np.ndarray]:
    """Smooth images (uint8, H x W x C) that share something with those of the same class, class after class."""
    generator = np.random.default_rng(seed)
    common = np.random.default_rng(0).normal(128, 40, (len(CLASSES), 4, 5, channels))
    made = []
    for index in range(count):
        coarse = common[index % len(CLASSES)] + generator.normal(0, 45, (4, 5, channels))
        height, width = sides or (int(side) for side in generator.integers(34, 60, 2))
        made.append(enlarged(coarse.clip(0, 255).astype(np.uint8), (width, height)))
    return made


def enlarged(coarse: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image (uint8, H x W x C) of this width and height, each channel interpolated by itself."""
    channels = (Image.fromarray(part.copy()) for part in np.moveaxis(coarse, 2, 0))
    return np.stack([np.asarray(part.resize(size, Image.Resampling.BICUBIC)) for part in channels], axis=2)


def write_sources(folder: Path, split: str, seed: int, count: int) -> dict[str, str]:
    """Write grey JPEG images of one size in all six sources, in the order of the folder; return their specs."""
    root = folder / split
    for index, image in enumerate(pictures(seed, count, 1, sides=(36, 46))):
        path = root / str(CLASSES[index % len(CLASSES)]) / ("a", "a-b")[index // 7 % 2] / f"{index:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path, quality=90)
    files = sorted(root.rglob("*.jpg"))
    rows = [(str(file.relative_to(folder)), file.parent.parent.name) for file in files]
    (folder / f"{split}.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    (folder / f"{split}.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
    with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
        for name, _ in reversed(rows):
            archive.write(folder / name, name)
    assert make_shards([str(root), str(folder / f"{split}-tar" / "part"), "--images-per-shard", "17"]) == 0
    for file in (folder / f"{split}-tar").glob("*.json"):
        file.unlink()  # as other programs write shards
    idx = folder / f"{split}-images-idx3-ubyte.gz"
    write_idx(idx, np.stack([np.asarray(Image.open(file)) for file in files]))
    write_idx(
        Path(str(idx).replace("images-idx3", "labels-idx1")),
        np.array([CLASSES.index(int(label)) for _, label in rows], np.uint8),
    )
    sources = {kind: str(folder / f"{split}.{kind}") for kind in ("csv", "txt", "zip")}
    return sources | {"folder": str(root), "tar": str(folder / f"{split}-tar"), "idx": str(idx)}


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write a gzipped idx file of bytes, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + values.tobytes()))


def write_bands(folder: Path, split: str, seed: int, count: int) -> dict[str, str]:
    """Write images of four channels of 12 bits: a folder of arrays, of TIFF files, an archive and a list of both."""
    rows = []
    for index, image in enumerate(pictures(seed, count, 4)):
        name, values = f"{CLASSES[index % len(CLASSES)]}/{index:03}", image.astype(np.uint16) * 12 + 40
        for kind in ("npy", "tif"):
            (folder / f"{split}-{kind}" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{split}-npy/{name}.npy", np.moveaxis(values, 2, 0) if index % 2 else values)
        tifffile.imwrite(folder / f"{split}-tif/{name}.tif", np.moveaxis(values, 2, 0), photometric="minisblack")
        end = ("npy", "tif")[index % 2]
        rows.append((name, f"{split}-{end}/{name}.{end},{name.split('/')[0]}\n"))
    (folder / f"{split}-both.csv").write_text("".join(row for _, row in sorted(rows)))
    shutil.make_archive(str(folder / f"{split}-zip"), "zip", folder / f"{split}-tif")
    kinds = {"npy": "npy", "tif": "tif", "zip": "zip.zip", "csv": "both.csv"}
    return {kind: str(folder / f"{split}-{end}") for kind, end in kinds.items()}


def write_colours(folder: Path, split: str, seed: int, count: int) -> dict[str, str]:
    """Write lists of colour images, JPEG and PNG of many sizes, that have none to three of three labels."""
    images, rows = pictures(seed, count, 3), []
    for index, image in enumerate(images):
        path = folder / f"{split}-colours" / f"{index:03}.{('jpg', 'png')[index % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=90)
        bright = image.mean(axis=(0, 1)) > 128
        names = ";".join(name for name, there in zip(("red", "green", "blue"), bright, strict=True) if there)
        rows.append((str(path.relative_to(folder)), names))
    (folder / f"{split}-several.csv").write_text("".join(f"{path},{names}\n" for path, names in rows))
    (folder / f"{split}-several.txt").write_text("".join(f"{path} {names}\n" for path, names in rows))
    return {kind: str(folder / f"{split}-several.{kind}") for kind in ("csv", "txt")}

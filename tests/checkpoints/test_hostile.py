"""Broken and hostile files end in one sentence: no code run, no memory or time taken by what a header claims."""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.resnet import Bottleneck, ResNet

from moco_plugin.checkpoints.read import read_checkpoint
from moco_plugin.errors import UserError
from moco_plugin.weight_files.load import load_file
from tests.helpers import foreign, mutations, networks, safety_cases
from tests.helpers.networks import narrow_resnet, prefixed
from tests.helpers.processes import context

FUZZED = """official_v2 official_v3_vit_small lightly_generator lightly_masked lightly_train_timm lightly_train_whole
    lightly_train_convnext solo_learn solo_learn_old mmselfsup mmpretrain_v3 vissl timm_safetensors timm_folder timm_train
    detectron2_pickle""".split()
FILES = 560


def in_a_process(function: Callable[..., None], *args: Any) -> dict[str, Any]:
    result = Path(args[-1])
    process = context.Process(target=function, args=args)
    process.start()
    process.join(300)
    assert process.exitcode == 0, f"the reading process ended with {process.exitcode}"
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    torch.manual_seed(0)
    tiny = {"embed_dim": 64, "num_heads": 1, "depth": 1, "img_size": 32}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "TINY_VIT", tiny)
        for name in FUZZED:
            foreign.SAMPLES[name]().write(folder / name)
    own = {f"backbone.bottom_up.{n}": v for n, v in load_file(folder / "detectron2_pickle").content["model"].items()}
    torch.save({"model": {n: torch.tensor(v) for n, v in own.items()}}, folder / "detectron2_pth")
    return folder


def test_mutated_files_end_in_one_sentence(samples: Path, tmp_path: Path, tiny_run: Path) -> None:
    (samples / "ours").write_bytes((tiny_run / "checkpoints" / "last.ckpt").read_bytes())
    names = sorted(path.name for path in samples.iterdir())
    report = in_a_process(mutations.fuzz, str(samples), FILES, 0, str(tmp_path / "report.json"))
    outcomes = report["outcomes"]
    assert len(outcomes) >= 500
    assert {name: text for name, text in outcomes.items() if text.startswith("BAD")} == {}
    assert report["files"] == names  # nothing else was written
    assert report["memory"] < 300 << 20
    kinds = [text == "read" for text in outcomes.values()]
    assert 50 < sum(kinds) < len(kinds) - 200  # flips in weights are not noticed, most others are
    assert len(set(outcomes.values())) > 100


# --- single attacks

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
FLOATS = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def storage(count: int, view: bytes = b"") -> bytes:
    """The persistent id of a storage of ``count`` floats."""
    return b"(X\x07\0\0\0storage" + FLOATS + b"X\x01\0\0\x000X\x03\0\0\0cpu" + integer(count) + view + b"tQ"


def tensor(count: int, size: tuple[int, ...], stride: tuple[int, ...], view: bytes = b"") -> bytes:
    """A pickle of ``{"w": tensor}``."""
    shapes = b"".join(b"(" + b"".join(map(integer, part)) + b"t" for part in (size, stride))
    return b"\x80\x02}X\x01\x00\x00\x00w" + REBUILD + b"(" + storage(count, view) + integer(0) + shapes + b"\x89}tRs."


def torch_zip(path: Path, data: bytes, weights: bytes = b"", compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", weights)
        archive.writestr("a/version", "3\n")


def call(name: bytes, argument: bytes) -> bytes:
    """A pickle of ``{"w": name(argument)}``."""
    return b"\x80\x02}X\x01\x00\x00\x00wc" + name.replace(b" ", b"\n") + b"\n" + argument + b"\x85Rs."


def attacks(folder: Path) -> dict[str, str]:
    """Write a file for each attack; returns what must be said of it."""
    folder.mkdir()
    expected: dict[str, str] = {}

    def attack(name: str, content: bytes | None, message: str) -> Path:
        if content is not None:
            (folder / name).write_bytes(content)
        expected[name] = message
        return folder / name

    torch.save(narrow_resnet().state_dict(), folder / "0_good")
    zeros = b"\0" * 64
    bomb = pickle.dumps({"a": "x" * (1 << 28)}, 2)
    torch_zip(attack("deflated", None, "are compressed"), bomb, zeros, zipfile.ZIP_DEFLATED)
    torch_zip(attack("larger", None, "is not a complete"), tensor(16, (1 << 40,), (1,)), zeros)
    torch_zip(attack("expanded", None, "no known layout"), tensor(16, (10**6, 10**6), (0, 0)), zeros)
    torch_zip(attack("overflow", None, "is not a complete"), tensor(16, (1 << 62, 1 << 62), (1, 1)), zeros)
    legacy = MAGIC + tensor(1 << 40, (1 << 40,), (1,), b"N") + pickle.dumps(["0"], 2)
    attack("legacy", legacy + struct.pack("<q", 1 << 40) + zeros, "a storage that is larger than the file")
    attack("legacy_other_length", legacy + struct.pack("<q", 16) + zeros, "a storage that is larger than the file")
    attack("memo", b"\x80\x02}r\xf0\xff\xff\xff.", "no known layout")
    attack("text", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.", "is not a complete")
    attack("bytes", b"\x80\x05\x8e" + struct.pack("<Q", 1 << 62) + b"x.", "is not a complete")
    attack("nested", b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", "contains a list")
    laughs = b"\x80\x02]q\x00" + b"".join(b"](h\x00h\x00h\x00h\x00eq\x00" for _ in range(1000)) + b"."
    attack("laughs", laughs, "contains a list")
    said = {"copies": "much more memory", "encoded copies": "much more memory", "collisions": "much more time"}
    said |= dict.fromkeys(("tar and zip", "tar and legacy"), "a tar archive")
    for name, content in safety_cases.weight_cases().items():
        attack(name, content, said.get(name, "it ends early"))
    attack("bytearray", call(b"builtins bytearray", integer(10**12)), "names builtins.bytearray")
    codec = call(b"_codecs encode", b"X\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86")
    attack("codec", codec[:-4] + b"Rs.", "the encoding 'idna'")
    attack("tensor", call(b"torch Tensor", integer(10**12)), "no known layout")
    attack("shape", call(b"numpy ndarray", integer(10**12)), "no known layout")
    array = np.zeros(1 << 20)  # of whose bytes a part is gone
    attack(
        "array", pickle.dumps({"w": array}, 2).replace(b"J\0\0\x10\0", b"J\0\0\x11\0"), "with another number of bytes"
    )
    attack("objects", pickle.dumps({"model": np.array([[1], [2, 3]], dtype=object)}), "not of numbers")
    attack("safetensors_header", struct.pack("<Q", 1 << 60) + b"{" + zeros, "is not a complete")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    attack("safetensors_tensor", struct.pack("<Q", len(header)) + header + zeros, "is not a complete")
    deep = b'{"a":' * 10**5 + b"1" + b"}" * 10**5
    attack("safetensors_nested", struct.pack("<Q", len(deep)) + deep, "is not a complete")
    small = torch.zeros(1)
    blocks = {f"layer{s}.{b}.conv1.weight": small for s in (1, 2, 3, 4) for b in range(9000)}
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7), **blocks}, attack("blocks", None, "or too many"))
    torch.save({f"a.{n}.conv1.weight": small for n in range(60_000)}, attack("many", None, "more than 50000 entries"))
    with torch.device("meta"):
        wide = ResNet(Bottleneck, (1, 1, 1, 1), num_classes=0).state_dict()
    shared = torch.zeros(max(v.numel() for v in wide.values()))
    tied = {n: shared[: v.numel()].view(v.shape) if v.is_floating_point() else torch.tensor(0) for n, v in wide.items()}
    torch.save(tied, attack("tied", None, "separate weights for each layer"))
    cyclic: dict[Any, Any] = {"state_dict": {}}
    cyclic["state_dict"]["state_dict"] = cyclic
    torch.save(cyclic, attack("cyclic", None, "no known layout"))
    return expected


def test_attacks(tmp_path: Path) -> None:
    expected = attacks(tmp_path / "files")
    report = in_a_process(mutations.read_all, str(tmp_path / "files"), str(tmp_path / "report.json"))
    outcomes = report["outcomes"]
    assert outcomes.pop("0_good") == "read"
    wrong = {
        name: (outcomes[name][:400], message)
        for name, message in expected.items()
        if not outcomes[name].startswith("error: ") or message not in outcomes[name]
    }
    assert wrong == {}
    assert report["memory"] < 400 << 20  # the largest files have 40 MB


def test_frameworks_objects_are_inert_and_others_refused(tmp_path: Path) -> None:
    class Config:  # of a module that is no framework's
        pass

    Config.__module__, Config.__qualname__ = "my_project.config", "Config"
    path = tmp_path / "file"
    torch.save({"path": Path("a"), "device": torch.device("cpu"), "norm": torch.nn.LayerNorm}, path)
    found = load_file(path).content
    assert [found[name].name.split(".")[0] for name in ("path", "device")] == ["pathlib", "torch"]
    for name in ("os system", "builtins eval", "builtins getattr", "subprocess Popen", "my_project.config Config"):
        path.write_bytes(call(name.encode(), b"X\x01\x00\x00\x00x"))
        with pytest.raises(UserError, match=f"could run code: it names {name.replace(' ', '.')}$"):
            load_file(path)
    before = set(os.listdir(tmp_path))
    path.write_bytes(call(b"pathlib Path.touch", b"X\x01\x00\x00\x00x"))  # a framework's function: not called
    assert load_file(path).content["w"].name == "pathlib.Path.touch"
    assert set(os.listdir(tmp_path)) == before


def test_views_of_a_file_outlive_it(tmp_path: Path) -> None:
    model = narrow_resnet()
    torch.save({"state_dict": prefixed("module.", model.state_dict())}, tmp_path / "weights")
    checkpoint = read_checkpoint(tmp_path / "weights")
    (tmp_path / "weights").write_bytes(b"")
    assert torch.equal(checkpoint.backbone.state_dict()["conv1.weight"], model.state_dict()["conv1.weight"])


@pytest.mark.parametrize("kind", [*safety_cases.SPECIAL, "a\0b", "a\ud800b", "a" * 5000])
def test_paths_that_are_no_files(kind: str, tmp_path: Path) -> None:
    path: str | Path = kind
    if kind in safety_cases.SPECIAL:
        path = tmp_path / kind
        safety_cases.SPECIAL[kind](path)
    with pytest.raises(
        UserError,
        match=r"is a (pipe|device|broken link)|not a valid path|cannot (be|read)|No such file|a folder without config\.json",
    ) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500

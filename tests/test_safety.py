"""Files from others run no code, do not hang, and end in one sentence."""

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from moco_plugin.errors import UserError
from moco_plugin.files import parse_json
from moco_plugin.tools.convert import main as convert
from moco_plugin.tools.predict import main as predict
from moco_plugin.tools.pretrain import main as pretrain
from moco_plugin.tools.report import main as report
from moco_plugin.tools.train_net import main as train_net
from moco_plugin.transfer.config import load_detector_config
from moco_plugin.transfer.weights import load_weights
from tests.conftest import TINY, TRAIN
from tests.helpers import safety_cases

VALID = ("empty data", "interpolation", "digits", "date", "number key", "itself")
YAML = list(safety_cases.yaml_cases(Path("x")))
VALID_OVERRIDES = {"text", "large", "base loop", "base list", "base number", "number key", "empty data", "wrong type"}


class Detector(nn.Module):
    """What load_weights needs of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)


def sentence(capsys: pytest.CaptureFixture[str], run: Callable[[], int], codes: tuple[int, ...] = (1, 2)) -> str:
    """Run a tool's main on a hostile file and return its sentence."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert run() in codes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 400 << 10  # KiB
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in error and len(lines[0]) < 1000, error
    return lines[0]


@pytest.mark.parametrize("name", YAML)
def test_own_config(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker, path = tmp_path / safety_cases.MARKER, tmp_path / "self.yaml"
    path.write_text(safety_cases.yaml_cases(marker)[name])
    arguments = ["--config", str(path), f"data.root={TRAIN}", "data.batch_size=0"]  # valid ones stop at the batch
    shown = sentence(capsys, lambda: pretrain(arguments))
    if name in ("code", "object"):
        assert "contains the tag" in shown and "which may run code" in shown
    assert not marker.exists()


@pytest.mark.parametrize("key", ["code", "bomb", "deep", "digits", "itself"])
def test_override(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / safety_cases.MARKER
    value = safety_cases.yaml_cases(marker)[key].removeprefix("seed: ").partition("\nMODEL")[0]
    sentence(capsys, lambda: pretrain([*TINY, f"seed={value}", f"out={tmp_path / 'run'}"]))
    deep = ".".join("a" * 5000)
    sentence(capsys, lambda: pretrain([*TINY, f"data.view_args.{deep}=1", f"out={tmp_path / 'run'}"]))
    assert not marker.exists()


@pytest.mark.parametrize("name", YAML)
def test_detectron2_config(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker, path, child = tmp_path / safety_cases.MARKER, tmp_path / "self.yaml", tmp_path / "child.yaml"
    path.write_text(safety_cases.yaml_cases(marker)[name])
    child.write_text("_BASE_: self.yaml\n")
    for config in (path, child):
        try:
            load_detector_config(str(config), [])
        except UserError:  # the tools say the same
            arguments = ["--config-file", str(config), "OUTPUT_DIR", str(tmp_path / "run")]
            sentence(capsys, lambda a=arguments: train_net(a))
            weights = ["--weights", str(path), "--out", str(tmp_path / "out"), str(path)]
            sentence(capsys, lambda c=config, w=weights: predict(["--config-file", str(c), *w]))
        else:
            assert name in VALID
    assert not marker.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", list(safety_cases.json_cases()))
def test_results(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(safety_cases.json_cases()[name])
    sentence(capsys, lambda: report([str(tmp_path)]))


@pytest.mark.parametrize("name", list(safety_cases.pickle_cases(Path("x"))))
def test_weights(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / safety_cases.MARKER
    for suffix in (".pkl", ".pth"):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(safety_cases.pickle_cases(marker)[name])
        sentence(capsys, lambda p=path: convert([str(p), str(tmp_path / "out.pkl"), "--to", "detectron2"]))
        cfg = load_detector_config("demo/scenes_R_18_FPN_quarter", [])
        with pytest.raises(UserError):
            load_weights(Detector(), str(path), cfg=cfg)
    assert not marker.exists() and not (tmp_path / "out.pkl").exists()


@pytest.mark.parametrize("name", list(safety_cases.idx_cases()))
def test_idx_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(safety_cases.idx_cases()[name])
    sentence(capsys, lambda: pretrain(["method=moco", f"data.root={path}", f"out={tmp_path / 'run'}"]))


@pytest.mark.parametrize("spec", ["s-{0..999999999}.tar", "s-{0..9}{0..999999}.tar", "s-{0..9999999999999999}.tar"])
def test_shard_ranges(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"data.root={tmp_path}/{spec}"
    assert "shards" in sentence(capsys, lambda: pretrain(["method=moco", root, f"out={tmp_path / 'run'}"]))


@pytest.mark.parametrize("name", list(safety_cases.lists()))
def test_lists(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(safety_cases.lists()[name])
    sentence(capsys, lambda: pretrain(["method=moco", f"data.root={path}", f"out={tmp_path / 'run'}"]))


@pytest.mark.parametrize(
    ("change", "sentence_"),
    [
        ({"epoch": "many"}, "Expected `int | null`, got `str`"),
        ({"versions": 5}, "Expected `object`, got `int`"),
        ({"top1": [1]}, "Expected `float`, got `array`"),
        ({"protocol": "knn", "k": 1, "top1_by_k": {"1": None}}, "Expected `float`, got `null`"),
        ({"protocol": "omnibenchmark"}, "missing required field"),
    ],
    ids=str,
)
def test_results_of_wrong_types(
    change: dict[str, object], sentence_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"protocol": "finetune", "weights": "x", "weights_sha256": "a", "versions": {}, "train": "", "test": ""}
    (tmp_path / "a.json").write_text(json.dumps(result | {"top1": 50.0} | change))
    assert sentence_ in sentence(capsys, lambda: report([str(tmp_path)]))


def test_garbled_log_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(f"data:\n  root: {TRAIN}\n")
    for text in ("step,loss\nx,1\n", "\0\n", f"step,loss\n{'9' * 400},1\n", "step,loss\n1,x\n", "step,step\n1\n"):
        (tmp_path / "metrics.csv").write_text(text)
        sentence(capsys, lambda: report([str(tmp_path)]))


def test_half_a_surrogate_pair_in_json_can_be_printed() -> None:
    assert parse_json('{"a\\ud800": ["\\ud83d\\ude00", NaN, 1]}', "a.json")["a?"][::2] == ["\U0001f600", 1]

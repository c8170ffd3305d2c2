"""The tool's commands: those of entry points, their help, and which arguments they take."""

import json
from pathlib import Path
from typing import Any

import pytest

from moco_plugin.tools.evaluate import main
from tests.conftest import TEST, TRAIN

COMMANDS = "knn retrieve linear linear-fast finetune lowshot multilabel omnibenchmark embed".split()
ADDED = '''
from typing import Any
from typing_extensions import Unpack
from moco_plugin.evaluation.subject import ViewOptions, read_subject


def evaluate_width(weights: str, *, times: int = 2, names: "Sequence[str]" = (), **options: Unpack[ViewOptions]) -> Any:
    """Measure the width of the features.

    Args:
        times: What it is
            multiplied by.
        names: Anything.
        **options: See ``ViewOptions``.
    """
    subject = read_subject(weights, **options)
    return subject.write("width", width=times * subject.dim, names=list(names))
'''


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == code
    return "".join(capsys.readouterr())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, name, "--help")
    assert f" {name} --weights runs/photos/checkpoints/last.ckpt" in text.split("example:\n")[1]
    for option in ("--encoder {query,key}", "--untrained", "--out OUT", "--overwrite"):
        assert option in text
    assert ("--batch-size" in text) != ("key=value" in text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("knn --weights w --train a --test b optimizer.lr=3", "unrecognized arguments: optimizer.lr=3"),
        ("knn --weights w --train a --k 1 optimizer.lr=3", "unrecognized arguments: optimizer.lr=3"),
        ("linear --weights w --train a optimizer.lr=3 --k 1", "unrecognized arguments: --k"),
        ("lowshot --weights w --train a --shares 1 x", "argument --shares: invalid float value: 'x'"),
        ("lowshot --weights w --train a --shares seed=3", "argument --shares: expected at least one argument"),
        ("knn --weights w --train a --encoder both", "invalid choice: 'both' (choose from 'query', 'key')"),
        ("knn --weights w", "the following arguments are required: --train"),
    ],
)
def test_wrong_arguments(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in shown(capsys, *arguments.split(), code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--weights w --train a", "--weights comes before a command; expected a command first: embed, "),
        (
            "embed --weights w --images s3://bucket/photos --out f.npy",
            "is a folder of a cloud store, where single images",
        ),
        ("embed --weights w --images empty --out f.npy", "empty is empty, expected a folder of images"),
    ],
)
def test_mistakes_that_are_found_before_torch_is_imported(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.metadata.EntryPoint.load", lambda entry: pytest.fail("it was imported"))
    assert main(arguments.split()) in (1, 2)
    assert message in capsys.readouterr().err


def test_held_out_part_of_a_part_is_refused(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knn", "--weights", f"{tiny_run}/checkpoints/last.ckpt", "--train", f"{TRAIN}[0:40]"]) == 2
    assert "--test is missing; it is only held out of a --train without [...]" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["linear-fast", "linear --fast"])  # its earlier name
def test_overrides_anywhere(command: str, tiny_run: Path, tmp_path: Path) -> None:
    out, sets = tmp_path / "fast.json", f"--train {TRAIN}[0:40] --test {TEST}[0:20]"
    options = f"schedule.epochs=2 --weights {tiny_run}/checkpoints/last.ckpt data.workers=0 {sets} --lrs 0.1 1 seed=3"
    assert main(f"{command} {options} --out {out}".split()) == 0
    result = json.loads(out.read_text())
    assert (result["protocol"], result["settings"]["lrs"]) == ("linear_fast", [0.1, 1.0])
    assert (result["settings"]["epochs"], result["settings"]["seed"]) == (2, 3)


def test_another_package_adds_an_evaluation(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "widths.py").write_text(ADDED)
    (tmp_path / "widths-1.dist-info").mkdir()
    (tmp_path / "widths-1.dist-info" / "METADATA").write_text("Name: widths\nVersion: 1\n")
    entry = (
        "[moco_plugin.evaluations]\nwidth = widths:evaluate_width\nnothing = nowhere.at_all:evaluate\nno = widths:no\n"
    )
    (tmp_path / "widths-1.dist-info" / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = shown(capsys, "width", "--help")
    assert "What it is multiplied by. (default 2)" in text and "--image-size" in text
    for name, value in (("nothing", "nowhere.at_all:evaluate"), ("no", "widths:no")):
        assert f"left out: {name}, since {value} has no source of a function\n" in text
    weights = f"{tiny_run}/checkpoints/last.ckpt"
    command = f"width --weights {weights} --times 3 --untrained --out {tmp_path}/a.json"
    assert main(command.split()) == 0
    result: dict[str, Any] = json.loads((tmp_path / "a.json").read_text())
    assert (result["width"], result["untrained"], result["protocol"]) == (3 * 32, True, "width")

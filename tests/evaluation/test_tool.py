"""The tool's commands: help, and what none of them takes."""

import pytest

from moco_plugin.tools.evaluate import EXAMPLES, main


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_of_each_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "example:\n" in shown
    assert f" {name} --weights runs/photos/checkpoints/last.ckpt" in shown.split("example:")[1]


def test_overrides_are_for_protocols_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["knn", "--weights", "w", "--train", "a", "--test", "b", "optimizer.lr=3"])
    assert end.value.code == 2 and "unrecognized arguments: optimizer.lr=3" in capsys.readouterr().err

"""How often a training step waits: for a GPU, which is pretended, and for other processes."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from moco_plugin.methods import MoCo
from moco_plugin.pretraining.monitor import Throughput
from moco_plugin.tools.pretrain import main
from tests.conftest import TINY, TRAIN
from tests.helpers.pretend_cuda import pretending
from tests.helpers.processes import Tool

COPIES = 2 + 1  # of a step to the GPU, none of which the host waits for: two views, and the order of the keys


def run(out: Path, *more: str) -> list[str]:
    kept = [option for option in TINY if not option.startswith(("knn", "data.root", "trainer", "schedule", "views"))]
    run = [*kept, f"data.root={TRAIN}[0:128]", "views.engine=fast", "schedule.epochs=1", "trainer.log_every_n_steps=3"]
    return [*run, "data.workers=0", "trainer.precision=32-true", f"out={out}", *more]  # as on a GPU


@pytest.mark.parametrize("method", ["moco", "moco_v3"])
def test_a_step_reads_one_value_of_the_step_before(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the tool, on a pretended GPU; what is logged is read at logging steps."""
    steps: list[tuple[Counter[str], Counter[str]]] = []
    log = Throughput.on_train_batch_end

    def note(self: Throughput, trainer: pl.Trainer, *args: Any) -> None:
        steps.append((Counter(count.copies), Counter(count.waits)))
        count.clear()
        log(self, trainer, *args)

    other = ["method=moco_v3", "method_args.hidden_dim=32", "schedule.warmup_epochs=0"]
    arguments = run(tmp_path / "run", *(other if method == "moco_v3" else []), "trainer.max_steps=7")
    arguments = [option for option in arguments if method == "moco" or "queue_size" not in option]
    with pretending(monkeypatch) as count:
        monkeypatch.setattr(Throughput, "on_train_batch_end", note)
        assert main(arguments) == 0
    assert len(steps) == 7
    for copies, waits in (steps[1], steps[4]):  # not the first, nor the third, which is logged, nor that behind it
        assert sum(copies.values()) <= COPIES, copies
        assert [(kind.partition(":")[0], times) for kind, times in waits.items()] == [
            ("to the CPU at runs/callbacks.py", 1)
        ]
    assert "float32 convolutions in TF32, matrix products in float32 (tf32)" in capsys.readouterr().out


def test_a_loss_that_is_no_number_is_seen_a_step_late_and_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the loss is not finite, at the last step before a checkpoint; the weights are."""
    forward, calls = MoCo.forward, 0

    def diverging(self: MoCo, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        nonlocal calls
        calls += 1
        loss, metrics = forward(self, *args, **kwargs)
        return loss + (math.inf if calls == bad else 0), metrics

    monkeypatch.setattr(MoCo, "forward", diverging)
    with pretending(monkeypatch):
        for bad, save_every in ((3, 2), (4, 4)):
            calls, out = 0, tmp_path / str(bad)
            assert main(run(out, f"save_every={save_every}")) == 1
            assert f"error: the loss is not finite at step {bad} " in capsys.readouterr().err
            assert calls == 4
            saved = out / "checkpoints/last.ckpt"
            assert saved.exists() == (bad == 3)
            assert bad == 4 or torch.load(saved, weights_only=False)["global_step"] == 2


def test_processes_meet_in_the_guard_and_the_method(tool: Tool, tmp_path: Path) -> None:
    """Of two processes, at ordinary steps; at logging steps there is one more, of all values in one tensor."""
    script = Path(__file__).parent / "count_collectives.py"
    shown = tool(script, *run(tmp_path / "run", "trainer.devices=2", "trainer.max_steps=7"), processes=2).stdout
    steps = [json.loads(text) for text in re.findall(r"step: (\{.*?\})", shown)]
    # the shuffled images; their keys; the guard's flags. torch's engine reduces the gradients
    assert steps[1] == steps[4] == {"all_to_all_single": 1, "all_gather": 1, "all_reduce": 1}
    assert Counter(steps[2]) - Counter(steps[1]) == Counter({"all_reduce": 1})

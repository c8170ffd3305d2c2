"""The stages of the demo, run by the tools as a user would type them."""

import importlib
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco_plugin.demo.images import get_fashion_mnist
from moco_plugin.errors import UserError
from moco_plugin.files import atomic_path, read_json

CONTEXT: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
PRELOADED = ["moco_plugin.pretraining.run"]  # by the process that the tools are forked from; else each would import it
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
KS = ("1", "5", "20", "200")  # nearest neighbours
DETECTORS = ("c4", "fpn")  # tasks scenes_c4 and scenes_fpn of tools/transfer.py
QUICK_PRETRAIN = "data.batch_size=64 schedule.epochs=1 method_args.queue_size=512 trainer.log_every_n_steps=4".split()
QUICK_DETECTOR = "SOLVER.MAX_ITER 5 SOLVER.STEPS (4,) SOLVER.WARMUP_ITERS 2 TEST.PRECISE_BN.NUM_ITER 2".split()


@dataclass(frozen=True)
class Command:
    """A console command of the demo.

    Attributes:
        name: Name of the tool.
        arguments: Its arguments.
        makes: Its output.
        trials: Number of trials in the output of a transfer.
    """

    name: str
    arguments: Sequence[str]
    makes: Path
    trials: int = 0

    @property
    def shown(self) -> str:
        """Name of the console command."""
        return f"moco-{self.name.replace('_', '-')}"

    @property
    def done(self) -> bool:
        """Whether its output exists."""
        if not self.makes.exists():
            return False
        return not self.trials or len(read_json(self.makes).get("trials", ())) >= self.trials


def _enter(command: Command, environment: dict[str, str]) -> None:
    """Run a tool in this process, and exit with its code."""
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
    tool = importlib.import_module(f"moco_plugin.tools.{command.name}")
    # Lightning starts further processes with this command line
    sys.modules["__main__"].__spec__ = None
    sys.argv = [str(tool.__file__), *command.arguments]
    sys.exit(tool.main(command.arguments))


class Demo:
    """Runs the stages in one folder, except stages whose output exists.

    Args:
        folder: Folder for everything.
        quick: Run every stage at toy size.
        images: Folder with Fashion-MNIST's four files; None finds or fetches them.
        seed: Seed of the pre-training.
    """

    def __init__(self, folder: Path, quick: bool = False, images: Path | None = None, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed
        if CONTEXT.get_start_method() == "forkserver":
            CONTEXT.set_forkserver_preload(PRELOADED)
        self.images = images
        self.quick = quick
        self.commands: list[str] = []

    def tools(self, *commands: Command, processes: int = 1) -> None:
        """Run console commands in parallel, each with its share of the cores; skip those that are done.

        Args:
            *commands: The commands.
            processes: Number of processes of each.
        """
        count = len(commands) * processes
        threads = {"OMP_NUM_THREADS": str(max(1, CORES // count))} if count > 1 else {}
        started = []
        for command in commands:
            datasets = {"DETECTRON2_DATASETS": str(self.folder / "data")} if command.name == "transfer" else {}
            settings = {**datasets, **threads}
            variables = "".join(f"{variable}={shlex.quote(value)} " for variable, value in settings.items())
            typed = f"{variables}{command.shown} {shlex.join(command.arguments)}"
            self.commands.append(typed)
            if command.done:
                print(f"$ {typed}\n  (done: {command.makes})", flush=True)
                continue
            print(f"$ {typed}", flush=True)
            started.append((command, CONTEXT.Process(target=_enter, args=(command, settings))))
        try:
            for _, process in started:
                process.start()
            for _, process in started:
                process.join()
        except BaseException:  # Ctrl-C
            for _, process in started:
                if process.pid is not None:
                    process.terminate()
            raise
        for command, process in started:
            if process.exitcode:
                raise UserError(f"the demo stopped where {command.shown} failed; its message is above")

    def run(self, trials: int) -> Path:
        """Run all stages, each detector ``trials`` times from each initialisation; return the report's path."""
        start = time.monotonic()
        folder = self.folder
        mnist = self.images or get_fashion_mnist(folder / "data")
        originals = [str(mnist / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k")]
        unlabelled, in_scenes = ("[0:512]", "[512:600]") if self.quick else ("[0:40000]", "[40000:60000]")
        bank, queries = ("[0:500]", "[0:200]") if self.quick else ("[0:5000]", "[0:2000]")
        objects, scenes = folder / "data" / "fashion-objects", folder / "data" / "scenes"
        train, test = (str(objects / f"{part}-images-idx3-ubyte") for part in ("train", "t10k"))
        sources = ["--train", originals[0] + unlabelled, "--test", originals[1] + queries]
        labelled = ["--train", originals[0] + in_scenes, "--test", originals[1]]
        numbers = ["--num-train", "16", "--num-test", "8"] if self.quick else []
        self.tools(
            Command("make_scenes", ["--objects", str(objects), *sources], objects),
            Command("make_scenes", [str(scenes), *labelled, *numbers], scenes),
        )

        pretrained, weights = folder / "pretrain", folder / "moco.pkl"
        checkpoint = pretrained / "checkpoints" / "last.ckpt"
        sets = {"data.root": train + unlabelled, "knn.train": train + bank, "knn.test": test + queries}
        settings = {**sets, "seed": self.seed, "out": pretrained}
        processes = 1 if self.quick else min(2, CORES)
        if processes > 1:  # two of one thread do more than one of two, and the same
            settings |= {"trainer.devices": processes, "trainer.strategy": "ddp"}
        typed = [f"{key}={value}" for key, value in settings.items()] + QUICK_PRETRAIN * self.quick
        arguments = ["--config", "demo_fashion_mnist", *typed]
        self.tools(Command("pretrain", arguments, pretrained / "result.json"), processes=processes)

        common = ["--weights", str(checkpoint), "--train", train + bank, "--test", test + queries]
        linear = ["linear-fast", *common, "schedule.epochs=30", "data.workers=0"]
        evaluations = {
            "knn_moco": ["knn", *common, "--k", *KS, "--pixels"],
            "knn_random": ["knn", *common, "--k", *KS, "--untrained"],
            "linear_moco": linear,
            "linear_random": [*linear, "--untrained"],
            "linear_pixels": [*linear, "--pixels"],
            "neighbours": ["retrieve", *common, "--k", "1", "8"],
        }
        outputs = {name: folder / f"{name}.json" for name in evaluations}
        commands = [
            Command("evaluate", [*given, "--out", str(outputs[name])], outputs[name])
            for name, given in evaluations.items()
        ]
        self.tools(*commands, Command("convert_to_d2", [str(checkpoint), str(weights)], weights))
        # the two starts of a detector side by side: two processes of one thread do more than one of two
        for detector in DETECTORS:
            commands = []
            for init, given in {"random": [], "moco": ["--weights", str(weights)]}.items():
                out = folder / "transfer" / detector / init
                typed = ["--task", f"scenes_{detector}", "--init", init, "--trials", str(trials), "--out", str(out)]
                arguments = [*typed, *given, *QUICK_DETECTOR * self.quick]
                commands.append(Command("transfer", arguments, out / "results.json", trials))
            self.tools(*commands)
        with atomic_path(folder / "commands.txt") as temporary:
            temporary.write_text("\n".join(self.commands) + "\n")

        from moco_plugin.demo.page import write_demo_report  # not needed before, and heavy

        report = folder / "report.html"
        print(write_demo_report(folder, report, self.quick))
        print(f"{(time.monotonic() - start) / 60:.1f} minutes; the report, with pictures: {report.resolve()}")
        return report

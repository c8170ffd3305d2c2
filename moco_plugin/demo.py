"""The whole path on real images, tool by tool, as a user would type it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from moco_plugin.data.fashion_mnist import get_fashion_mnist
from moco_plugin.errors import UserError
from moco_plugin.files import atomic_path

DETECTOR = "demo/scenes_R_18_FPN_quarter"
QUICK_PRETRAIN = [
    "data.batch_size=64", "schedule.epochs=1", "method_args.queue_size=512", "trainer.log_every_n_steps=4",
]  # fmt: skip
QUICK_DETECTOR = [
    "SOLVER.MAX_ITER", "12", "SOLVER.STEPS", "(8,)", "SOLVER.WARMUP_ITERS", "2", "SOLVER.IMS_PER_BATCH", "4",
    "TEST.PRECISE_BN.NUM_ITER", "2",
]  # fmt: skip


class Demo:
    """Runs the stages in one folder; a stage whose output is there is not run again.

    Args:
        folder: Where everything goes.
        quick: Every stage at a size that shows that it works, and nothing more.
        images: Folder with Fashion-MNIST's four files; None finds or fetches them.
    """

    def __init__(self, folder: Path, quick: bool = False, images: Path | None = None) -> None:
        self.folder = folder
        self.images = images
        self.quick = quick
        self.commands: list[str] = []

    def tool(self, name: str, *arguments: str, makes: Path) -> None:
        """Runs one of the console commands, unless what it makes is there."""
        datasets = {"DETECTRON2_DATASETS": str(self.folder / "data")} if name == "train_net" else {}
        command = f"moco-{name.replace('_', '-')} {shlex.join(arguments)}"
        for variable, value in datasets.items():
            command = f"{variable}={shlex.quote(value)} {command}"
        self.commands.append(command)
        if makes.exists():
            print(f"$ {command}\n  (done: {makes})", flush=True)
            return
        print(f"$ {command}", flush=True)
        result = subprocess.run(
            [sys.executable, "-m", f"moco_plugin.tools.{name}", *arguments], env={**os.environ, **datasets}
        )
        if result.returncode:
            raise UserError(
                f"the demo stopped where moco-{name.replace('_', '-')} failed; its message is above"
            )

    def run(self, seeds: int) -> Path:
        """Runs all stages and returns the path of the report."""
        start = time.monotonic()
        folder = self.folder
        mnist = self.images or get_fashion_mnist(folder / "data")
        train, test = (str(mnist / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k"))
        unlabelled, objects = ("[0:512]", "[512:600]") if self.quick else ("[0:40000]", "[40000:60000]")
        bank, queries = ("[0:500]", "[0:200]") if self.quick else ("[0:5000]", "[0:2000]")
        scenes = ["--num-train", "16", "--num-test", "8"] if self.quick else []

        pretrained = folder / "pretrain"
        checkpoint = pretrained / "checkpoints" / "last.ckpt"
        self.tool(
            "pretrain", "--config", "demo_fashion_mnist", f"data.root={train}{unlabelled}", f"knn.train={train}{bank}",
            f"knn.test={test}{queries}", f"out={pretrained}", *(QUICK_PRETRAIN if self.quick else []),
            makes=pretrained / "result.json",
        )  # fmt: skip
        for init, flags in (("random", ["--untrained"]), ("moco", [])):
            result = folder / f"knn_{init}.json"
            self.tool(
                "evaluate", "knn", "--weights", str(checkpoint), "--train", train + bank, "--test", test + queries,
                "--out", str(result), *flags, makes=result,
            )  # fmt: skip
        weights = folder / "moco.pkl"
        self.tool("convert_to_d2", str(checkpoint), str(weights), makes=weights)
        self.tool(
            "make_scenes", str(folder / "data" / "scenes"), "--train", train + objects, "--test", test, *scenes,
            makes=folder / "data" / "scenes",
        )  # fmt: skip
        for seed in range(seeds):
            for init, config, override in (
                ("random", DETECTOR, []),
                ("moco", f"{DETECTOR}_moco", ["MODEL.WEIGHTS", str(weights)]),
            ):
                output = folder / "transfer" / init / f"seed{seed}"
                self.tool(
                    "train_net", "--config-file", config, "--overwrite", *override, "SEED", str(seed + 1),
                    "OUTPUT_DIR", str(output), *(QUICK_DETECTOR if self.quick else []),
                    makes=output / "results.json",
                )  # fmt: skip
        with atomic_path(folder / "commands.txt") as temporary:
            temporary.write_text("\n".join(self.commands) + "\n")

        from moco_plugin.report.demo_page import write_demo_report

        report = folder / "report.html"
        print(write_demo_report(folder, report))
        if self.quick:
            print("Toy size: every stage works; whether MoCo helps is for the whole demo to measure.")
        print(f"{(time.monotonic() - start) / 60:.1f} minutes; the report, with pictures: {report.resolve()}")
        return report

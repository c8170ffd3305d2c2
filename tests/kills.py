"""Kills of tools at random moments, run by hand: ``python tests/kills.py --count 20``.

Each tool works until SIGKILL takes all of its processes, is started again by the same command, and so on; what it leaves
in the end is compared with what an uninterrupted run leaves.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.conftest import TEST, TRAIN
from tests.detectors.samples import photos
from tests.helpers.checkpoints import official

TOOLS = Path(__file__).parents[1] / "tools"
CONFIG = "demo/scenes_R_18_FPN_quarter"
TRIAL = (
    "MODEL.BACKBONE.NAME build_any_width_resnet_backbone MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 16 "
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 MODEL.RPN.POST_NMS_TOPK_TEST 10 SOLVER.MAX_ITER 12 SOLVER.STEPS () "
    "SOLVER.CHECKPOINT_PERIOD 3 TEST.PRECISE_BN.NUM_ITER 1 INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64"
).split()
IDLE = (
    "log.txt",
    "stdout.txt",
    "metrics.json",
    "events",
    "lock",
    ".lock",
    "config.yaml",
    "last_checkpoint",
)  # say when


def state(folder: Path) -> dict[str, object]:
    """Return what a tool left, by names: bytes, or of checkpoints the tensors of the model."""
    left: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(IDLE) or any(part.startswith(".") for part in path.relative_to(folder).parts[:-1]):
            continue
        if path.suffix == ".pth":
            model = torch.load(path, weights_only=False)["model"]
            left[name] = {key: torch.as_tensor(value).numpy().tobytes() for key, value in model.items()}
        else:
            left[name] = path.read_bytes().replace(str(folder).encode(), b"OUT")
    return left


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a tool in a session of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, *command], stdout=output, stderr=output, start_new_session=True, env=environment
        )


def works(process: subprocess.Popen[bytes], out: Path) -> float:
    """Return the moment at which a process begins to write."""
    before = {*out.rglob("*")}
    while process.poll() is None and {*out.rglob("*")} == before:
        time.sleep(0.002)
    return time.monotonic()


def kill(command: list[str], out: Path, whole: Path, count: int, check: Callable[[Path], bool], seed: int) -> None:
    """Run a tool whole, then kill it so often, and print what differs."""
    log, generator = out.parent / f"{out.name}.log", random.Random(seed)
    process = start([part.replace("OUT/", f"{whole}/") for part in command], log)
    began = works(process, whole)
    assert process.wait() == 0, log.read_text()
    lasts, kills, wrong, finished = time.monotonic() - began, 0, 0, 0
    mine, expected = [part.replace("OUT/", f"{out}/") for part in command], state(whole)
    while kills < count:
        process = start(mine, log)
        works(process, out)
        time.sleep(generator.uniform(0, lasts))
        kills += (alive := process.poll() is None)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not alive:
            finished += 1
            # a tool may refuse (2) to repeat what was whole when it was killed at its end
            if process.returncode not in (0, 2) or state(out) != expected:
                wrong += 1
                print(f"exit code {process.returncode}\n{log.read_text()[-500:]}", file=sys.stderr)
            shutil.rmtree(out)
            out.mkdir()
        wrong += not check(out)
    code = start(mine, log).wait()
    last, left = state(out), [path.name for path in out.rglob(".*")]
    differ = sorted(name for name in expected.keys() | last.keys() if expected.get(name) != last.get(name))
    print(
        f"{out.name}: {kills} kills within {lasts:.1f} s, {finished} runs that ended before, {wrong} wrong in between; "
        f"exit code {code}, {len(differ)} of {len(expected)} files differ {differ[:5]}, left over {sorted(set(left))[:9]}",
        flush=True,
    )
    if code and differ:
        print(log.read_text()[-2000:])


def cases(base: Path) -> Iterator[tuple[str, list[str], Callable[[Path], bool]]]:
    """Yield the name, command and check of each tool."""
    new, old = base / "new", base / "old"
    photos(new, range(300))
    photos(old, range(300, 420))
    from moco_plugin.data.images import ImageSet
    from moco_plugin.sources.shard_writer import make_shards
    from moco_plugin.transfer import compat

    def readable(out: Path) -> bool:
        """Return whether the set is the old one or the new one, and make it the old one."""
        size = len(ImageSet(str(out))) if [*out.glob("*.tar")] else 120
        make_shards(ImageSet(str(old)), out / "set", images_per_shard=20, overwrite=True)
        return size in (120, 300)

    tool = str(TOOLS / "make_shards.py")
    yield "make_shards", [tool, str(new), "OUT/set", "--images-per-shard", "10", "--overwrite"], readable
    compat.apply()
    from detectron2.modeling import build_model

    from moco_plugin.transfer.config import fit_device, load_detector_config

    cfg = load_detector_config(CONFIG, ["SEED", "1"])
    fit_device(cfg)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, base / "model_final.pth")
    few = sorted(str(path) for path in new.iterdir())[:20]
    predict = ["--config-file", CONFIG, "--weights", str(base / "model_final.pth"), "--out", "OUT/drawn"]
    more = ["--threshold", "0.02", "--json", "OUT/found.json"]
    yield "predict", [str(TOOLS / "predict.py"), *predict, *more, *few], lambda out: True
    sets = ["--train", f"{TRAIN}[0:1000]", "--test", f"{TEST}[0:1000]"]
    subprocess.run([sys.executable, str(TOOLS / "make_tiny_datasets.py"), str(base / "tiny"), *sets], check=True)
    os.environ["DETECTRON2_DATASETS"] = str(base / "tiny")
    torch.save(official("resnet18", channels=[16, 32, 64, 128]), base / "tiny.pth.tar")
    options = (
        f"--task voc_c4 --weights {base}/tiny.pth.tar --trials 1 --out OUT/run --gpus 1 --images-per-batch 2".split()
    )
    yield "transfer", [str(TOOLS / "transfer.py"), *options, *TRIAL], lambda out: True


def main() -> None:
    """Kill each tool and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="*", help="make_shards, predict, transfer (default: all)")
    parser.add_argument("--count", type=int, default=20, help="kills of each tool (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        for name, command, check in cases(Path(base)):
            if not args.tools or name in args.tools:
                for folder in (name, f"{name}-whole"):
                    Path(base, folder).mkdir()
                out = Path(base, name)
                check(out)
                check(Path(base, f"{name}-whole"))
                kill(command, out, Path(base, f"{name}-whole"), args.count, check, args.seed)


if __name__ == "__main__":
    main()

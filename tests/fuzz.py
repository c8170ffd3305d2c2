"""Fuzzing of every reader through the tools, run by hand: ``python tests/fuzz.py --count 40 --seed 0``.

Each kind of file is mutated (flipped bytes, cuts, inserted and doubled parts), given to the tool that reads it in a
process of its own, and counted: what ran code, ended in a traceback, took over 30 s or left a partial file.
"""

import argparse
import multiprocessing
import os
import pickle
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.conftest import TRAIN
from tests.detectors import samples_by_others  # noqa: F401  (adds to SAMPLES)
from tests.detectors.samples import SAMPLES
from tests.helpers import safety_cases

TOKENS = [
    b"!!python/object/apply:os.system [id]",
    b"*a",
    b"&a",
    b"[" * 300,
    b"{" * 300,
    b"\x00",
    b"9" * 400,
    b"NaN",
    b"null",
    b"-1",
    b"\xff\xfe",
    b"..",
    b"1e999",
    b'"' * 9,
    b"\n",
]


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Return the files that are mutated, by kind."""
    marker = folder / safety_cases.MARKER
    root = Path(__file__).parents[1] / "configs"
    state = {"state_dict": {"module.encoder_q.conv1.weight": torch.zeros(8, 3, 7, 7)}, "epoch": 3}
    torch.save(state, folder / "a.pth")
    torch.save(state, folder / "b.pth", _use_new_zipfile_serialization=False)
    arrays = {"model": {"stem.conv1.weight": np.zeros((8, 3, 7, 7), np.float32)}, "__author__": "x"}
    coco = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    results = b'{"task": "voc_c4", "init": "moco", "trials": [{"metrics": {"bbox/AP": 1.0}}], "weights": "x"}'
    return {
        "own config": [
            (root / "pretrain" / "moco_v2.yaml").read_bytes(),
            *(t.encode() for t in safety_cases.yaml_cases(marker).values()),
        ],
        "detectron2 config": [
            (root / "detectron2" / "demo" / "scenes_R_18_FPN_quarter.yaml").read_bytes(),
            *(t.encode() for t in safety_cases.yaml_cases(marker).values()),
        ],
        "override": [b"seed=5", b"data.view_args={cj_prob: 0.5}", b"method_args.dim=[1, 2]"],
        "list": [b"a.jpg 0\nb.jpg 1\n", *safety_cases.lists().values()],
        "idx": [Path(TRAIN).read_bytes()[:20000], *safety_cases.idx_cases().values()],
        "results JSON": [results, *(t.encode() for t in safety_cases.json_cases().values())],
        "COCO JSON": [str(coco).replace("'", '"').encode(), *(t.encode() for t in safety_cases.json_cases().values())],
        "checkpoint": [
            (folder / "a.pth").read_bytes(),
            (folder / "b.pth").read_bytes(),
            *safety_cases.pickle_cases(marker).values(),
            *safety_cases.weight_cases().values(),
        ],
        "special weights": [name.encode() for name in safety_cases.SPECIAL],
        "detectron2 weights": [pickle.dumps(arrays, 2), *safety_cases.pickle_cases(marker).values()],
        **{kind: _annotations(kind, folder / kind) for kind in safety_cases.ANNOTATIONS},
    }


def _annotations(kind: str, folder: Path) -> list[bytes]:
    """Return the file of a data set as its tool writes it, and hostile ones."""
    name, file = safety_cases.ANNOTATIONS[kind]
    SAMPLES[name].write(folder)
    return [(folder / file).read_bytes(), *safety_cases.annotation_cases()[kind]]


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Return a mutation of a file, in one to four steps."""
    content = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(content) + 1)
        kind = generator.randrange(5)
        if kind == 0 and content:
            content[place % len(content)] = generator.randrange(256)
        elif kind == 1:
            del content[place : place + generator.randrange(1, 200)]
        elif kind == 2:
            content[place:place] = generator.choice(TOKENS)
        elif kind == 3:
            content[place:place] = content[place : place + generator.randrange(1, 500)]
        else:
            del content[place:]
    return bytes(content)


def run(kind: str, data: bytes, folder: str) -> None:
    """Give a file to its tool; exits with the tool's code, 70 after a traceback."""
    os.chdir(folder)
    for stream, name in enumerate((os.devnull, "out", "err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), stream)
    suffix = {
        "own config": "yaml",
        "detectron2 config": "yaml",
        "list": "txt",
        "checkpoint": "pth",
        "special weights": "pth",
        "detectron2 weights": "pkl",
    }.get(kind, "json")
    path = Path("train-images-idx3-ubyte.gz" if kind == "idx" else f"results.{suffix}")
    special = safety_cases.SPECIAL.get(data.decode(errors="replace")) if kind == "special weights" else None
    special(path) if special else path.write_bytes(data)
    tools: dict[str, Callable[[], int]] = {}
    from moco_plugin.tools import convert, pretrain, report

    stop = ["data.batch_size=0", "out=run"]  # a valid file ends at the batch size
    tools["own config"] = lambda: pretrain.main(["--config", str(path), f"data.root={TRAIN}", *stop])
    tools["override"] = lambda: pretrain.main([f"data.root={TRAIN}", data.decode(errors="replace"), *stop])
    tools["list"] = tools["idx"] = lambda: pretrain.main([f"data.root={path}", *stop])
    tools["results JSON"] = lambda: report.main(["."])
    tools["checkpoint"] = tools["special weights"] = tools["detectron2 weights"] = lambda: convert.main(
        [str(path), "out.pkl", "--to", "detectron2"]
    )
    try:
        if kind == "detectron2 config":
            from moco_plugin.tools import train_net

            code = train_net.main(["--config-file", str(path), "OUTPUT_DIR", "run"])
        elif kind == "COCO JSON":
            import moco_plugin.transfer  # noqa: F401
            from tests.helpers.annotations import check

            Path("part").mkdir()
            code = _refused(lambda: check(data.decode(errors="replace"), Path("part")))
        elif kind in safety_cases.ANNOTATIONS:
            from moco_plugin.tools import transfer

            name, file = safety_cases.ANNOTATIONS[kind]
            arguments = SAMPLES[name].write(Path("set"))
            Path("set", file).write_bytes(data)
            os.chdir("set")
            code = transfer.main([*arguments, "--check", "--out", "out"])
        else:
            code = tools[kind]()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    os._exit(code)


def _refused(call: Callable[[], None]) -> int:
    from moco_plugin.errors import UserError

    try:
        call()
    except UserError:
        return 1
    return 0


def main() -> None:
    """Fuzz each kind and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="mutations of each kind (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["moco_plugin.pretraining.run", "moco_plugin.checkpoints.read"])
    generator = random.Random(args.seed)
    columns = ("inputs", "code runs", "tracebacks", "over 30 s", "partial files")
    print(f"{'kind':<20}" + "".join(f"{name:>15}" for name in columns))
    with tempfile.TemporaryDirectory() as base:
        for kind, files in seeds(Path(base)).items():
            counts: Counter[str] = Counter()
            for number in range(args.count + len(files)):
                data = files[number] if number < len(files) else mutate(generator.choice(files), generator)
                folder = Path(base, f"{kind}-{number}".replace(" ", "-"))
                folder.mkdir()
                process = context.Process(target=run, args=(kind, data, str(folder)))
                process.start()
                process.join(30)
                counts["inputs"] += 1
                if process.is_alive():
                    counts["over 30 s"] += 1
                    process.kill()
                    process.join()
                errors = (folder / "err").read_text(errors="replace") if (folder / "err").exists() else ""
                if process.exitcode not in (0, 1, 2) or "Traceback" in errors:
                    counts["tracebacks"] += 1
                    print(f"{kind}: {data[:200]!r}\n{errors[-1500:]}", file=sys.stderr)
                counts["code runs"] += (Path(base) / safety_cases.MARKER).exists()
                counts["partial files"] += any(folder.glob(".*")) or (folder / "out.pkl").exists()
            print(f"{kind:<20}" + "".join(f"{counts[name]:>15}" for name in columns), flush=True)


if __name__ == "__main__":
    main()

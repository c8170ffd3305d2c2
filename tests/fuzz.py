"""Fuzzing of every reader through the tools, run by hand: ``python tests/fuzz.py --count 40 --seed 0``.

Each kind of file is mutated (flipped bytes, cuts, inserted and doubled parts, values of other types in JSON), given to
the tool that reads it in a process of its own, which may take 3 GB, and counted: what ran code, ended in a traceback, took
over 30 s of CPU time or left a partial file.
"""

import argparse
import io
import json
import math
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from moco_plugin.errors import UserError
from tests.conftest import TRAIN
from tests.detectors import samples_by_others  # noqa: F401  (adds to SAMPLES)
from tests.detectors.samples import SAMPLES
from tests.helpers import safety_cases

SPECIAL = (
    "own config",
    "detectron2 config",
    "list",
    "results JSON",
    "checkpoint",
    "detectron2 weights",
    "image",
    "log",
    *safety_cases.ANNOTATIONS,
)
PRELOADED = (
    *(f"moco_plugin.tools.{name}" for name in ("convert", "pretrain", "report", "train_net", "transfer")),
    *(f"moco_plugin.{name}" for name in ("pretraining.run", "checkpoints.read", "detectors.train")),
    *("tifffile", "cv2", "detectron2.data", "detectron2.engine", "msgspec"),
)
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
    base = {"weights": "x", "weights_sha256": "ab", "versions": {"torch": "2"}, "train": "a", "test": "b", "top1": 50.0}
    solver = {"SOLVER": {"IMS_PER_BATCH": 16, "BASE_LR": 0.02, "MAX_ITER": 24000}}
    trial = {"folder": "trial_1", "metrics": {"bbox/AP": 1.0}}
    transfer: dict[str, object] = {
        "task": "voc_c4",
        "init": "moco",
        "config": "c",
        "settings": solver,
        "trials": [trial],
        "overrides": ["A", "1"],
    }
    transfer |= {
        "mean": {"bbox/AP": 1.0},
        "std": {},
        "pretraining": {"method": "moco_v2", "epoch": 200},
        "requested_trials": 2,
    }
    realm = {"mean_per_class": 1.0, "top1": 2.0, "l2": 0.1, "classes": 3}
    omni = {"realms": {"a": realm}, "partial": True, "missing": ["b"], "mean_per_class": 1.0}
    kinds = {"linear": {"epoch": 200}, "finetune": {"recipe": "x"}, "lowshot": {"shares": [{"share": 0.1} | realm]}}
    kinds |= {"knn": {"k": 20, "top1_by_k": {"20": 5.0}}, "retrieve": {"recall": {"1": 5.0}}, "omnibenchmark": omni}
    results = [base | transfer, *({"protocol": name} | base | more for name, more in kinds.items())]
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
        "results JSON": [
            *(json.dumps(r).encode() for r in results),
            *(t.encode() for t in safety_cases.json_cases().values()),
        ],
        "COCO JSON": [str(coco).replace("'", '"').encode(), *(t.encode() for t in safety_cases.json_cases().values())],
        "checkpoint": [
            (folder / "a.pth").read_bytes(),
            (folder / "b.pth").read_bytes(),
            *safety_cases.pickle_cases(marker).values(),
            *safety_cases.weight_cases().values(),
        ],
        **{f"special {kind}": [name.encode() for name in safety_cases.SPECIAL] for kind in SPECIAL},
        "image": _images(),
        "log": [b"step,loss,lr\n0,1.5,0.1\n1,1.25,0.1\n", b"step,loss\n" + b"9" * 400 + b",nan\n", b"\0step\n"],
        "detectron2 log": [b'{"iteration": 1, "total_loss": 2.5}\n{"iteration": 2, "total_loss": 2}\n'],
        "detectron2 weights": [pickle.dumps(arrays, 2), *safety_cases.pickle_cases(marker).values()],
        **{kind: _annotations(kind, folder / kind) for kind in safety_cases.ANNOTATIONS},
    }


def _images() -> list[bytes]:
    """Return images of several formats, and what takes long, starts programs or never ends."""
    picture, files = Image.effect_noise((64, 48), 50).convert("RGB"), []
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000"):
        picture.save(stream := io.BytesIO(), kind)
        files.append(stream.getvalue())
    picture.save(stream := io.BytesIO(), "JPEG", progressive=True)
    scans = stream.getvalue()
    scan = scans[(first := scans.index(b"\xff\xda")) : scans.index(b"\xff", first + 12)]
    loop = b"II*\0\x08\0\0\0\x01\0\0\x01\x04\0\x01\0\0\0\x01\0\0\0\x08\0\0\0"
    large = scans.replace(b"\0\x30\0\x40", b"\x40\0\x40\0", 1)  # 16384 x 16384 pixels
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    return [
        *files,
        scans[:-2] + scan * 100_000 + b"\xff\xd9",
        large,
        loop,
        eps,
        files[1] + files[2],
        files[0] + files[1],
    ]


def _annotations(kind: str, folder: Path) -> list[bytes]:
    """Return the file of a data set as its tool writes it, and hostile ones."""
    name, file = safety_cases.ANNOTATIONS[kind]
    SAMPLES[name].write(folder)
    return [(folder / file).read_bytes(), *safety_cases.annotation_cases()[kind]]


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Return a mutation of a file, in one to four steps."""
    if data[:1] in b"{[" and generator.random() < 0.5:
        try:
            return _retyped(data, generator)
        except (ValueError, RecursionError):
            pass
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


def _retyped(data: bytes, generator: random.Random) -> bytes:
    """Return a JSON text with one value of another type, or without it."""
    content = json.loads(data)
    places, waiting = [], [content]
    while waiting:
        part = waiting.pop()
        keys = [*part] if isinstance(part, dict) else range(len(part))
        places += [(part, key) for key in keys]
        waiting += [part[key] for key in keys if isinstance(part[key], (dict, list))]
    part, key = generator.choice(places or [([None], 0)])
    values: list[object] = [
        None,
        True,
        -1,
        1 << 70,
        10**400,
        1.5,
        1e308,
        math.nan,
        "",
        "x\ud800",
        "1",
        [],
        [[]],
        {},
        {"a": 1},
        [None],
    ]
    part[key] = generator.choice(values)
    return json.dumps(content).encode(errors="replace")


def run(kind: str, data: bytes, folder: str) -> None:
    """Give a file to its tool; exits with the tool's code, 70 after a traceback."""
    os.chdir(folder)
    for stream, name in enumerate((os.devnull, "out", "err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), stream)
    resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
    special, kind = kind.startswith("special "), kind.removeprefix("special ")
    suffix = {
        "own config": "yaml",
        "detectron2 config": "yaml",
        "list": "txt",
        "checkpoint": "pth",
        "image": "jpg",
        "detectron2 weights": "pkl",
    }.get(kind, "json")
    names = {"idx": "train-images-idx3-ubyte.gz", "log": "metrics.csv", "detectron2 log": "trial_1/metrics.json"}
    path = Path(names.get(kind, f"results.{suffix}"))
    path.parent.mkdir(exist_ok=True)
    maker = safety_cases.SPECIAL.get(data.decode(errors="replace")) if special else None
    if kind not in safety_cases.ANNOTATIONS:
        maker(path) if maker else path.write_bytes(data)
    tools: dict[str, Callable[[], int]] = {}
    from moco_plugin.tools import convert, pretrain, report

    stop = ["data.batch_size=0", "out=run"]  # a valid file ends at the batch size
    tools["own config"] = lambda: pretrain.main(["--config", str(path), f"data.root={TRAIN}", *stop])
    tools["override"] = lambda: pretrain.main([f"data.root={TRAIN}", data.decode(errors="replace"), *stop])
    tools["list"] = tools["idx"] = lambda: pretrain.main([f"data.root={path}", *stop])
    tools["results JSON"] = tools["log"] = tools["detectron2 log"] = lambda: report.main(["."])
    if kind == "log":
        Path("config.yaml").write_text(f"data:\n  root: {TRAIN}\n")
    if kind == "detectron2 log":
        Path("results.json").write_bytes(seeds(Path())["results JSON"][0])
    tools["image"] = lambda: _read(path)
    tools["checkpoint"] = tools["detectron2 weights"] = lambda: convert.main(
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
            Path("set", file).unlink()
            maker(Path("set", file)) if maker else Path("set", file).write_bytes(data)
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


def _read(path: Path) -> int:
    """Read an image in every way that there is."""
    from moco_plugin.data import decode

    readers: list[Callable[[], object]] = [
        lambda: decode.decode_array(path, "x"),
        lambda: decode.decode_array(path, "x", (0, 255), channels=1),
        lambda: decode.decode_pixels(path.read_bytes(), "x") if path.is_file() else None,
        *(lambda read=read: read(path) for read in (decode.decode_labels, decode.stored_as)),
    ]
    code = 0
    for read in readers:
        try:
            read()
        except (UserError, decode.CannotDecode):
            code = 1
    return code


def _refused(call: Callable[[], None]) -> int:
    try:
        call()
    except UserError:
        return 1
    return 0


def main() -> None:
    """Fuzz each kind and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="inputs of each kind (default %(default)s)")
    parser.add_argument("--kinds", nargs="*", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    generator = random.Random(args.seed)
    columns = ("inputs", "code runs", "tracebacks", "over 30 s", "partial files")
    failed = 0
    print(f"{'kind':<26}" + "".join(f"{name:>15}" for name in columns))
    with tempfile.TemporaryDirectory() as base:
        for kind, files in seeds(Path(base)).items():
            if args.kinds and kind not in args.kinds:
                continue
            counts: Counter[str] = Counter()
            first = generator.sample(files, len(files))
            for number in range(min(args.count, len(files)) if kind.startswith("special") else args.count):
                data = first[number] if number < len(files) else mutate(generator.choice(files), generator)
                folder = Path(base, f"{kind}-{number}".replace(" ", "-"))
                folder.mkdir()
                process = context.Process(target=run, args=(kind, data, str(folder)))
                process.start()
                process.join(300)  # of waiting, or for the CPU
                counts["inputs"] += 1
                if process.is_alive():
                    process.kill()
                    process.join()
                slow = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
                counts["over 30 s"] += slow
                if slow:
                    print(f"{kind}: {data[:200]!r} takes too long", file=sys.stderr)
                errors = (folder / "err").read_text(errors="replace") if (folder / "err").exists() else ""
                if (process.exitcode not in (0, 1, 2) and not slow) or "Traceback" in errors:
                    counts["tracebacks"] += 1
                    print(f"{kind}: {data[:200]!r}\n{errors[-1500:]}", file=sys.stderr)
                counts["code runs"] += (Path(base) / safety_cases.MARKER).exists()
                counts["partial files"] += any(folder.glob(".*")) or (folder / "out.pkl").exists()
            print(f"{kind:<26}" + "".join(f"{counts[name]:>15}" for name in columns), flush=True)
            failed += sum(counts.values()) - counts["inputs"]
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

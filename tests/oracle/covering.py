"""The options of pre-training as a covering array: every pair of values occurs in a run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from covertable import make

BATCH, BATCHES, EPOCHS = 32, 4, 2  # images of a step, steps and epochs; some images are left over

OPTIONS: dict[str, list[Any]] = {
    "method": ["moco_v1", "moco_v2", "symmetric", "v3_resnet", "v3_vit"],
    "batch_norm": ["auto", "shuffle", "split", "plain"],
    "queue": [80, 1024, 1500],  # below, equal to and above one block of the contrast; multiples of the batch or not
    "processes": [1, 2, 4],
    "channels_last": [True, False],
    "precision": ["32-true", "bf16-mixed", "64-true"],
    "accumulate": [1, 3],  # 3 does not divide the batches of an epoch
    "clip": [0, 0.3],
    "schedule": ["epoch", "step"],
    "engine": ["fast", "reference", "device"],
    "workers": [0, 1, 3],
    "source": ["folder", "csv", "zip", "shards", "idx", "npy", "tiff"],
    "channels": [3, 1, 4],
    "stop": [0, 1, 2, 3, 5, 7],  # the step at which a signal comes; 0 for none
    "knn": [False, True],
    "start": ["random", "weights"],
    "entry": ["tool", "python"],
}


@dataclass(frozen=True)
class Case:
    """One run; the defaults are what a user gets."""

    method: str = "moco_v2"
    batch_norm: str = "auto"
    queue: int = 80
    processes: int = 1
    channels_last: bool = True
    precision: str = "32-true"
    accumulate: int = 1
    clip: float = 0
    schedule: str = "epoch"
    engine: str = "fast"
    workers: int = 1
    source: str = "folder"
    channels: int = 3
    stop: int = 0
    knn: bool = False
    start: str = "random"
    entry: str = "tool"
    compile: bool = False

    def __str__(self) -> str:
        """Return what differs from the defaults, as the name of a test."""
        default = asdict(Case())
        return ",".join(f"{k}={v}" for k, v in asdict(self).items() if v != default[k]) or "defaults"

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Return the case of a name."""
        given = dict(part.split("=") for part in text.split(",") if "=" in part)
        return cls(**{name: yaml.safe_load(value) for name, value in given.items()})

    @property
    def v3(self) -> bool:
        return self.method.startswith("v3")

    @property
    def epochs(self) -> int:
        return 1 if self.entry == "loop" else EPOCHS

    @property
    def steps_per_epoch(self) -> int:
        return -(-BATCHES // self.accumulate)


def exists(row: dict[str, Any]) -> bool:
    """Return whether a combination can be run; what is refused is in ``REFUSED``."""
    if row["method"].startswith("v3") and row["batch_norm"] in ("shuffle", "split"):
        return False  # v3 has neither
    return row["channels"] != 4 or row["source"] in ("npy", "tiff")  # JPEG and idx files have three or one


def unless(name: str, values: list[Any], other: str, others: list[Any]) -> dict[str, Any]:
    """Return the constraint that ``name`` has none of the values, or ``other`` one of the others."""
    left = {"operator": "not", "condition": {"operator": "in", "left": name, "values": values}}
    return {"operator": "or", "conditions": [left, {"operator": "in", "left": other, "values": others}]}


CONSTRAINTS = {
    ("method", "batch_norm"): unless("method", ["v3_resnet", "v3_vit"], "batch_norm", ["auto", "plain"]),
    ("source", "channels"): unless("channels", [4], "source", ["npy", "tiff"]),
}


def covering_array(
    options: dict[str, list[Any]] = OPTIONS, strength: int = 2, salt: str = "", **fixed: Any
) -> list[Case]:
    """Return runs in which every combination of so many options' values occurs that exists."""
    constraints = [c for names, c in CONSTRAINTS.items() if options.keys() >= set(names)]
    rows = make(options, strength=strength, salt=salt, constraints=constraints)
    return [Case(**{name: row[name] for name in options}, **fixed) for row in rows]


# the other ways in, with what can be chosen there
LOOP: dict[str, list[Any]] = {
    "method": ["moco_v1", "moco_v2", "symmetric", "v3_resnet"],
    "batch_norm": OPTIONS["batch_norm"],
    "queue": OPTIONS["queue"],
    "processes": [1, 2],
    "channels_last": [True, False],
    "precision": ["32-true", "64-true"],
    "workers": OPTIONS["workers"],
    "source": OPTIONS["source"],
}
LIGHTLY_TRAIN: dict[str, list[Any]] = {
    "method": OPTIONS["method"],
    "batch_norm": ["auto", "plain"],
    "queue": [80, 1500],
    "processes": [1, 2],
    "precision": ["32-true", "bf16-mixed"],
    "accumulate": OPTIONS["accumulate"],
}
# few: a compilation takes longer than a run
COMPILED = [Case(compile=True, batch_norm="plain"), Case(compile=True, method="v3_vit", processes=2, stop=3)]
COMPILED_TOO = [
    Case(compile=True, batch_norm="split"),
    Case(compile=True, method="v3_resnet", accumulate=3),
    Case(compile=True),
    Case(compile=True, processes=2, stop=3),
    Case(compile=True, method="symmetric", batch_norm="split", channels_last=False, accumulate=3, queue=1500, stop=5),
]
# what is refused, and the beginning of the sentence
REFUSED = [
    (Case(method="v3_resnet", batch_norm="shuffle"), "batch_norm is 'shuffle'; expected auto, sync or plain"),
    (Case(method="v3_vit", batch_norm="split"), "unknown key method_args.batch_norm_groups"),
    (Case(channels=4), "expected 4"),
    (Case(channels=4, source="idx"), "expected 4"),
    (Case(queue=31), "method_args.queue_size is 31, below the 32 keys of a batch"),
    (Case(method="symmetric", queue=48), "method_args.queue_size is 48, below the 64 keys of a batch"),
    (Case(batch_norm="sync", processes=2), "method_args.batch_norm is sync, which torch has on CUDA only"),
    (Case(precision="bf16-true"), "keeps the weights in 16 bits"),
    (Case(processes=3), "cannot be split evenly over 3 processes"),
]


def pairs(case: Case) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Yield the pairs of values of a case."""
    values = [(name, value) for name, value in asdict(case).items() if name in OPTIONS]
    yield from ((a, b) for i, a in enumerate(values) for b in values[i + 1 :])

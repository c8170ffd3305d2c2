"""The transfer experiments: their configs, data sets and metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from moco_plugin.errors import UsageError, did_you_mean
from moco_plugin.papers import LVIS_2X_FROZEN, REPORTED, TRANSFER, Published

INITIALISATIONS = ("random", "supervised", "moco")


@dataclass(frozen=True)
class Metric:
    """A number that a paper reports, in percent: its name there, and its group and key in detectron2's results."""

    name: str
    group: str
    key: str

    @property
    def path(self) -> str:
        """The name in ``results.json``, such as ``bbox/AP50``."""
        return f"{self.group}/{self.key}"


@dataclass(frozen=True)
class Task:
    """A transfer experiment.

    Attributes:
        name: The value of ``tools/transfer.py --task``.
        title: A description in a few words.
        configs: Name of the config under ``configs/detectron2`` for each initialisation.
        datasets: Registered names of the data sets to train and to test on.
        metrics: The paper's, in its order.
        note: What the papers say about their numbers.
    """

    name: str
    title: str
    configs: Mapping[str, str]
    datasets: tuple[str, ...]
    metrics: tuple[Metric, ...]
    note: str = ""

    @property
    def published(self) -> tuple[Published, ...]:
        """The papers' rows."""
        return TRANSFER.get(self.name, ())

    def config(self, init: str) -> str:
        """Return the name of the config for an initialisation.

        Raises:
            UsageError: The task has none.
        """
        if init not in self.configs:
            raise UsageError(f"task {self.name} starts from {' or '.join(self.configs)} weights, not {init}")
        return self.configs[init]


def find_task(name: str) -> Task:
    """Return the task with a name.

    Raises:
        UsageError: There is none; names the nearest.
    """
    if name not in TASKS:
        raise UsageError(f"there is no task {name!r}{did_you_mean(name, TASKS)}; known are {', '.join(TASKS)}")
    return TASKS[name]


def _task(
    name: str,
    *,
    title: str,
    datasets: list[str],
    metrics: dict[str, str],
    config: str = "",
    configs: Mapping[str, str] = MappingProxyType({}),
    note: str = "",
) -> Task:
    """Return the task of a row of papers.yaml."""
    of_papers = {init: f"{config}_{init}" for init in INITIALISATIONS} if config else {}
    measured = tuple(Metric(metric, *path.split("/")) for metric, path in metrics.items())
    note = note.format(lvis_2x_frozen=" / ".join(map(str, LVIS_2X_FROZEN)))
    return Task(name, title, {**of_papers, **configs}, tuple(datasets), measured, note)


TASKS = {name: _task(name, **row) for name, row in REPORTED["tasks"].items()}

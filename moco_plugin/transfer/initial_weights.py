"""The initial weights of a transfer experiment: found, converted and checked before training."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model

from moco_plugin.checkpoints.convert import convert
from moco_plugin.checkpoints.read import Checkpoint
from moco_plugin.checkpoints.released import is_released, resolve
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import sha256
from moco_plugin.transfer.config import fit_device
from moco_plugin.transfer.weights import building_a_network, fetch, fill, read_file


@dataclass(frozen=True)
class InitialWeights:
    """Weights as given by the user; empty for a random start."""

    given: str = ""  # path, address or name
    source: Path | Checkpoint | None = None  # the file on this machine, or its content
    sha256: str = ""  # of the file

    def for_detectron2(self, out: Path, machine_rank: int = 0) -> tuple[str, dict[str, Any] | None]:
        """Return the path for ``MODEL.WEIGHTS`` and its content; a checkpoint is converted into ``out`` first.

        Args:
            out: Folder of the run.
            machine_rank: Each machine converts for itself, so that none waits for another.

        Raises:
            UserError: It cannot be read or converted.
        """
        if self.source is None:
            return "", None
        if isinstance(self.source, Path) and self.source.suffix == ".pkl":
            return str(self.source.resolve()), read_file(str(self.source))
        converted = (out / (f"weights_{machine_rank}.pkl" if machine_rank else "weights.pkl")).resolve()
        with suppress(UserError):  # there is none, or it is broken
            content = read_file(str(converted))
            if (content.get("moco_plugin") or {}).get("source_sha256") == self.sha256:
                return str(converted), content
        convert(self.source, converted, "detectron2", overwrite=True)
        return str(converted), read_file(str(converted))


def find_weights(init: str, weights: str | Checkpoint | None, default: str) -> InitialWeights:
    """Find the file of weights, fetching URLs and released checkpoints.

    Args:
        init: "random", "supervised" or "moco".
        weights: A path, an address that detectron2 knows, a name, or a checkpoint as read; None for ``default``.
        default: ``MODEL.WEIGHTS`` of the config.

    Raises:
        UsageError: A random start with weights, or MoCo's without.
        UserError: There is no such file, or it cannot be fetched.
    """
    given = str(weights.path) if isinstance(weights, Checkpoint) else weights or default
    if init == "random":
        if weights:
            raise UsageError(f"--init random starts without weights, and --weights is {given}; leave one out")
        return InitialWeights()
    if not weights and init == "moco":
        raise UsageError("--init moco starts from weights; pass --weights CHECKPOINT, or --init random or supervised")
    if isinstance(weights, Checkpoint):
        return InitialWeights(given, weights, weights.sha256)
    path = fetch(given) if "://" in given and not is_released(given) else resolve(given)
    if not path.is_file():
        raise UserError(f"weights {given}: no such file; check --weights")
    return InitialWeights(given, path, sha256(path))


def check_weights(cfg: CfgNode, content: dict[str, Any] | None) -> dict[str, Any]:
    """Build the model and fill it with the content of ``MODEL.WEIGHTS`` on the CPU, as every trial does.

    Returns:
        Where the weights come from, as our converters write it into the file.

    Raises:
        UserError: The network cannot be built; the weights contradict the config, or leave the backbone random in part.
    """
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    fit_device(cfg, say=False)
    with building_a_network():
        model = build_model(cfg)
    coverage = fill(model, cfg.MODEL.WEIGHTS, content, cfg=cfg)
    return {key: value for key, value in coverage.metadata.items() if key != "proof"}

"""CPU seconds and memory of a conversion."""

import pickle
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from moco_plugin.backbones import create_backbone
from moco_plugin.benchmarks.timing import at_least
from moco_plugin.errors import UsageError, UserError


def _write_official(path: Path, backbone: str) -> None:
    """Write random weights as the released code saves a MoCo v2 checkpoint: two encoders and the queue."""
    torch.manual_seed(0)
    weights = {f"module.encoder_q.{k}": v for k, v in create_backbone(backbone).state_dict().items()}
    weights |= {key.replace("encoder_q", "encoder_k"): value.clone() for key, value in weights.items()}
    weights |= {"module.queue": torch.randn(128, 65536), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    torch.save({"epoch": 200, "arch": backbone, "state_dict": weights}, path)


def _with_proof(source: Path, output: Path) -> None:
    from moco_plugin import convert

    with redirect_stdout(None):
        convert(source, output)


def _renaming_alone(source: Path, output: Path) -> None:
    from moco_plugin.transfer.to_detectron2 import detectron2_name

    prefix = "module.encoder_q."
    weights = torch.load(source, map_location="cpu", weights_only=True)["state_dict"]
    model = {
        detectron2_name(name.removeprefix(prefix)): value.numpy()
        for name, value in weights.items()
        if name.startswith(prefix)
    }
    with open(output, "wb") as file:
        pickle.dump({"model": model, "__author__": "MOCO", "matching_heuristics": True}, file)


CONVERTERS = {"with proof": _with_proof, "renaming alone": _renaming_alone}


def _memory(name: str) -> int:
    """Return bytes that the kernel counts for this process: VmRSS held now, VmHWM held at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise UserError(f"no {name} in /proc/self/status; expected Linux, where the memory of a process is counted")


def _conversion(converter: str, source: Path, output: Path, out: Any) -> None:
    """Run one conversion; send its cost without the imports, or the reason of its failure."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")  # not the user's to mend
    import moco_plugin.checkpoints.convert
    import moco_plugin.transfer.to_detectron2  # noqa: F401

    torch.set_num_threads(1)
    before, start = _memory("VmRSS"), time.process_time()
    try:
        CONVERTERS[converter](source, output)
        out.put((time.process_time() - start, _memory("VmHWM") - before))
    except UserError as error:
        out.put(error)


def measure(file: Path | None = None, backbone: str = "resnet50", rounds: int = 3) -> dict[str, Any]:
    """Count CPU seconds and memory of a conversion to detectron2 with proof, compared with renaming alone.

    Each conversion runs in its own process, on one thread; imports are not counted. CPU seconds do
    not depend on what else the machine does, seconds of a clock would.

    Args:
        file: An official MoCo v1/v2 checkpoint; by default one of random weights is written.
        backbone: The ResNet of that.
        rounds: Conversions of each kind; the medians are returned.
    """
    at_least(1, rounds=rounds)
    if file is not None and not file.is_file():
        raise UsageError(f"{file}: no such file; expected an official MoCo v1/v2 checkpoint")
    context = torch.multiprocessing.get_context("spawn")
    measured: dict[str, list[tuple[float, int]]] = {name: [] for name in CONVERTERS}
    with tempfile.TemporaryDirectory() as folder:
        source, output = file or Path(folder) / "official.pth.tar", Path(folder) / "converted.pkl"
        if file is None:
            _write_official(source, backbone)
        size = source.stat().st_size
        for _ in tqdm(range(rounds), desc="rounds", file=sys.stderr):
            for name, rows in measured.items():
                out = context.SimpleQueue()
                process = context.Process(target=_conversion, args=(name, source, output, out))
                process.start()
                process.join()
                if process.exitcode:
                    raise UserError(f"{source} could not be converted ({name}); the reason is printed above")
                row = out.get()
                if isinstance(row, UserError):
                    raise row
                rows.append(row)
                output.unlink()
    results = {}
    for name, rows in measured.items():
        seconds, memory = (statistics.median(column) for column in zip(*rows, strict=True))
        results[name] = {
            "cpu_seconds": round(seconds, 2),
            "peak_megabytes": round(memory / 1e6, 1),
            "peak_to_file": round(memory / size, 2),
        }
    settings = {"file": str(file or f"random {backbone}"), "file_megabytes": round(size / 1e6, 1), "rounds": rounds}
    return {"settings": settings, "results": results}

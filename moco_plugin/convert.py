"""Any checkpoint in, any layout out: what tools/convert.py and tools/convert_to_d2.py do."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moco_plugin.checkpoints.inspect import describe
from moco_plugin.checkpoints.proof import Network
from moco_plugin.checkpoints.read import Checkpoint, read_checkpoint
from moco_plugin.checkpoints.write import check_ending, convert
from moco_plugin.files import check_output


def convert_file(
    source: str | Path,
    output: str | Path,
    to: str,
    *,
    encoder: str = "query",
    architecture: str | None = None,
    overwrite: bool = False,
) -> None:
    """Converts a checkpoint and prints what it was, what it left unused, and how exactly the result computes the same.

    Args:
        source: A checkpoint of any layout that ``read_checkpoint`` knows.
        output: The file or folder to write.
        to: "detectron2", "detectron2-timm", "timm", "torchvision" or "lightly-train".
        encoder: "query" or "key", where the checkpoint has both.
        architecture: timm's name of the backbone, where the weights do not say it.
        overwrite: Replace what is there.
    """
    output = Path(output).expanduser()
    check_ending(output, to)
    check_output(output, overwrite)
    checkpoint = read_checkpoint(source, encoder, architecture)
    print("\n".join(describe(checkpoint)))
    if to.startswith("detectron2"):  # which alone needs detectron2
        from moco_plugin.transfer.convert import convert_to_detectron2

        metadata = convert_to_detectron2(checkpoint, output, overwrite, to)
    else:
        metadata = convert(checkpoint, output, to, overwrite, _source(checkpoint))
    proof = metadata["proof"]
    for stage, difference in proof["largest_differences"].items():
        print(f"{stage}: largest difference between {proof['source']} and {proof['target']} {difference:.2e}")
    print(f"written: {output}")
    print(f"opens with: {how_to_open(output, metadata)}")


def how_to_open(output: Path, metadata: dict[str, Any]) -> str:
    """Returns what to type in the target's framework to use a file of ours.

    Args:
        output: The file or folder.
        metadata: What it says about itself.
    """
    to = metadata["target"]
    if to == "torchvision":
        arguments = dict(metadata["torchvision_arguments"])
        block = arguments.pop("block", None)
        first = f"torchvision.models.resnet.{block}, " if block else ""
        network = f"torchvision.models.{metadata['torchvision_class']}({first}{_keywords(arguments)})"
        return f"{network}, then its load_state_dict(..., strict=False), which leaves the classifier as it is"
    name, arguments = metadata.get("timm_name"), metadata.get("timm_arguments", {})
    if to == "detectron2" and name is None:
        return f"MODEL.WEIGHTS {output} INPUT.FORMAT RGB MODEL.RESNETS.STRIDE_IN_1X1 False"
    if to == "detectron2":
        pairs = [part for pair in arguments.items() for part in pair]
        return f'MODEL.WEIGHTS {output} INPUT.FORMAT RGB MODEL.TIMM.NAME {name} MODEL.TIMM.ARGS "{pairs}"'
    loading = {"num_classes": 0, "checkpoint_path": str(output)}
    if to == "lightly-train":
        return f"lightly_train.pretrain(model='timm/{name}', model_args={ {**arguments, **loading} }, ...)"
    if not output.suffix:
        return f"timm.create_model('local-dir:{output}', pretrained=True)"
    if name is None:  # a stem that timm's names cannot say
        return f"moco_plugin.checkpoints.read.read_checkpoint('{output}').backbone"
    return f"timm.create_model('{name}', {_keywords({**arguments, **loading})})"


def _source(checkpoint: Checkpoint) -> Network | None:
    """Returns detectron2's network for weights that came in its names, if detectron2 is installed."""
    if checkpoint.layout != "detectron2" or find_spec("detectron2") is None:
        return None
    from moco_plugin.transfer.convert import detectron2_source

    return detectron2_source(checkpoint)


def _keywords(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())

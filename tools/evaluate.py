#!/usr/bin/env python3
"""Evaluate a checkpoint; each command is a function that an entry point of the group moco_plugin.evaluations names."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

try:
    from moco_plugin.errors import UsageError, command
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.data.spec import check_images
from moco_plugin.files import check_checkpoint, check_output
from moco_plugin.runs.run_folder import check_unlocked
from moco_plugin.tools import add_command, new_parser, parse

SAMPLES = {
    "weights": "runs/photos/checkpoints/last.ckpt",
    "train": "photos/train",
    "test": "photos/val",
    "images": "photos",
    "out": "features.npy",
}
SEVERAL = ("linear", "finetune", "embed")  # run on several processes; others run on the first process only


def add_evaluation(commands: Any, entry: EntryPoint) -> str:
    """Add the command of an entry point; return an example of it."""
    parser, required = add_command(commands, entry.name, entry.module, entry.attr)
    shown = [name for name, is_required in required.items() if is_required or name == "test"]
    example = " ".join(["%(prog)s", *(f"--{name} {SAMPLES.get(name, name.upper())}" for name in shown)])
    parser.epilog = f"example:\n  {example}" + ("" if "out" in shown else f" --out {entry.name}.json")
    parser.set_defaults(run=entry)
    if entry.name == "retrieve":
        parser.add_argument(
            "--picture", help="also draw the neighbours of one image per class: an .html or a .png file"
        )
    return example.replace("%(prog)s", f"%(prog)s {entry.name}")


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Parse the command line and evaluate."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["linear"] and "--fast" in given:  # its earlier name
        given = ["linear-fast", *(text for text in given[1:] if text != "--fast")]
    names = [entry.name for entry in entry_points(group="moco_plugin.evaluations")]
    if given and given[0].startswith("-") and given[0] not in ("-h", "--help"):
        raise UsageError(f"{given[0]} comes before a command; expected a command first: {', '.join(names)}")
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    examples = ["examples:"]
    for entry in entry_points(group="moco_plugin.evaluations"):
        try:
            examples.append(add_evaluation(commands, entry))
        except (ImportError, AttributeError, KeyError, SyntaxError):
            print(f"left out: {entry.name}, since {entry.value} has no source of a function", file=sys.stderr)
    parser.epilog = "\n  ".join(examples)
    arguments = parse(parser, given)
    run, picture = arguments.pop("run"), arguments.pop("picture", None)

    check_checkpoint(arguments["weights"])
    for spec in filter(None, map(arguments.get, ("train", "test", "images"))):
        check_images(spec)
    if out := arguments.get("out"):
        out = check_output(Path(out).expanduser(), arguments.get("overwrite", False))
        check_unlocked(out.with_name(f"{out.stem}_run"))  # of linear and finetune
    if run.name not in SEVERAL and os.environ.get("RANK", "0") != "0":
        return 0
    if not picture:
        run.load()(**arguments)
        return 0
    from moco_plugin.data.images import ImageSet
    from moco_plugin.pages.neighbours_picture import check_picture, write_neighbours

    check_picture(picture, arguments.get("overwrite", False))
    result, neighbours = run.load()(**arguments)
    train, test = (ImageSet(result[split], result["value_range"], result["channels"]) for split in ("train", "test"))
    write_neighbours(picture, train, test, neighbours, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())

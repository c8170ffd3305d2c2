#!/usr/bin/env python3
"""Evaluate a checkpoint; each command is a function that an entry point of the group moco_plugin.evaluations names."""

import argparse
import ast
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

try:
    import moco_plugin  # noqa: F401
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.data.spec import check_images
from moco_plugin.errors import UsageError, command
from moco_plugin.files import check_checkpoint, check_output
from moco_plugin.runs.run_folder import check_unlocked

SAMPLES = {
    "weights": "runs/photos/checkpoints/last.ckpt",
    "train": "photos/train",
    "test": "photos/val",
    "images": "photos",
    "out": "features.npy",
}
SEVERAL = ("linear", "finetune", "embed")  # run on several processes; others run on the first process only


def definitions(module: str) -> dict[str, Any]:
    """Return the functions and classes in a module's source by name; importing it would take seconds."""
    source = find_spec(module).loader.get_source(module)  # type: ignore[union-attr]
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def parameters(function: ast.FunctionDef) -> Iterator[tuple[str, str, ast.expr | None, str]]:
    """Yield name, annotation, default (None if required) and help of the parameters of an evaluation."""
    texts = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", ast.get_docstring(function) or "", re.M))
    given = function.args
    required = len(given.args) - len(given.defaults)
    defaults = [*[None] * required, *given.defaults, *given.kw_defaults]
    for node, default in zip([*given.args, *given.kwonlyargs], defaults, strict=True):
        yield node.arg, ast.unparse(node.annotation or ast.Name("str")), default, texts.get(node.arg, "")
    shared = definitions("moco_plugin.evaluation.subject")
    sections = [ast.unparse(given.kwarg.annotation or given.kwarg)[len("Unpack[") : -1]] if given.kwarg else []
    for name in sections:  # bases are appended in the loop
        for field, text in zip(shared[name].body[1::2], shared[name].body[2::2], strict=True):
            yield field.target.id, ast.unparse(field.annotation), ast.Constant(None), ast.literal_eval(text.value)
        sections += [base.id for base in shared[name].bases if base.id in shared and base.id not in sections]


def _is_override(value: object) -> bool:
    """Return whether an argument is key=value and not the name of a file."""
    return re.match(r"[\w.]+=", str(value)) is not None and not Path(str(value)).exists()


class Values(argparse.Action):
    """The values of an option; argparse counts a key=value behind them among them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.behind = [*getattr(namespace, "behind", ()), *(value for value in values if _is_override(value))]
        setattr(namespace, self.dest, own := [value for value in values if not _is_override(value)])
        if not own:
            raise argparse.ArgumentError(self, "expected at least one argument")


def add_parameter(parser: argparse.ArgumentParser, name: str, annotation: str, default: Any, text: str) -> None:
    """Add the option of a parameter; one that is not given is left to the function."""
    text = " ".join(text.replace("``", "").replace("%", "%%").split())
    if name == "overrides":
        parser.add_argument(name, nargs="*", metavar="key=value", help=text)
        return
    options: dict[str, Any] = {"required": default is None, "default": argparse.SUPPRESS}
    if annotation == "bool":
        options["action"] = "store_true"
    elif annotation.startswith("Literal"):
        options["choices"] = ast.literal_eval(annotation.removeprefix("Literal"))
    else:
        kind = next((kind for kind in (int, float) if re.search(rf"\b{kind.__name__}\b", annotation)), str)
        options["type"] = kind
        if annotation.startswith("Sequence"):
            options |= {
                "nargs": "+",
                "action": Values,
                "type": lambda value: value if _is_override(value) else kind(value),
            }
            options["type"].__name__ = kind.__name__  # for argparse's message
    if isinstance(default, ast.Constant | ast.Tuple) and (value := ast.literal_eval(default)):
        text += f" (default {' '.join(map(str, value)) if isinstance(value, tuple) else value})"
    parser.add_argument(f"--{name.replace('_', '-')}", help=text, **options)


def add_command(commands: Any, entry: EntryPoint) -> str:
    """Add the command of an entry point; return an example of it."""
    function = definitions(entry.module)[entry.attr]
    about = (ast.get_docstring(function) or "").partition("\n\nArgs:")[0].replace("``", "").replace("%", "%%")
    options = list(parameters(function))
    shown = [name for name, _, default, _ in options if default is None or name == "test"]
    example = " ".join(["%(prog)s", *(f"--{name} {SAMPLES.get(name, name.upper())}" for name in shown)])
    parser = commands.add_parser(
        entry.name,
        help=about.partition("\n")[0].rstrip("."),
        description=about,
        epilog=f"example:\n  {example}" + ("" if "out" in shown else f" --out {entry.name}.json"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=entry, parser=parser)
    for option in options:
        add_parameter(parser, *option)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    examples = ["examples:"]
    for entry in entry_points(group="moco_plugin.evaluations"):
        try:
            examples.append(add_command(commands, entry))
        except (ImportError, AttributeError, KeyError, SyntaxError):
            print(f"left out: {entry.name}, since {entry.value} has no source of a function", file=sys.stderr)
    parser.epilog = "\n  ".join(examples)
    args, others = parser.parse_known_args(given)
    arguments = vars(args)
    run, parser, picture = (arguments.pop(name, None) for name in ("run", "parser", "picture"))
    others = [*arguments.pop("behind", ()), *others]
    if wrong := [text for text in others if "overrides" not in arguments or text.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if "overrides" in arguments:
        arguments["overrides"] += others

    check_checkpoint(args.weights)
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

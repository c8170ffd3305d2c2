"""Command line tools, each installed as a console command; and their parsers, whose options are read off functions."""

import argparse
import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def new_parser(description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser whose help keeps the lines of both texts."""
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, epilog=epilog, formatter_class=layout)


def definitions(module: str) -> dict[str, Any]:
    """Return the functions and classes of a module by name, from its source; importing it would take seconds.

    A name that the module imports from another has the ``ast.ImportFrom``.
    """
    found: dict[str, Any] = {}
    for node in ast.parse(find_spec(module).loader.get_source(module)).body:  # type: ignore[union-attr]
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            found |= dict.fromkeys([alias.name for alias in node.names], node)
    return found


def parameters(module: str, function: str) -> Iterator[tuple[str, str, ast.expr | None, str]]:
    """Yield name, annotation, default (None if required) and help of a function's parameters.

    Help comes from the docstring's Args; that of ``**options: Unpack[Section]`` from the section's fields.
    """
    known = definitions(module)
    texts = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", ast.get_docstring(known[function]) or "", re.M))
    given = known[function].args
    required = len(given.args) - len(given.defaults)
    defaults = [*[None] * required, *given.defaults, *given.kw_defaults]
    for node, default in zip([*given.args, *given.kwonlyargs], defaults, strict=True):
        yield node.arg, ast.unparse(node.annotation or ast.Name("str")), default, texts.get(node.arg, "")
    if given.kwarg is None:
        return
    sections = [ast.unparse(given.kwarg.annotation)[len("Unpack[") : -1]]
    shared = definitions(known[sections[0]].module)
    for name in sections:  # bases are appended in the loop
        for field, text in zip(shared[name].body[1::2], shared[name].body[2::2], strict=True):
            yield field.target.id, ast.unparse(field.annotation), ast.Constant(None), ast.literal_eval(text.value)
        bases = [base.id for base in shared[name].bases if isinstance(shared.get(base.id), ast.ClassDef)]
        sections += [base for base in bases if base not in sections]


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


def _add_parameter(parser: argparse.ArgumentParser, name: str, annotation: str, default: Any, text: str) -> None:
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
        kinds: tuple[type, ...] = (str, int, float, Path)
        kind = next((kind for kind in kinds if re.search(rf"\b{kind.__name__}\b", annotation)), str)
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


def add_command(
    commands: Any, name: str, module: str, function: str
) -> tuple[argparse.ArgumentParser, dict[str, bool]]:
    """Add a command with an option for each parameter of a function; a parameter ``overrides`` takes key=value.

    Args:
        commands: What ``add_subparsers`` returns.
        name: Of the command.
        module: The function's module, which is read, not imported.
        function: Its docstring describes the command.

    Returns:
        The command's parser, and the names of the parameters with whether each is required.
    """
    definition = definitions(module)[function]
    about = (ast.get_docstring(definition) or "").partition("\n\nArgs:")[0].replace("``", "").replace("%", "%%")
    layout = argparse.RawDescriptionHelpFormatter
    summary = about.partition("\n")[0].rstrip(".")
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=about, formatter_class=layout)
    parser.set_defaults(parser=parser)
    options = list(parameters(module, function))
    for option in options:
        _add_parameter(parser, *option)
    return parser, {name: default is None for name, _, default, _ in options}


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> dict[str, Any]:
    """Parse the command line of a parser with commands that ``add_command`` made; return the values by name."""
    namespace, others = parser.parse_known_args(arguments)
    values = vars(namespace)
    others = [*values.pop("behind", ()), *others]
    command = values.pop("parser")
    if wrong := [text for text in others if "overrides" not in values or text.startswith("-")]:
        command.error(f"unrecognized arguments: {' '.join(wrong)}")
    if "overrides" in values:
        values["overrides"] += others
    return values

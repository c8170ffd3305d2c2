"""Reference pages of the site, generated from the code: settings, commands, the Python API.

A line ``<!-- reference: NAME -->`` of a page is replaced by the result of the function of that name in ``SECTIONS``.
"""

import argparse
import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

TOOLS = sorted(path.stem for path in (Path(__file__).parents[1] / "tools").glob("*.py") if path.stem != "__init__")
# Texts that lightly's transforms lack.
VIEW_TEXTS = {
    "input_size": "Side of a view in pixels; `data.image_size` sets it.",
    "cj_prob": "Probability of jitter.",
    "cj_strength": "Factor on the four strengths of jitter.",
    "cj_bright": "Jitter of the brightness, as a share.",
    "cj_contrast": "Jitter of the contrast, as a share.",
    "cj_sat": "Jitter of the saturation, as a share.",
    "cj_hue": "Jitter of the hue, as a share of the colour circle, 0 to 0.5.",
    "min_scale": "Smallest share of an image's area that a crop may have, above 0 and at most 1.",
    "random_gray_scale": "Probability of a grey view.",
    "gaussian_blur": "Probability of blur.",
    "solarization_prob": "Probability of solarization.",
    "sigmas": "Smallest and largest standard deviation of the blur, in pixels.",
    "vf_prob": "Probability of a flip from top to bottom.",
    "hf_prob": "Probability of a flip from left to right.",
    "rr_prob": "Probability of a rotation.",
    "rr_degrees": "Largest angle of a rotation, or smallest and largest; null for 90 degrees, counter-clockwise.",
}
DETECTOR_TEXTS = {
    "DATASETS.TRAIN": "Made from the training file.",
    "DATASETS.TEST": "Made from the test file, or from the images that are held out.",
    "SOLVER.IMS_PER_BATCH": "Images of a step, over all GPUs.",
    "SOLVER.BASE_LR": "Learning rate, proportional to the batch.",
    "SOLVER.MAX_ITER": "Steps.",
    "SOLVER.STEPS": "Steps at which the learning rate drops by SOLVER.GAMMA.",
    "SOLVER.WARMUP_ITERS": "Steps in which the learning rate rises.",
    "SOLVER.CHECKPOINT_PERIOD": "Steps between two checkpoints.",
    "MODEL.ROI_HEADS.NUM_CLASSES": "Classes of the data.",
    "MODEL.RETINANET.NUM_CLASSES": "Classes of the data.",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "Classes of the data.",
    "MODEL.MASK_ON": "Masks are trained when an object has one.",
    "INPUT.MASK_FORMAT": "Form of masks in memory; bitmask reads polygons and run lengths.",
    "INPUT.MIN_SIZE_TRAIN": "Short side of training images in pixels, one of these.",
    "INPUT.MIN_SIZE_TEST": "Short side of test images in pixels.",
    "INPUT.MAX_SIZE_TRAIN": "Long side of training images in pixels, at most.",
    "INPUT.MAX_SIZE_TEST": "Long side of test images in pixels, at most.",
    "INPUT.CROP.SIZE": "Height and width of a crop in pixels; 16 k + 1 fits the network's features.",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "Regions of an image that the heads are trained on.",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "Proposals of a test image.",
    "MODEL.RESNETS.RES5_DILATION": "Dilation of the last stage; 2 keeps its stride at 16.",
    "DATALOADER.NUM_WORKERS": "Loader processes of each training process.",
    "TEST.PRECISE_BN.NUM_ITER": "Batches that the statistics of batch norm are measured on before a test.",
}


class Key(NamedTuple):
    """A setting: its full name, type, default, limits beyond the type, and meaning."""

    name: str
    kind: str
    default: str
    limits: str
    text: str


def schema_keys(schema: Any, prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a dataclass and of those in it; a key's text is the string below its field."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    nodes = tree.body  # type: ignore[attr-defined]
    kinds, texts = {}, {}
    for node, below in zip(nodes, [*nodes[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            kinds[node.target.id] = ast.unparse(node.annotation)
            texts[node.target.id] = ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
    for item in fields(schema):
        factory = item.default_factory
        if factory is not MISSING and is_dataclass(factory):
            yield from schema_keys(factory, f"{prefix}{item.name}.")
            continue
        default = item.default if factory is MISSING else factory()
        limits = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in item.metadata.items())
        yield Key(f"{prefix}{item.name}", kinds[item.name], _shown(default), limits, texts[item.name])


def argument_texts(of: Any) -> dict[str, str]:
    """Return the texts under ``Args:`` of a docstring by the argument's name."""
    section = (inspect.getdoc(of) or "").partition("Args:\n")[2]
    return dict(re.findall(r"^ {4}\**(\w+): (.*(?:\n {8}.*)*)", section, re.M))


def method_keys() -> dict[str, tuple[dict[str, Any], str]]:
    """Return each argument's default by method, and its text."""
    from moco_plugin.methods import METHODS, arguments_of

    names = [name for name in METHODS.names() if name != "moco"]  # the same class as moco_v2
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for name in names:
        method = METHODS.get(name)
        texts = {key: text for base in reversed(method.__mro__) for key, text in argument_texts(base).items()}
        for argument, default in arguments_of(method).items():
            defaults, text = found.get(argument, ({}, ""))
            found[argument] = ({**defaults, name: default}, text or texts.get(argument, ""))
    return found


def pretraining() -> str:
    """Return the keys of a pre-training run."""
    from moco_plugin.pretraining.config import PretrainConfig

    return _settings(schema_keys(PretrainConfig))


def classification() -> str:
    """Return the keys of linear classification and fine-tuning."""
    from moco_plugin.evaluation.protocols import ClassificationConfig

    return _settings(schema_keys(ClassificationConfig))


def methods() -> str:
    """Return the arguments of all methods."""
    found = method_keys()
    names = list(dict.fromkeys(name for defaults, _ in found.values() for name in defaults))
    rows = [
        [
            f"`method_args.{key}`",
            *(_code(_shown(defaults[name])) if name in defaults else "-" for name in names),
            _cell(text),
        ]
        for key, (defaults, text) in found.items()
    ]
    return _table(["key", *(f"`{name}`" for name in names), "meaning"], rows)


def backbone_keys() -> dict[str, tuple[Any, str]]:
    """Return the default and the text of each argument of ``create_backbone``."""
    from moco_plugin.backbones import create_backbone

    parameters = inspect.signature(create_backbone).parameters.values()
    texts = argument_texts(create_backbone)
    return {
        parameter.name: (parameter.default, texts.get(parameter.name, ""))
        for parameter in parameters
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def backbones() -> str:
    """Return the arguments of backbones."""
    rows = [
        [f"`backbone_args.{key}`", _code(_shown(default)), _cell(text)]
        for key, (default, text) in backbone_keys().items()
    ]
    return _table(["key", "default", "meaning"], rows)


def views() -> str:
    """Return the arguments of the views."""
    from moco_plugin.data.views import VIEWS, view_arguments

    of_views = {name: view_arguments(name, 224) for name in VIEWS}
    keys = dict.fromkeys(key for both in of_views.values() for arguments in both for key in arguments)
    rows = []
    for key in keys:
        values = []
        for both in of_views.values():
            shown = dict.fromkeys(_shown(arguments[key]) for arguments in both if key in arguments)
            values.append(", ".join(_code(value) for value in shown) or "-")
        rows.append([f"`data.view_args.{key}`", *values, VIEW_TEXTS.get(key, "")])
    return _table(["key", *(f"`{name}`" for name in VIEWS), "meaning"], rows)


def detector_settings() -> dict[str, list[str]]:
    """Return the settings of the recipe for own data, by key: for a CPU, 1 GPU and 8 GPUs, 1,000 images of 3 classes."""
    from moco_plugin.detectors import recipe
    from moco_plugin.detectors.dataset import OwnData
    from moco_plugin.transfer.components.datasets import FILE_PREFIX, SEMANTIC_PREFIX

    found: dict[str, list[str]] = {}
    for model in ("fpn", "retinanet", "fcn"):
        prefix = SEMANTIC_PREFIX if model == "fcn" else FILE_PREFIX
        data = OwnData(Path("train"), Path("test"), 1000, 250, ("a", "b", "c"), True, (), prefix=prefix)
        columns = []
        for gpus in (0, 1, 8):
            with patch.object(recipe.torch.cuda, "is_available", return_value=gpus > 0):
                columns.append(recipe.choose_recipe(model, data, None, gpus).settings)
        for key in dict.fromkeys(key for settings in columns for key in settings):
            found.setdefault(key, [_shown(settings[key]) if key in settings else "" for settings in columns])
    return {key: ["", "", ""] if key.startswith("DATASETS") else values for key, values in found.items()}


def detectors() -> str:
    """Return the settings of the recipe for own data."""
    rows = [
        [f"`{key}`", *(_code(value) if value else "-" for value in values), DETECTOR_TEXTS.get(key, "")]
        for key, values in detector_settings().items()
    ]
    return _table(["key", "CPU", "1 GPU", "8 GPUs", "meaning"], rows)


class _Captured(BaseException):
    """Exception that carries a tool's parser out of its ``main``."""


def parser_of(tool: str) -> argparse.ArgumentParser:
    """Return the parser that a tool builds."""

    def capture(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        raise _Captured(parser)

    main = importlib.import_module(f"moco_plugin.tools.{tool}").main
    with patch.multiple(
        argparse.ArgumentParser, parse_args=capture, parse_known_args=capture, parse_known_intermixed_args=capture
    ):
        try:
            main([])
        except _Captured as captured:
            parser: argparse.ArgumentParser = captured.args[0]
            parser.prog = f"tools/{tool}.py"
            return parser
    raise AssertionError(f"{tool} parses no command line")


def options_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yield the options and arguments of a parser with their texts, without ``--help`` and subcommands."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            name = formatter._format_action_invocation(action)
            if action.option_strings and action.nargs != 0:  # the values once
                name = f"{', '.join(action.option_strings)} {formatter._format_args(action, action.dest.upper())}"
            yield name, formatter._expand_help(action) if action.help else ""


def commands_of(tool: str) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a tool by command: one, or one for each subcommand."""
    parser = parser_of(tool)
    found = {"": parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
            for listed in action._choices_actions:
                found[listed.dest].description = found[listed.dest].description or listed.help
    return found


def commands() -> str:
    """Return the options of every tool."""
    parts = []
    for tool in TOOLS:
        for name, parser in commands_of(tool).items():
            title = f"### {tool} {name}" if name else f"## moco-{tool.removesuffix('_cli').replace('_', '-')}"
            about = (parser.description or "").strip()
            examples = ((parser.epilog or "") % {"prog": f"tools/{tool}.py"}).strip()
            rows = [[_code(option), _cell(text)] for option, text in options_of(parser)]
            parts += [title, about if name else f"`tools/{tool}.py`: {about}"]
            parts += [_table(["option", "meaning"], rows)] if rows else []
            parts += [f"```text\n{examples}\n```"] if examples and not name else []
    return "\n\n".join(parts)


def public_names() -> str:
    """Return a directive of mkdocstrings for each public name of the package."""
    import moco_plugin

    values = {name: getattr(moco_plugin, name) for name in sorted(moco_plugin.__all__, key=str.lower)}
    named = {name: value if hasattr(value, "__name__") else type(value) for name, value in values.items()}
    return "\n\n".join(
        f"::: {value.__module__}.{value.__name__}\n    options:\n      heading: moco_plugin.{name}"
        for name, value in named.items()
    )


def contributing() -> str:
    """Return CONTRIBUTING.md with the links of a page."""
    return (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text().replace("](docs/", "](")


SECTIONS: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        pretraining,
        classification,
        methods,
        backbones,
        views,
        detectors,
        commands,
        public_names,
        contributing,
    )
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the sections of a page; called by mkdocs."""
    return re.sub(r"<!-- reference: (\w+) -->", lambda found: SECTIONS[found[1]](), markdown)


def _settings(keys: Iterator[Key]) -> str:
    rows = [
        [_code(key.name), _cell(key.kind), _code(key.default), ", ".join(filter(None, [key.limits])), _cell(key.text)]
        for key in keys
    ]
    return _table(["key", "type", "default", "range", "meaning"], rows)


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value == "???":  # omegaconf's mark
        return "must be set"
    return str(list(value) if isinstance(value, tuple) else value)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    """Return a text for a cell of a table: one line, with code as Markdown has it."""
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())

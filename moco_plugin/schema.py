"""Configs whose schema is a dataclass: YAML files that inherit, key=value overrides, errors that name the key."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from moco_plugin.errors import UsageError, did_you_mean
from moco_plugin.files import check_name
from moco_plugin.safe_yaml import MAX_DEPTH, parse_yaml, read_yaml_file

Schema = TypeVar("Schema")


def positive(default: float | None) -> Any:
    """Return a field of a schema whose number must be above 0 if it is set."""
    return field(default=default, metadata={"above": 0})


def read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> Any:
    """Read a YAML file over the one that its ``_base_`` key names (relative to itself).

    Raises:
        UsageError: It cannot be read, is invalid, or inherits from itself.
    """
    check_name(path)
    path = path.resolve()
    if path in seen:
        raise UsageError(f"{path} inherits from itself through its _base_")
    content = read_yaml_file(path)
    base = content.pop("_base_", None)
    if not isinstance(base, str | None):
        raise UsageError(f"{path}: _base_ is {base!r}; expected the path of a YAML file")
    try:
        config = OmegaConf.create(content)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a valid config: {str(error).splitlines()[0]}") from error
    return config if base is None else OmegaConf.merge(read_yaml(path.parent / base, (*seen, path)), config)


def parse_overrides(overrides: Sequence[str], schema: Any = None) -> Any:
    """Return ``key=value`` texts as an OmegaConf tree.

    Args:
        overrides: ``key=value`` strings. Values are YAML, but values of string keys are taken literally: ``007`` and
            ``1e3`` stay strings. ``null`` is None where allowed; quotes around a string are removed.
        schema: The dataclass that defines the keys and their types.

    Raises:
        UsageError: One is not ``key=value``, or its value is not valid YAML.
    """
    tree = OmegaConf.create()
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or set(key) & set("[]") or key.count(".") > MAX_DEPTH:
            raise UsageError(f"{override[:80]!r} is not an override; expected key=value, such as data.batch_size=64")
        kind = None if schema is None or not value or value[0] in "'\"" else _type_of(schema, key)
        try:
            if kind is str or (kind == str | None and value != "null"):
                OmegaConf.update(tree, key, value)
            else:
                parse_yaml(value, key)
                tree.merge_with_dotlist([override])
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"config: {str(error).splitlines()[0]}") from error
    return tree


def _type_of(schema: Any, key: str) -> Any:
    """Return the type of a key, or None if the schema does not have it."""
    kind: Any = schema
    for part in key.split("."):
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    return kind


def _lists_as_text(schema: Any, layer: Any) -> Any:
    """Return a YAML file's content with lists of string keys written as on the command line: ``[a, b]``."""
    if is_dataclass(schema) and OmegaConf.is_dict(layer):
        for name, kind in get_type_hints(schema).items():
            value = layer.get(name) if name in layer and not OmegaConf.is_missing(layer, name) else None
            if isinstance(value, ListConfig) and kind in (str, str | None):
                layer[name] = f"[{', '.join(map(str, value))}]"
            elif OmegaConf.is_dict(value):
                _lists_as_text(kind, value)
    return layer


def build_config(
    schema: type[Schema], file: Path | None, overrides: Any, open_keys: Callable[[], Iterable[str]] = list
) -> Schema:
    """Build a config: the schema's defaults, then a YAML file, then overrides.

    Args:
        schema: The dataclass.
        file: The YAML file, or None.
        overrides: What ``parse_overrides`` returns.
        open_keys: Returns full keys of sections without a schema, for suggestions.

    Raises:
        UsageError: An unknown key, a value of the wrong type or not above 0, or a key that has none.
    """
    config = OmegaConf.structured(schema)
    try:
        for layer in ([] if file is None else [_lists_as_text(schema, read_yaml(file))]) + [overrides]:
            config = OmegaConf.merge(config, layer)
        result: Schema = OmegaConf.to_object(config)  # type: ignore[assignment]
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        key = getattr(error, "full_key", None) or ""
        if "MissingMandatory" in type(error).__name__:
            raise UsageError(f"{key} is not set; say {key}=VALUE, such as data.root=path/to/images") from error
        prefix, valid = _valid_keys(schema, key)
        leaf = key.removeprefix(prefix)
        if leaf and leaf.split(".")[0] not in valid:
            where = f"under {prefix[:-1]}" if prefix else "at the top"
            advice = f"valid {where} are {', '.join(valid)}{did_you_mean(leaf, valid)}"
            if meant := same_leaf(schema, leaf, open_keys()):
                value = OmegaConf.select(overrides, key) if OmegaConf.is_config(overrides) else None
                given = "" if value is None or OmegaConf.is_config(value) else f"={value}"
                advice = f"did you mean {' or '.join(f'{name}{given}' for name in meant)}?"
            raise UsageError(f"unknown config key {key!r}; {advice}") from error
        raise UsageError(f"config{key and f' key {key!r}'}: {str(error).splitlines()[0]}") from error
    _check_limits(result)
    return result


def _check_limits(section: Any, prefix: str = "") -> None:
    """Raise UsageError for a number that is not above the limit in its field's metadata."""
    for item in fields(section):
        key, value = f"{prefix}{item.name}", getattr(section, item.name)
        if is_dataclass(value):
            _check_limits(value, f"{key}.")
        elif "above" in item.metadata and value is not None and not value > item.metadata["above"]:
            raise UsageError(f"{key} is {value}; expected a number above {item.metadata['above']}")


def same_leaf(schema: Any, name: str, open_keys: Iterable[str] = ()) -> list[str]:
    """Return the full keys of a config that end in ``name``.

    Args:
        schema: The dataclass.
        name: Such as ``batch_size``, for ``data.batch_size``.
        open_keys: Further full keys, of sections without a schema.
    """
    return [key for key in (*_values(schema()), *open_keys) if key.rpartition(".")[2] == name]


def _values(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a config by their full keys."""
    values: dict[str, Any] = {}
    for item in fields(section):
        name, value = f"{prefix}{item.name}", getattr(section, item.name)
        values |= _values(value, f"{name}.") if is_dataclass(value) else {name: value}
    return values


def _valid_keys(schema: Any, full_key: str) -> tuple[str, list[str]]:
    """Return the deepest section that ``full_key`` reaches and the keys valid in it."""
    section = schema()
    prefix = ""
    for part in full_key.split(".")[:-1]:
        child = getattr(section, part, None)
        if not is_dataclass(child):
            break
        section, prefix = child, f"{prefix}{part}."
    return prefix, [f.name for f in fields(section)]


def configs_folder() -> Path:
    """Return the folder of shipped configs: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def find_config(name: str | Path, kind: str) -> Path:
    """Find a config file by path, or a shipped one by name.

    Args:
        name: A path, or what follows ``configs/KIND/`` in the path of a shipped config, with or without suffix.
        kind: Folder under ``configs/``: "pretrain" or "detectron2".

    Raises:
        UsageError: Not found; the shipped names are listed.
    """
    check_name(name)
    shipped = configs_folder() / kind
    text = str(name)
    tail = text.split(f"configs/{kind}/")[-1]
    for path in (Path(text).expanduser(), shipped / tail, shipped / f"{tail}.yaml"):
        if path.is_file():
            return path
    names = sorted(
        str(p.relative_to(shipped).with_suffix("")) for p in shipped.rglob("*.yaml") if p.stem[0] not in "_B"
    )
    raise UsageError(f"no config {text!r}; shipped are {', '.join(names)}{did_you_mean(tail, names)}")

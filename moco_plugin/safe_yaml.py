"""Safe YAML loading: no code is run, and time and memory are bounded."""

from pathlib import Path
from typing import Any

import yaml

from moco_plugin.errors import UsageError
from moco_plugin.files import decode_text, read_file, shown

MAX_BYTES = 1 << 18
"""Size of the largest YAML file read; configs have a few thousand bytes."""
MAX_VALUES = 100_000
"""Values of a YAML file, with each alias counted as a copy of its values."""
MAX_DEPTH = 50
MAX_DIGITS = 400


def parse_yaml(text: str | bytes, name: str, kind: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return the content of a YAML text.

    Args:
        text: The text.
        name: Where it comes from, for messages.
        kind: The loader.

    Raises:
        UsageError: It is not valid YAML, contains tags other than YAML's own, or exceeds the limits.
    """
    if len(text) > MAX_BYTES:
        raise UsageError(f"{name} has more than {MAX_BYTES} bytes; expected a config")
    try:
        loader = kind(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, name, ())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.constructor.ConstructorError as error:
        if "could not determine a constructor" in str(error.problem):
            tag = str(error.problem).rpartition(" ")[2]
            raise UsageError(f"{name} contains the tag {tag}, which may run code; expected plain YAML") from error
        raise UsageError(f"{name} is not valid YAML: {_words(error)}") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        raise UsageError(f"{name} is not valid YAML: {_words(error)}") from error


def read_yaml_file(path: Path, name: str | None = None) -> dict[str, Any]:
    """Return the keys and values of a YAML file; an empty file has none.

    Raises:
        UsageError: It cannot be read, is not valid YAML, or does not contain keys and values.
    """
    name = name or shown(path)
    content = parse_yaml(decode_text(read_file(path, MAX_BYTES, "a config", UsageError)), name)
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{name} contains a {type(content).__name__}; expected keys and values")
    return content


def _count(node: yaml.Node, name: str, above: tuple[yaml.Node, ...]) -> int:
    """Return the number of values below a node, aliases expanded."""
    if any(node is other for other in above):
        raise UsageError(f"{name} contains an alias of itself; expected plain YAML")
    if len(above) > MAX_DEPTH:
        raise UsageError(f"{name} is nested more than {MAX_DEPTH} levels deep; expected a config")
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MAX_DIGITS:
        raise UsageError(f"{name} contains a number of {len(node.value)} digits; expected at most {MAX_DIGITS}")
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1
    for child in children:
        total += _count(child, name, (*above, node))
        if total > MAX_VALUES:
            raise UsageError(f"{name} grows to more than {MAX_VALUES} values; expected a config")
    return total


def _words(error: BaseException) -> str:
    text = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
    return text if len(text) < 300 else f"{text[:300]}..."

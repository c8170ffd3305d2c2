"""What the papers fix (tests/data/papers.yaml), held against configs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moco_plugin.runs.run_folder import flatten
from moco_plugin.safe_yaml import read_yaml_file

PAPERS: dict[str, Any] = read_yaml_file(Path(__file__).parents[1] / "data" / "papers.yaml")


def departures(config: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return the expected keys whose values a config does not have, with its values."""
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in flatten(config).items()}
    return {key: values.get(key) for key, v in flatten(expected).items() if values.get(key) != v}

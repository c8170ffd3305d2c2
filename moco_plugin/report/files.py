"""Reads the JSON files that a report is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moco_plugin.errors import UserError


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        UserError: Nothing there, or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); run the stage that writes it") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); run the stage that writes it again") from error

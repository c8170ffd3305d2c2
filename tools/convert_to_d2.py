#!/usr/bin/env python3
"""Convert a checkpoint to a detectron2 .pkl and prove it: short for tools/convert.py --to detectron2."""

import sys
from collections.abc import Sequence

try:
    import moco_plugin  # noqa: F401
except ModuleNotFoundError:
    sys.exit("error: moco_plugin is not installed in this Python; run `make setup`, then `source .venv/bin/activate`")

from moco_plugin.tools.convert import main as convert


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as ``tools/convert.py`` does."""
    code: int = convert([*(sys.argv[1:] if argv is None else argv), "--to", "detectron2"])
    return code


if __name__ == "__main__":
    sys.exit(main())

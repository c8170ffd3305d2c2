"""Lets the tests here import detectron2: first comes what it needs; without it there is nothing to test."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("detectron2") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import moco_plugin.transfer  # noqa: F401

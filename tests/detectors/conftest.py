"""Fixtures for the tests of detectors on own data; without detectron2 none of them is collected."""

import importlib.util

from tests.transfer.conftest import one_thread, tiny_catalog, tiny_datasets  # noqa: F401

if importlib.util.find_spec("detectron2") is None:
    collect_ignore_glob = ["test_*.py"]

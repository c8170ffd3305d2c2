"""The packages of the wheel; all else is in pyproject.toml."""

from setuptools import find_packages, setup

TOP = (
    "benchmarks",
    "configs",
    "demo",
    "tools",
)  # one copy of each: they lie at the top for people who read and run them
setup(
    packages=[*find_packages(include=["moco_plugin*"]), *(f"moco_plugin.{name}" for name in TOP)],
    package_dir={f"moco_plugin.{name}": name for name in TOP},
)

"""The packages of the wheel; all else is in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup

# One copy of each: they lie at the top for people who read and run them there.
TOP = ("benchmarks", "configs", "demo", "tools")
setup(
    packages=[
        *find_packages(include=["moco_plugin*"]),
        *(f"moco_plugin.{name}" for name in TOP),
        *(f"moco_plugin.benchmarks.{name}" for name in find_namespace_packages("benchmarks")),
    ],
    package_dir={f"moco_plugin.{name}": name for name in TOP},
)

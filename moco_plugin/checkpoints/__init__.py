"""Checkpoints: reading of every layout, and writing of other frameworks' formats."""

from importlib.metadata import EntryPoints, entry_points


def known_formats() -> EntryPoints:
    """Return the formats that checkpoints are converted to, by name: entry points, which load a ``Format``."""
    return entry_points(group="moco_plugin.formats")

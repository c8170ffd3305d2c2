"""Reading of checkpoints of every layout, and conversion to other frameworks' formats."""

from importlib.metadata import EntryPoints, entry_points


def known_formats() -> EntryPoints:
    """Return the entry points of the formats that checkpoints are converted to; each loads a ``Format``."""
    return entry_points(group="moco_plugin.formats")

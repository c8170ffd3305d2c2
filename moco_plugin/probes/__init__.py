"""Further evaluations of a frozen backbone, which `tools/evaluate.py` finds by their entry points."""

"""Checkpoints: reading of every layout, and writing of other frameworks' formats."""

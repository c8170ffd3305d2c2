"""Checkpoints: every layout in, one canonical form, every layout out."""

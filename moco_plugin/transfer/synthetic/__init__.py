"""Synthetic detection data sets, and tiny data sets in the layouts of the published ones."""

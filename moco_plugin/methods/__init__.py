"""The science: MoCo as in the papers, on torch alone."""

from moco_plugin.methods.moco import MoCo, moco_v1

__all__ = ["MoCo", "moco_v1"]

"""The science: MoCo as in the papers, on torch alone."""

from moco_plugin.methods.moco import MoCo, moco_v1
from moco_plugin.methods.moco_v3 import MoCoV3

__all__ = ["MoCo", "MoCoV3", "moco_v1"]

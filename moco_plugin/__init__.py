"""Momentum Contrast (MoCo v1, v2, v3) for timm, lightly, LightlyTrain and detectron2."""

__version__ = "0.1.0"

"""Components, data sets and config keys for detectron2; importing this package registers them."""

from moco_plugin.transfer import compat

compat.apply()  # before the modules below, which import detectron2

from moco_plugin.transfer.components import datasets, dilated_c5, fcn, resnet, roi_heads, timm_backbone  # noqa: E402, F401

datasets.register_datasets()

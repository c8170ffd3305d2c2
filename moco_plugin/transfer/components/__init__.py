"""Components, data sets and config keys for detectron2; importing this package registers them."""

from moco_plugin.errors import UserError
from moco_plugin.transfer import compat

compat.apply()  # before the modules below, which import detectron2

try:
    from moco_plugin.transfer.components import datasets, dilated_c5, fcn, mask_head, resnet, roi_heads, timm_backbone  # noqa: F401
except AssertionError as error:  # fvcore's, of a name that is taken
    raise UserError(
        f"a component of moco_plugin cannot be registered ({error}); give your own component another name"
    ) from error

datasets.register_datasets()

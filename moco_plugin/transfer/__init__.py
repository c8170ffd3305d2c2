"""Everything that needs detectron2; importing it registers our components, data sets and config keys."""

from moco_plugin.errors import UserError
from moco_plugin.transfer import compat

compat.before_import()
try:
    import detectron2.evaluation
    import detectron2.modeling  # noqa: F401
except ModuleNotFoundError as error:
    raise UserError(
        f"detectron2 needs {error.name}, which is not installed; run `pip install 'moco-plugin[detectron2]'`"
    ) from error
compat.after_import()

from moco_plugin.transfer import datasets, dilated_c5, fcn, resnet, roi_heads, timm_backbone  # noqa: E402, F401  (they register)

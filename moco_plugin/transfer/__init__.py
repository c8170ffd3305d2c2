"""Transfer experiments on detectron2.

``import moco_plugin.transfer`` imports neither torch nor detectron2; it prepares detectron2 0.6 for current packages.
``import moco_plugin.transfer.components`` registers our components, data sets and config keys, as ``register`` does.
"""

from moco_plugin.transfer import compat

compat.before_import()


def register() -> None:
    """Register the backbones, heads, data sets and config keys with detectron2; a second call changes nothing.

    Raises:
        UserError: detectron2 or a package that it needs is not installed, or has a component of one of our names.
    """
    import moco_plugin.transfer.components  # noqa: F401

"""Transfer experiments on detectron2.

``import moco_plugin.transfer`` imports nothing heavy and is all that a detectron2 script needs: the components are
registered when detectron2 is imported, or immediately if it already is. ``register()`` registers them now.
"""

from moco_plugin.transfer.registration import register, register_on_import

__all__ = ["register"]

register_on_import()

"""MoCo inside LightlyTrain: importing this registers the methods moco, moco_v1, moco_v2 and moco_v3 there.

The methods are those of ``moco_plugin.methods``; their arguments, and the defaults of arguments, optimizer,
schedule and views, are read off them, the recipes in configs/pretrain and ``data/views.py``.
"""

from moco_plugin.errors import UserError
from moco_plugin.integrations.lightly_train.versions import unknown_version

try:
    from moco_plugin.integrations.lightly_train.method import MoCoMethod
    from moco_plugin.integrations.lightly_train.registration import register, run
except ImportError as error:
    if error.name in ("lightly_train", "albumentations"):
        raise UserError("LightlyTrain is not installed; run `pip install lightly-train`") from error
    raise unknown_version(error) from error

__all__ = ["MoCoMethod", "register", "run"]

register()

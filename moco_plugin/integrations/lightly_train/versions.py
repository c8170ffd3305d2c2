"""The versions of LightlyTrain that our methods fit."""

from moco_plugin.errors import UserError

TESTED = "0.15 to 0.18"


def unknown_version(reason: object) -> UserError:
    """Return the error for an unknown version of LightlyTrain."""
    return UserError(
        f"this LightlyTrain is not one that moco_plugin knows ({reason}); it was tested with {TESTED}: "
        "pip install 'lightly-train>=0.15,<0.19'"
    )

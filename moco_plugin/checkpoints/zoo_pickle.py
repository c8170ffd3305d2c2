"""detectron2's model zoo format: a pickle of numpy arrays, read without running code."""

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np

from moco_plugin.checkpoints import unpickle
from moco_plugin.checkpoints.unpickle import UnsafePickle
from moco_plugin.errors import UserError
from moco_plugin.files import atomic_path

_rebuild_array = np.zeros(1).__reduce__()[0]


class _Pickler(pickle._Pickler):
    """Writes numpy's old module name, which every numpy reads (1.x knows no ``numpy._core``)."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is _rebuild_array:
            self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")  # type: ignore[attr-defined]
        else:
            super().save_global(obj, name)  # type: ignore[misc]


def load_zoo_pickle(path: str | Path) -> dict[str, Any]:
    """Read a ``.pkl`` of detectron2's or Detectron's model zoo; no code in the file is run.

    Args:
        path: A pickle of dicts, lists, strings, numbers and numpy arrays.

    Returns:
        The pickled dict: ``{"model": {name: array}, "__author__": ...}`` in detectron2's format.

    Raises:
        UserError: The file cannot be read, is not a pickle of a dict, or has anything but the above.
    """
    try:
        with open(path, "rb") as file:
            model = unpickle.load(file, placeholders=False)
    except UnsafePickle as error:
        raise UserError(
            f"{path} is unsafe: unpickling it would call {error}; a weight file needs only arrays and "
            "builtins, so get one that holds nothing else"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except Exception as error:  # broken pickles raise almost anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is not a complete pickle file ({reason})") from error
    if not isinstance(model, dict):
        raise UserError(f"{path} holds a {type(model).__name__}; expected a dict, as in the model zoo")
    return model


def save_zoo_pickle(path: str | Path, model: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write weights so that any detectron2 loads them with ``MODEL.WEIGHTS``; equal input gives equal bytes.

    Args:
        path: The ``.pkl`` file to write, whole or not at all.
        model: Arrays under detectron2's names, such as ``res2.0.conv1.weight``.
        metadata: Where the weights come from, of dicts, lists, strings and numbers; kept as ``moco_plugin``.
    """
    content = {
        "model": {name: np.asarray(model[name], order="C") for name in sorted(model)},
        "__author__": "MOCO",
        "matching_heuristics": True,  # "res2.0..." then fits any "...res2.0..." of the model
        "moco_plugin": metadata,
    }
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            _dump(content, file)
        load_zoo_pickle(temporary)  # what cannot be read back safely is not written


def _dump(content: dict[str, Any], file: IO[bytes]) -> None:
    pickler = _Pickler(file, protocol=3)  # the oldest protocol that holds bytes as bytes
    pickler.fast = True  # no memo: whether two equal strings are one object must not change the bytes
    pickler.dump(content)

"""METHODS: the pre-training methods, by the names that ``method=NAME`` takes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from moco_plugin.errors import UsageError, UserError, did_you_mean
from moco_plugin.methods.base import Method

Class = TypeVar("Class", bound=type[Method])


class Methods:
    """The registered methods, and those that other packages name as entry points of the group ``moco_plugin.methods``.

    An entry point's name is the method's, its value the class: ``densecl = "package.module:DenseCL"``.
    """

    def __init__(self) -> None:
        self._classes: dict[str, type[Method]] = {}

    def register(self, *names: str) -> Callable[[Class], Class]:
        """Return a decorator that registers a ``Method`` class under each of the names, for this process.

        Example::

            @METHODS.register("densecl")
            class DenseCL(Method): ...
        """

        def decorate(method: Class) -> Class:
            if taken := [name for name in names if name in self]:
                raise ValueError(f"a method {taken[0]!r} is registered already; choose another name")
            self._classes |= dict.fromkeys(names, method)
            return method

        return decorate

    def names(self) -> list[str]:
        """Return all names: those registered, in the order of their registration, then those of entry points."""
        return list(self._classes | self._entry_points())

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def get(self, name: str) -> type[Method]:
        """Return the class of a name.

        Raises:
            UsageError: The name is unknown.
            UserError: The package that names it cannot be imported, or names something else.
        """
        if name in self._classes:
            return self._classes[name]
        known = self.names()
        if name not in known:
            raise UsageError(f"unknown method {name!r}; known are {', '.join(known)}{did_you_mean(name, known)}")
        entry_point = self._entry_points()[name]
        try:
            method = entry_point.load()
        except (ImportError, AttributeError) as error:
            raise UserError(f"method {name} ({entry_point.value}) cannot be imported: {error}") from error
        if not isinstance(method, type) or not issubclass(method, Method):
            raise UserError(f"method {name} is {entry_point.value}; expected a subclass of moco_plugin.Method")
        self._classes[name] = method
        return method

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {entry_point.name: entry_point for entry_point in entry_points(group="moco_plugin.methods")}


METHODS = Methods()

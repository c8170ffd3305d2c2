"""METHODS: the registry of pre-training methods, by the names that ``method=NAME`` takes."""

from collections.abc import Callable
from typing import Any, TypeVar

from fvcore.common.registry import Registry

Class = TypeVar("Class", bound=type)


class MethodRegistry(Registry):
    """fvcore's registry with explicit names and aliases."""

    def register(self, *names: str) -> Callable[[Class], Class]:
        """Return a decorator that registers a ``Method`` class under each of the names.

        Example::

            @METHODS.register("densecl")
            class DenseCL(Method): ...
        """

        def register(method: Class) -> Class:
            for name in names:
                self._do_register(name, method)
            return method

        return register

    def names(self) -> list[str]:
        """Return all names, in the order of their registration."""
        return [name for name, _ in self]

    def get(self, name: str) -> Any:
        """Return the class registered under a name.

        Raises:
            KeyError: The name is unknown.
        """
        return super().get(name)


METHODS = MethodRegistry("METHODS")

"""Registration of our components with detectron2."""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

Component = TypeVar("Component")


def register() -> None:
    """Register the backbones, heads, data sets and config keys with detectron2; a second call changes nothing.

    Raises:
        UserError: detectron2 or a package that it needs is not installed.
    """
    importlib.import_module("moco_plugin.transfer.components")


def register_on_import() -> None:
    """Register the components when detectron2 is imported, or now if it has been."""
    if "detectron2" in sys.modules:
        register()
    elif not any(isinstance(finder, _Detectron2Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Detectron2Finder())


class _Detectron2Finder(MetaPathFinder):
    """Finds detectron2 as Python's own finders do, and registers the components once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "detectron2":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def offer(registry: Any) -> Callable[[Component], Component]:
    """Return a decorator that registers a component, unless the registry has one of that name.

    A component that is registered later under the same name replaces it, so that a script can bring its own.

    Args:
        registry: One of detectron2's fvcore registries.
    """

    def decorate(component: Component) -> Component:
        name = component.__name__  # type: ignore[attr-defined]
        if name in registry:
            return component
        registry.register(component)
        add = registry._do_register

        def replace(other: str, value: Any) -> None:
            if other == name and registry._obj_map.get(name) is component:
                del registry._obj_map[name]
            add(other, value)

        registry._do_register = replace
        return component

    return decorate

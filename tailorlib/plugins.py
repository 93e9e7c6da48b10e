"""All kinds of plugins in one place: what a recipe can name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterable
from dataclasses import is_dataclass
from typing import Any

from tailorlib.compensation import COMPENSATIONS
from tailorlib.exceptions import PluginError, did_you_mean, shown
from tailorlib.fitness import FITNESS
from tailorlib.models.family import FAMILIES, ModelFamily
from tailorlib.objective import OBJECTIVES
from tailorlib.operation import OPERATIONS
from tailorlib.optimizer import OPTIMIZERS
from tailorlib.registry import Registry, named_modules
from tailorlib.scheduler import SCHEDULERS
from tailorlib.search_space import SEARCH_SPACES
from tailorlib.text import TEXTS
from tailorlib.warm_start import WARM_STARTS

REGISTRIES: tuple[Registry[Any], ...] = (
    OPERATIONS,
    OPTIMIZERS,
    SCHEDULERS,
    OBJECTIVES,
    SEARCH_SPACES,
    WARM_STARTS,
    COMPENSATIONS,
    FITNESS,
    TEXTS,
    FAMILIES,
)


def class_names(kinds: Collection[type] = ()) -> list[str]:
    """Return the short names that a recipe can use.

    Args:
        kinds: Base classes of the kinds of plugins that are wanted; empty for all.
    """
    wanted = [registry for registry in REGISTRIES if not kinds or registry.kind in kinds]
    names = [name for registry in wanted for name in registry.names()]
    return [ModelFamily.__name__, *names] if FAMILIES in wanted else names


def find_class(name: str, kinds: Collection[type] = ()) -> type:
    """Return the class that a recipe names: a plugin's short name, or a dotted import path.

    A module is imported only if an installed plugin or the user named it: importing runs its code.

    Args:
        name: The name.
        kinds: Base classes of the kinds of plugins that a message is to suggest; empty for all.

    Raises:
        PluginError: If there is none, or it is no plugin.
    """
    if "." not in name:
        for registry in REGISTRIES:
            if name in registry.names():
                return registry.get(name)
        if name == ModelFamily.__name__:
            return ModelFamily
        if (unfinished := _unfinished(name)) is not None:
            raise PluginError(unfinished)
        raise PluginError(f"There is no class {shown(name)}.{did_you_mean(name[:100], class_names(kinds))}")
    found = import_trusted(name)
    if not inspect.isclass(found):
        raise PluginError(f"{name!r} is no class.")
    if not (is_dataclass(found) or issubclass(found, plugin_kinds())):
        raise PluginError(f"{name!r} is no plugin. A recipe names plugins alone: see 'tailor plugins'.")
    return found


def _unfinished(name: str) -> str | None:
    """Return what a class of the user's lacks that has the name of a plugin and abstract methods."""
    for registry in REGISTRIES:
        for cls in registry.unfinished():
            if cls.__name__ == name:
                missing = ", ".join(sorted(cls.__abstractmethods__))
                return f"{name} is no {registry.kind.__name__} yet: it has to write {missing}."
    return None


def plugin_kinds() -> tuple[type, ...]:
    """Return the base classes of all kinds of plugins."""
    return tuple(registry.kind for registry in REGISTRIES)


def import_trusted(name: str, more: Iterable[str] = ()) -> object:
    """Import what a dotted path names, if it is part of tailorlib, of an installed plugin or of a named one.

    Args:
        name: The path.
        more: Packages to trust beside these.

    Raises:
        PluginError: If it belongs to another package, whose code is not run; or if there is none.
    """
    trusted = _trusted_packages() | frozenset(more)
    module, _, attribute = name.rpartition(".")
    if _package(module) not in trusted:
        raise PluginError(
            f"{shown(name)} belongs to no installed plugin, so its code is not run. Name its file or module with "
            "--plugins if you trust it."
        )
    try:
        found: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise PluginError(f"There is no class {shown(name)}: {error}.") from error
    if _package(getattr(found, "__module__", None) or module) not in trusted:  # such as an import of that module
        raise PluginError(f"{shown(name)} belongs to no installed plugin. Name what it defines itself.")
    return found


def _trusted_packages() -> frozenset[str]:
    modules = {"tailorlib", *named_modules(), *(m for registry in REGISTRIES for m in registry.modules())}
    return frozenset(map(_package, modules))


def _package(module: str) -> str:
    return module.partition(".")[0]

"""All kinds of plugins in one place: what a recipe can name."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from tailorlib.exceptions import PluginError, did_you_mean
from tailorlib.fitness import FITNESS
from tailorlib.models.family import FAMILIES, ModelFamily
from tailorlib.objective import OBJECTIVES
from tailorlib.operation import OPERATIONS
from tailorlib.optimizer import OPTIMIZERS
from tailorlib.registry import Registry
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
    FITNESS,
    TEXTS,
    FAMILIES,
)


def class_names() -> list[str]:
    """Return the short names that a recipe can use."""
    return [ModelFamily.__name__, *(name for registry in REGISTRIES for name in registry.names())]


def find_class(name: str) -> type:
    """Return the class that a recipe names: a plugin's short name, or a dotted import path.

    Raises:
        PluginError: If there is none.
    """
    if "." not in name:
        for registry in REGISTRIES:
            if name in registry.names():
                return registry.get(name)
        if name == ModelFamily.__name__:
            return ModelFamily
        raise PluginError(f"There is no class {name!r}.{did_you_mean(name, class_names())}")
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"There is no class {name!r}: {error}.") from error
    if not inspect.isclass(found):
        raise PluginError(f"{name!r} is no class.")
    return found

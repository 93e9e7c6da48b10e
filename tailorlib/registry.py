"""Registries of plugins, filled from entry points and from files that the user names.

Each extension point keeps its registry beside its base class: ``tailorlib.operation.OPERATIONS`` and so on.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar

from tailorlib.endings import no_exit
from tailorlib.exceptions import PluginError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """The plugins of one kind, by class name.

    Installed plugins are found through the entry-point group and imported when first used; a class that a
    ``--plugins`` file defines is found among the subclasses of ``kind``.

    Args:
        kind: Base class of the plugins.
        group: Entry-point group, such as ``"tailorlib.operations"``.
    """

    def __init__(self, kind: type[T], group: str) -> None:
        self.kind, self.group = kind, group
        self._installed: dict[str, EntryPoint] | None = None

    def names(self) -> tuple[str, ...]:
        """Return the names of all known plugins, sorted."""
        return tuple(sorted({*self._entries(), *self._local()}))

    def get(self, name: str) -> type[T]:
        """Return the class of that name.

        Raises:
            PluginError: If there is none, if two plugins claim the name, or if it is no ``kind``.
        """
        local, entries = self._local(), self._entries()
        if name in local:
            return local[name]
        if name not in entries:
            raise PluginError(
                f"There is no {self.kind.__name__} called {name!r}.{did_you_mean(name, self.names())} A class of "
                "your own is found with --plugins FILE."
            )
        return self._load(entries[name])

    def modules(self) -> frozenset[str]:
        """Return the modules that the installed plugins are in."""
        return frozenset(entry.value.partition(":")[0] for entry in self._entries().values())

    def load_all(self) -> dict[str, type[T]]:
        """Import every plugin and return the classes by name."""
        return {name: self.get(name) for name in self.names()}

    def _entries(self) -> dict[str, EntryPoint]:
        if self._installed is None:  # reading the metadata of every installed package takes its time
            self._installed = self._find_entries()
        return self._installed

    def _find_entries(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group):
            if entry.name in found and found[entry.name].value != entry.value:
                raise PluginError(
                    f"Plugin names are unique; {entry.name!r} of {self.group} is claimed by "
                    f"{found[entry.name].value} and {entry.value}. Uninstall one of the packages."
                )
            found[entry.name] = entry
        return found

    def _load(self, entry: EntryPoint) -> type[T]:
        try:
            with no_exit():
                cls = entry.load()
        except (ImportError, AttributeError) as error:
            raise PluginError(f"The plugin {entry.name!r} ({entry.value}) can't be imported: {error}.") from error
        if not (inspect.isclass(cls) and issubclass(cls, self.kind)):
            raise PluginError(f"The plugin {entry.name!r} is a {self.kind.__name__}, got {cls!r}.")
        if cls.__name__ != entry.name:
            raise PluginError(
                f"A plugin has one name: the entry point {entry.name!r} names the class {cls.__name__}."
            )
        return cls

    def _local(self) -> dict[str, type[T]]:
        local = [c for c in _subclasses(self.kind) if _is_named(c.__module__) and not inspect.isabstract(c)]
        installed = self._entries()
        found: dict[str, type[T]] = {}
        for cls in local:
            if cls.__name__ in installed or cls.__name__ in found:
                other = (
                    installed[cls.__name__].value if cls.__name__ in installed else found[cls.__name__].__module__
                )
                raise PluginError(
                    f"Plugin names are unique; {cls.__name__} of {sys.modules[cls.__module__].__file__} is also "
                    f"in {other}. Rename yours."
                )
            found[cls.__name__] = cls
        return found


_named_modules: set[str] = set()
"""Modules that the user named with ``--plugins``; their classes need no entry point."""


def named_modules() -> frozenset[str]:
    """Return the modules that the user named with ``--plugins``."""
    return frozenset(_named_modules)


def _is_named(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in _named_modules)


def load_plugin(spec: str) -> None:
    """Import a plugin that the user named: a ``.py`` file, or an importable module.

    Raises:
        PluginError: If it doesn't exist or its import fails.
    """
    path = Path(spec)
    if path.suffix != ".py":
        try:
            with no_exit():
                importlib.import_module(spec)
        except Exception as error:  # a name that is none, or whatever the user's module raises
            raise PluginError(f"--plugins takes a .py file or an importable module; {spec!r}: {error}.") from error
        _named_modules.add(spec)
        return
    if not path.is_file():
        raise PluginError(f"--plugins takes a .py file or an importable module; there is no file {spec!r}.")
    name = f"tailorlib_local_{path.stem}_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    if name in sys.modules:  # imported before
        _named_modules.add(name)
        return
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    _named_modules.add(name)
    try:
        with no_exit():
            module_spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is the user's to mend
        del sys.modules[name]
        _named_modules.discard(name)
        raise PluginError(f"The plugin file {spec!r} failed: {type(error).__name__}: {error}.") from error


def _subclasses(cls: type[T]) -> list[type[T]]:
    return [s for c in cls.__subclasses__() for s in (c, *_subclasses(c))]

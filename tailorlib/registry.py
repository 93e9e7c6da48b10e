"""Registries of plugins, filled from entry points and from files that the user names.

Each extension point keeps its registry beside its base class: ``tailorlib.operation.OPERATIONS`` and so on.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from tailorlib.endings import no_exit
from tailorlib.exceptions import PluginError, did_you_mean, error_text, told

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

    def unfinished(self) -> list[Any]:
        """Return the classes that the user named which have abstract methods left."""
        return [c for c in _subclasses(self.kind) if _is_present(c) and inspect.isabstract(c)]

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
        except PluginError:
            raise
        except Exception as error:  # whatever an installed package raises
            raise PluginError(
                f"The plugin {entry.name!r} ({entry.value}) can't be imported: {told(error)}"
            ) from error
        if not (inspect.isclass(cls) and issubclass(cls, self.kind)):
            raise PluginError(f"The plugin {entry.name!r} is a {self.kind.__name__}, got {cls!r}.")
        if cls.__name__ != entry.name:
            raise PluginError(
                f"A plugin has one name: the entry point {entry.name!r} names the class {cls.__name__}."
            )
        return cls

    def _local(self) -> dict[str, type[T]]:
        local = [c for c in _subclasses(self.kind) if _is_present(c) and not inspect.isabstract(c)]
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


@dataclass(frozen=True)
class PluginSource:
    """Where a plugin that the user named comes from.

    Args:
        spec: What the user wrote.
        module: Name of its module.
        root: The folder that its files lie in.
        files: Its file, or those of its package, and what it imported from beside it.
    """

    spec: str
    module: str
    root: Path
    files: tuple[Path, ...]


_named_modules: set[str] = set()
"""Modules that the user named with ``--plugins``; their classes need no entry point."""
_sources: dict[str, PluginSource] = {}
"""Where such modules come from, by name, also of those that are forgotten."""
LOCAL = "tailorlib_local_"
"""What the names of modules begin with that are files of the user's."""
_LIBRARIES = frozenset({"site-packages", "dist-packages"})


def named_modules() -> frozenset[str]:
    """Return the modules that the user named with ``--plugins``."""
    return frozenset(_named_modules)


def _is_present(cls: type) -> bool:
    """Say whether a class is of a module that the user named, as it is now and not as it was once imported."""
    name = cls.__module__
    named = any(name == module or name.startswith(module + ".") for module in _named_modules)
    return named and getattr(sys.modules.get(name), cls.__name__, cls) is cls


def plugin_sources() -> tuple[PluginSource, ...]:
    """Return where the plugins that the user named come from; not those of installed packages."""
    return tuple(_sources[name] for name in sorted(_named_modules & _sources.keys()))


def load_plugin(spec: str, stored: Path | None = None) -> None:
    """Import a plugin that the user named: a ``.py`` file, or an importable module.

    Args:
        spec: What the user wrote.
        stored: A copy to import instead: the file, or the folder that the module's copy lies in.

    Raises:
        PluginError: If it doesn't exist or its import fails.
    """
    path = stored or Path(spec)
    name = _import_module(spec, stored) if Path(spec).suffix != ".py" else _import_file(spec, path)
    _forget_versions(spec, name)
    _named_modules.add(name)
    file = path.resolve()
    own = (
        PluginSource(spec, name, file.parent, (file, *_beside(file))) if name.startswith(LOCAL) else _source(spec)
    )
    if own is not None:
        _sources[name] = own


def _forget_versions(spec: str, name: str) -> None:
    """Forget, in a process that lives on, other versions of a file that is loaded again."""
    for other, source in _sources.items():
        if source.spec == spec and other != name and other.startswith(LOCAL):
            _named_modules.discard(other)
            sys.modules.pop(other, None)


def _import_module(spec: str, folder: Path | None) -> str:
    with _first_on_path(folder):
        try:
            with no_exit():
                importlib.import_module(spec)
        except Exception as error:  # a name that is none, or whatever the user's module raises
            message = f"--plugins takes a .py file or an importable module; {spec!r}: {error_text(error)}."
            raise PluginError(message) from error
    return spec


def _import_file(spec: str, path: Path) -> str:
    """Import a file as a module that is named by its content: a copy of it elsewhere is the same module."""
    if not path.is_file():
        raise PluginError(f"--plugins takes a .py file or an importable module; there is no file {spec!r}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PluginError(f"The plugin file {spec!r} can't be read: {error.strerror or error}.") from error
    name = f"{LOCAL}{path.stem}_{hashlib.sha256(content).hexdigest()[:8]}"
    if name in sys.modules:  # imported before
        return name
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        with no_exit(), _first_on_path(path.parent if str(path) != spec else None):  # copies lie together
            module_spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is the user's to mend
        del sys.modules[name]
        raise PluginError(f"The plugin file {spec!r} failed: {told(error)}") from error
    return name


@contextmanager
def _first_on_path(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _source(module: str) -> PluginSource | None:
    """Return where a module comes from; ``None`` if it is installed, or of no file."""
    file, top = (getattr(sys.modules[name], "__file__", None) for name in (module, module.partition(".")[0]))
    if file is None or _LIBRARIES & set(Path(file).parts):
        return None
    path = Path(file).resolve()
    if top is None or Path(top).name != "__init__.py":
        return PluginSource(module, module, path.parent, (path,))
    folder = Path(top).resolve().parent
    return PluginSource(module, module, folder.parent, tuple(sorted(folder.rglob("*.py"))))


def _beside(path: Path) -> list[Path]:
    """Return the files that a plugin's file, and these in turn, import from its own folder."""
    found: dict[Path, None] = {}
    waiting = [path]
    while waiting:
        for name in _imported(waiting.pop()):
            file = getattr(sys.modules.get(name), "__file__", None)
            own = Path(file).resolve() if file is not None else path
            if own.parent == path.parent and own not in (path, *found):
                found[own] = None
                waiting.append(own)
            elif own.name == "__init__.py" and own.parent.parent == path.parent and own not in found:
                found |= dict.fromkeys(sorted(own.parent.rglob("*.py")))
    return list(found)


def _imported(file: Path) -> set[str]:
    """Return the top-level names of the modules that a source names in its imports."""
    nodes = list(ast.walk(ast.parse(file.read_bytes())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names} - {"tailorlib", "tailorlib_strategies"}


def _subclasses(cls: type[T]) -> list[type[T]]:
    return [s for c in cls.__subclasses__() for s in (c, *_subclasses(c))]

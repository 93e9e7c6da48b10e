"""What to say of an error that comes out of a plugin's code: whose it is, and where."""

from __future__ import annotations

import inspect
import linecache
import sys
import traceback
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tailorlib.exceptions import PluginError, TailorError, one_line
from tailorlib.registry import LOCAL, named_modules, plugin_sources

_OURS = ("tailorlib", "tailorlib_strategies")


def as_plugin_error(error: BaseException) -> PluginError | None:
    """Return the message of an error that a plugin of somebody else's raised, outside of a trial.

    Args:
        error: The error, as it was caught.

    Returns:
        Class, method, what was raised, and the plugin's file, line and code; ``None`` if no frame of the error, or
        of what it was raised from, is a plugin's, or if it is a message already.
    """
    for each in _chain(error):
        if isinstance(each, TailorError):
            return None
        frames, hint = list(_plugin_frames(each)), missing_super(each)
        cls = type(each.obj) if isinstance(each, AttributeError) else object
        if not frames and _is_plugin(cls.__module__):  # code of ours met a plugin that isn't whole
            unset = f" A method of {cls.__name__} replaces the one that sets it, and has to call that."
            return PluginError(f"{one_line(each)}.{hint or unset}")
        if frames:
            (method, _), (_, frame) = frames[0], frames[-1]
            line = f": {frame.line.strip()[:100]}" if frame.line else ""
            where = f"{Path(frame.filename).name}, line {frame.lineno}{line}"
            return PluginError(f"{method} raised {one_line(each)} ({where}).{hint or ' Mend the plugin.'}")
    return None


def missing_super(error: BaseException) -> str:
    """Return a hint, or nothing, for an attribute that is missing as a plugin's method doesn't set it."""
    cls = type(error.obj) if isinstance(error, AttributeError) else object
    for name in ("__init__", "_setup", "setup"):
        methods = [(c, c.__dict__[name]) for c in cls.__mro__ if inspect.isfunction(c.__dict__.get(name))]
        for (each, method), (_, replaced) in pairwise(methods):
            called = {"super", name} & set(method.__code__.co_names)
            if _is_plugin(each.__module__) and replaced.__code__.co_names and not called:
                return f" {each.__name__}.{name} has to call super().{name}()."
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, or while handling what."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _plugin_frames(error: BaseException) -> Iterator[tuple[str, traceback.FrameSummary]]:
    """Yield the frames of an error that lie in plugins, the outermost first, with the names of their functions."""
    files = {str(file) for source in plugin_sources() for file in source.files}
    linecache.checkcache()  # the file may have been edited since
    for frame, line in traceback.walk_tb(error.__traceback__):
        name, code = str(frame.f_globals.get("__name__", "")), frame.f_code
        if _is_plugin(name) or code.co_filename in files:
            yield code.co_qualname, traceback.FrameSummary(code.co_filename, line, code.co_name)


def _is_plugin(module: str) -> bool:
    """Say whether a module is one of somebody else's plugins."""
    if module.startswith(LOCAL):
        return True
    known = named_modules() | _installed()
    return module.partition(".")[0] not in _OURS and any(module == m or module.startswith(f"{m}.") for m in known)


def _installed() -> frozenset[str]:
    """Return the packages that installed plugins are in; none before the registries were needed."""
    plugins = sys.modules.get("tailorlib.plugins")
    registries = () if plugins is None else plugins.REGISTRIES
    return frozenset(module.partition(".")[0] for registry in registries for module in registry.modules())

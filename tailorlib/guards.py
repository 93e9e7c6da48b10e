"""Guards around what a plugin's methods return: checked once, in the base class, wherever they are called from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ClassVar

from tailorlib.exceptions import PluginError, shown

Check = Callable[[Any, Any], Any]
"""Takes the plugin and what its method returned; gives it back, or raises :class:`PluginError`."""


class Guarded:
    """Base of the extension points whose methods a subclass writes as they are called."""

    _guards: ClassVar[Mapping[str, Check]] = {}
    """What checks the results of which methods."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, check in cls._guards.items():
            method = cls.__dict__.get(name)
            if inspect.isfunction(method):
                setattr(cls, name, _guarded(name, method, check))


def gives(kind: type | tuple[type, ...], what: str) -> Check:
    """Return a check that a method gives something of a kind.

    Args:
        kind: The kind.
        what: What it is in words, for the message.
    """

    def check(plugin: Any, found: Any) -> Any:
        if not isinstance(found, kind):
            raise PluginError(f"{type(plugin).__name__}.{{method}} gives {what}, got {shown(found)}.")
        return found

    return check


def gives_all(kind: type, what: str) -> Check:
    """Return a check that a method gives a list of things of a kind; a tuple of them will do."""

    def check(plugin: Any, found: Any) -> Any:
        bad = (
            [found]
            if not isinstance(found, list | tuple)
            else [item for item in found if not isinstance(item, kind)]
        )
        if bad:
            raise PluginError(f"{type(plugin).__name__}.{{method}} gives a list of {what}, got {shown(bad[0])}.")
        return found

    return check


def _guarded(name: str, method: Callable[..., Any], check: Check) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = method(self, *args, **kwargs)
        try:
            return check(self, found)
        except PluginError as error:
            raise PluginError(str(error).replace("{method}", name)) from error

    return call

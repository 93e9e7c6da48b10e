"""The classes and functions that a recipe names, checked before a parser imports any of them.

A recipe is data that people pass on. Its parser imports every dotted path that it takes for a class or a
function, and importing a module runs it: so names are looked up here first, and what no installed plugin and no
``--plugins`` of the user brought is refused unseen.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from typing import Any

from tailorlib.compensation import Compensation
from tailorlib.exceptions import PluginError, did_you_mean, shown
from tailorlib.fitness import Fitness
from tailorlib.models.family import ModelFamily
from tailorlib.objective import Objective
from tailorlib.optimizer import Optimizer
from tailorlib.plugins import find_class, import_trusted, plugin_kinds
from tailorlib.scheduler import Scheduler
from tailorlib.search_space import SearchSpace
from tailorlib.warm_start import WarmStart

_LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric", "torch")
SECTION_KINDS: Mapping[str, type] = {
    "family": ModelFamily,
    "search_space": SearchSpace,
    "optimizer": Optimizer,
    "scheduler": Scheduler,
    "fitness": Fitness,
    "objectives": Objective,
    "warm_starts": WarmStart,
    "compensation": Compensation,
}
"""Sections of plugins, and the base class of theirs."""
_MAX_DEPTH = 64  # of data that was not read from a file: that is bounded already


@dataclass(frozen=True)
class Names:
    """How the names in a section are looked up.

    Args:
        find: Returns the class of a name, or raises :class:`PluginError` with names of the given kinds.
        kinds: Classes that a plain text may name where they are asked for.
    """

    find: Callable[[str, Collection[type]], object]
    kinds: tuple[type, ...] = ()

    def check(self, value: Any, hint: object, where: str, depth: int = 0) -> Iterator[str]:
        """Yield the faults of the class names and settings in a value, at any depth.

        Args:
            value: The value.
            hint: The type that is asked for there.
            where: Where it stands, for messages.
            depth: How deep that is.
        """
        if depth > _MAX_DEPTH:
            yield f"{where.split('.')[0]} has at most {_MAX_DEPTH} levels. Write it flatter."
        elif isinstance(value, str):
            yield from self._check_text(value, leaves(hint), where)
        elif isinstance(value, list | tuple):
            for i, item in enumerate(value):
                yield from self.check(item, hint, f"{where}[{i}]", depth + 1)
        elif isinstance(value, Mapping) and "class_path" in value:
            yield from self._check_class(value, hint, where, depth)
        elif isinstance(value, Mapping):
            inner = {k: h for leaf in leaves(hint) if is_dataclass(leaf) for k, h in hints_of(leaf).items()}
            for key, item in value.items():
                yield from self.check(item, inner.get(str(key), hint), f"{where}.{short(key)}", depth + 1)

    def check_settings(self, cls: type, settings: Mapping[Any, Any], where: str, depth: int = 0) -> Iterator[str]:
        """Yield the faults of a class's settings: unknown ones, and what they name."""
        hints, parameters = hints_of(cls), inspect.signature(cls).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for key, item in settings.items():
            if key not in parameters and not takes_all:
                hint = did_you_mean(short(key), parameters)
                yield f"{where}: {cls.__name__} has no setting {shown(key)}.{hint}"
            yield from self.check(item, hints.get(str(key), Any), f"{where}.{short(key)}", depth + 1)

    def _check_text(self, text: str, wanted: frozenset[object], where: str) -> Iterator[str]:
        """Check a text where it could be taken for a class or function, or for one written as YAML."""
        if "class_path" in text:
            yield f"{where} is a class written as a text, got {shown(text)}. Write it as a mapping."
            return
        asked = any(inspect.isclass(leaf) and issubclass(leaf, self.kinds) for leaf in wanted)
        called = Callable in wanted or typing.Callable in wanted
        if str in wanted or any(typing.get_origin(leaf) is typing.Literal for leaf in wanted):
            asked, called = asked and "." in text, called and "." in text
        try:
            if asked:
                self.find(text, self._kinds(wanted))
            elif called:
                import_trusted(text, _LIGHTNING)
        except PluginError as error:
            yield f"{where}: {error}"

    def _kinds(self, wanted: frozenset[object]) -> tuple[type, ...]:
        """Return the kinds of plugins among types; a plugin's own class stands for its kind."""
        classes = [leaf for leaf in wanted if inspect.isclass(leaf)]
        return tuple(kind for kind in self.kinds if any(issubclass(leaf, kind) for leaf in classes))

    def _check_class(self, value: Mapping[Any, Any], hint: object, where: str, depth: int) -> Iterator[str]:
        extra = [k for k in value if k not in ("class_path", "init_args", "dict_kwargs")]
        if extra:
            listed = ", ".join(map(shown, extra[:5]))
            yield f"{where} has 'class_path' and 'init_args'; got also {listed}. Indent them?"
        settings = value.get("init_args") or {}
        if not isinstance(settings, Mapping):
            yield f"{where}.init_args is a mapping of settings, got {shown(settings)}."
            return
        try:
            found = self.find(str(value["class_path"]), self._kinds(leaves(hint)))
        except PluginError as error:
            yield f"{where}: {error}"
            found = None
        if isinstance(found, type):
            yield from self.check_settings(found, settings, where, depth)
        else:  # what stands inside can be checked all the same
            yield from self.check(settings, Any, where, depth + 1)
        yield from self.check(value.get("dict_kwargs"), Any, f"{where}.dict_kwargs", depth + 1)


def plugin_names() -> Names:
    """Return how names are looked up in the sections of a study: plugins alone."""
    return Names(find_class, plugin_kinds())


def trainer_names() -> Names:
    """Return how names are looked up in the trainer's section: Lightning's own classes, and plugins."""
    return Names(_find_of_trainer)


def _find_of_trainer(name: str, _: Collection[type]) -> object:
    if "." in name:
        return import_trusted(name, _LIGHTNING)
    for module in ("callbacks", "loggers", "strategies", "profilers", "plugins"):  # the parser finds them by name
        with suppress(PluginError):
            return import_trusted(f"lightning.pytorch.{module}.{name}", _LIGHTNING)
    return None


def leaves(hint: object) -> frozenset[object]:
    """Return the types that a type is made of: of ``dict[str, Fitness] | None``, Fitness, str and None."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal or not inner:
        return frozenset([hint])
    if origin is Callable:
        return frozenset([Callable])
    keys = 1 if inspect.isclass(origin) and issubclass(origin, Mapping) else 0
    return frozenset(leaf for part in inner[keys:] for leaf in leaves(part))


def hints_of(cls: object) -> Mapping[str, object]:
    """Return the types of a class's settings by name; none of a class whose annotations can't be resolved."""
    try:
        return typing.get_type_hints(getattr(cls, "__init__"))  # noqa: B009 (of a class, not of an instance)
    except (NameError, TypeError, AttributeError):
        return {}


def short(key: object) -> str:
    """Return a key as a place in a message has it."""
    text = str(key) if isinstance(key, str) else shown(key)
    return text if len(text) <= 60 and text.isprintable() else shown(text)

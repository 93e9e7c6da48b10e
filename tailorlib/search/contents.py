"""What a study is made of: digests of its models, of the data that it reads and of plugins' sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tailorlib.contents import Contents, digest_of
from tailorlib.fitness import Fitness
from tailorlib.models.digests import digest_of_files, model_contents
from tailorlib.models.family import ModelFamily
from tailorlib.plugin_sources import source_of
from tailorlib.plugins import plugin_kinds
from tailorlib.registry import named_modules
from tailorlib.text import TextSource

if TYPE_CHECKING:
    from tailorlib.search.study import Study

_OWN = ("tailorlib", "tailorlib_strategies")


def family_contents(family: ModelFamily) -> Contents:
    """Return what a family's models are; the family is prepared.

    Raises:
        ModelError: If a file of a model can't be read.
    """
    return Contents({name: model_contents(source) for name, source in family.sources.items()})


def study_contents(study: Study) -> Contents:
    """Return what a study's trials are made of; the study is prepared.

    Of each part of the study these count: the texts that it holds, wherever it holds them; what a fitness says of
    its own data (:attr:`~tailorlib.fitness.Fitness.contents`); files that a setting of a user's plugin names; and
    the sources of plugins. The benchmark decides no trial, so it counts for nothing.

    Raises:
        ModelError: If a file of a model can't be read.
        DataError: If a text can't be read.
    """
    parts = {
        "family.calibration": study.family.calibration,
        "search_space": study.space,
        "optimizer": study.optimizer,
        "scheduler": study.scheduler,
        "fitness": study.fitness,
        "objectives": study.objectives,
        "warm_starts": study.warm_starts,
        "compensation": study.compensation,
        "validation": study.validation.fitness,
    }
    data: dict[str, str] = {}
    classes: set[type] = {type(operation) for operation in study.space.operations()} | {type(study.family)}
    for where, thing in parts.items():
        for place, found in _things(thing, where, set()):
            classes.add(type(found))
            data |= _data(found, place)
    return Contents(family_contents(study.family).models, data, _plugins(classes))


def _things(thing: object, where: str, seen: set[int]) -> Iterator[tuple[str, object]]:
    """Yield the plugins that a part of a study holds, itself included, with their places."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Mapping):
        for key, value in thing.items():
            yield from _things(value, f"{where}.{key}", seen)
    elif isinstance(thing, list | tuple):
        for i, value in enumerate(thing):
            yield from _things(value, f"{where}[{i}]", seen)
    elif isinstance(thing, plugin_kinds()) or (is_dataclass(thing) and not isinstance(thing, type)):
        yield where, thing
        if not isinstance(thing, TextSource | ModelFamily):  # a text's digest covers all that it is made of
            for name, value in getattr(thing, "__dict__", {}).items():
                yield from _things(value, f"{where}.{name.lstrip('_')}", seen)


def _data(thing: object, where: str) -> dict[str, str]:
    if isinstance(thing, TextSource):
        return {where: digest_of(thing.documents())}
    found = {}
    if isinstance(thing, Fitness):
        found = {f"{where}: {name}": digest for name, digest in thing.contents.items()}
    if type(thing).__module__.partition(".")[0] not in _OWN:
        for name, value in getattr(thing, "__dict__", {}).items():
            if (file := _named_file(value)) is not None:
                found[f"{where}.{name.lstrip('_')}"] = digest_of_files([file], file.parent)
    return found


def _named_file(value: object) -> Path | None:
    """Return the file that a setting of a plugin names, if it does."""
    if not isinstance(value, str | Path) or not str(value):
        return None
    try:
        path = Path(value).expanduser()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # no path: any text may stand in a setting
        return None


def _plugins(classes: set[type]) -> dict[str, str]:
    """Return digests of the sources of plugins that are no part of tailorlib, by what messages call them."""
    modules = {cls.__module__ for cls in classes} | named_modules()
    foreign = sorted(name for name in modules if name.partition(".")[0] not in _OWN)
    return dict(filter(None, map(source_of, foreign)))

"""Reading recipes: every fault that can be seen before anything is built, in one message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from tailorlib.bounded import load_yaml, read_text
from tailorlib.compensation import Compensation
from tailorlib.exceptions import RecipeError, did_you_mean, shown
from tailorlib.fitness import Fitness
from tailorlib.models.family import ModelFamily
from tailorlib.objective import Objective
from tailorlib.optimizer import Optimizer
from tailorlib.parser_messages import clean_message, placed
from tailorlib.recipe_names import SECTION_KINDS, plugin_names, short, trainer_names
from tailorlib.scheduler import Scheduler
from tailorlib.search.study import Benchmark, StudySettings, Validation, setting_faults
from tailorlib.search_space import SearchSpace
from tailorlib.warm_start import WarmStart


def _subclass(kind: type) -> Callable[[ArgumentParser, str], object]:
    return lambda parser, key: parser.add_subclass_arguments(kind, key, required=False)


SECTIONS: Mapping[str, Callable[[ArgumentParser, str], object]] = {
    "family": _subclass(ModelFamily),
    "search_space": _subclass(SearchSpace),
    "optimizer": _subclass(Optimizer),
    "scheduler": _subclass(Scheduler),
    "fitness": _subclass(Fitness),
    "objectives": lambda parser, key: parser.add_argument(
        f"--{key}",
        type=list[Objective],
        default=[],
        help="What to weigh against each other; the fitness alone by default.",
    ),
    "warm_starts": lambda parser, key: parser.add_argument(
        f"--{key}", type=list[WarmStart], default=[], help="Tailorings to try first."
    ),
    "compensation": _subclass(Compensation),
    "validation": lambda parser, key: parser.add_class_arguments(Validation, key),
    "benchmark": lambda parser, key: parser.add_class_arguments(Benchmark, key),
    "study": lambda parser, key: parser.add_class_arguments(StudySettings, key),
}
"""The sections of a recipe beside ``trainer``, and how each is added to a parser."""
REQUIRED = ("family", "search_space", "optimizer", "fitness")
IDENTITY = ("family", "search_space", "optimizer", "fitness", "warm_starts")
OPTIONAL_IDENTITY = ("scheduler", "objectives", "compensation")
"""Sections that decide the trials; of ``study`` only seed, batch size and what changes digits of a score do."""
MAX_BYTES = 1_000_000
"""Largest recipe: PyYAML reads about a megabyte a second."""
FIXED_CLASSES: Mapping[str, type] = {"validation": Validation, "benchmark": Benchmark, "study": StudySettings}
"""Sections that are no plugins, and the class of each."""
_OTHER_KEYS = ("trainer", "plugins", "seed_everything")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe file.

    Raises:
        RecipeError: If the file can't be read, is not YAML, names a key twice, is too large with what its anchors
            stand for written out, or holds no mapping.
    """
    data = load_yaml(read_text(path, "recipe", most=MAX_BYTES), f"The recipe {str(path)!r}")
    if not isinstance(data, dict):
        raise RecipeError(f"A recipe is a mapping of sections, got {type(data).__name__} in {str(path)!r}.")
    return data


def check_recipe(data: Mapping[str, Any]) -> list[str]:
    """Return every fault of a recipe's names, keys and types: unknown classes and settings, wrong values.

    Nothing is imported but what belongs to tailorlib, to Lightning, to an installed plugin or to one that the user
    named.
    """
    known = (*SECTIONS, *_OTHER_KEYS)
    faults = [
        f"A recipe has no section {shown(key)}.{did_you_mean(short(key), known)}"
        for key in data
        if key not in known
    ]
    faults += trainer_names().check(data.get("trainer"), Any, "trainer")
    for key in SECTIONS:
        if data.get(key) is None:
            continue
        section_faults = list(_check_section(key, data[key]))
        faults += section_faults or _check_types(key, data[key])
    return faults


def missing_sections(given: Iterable[str], needed: Iterable[str] = REQUIRED) -> list[str]:
    """Return a fault for each needed section that is not given."""
    return [f"A recipe needs the section {key!r}; it is missing." for key in needed if key not in set(given)]


def identity_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved recipe that decides the trials."""
    study = config.get("study") or {}
    own = {key: study.get(key) for key in ("seed", "batch_size", "max_length", "tokens_per_batch")}
    if study.get("shards", 1) != 1:
        own["shards"] = study["shards"]
    optional = {key: config[key] for key in OPTIONAL_IDENTITY if config.get(key)}
    if (validation := (config.get("validation") or {}).get("fitness")) is not None:
        optional["validation"] = {"fitness": validation}  # recorded validations decide which trial is the result
    return {**{key: config.get(key) for key in IDENTITY}, **optional, "study": own}


def _check_section(key: str, value: Any) -> Iterator[str]:
    if key in FIXED_CLASSES and isinstance(value, Mapping):
        yield from plugin_names().check_settings(FIXED_CLASSES[key], value, key)
    else:
        yield from plugin_names().check(value, SECTION_KINDS.get(key, Any), key)


@cache
def _parser(key: str) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    SECTIONS[key](parser, key)
    return parser


def _check_types(key: str, value: Any) -> list[str]:
    """Return the type faults of a section, as the real parser finds them.

    The parser stops at the first fault of a class, so the study's settings are given one by one. With the faults
    go its numbers that are out of range: without any they are found with those of all sections, on building.
    """
    if key != "study" or not isinstance(value, Mapping):
        return _type_fault(key, value)
    faults = {name: _type_fault(key, {name: setting}) for name, setting in value.items()}
    right = {name: value[name] for name in value if not faults[name]}
    wrong = [fault for found in faults.values() for fault in found]
    return wrong + setting_faults(right) if wrong else []


def _type_fault(key: str, value: Any) -> list[str]:
    try:
        _parser(key).parse_object({key: value})
    except (ArgumentError, TypeError, ValueError) as error:
        return [placed(key, clean_message(str(error)))]
    return []

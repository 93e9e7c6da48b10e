"""Entries of tasks in a recipe: found in lm-eval's index, in the user's folder, or defined right there.

This module imports lm-eval only inside functions: that takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tailorlib.evaluation.task_factory import no_task, unread_files
from tailorlib.exceptions import DataError, TailorError, shown, told

Item = TypeVar("Item")
Made = TypeVar("Made")
TaskEntry = str | Mapping[str, Any]
"""A task, group or tag: its name, a task file, or ``task: NAME`` with settings that replace the task's own."""


@dataclass(frozen=True)
class TaskOptions:
    """What an entry says of its tasks that is no setting of a task in lm-eval.

    Args:
        limit: As in :class:`TaskSettings`, for these tasks.
        samples: Which documents to take.
        gen_kwargs: Settings of generation.
        fewshot_random_seed: Seed of the choice of examples.
        metric: The metric that counts.
    """

    limit: float | None = None
    samples: Sequence[int] | None = None
    gen_kwargs: Mapping[str, Any] | str | None = None
    fewshot_random_seed: int | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Found:
    """An entry that was looked up: what it is in lm-eval's index, and what it changes."""

    label: str
    entry: Any
    overrides: Mapping[str, Any]
    options: TaskOptions


def look_up(entries: Sequence[TaskEntry], include_path: str | None) -> tuple[dict[str, Any], list[Found]]:
    """Return the index of tasks, and the entries as they are found in it.

    lm-eval's own tasks are thousands of files, which take seconds to index: they are left out if the user's
    folder defines all that is asked for.
    """
    if not entries:
        raise DataError("At least one lm-eval task is named, got none.")
    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"include_path is a folder with task files; there is no folder {include_path!r}.")
    own = _index([Path(include_path)]) if include_path is not None else {}
    faults: list[str] = []
    parsed = _each(_parse, entries, faults)
    wanted = [name for _, names, _, _ in parsed for name in names]
    registry = own if all(_is_complete(name, own) for name in wanted) else {**_default_index(), **own}
    found = _each(lambda one: _find(*one, registry), parsed, faults)
    if faults and include_path is not None:
        faults += unread_files(Path(include_path))
    if faults:
        raise DataError(faults)
    return registry, found


def _each(do: Callable[[Item], Made], items: Iterable[Item], faults: list[str]) -> list[Made]:
    """Do something to each item; what can't be done is added to the faults."""
    done = []
    for item in items:
        try:
            done.append(do(item))
        except TailorError as error:
            faults += error.faults
    return done


def _parse(entry: TaskEntry) -> tuple[str, list[Any], dict[str, Any], TaskOptions]:
    """Return an entry's label, the names that it needs, its settings for lm-eval and its options."""
    if isinstance(entry, str):
        return entry, [entry], {}, TaskOptions()
    if not isinstance(entry, Mapping) or not all(isinstance(key, str) for key in entry):
        raise DataError(f"An lm-eval task is a name, or a mapping whose keys are texts, got {shown(entry)}.")
    fields = set(TaskOptions.__dataclass_fields__)
    made_here = isinstance(entry.get("task"), list)
    label = entry.get("group") if made_here else entry.get("task", entry.get("group"))
    if not isinstance(label, str):
        raise DataError(f"An lm-eval task is a name, or a mapping with 'task' or 'group', got {shown(entry)}.")
    config = {name: value for name, value in entry.items() if name not in fields}
    options = TaskOptions(**{name: entry[name] for name in fields if name in entry})
    if faults := _option_faults(label, options):
        raise DataError(faults)
    if made_here:
        return label, list(entry["task"]), config, options
    defines = "class" in entry or {"doc_to_text", "doc_to_target"} <= entry.keys()
    return label, [] if defines else [label], config, options


def _find(label: str, names: list[Any], config: dict[str, Any], options: TaskOptions, registry: Any) -> Found:
    from lm_eval.tasks._index import TaskIndex

    overrides = {name: value for name, value in config.items() if name not in ("task", "group")}
    if isinstance(config.get("task"), list):  # a group that is defined right here
        return Found(label, TaskIndex.entry_from_config(config), {}, options)
    entry = registry.get(label) or (_entry_of(Path(label)) if _is_file(label) else None)
    if entry is None and not names:
        return Found(label, TaskIndex.entry_from_config(config), {}, options)
    if entry is None:
        raise DataError(no_task(label, registry))
    return Found(label, entry, overrides, options)


def _is_complete(name: Any, index: Mapping[str, Any]) -> bool:
    """Say whether a task, or a group with all its members, is known; a tag may have members elsewhere."""
    if isinstance(name, Mapping):
        members = name.get("task")
        return all(_is_complete(m, index) for m in (members if isinstance(members, list) else [members]))
    if not isinstance(name, str):
        return False
    entry = index.get(name)
    if entry is None:
        return _is_file(name)
    kind: str = entry.kind.name
    if kind != "GROUP":
        return kind != "TAG"
    members = entry.cfg.get("task")
    return isinstance(members, list) and all(_is_complete(m, index) for m in members)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _index(paths: Iterable[Path]) -> dict[str, Any]:
    from lm_eval.tasks._index import TaskIndex

    index: dict[str, Any] = TaskIndex.build(paths)
    return index


@cache
def _default_index() -> dict[str, Any]:
    import lm_eval.tasks

    return _index([Path(lm_eval.tasks.__file__).parent])


def _option_faults(label: str, options: TaskOptions) -> list[str]:
    """Return what is wrong with the settings that an entry has beside those of lm-eval."""
    found = []
    limit: Any = options.limit  # as a recipe has them: of any type
    samples: Any = options.samples
    metric: Any = options.metric
    gen_kwargs: Any = options.gen_kwargs
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
        found.append(f"The task {label!r}: limit is a positive number, got {shown(limit)}.")
    if samples is not None and not is_numbers(samples):
        found.append(f"The task {label!r}: samples is a list of numbers of documents, got {shown(samples)}.")
    if not isinstance(metric, str | None):
        found.append(f"The task {label!r}: metric is a name, got {shown(metric)}.")
    if not isinstance(gen_kwargs, Mapping | str | None):
        found.append(f"The task {label!r}: gen_kwargs is a mapping, got {shown(gen_kwargs)}.")
    return found


def is_numbers(samples: Any) -> bool:
    """Say whether a value is a list of numbers of documents."""
    whole = isinstance(samples, list | tuple) and bool(samples)
    return whole and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in samples)


def _entry_of(path: Path) -> Any:
    """Return the task of a file, or raise why there is none."""
    from lm_eval.tasks._index import TaskIndex

    try:
        return TaskIndex.entry_from_path(path)
    except Exception as error:  # YAML, and functions of its own
        raise DataError(f"The task file {str(path)!r} can't be read: {told(error)}") from error

"""lm-eval's maker of tasks, with their settings checked, and data files found beside the files of tasks.

This module imports lm-eval only inside functions: that takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tailorlib.evaluation.task_data import load_faults
from tailorlib.evaluation.task_settings import file_faults, setting_faults
from tailorlib.exceptions import DataError, did_you_mean, shown, told

OPTIONS = ("limit", "samples", "gen_kwargs", "fewshot_random_seed", "metric")
"""What an entry of a recipe gives beside a task's settings."""


def make_factory(metadata: Mapping[str, Any] | None) -> Any:
    """Return a maker of tasks. What is wrong with one is raised as :class:`DataError`, with all its faults.

    Args:
        metadata: Further facts that tasks may read.
    """
    from lm_eval.tasks._factory import TaskFactory
    from lm_eval.tasks._index import Entry, Kind

    class Factory(TaskFactory):  # type: ignore[misc] # lm-eval is untyped here
        def _load_full_config(self, entry: Any, overrides: Any = None) -> dict[str, Any]:
            try:
                config: dict[str, Any] = super()._load_full_config(entry, overrides)
            except Exception as error:  # functions of the task's own, whose files are imported
                raise DataError(f"The task {entry.name!r} can't be read: {told(error)}") from error
            return found_beside(config, entry.yaml_path)

        def _build_task(self, entry: Any, overrides: Any) -> Any:
            config = self._load_full_config(entry, overrides)
            name = str(config.get("task", entry.name))
            if faults := [*setting_faults(name, config, OPTIONS), *file_faults(name, config)]:
                raise DataError(faults)
            try:
                return super()._build_task(entry, overrides)
            except Exception as error:  # data sets, templates and functions fail in any way
                raise DataError(load_faults(name, config, error)) from error

        def _build_group_members(self, members: Any, group: str, overrides: Any, registry: Any) -> Any:
            named: list[Any] = []
            faults: list[str] = []
            for member in members:
                own = member if isinstance(member, Mapping) else {"task": member}
                name = own.get("task")
                if "group" in own or name in registry:
                    named.append(member)
                elif not (own.keys() & {"dataset_path", "custom_dataset", "doc_to_text", "class"}):
                    faults.append(no_task(name, registry))
                else:  # a task that is defined right here, as lm-eval names it
                    config = {**(overrides or {}), **own, "task": f"{group}::{name}"}
                    registry[config["task"]] = Entry(config["task"], Kind.TASK, None, config)
                    named.append({"task": config["task"]})
            if faults:
                raise DataError(faults)
            return super()._build_group_members(named, group, overrides, registry)

    return Factory(meta=dict(metadata or {}))


def entry_faults(entry: Any, overrides: Mapping[str, Any], registry: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the settings of a task, or of the members of a group or tag, before data is read.

    Args:
        entry: What stands in lm-eval's index.
        overrides: Settings that replace the task's own.
        registry: The index.
    """
    kind: str = entry.kind.name
    if kind == "TAG":
        for name in sorted(entry.tags & registry.keys()):
            yield from entry_faults(registry[name], overrides, registry)
    elif kind == "GROUP":
        yield from _group_faults(entry, overrides, registry)
    else:
        config = found_beside({**(entry.cfg or {}), **overrides}, entry.yaml_path)
        name = str(config.get("task", entry.name))
        functions = bool(entry.yaml_path) and str(Path(entry.yaml_path).parent) in repr(entry.cfg)
        yield from setting_faults(name, config, OPTIONS, imported=not functions)
        yield from file_faults(name, config)


def _group_faults(entry: Any, overrides: Mapping[str, Any], registry: Mapping[str, Any]) -> Iterator[str]:
    members = (entry.cfg or {}).get("task")
    for member in members if isinstance(members, list) else []:
        own = dict(member) if isinstance(member, Mapping) else {"task": member}
        name = own.pop("task", own.get("group"))
        if isinstance(name, str) and name in registry:
            yield from entry_faults(registry[name], {**overrides, **own}, registry)
        elif isinstance(name, str) and not own:
            yield no_task(name, registry)


def found_beside(config: dict[str, Any], file: Any) -> dict[str, Any]:
    """Return a task's settings with those of its data files that lie beside the task's file."""
    settings = config.get("dataset_kwargs")
    if not file or not isinstance(settings, dict) or "data_files" not in settings:
        return config
    files = _resolve(settings["data_files"], Path(file).parent)
    return {**config, "dataset_kwargs": {**settings, "data_files": files}}


def no_task(name: Any, known: Mapping[str, Any]) -> str:
    """Return that there is no task of a name, and which one is close."""
    hint = did_you_mean(str(name), known)
    # thousands of names are no hint
    close = hint if hint.startswith(" Did") else " `lm-eval ls tasks` lists them; include_path adds your own."
    return f"lm-eval has no task called {shown(name)}.{close}"


def unread_files(folder: Path) -> list[str]:
    """Return the task files of a folder that can't be read: lm-eval leaves them out without a word."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found = []
    for path in sorted(folder.glob("**/*.yaml"))[:1000]:
        try:
            config = load_yaml(path, resolve_func=False)
            if not {"task", "group", "class"} & config.keys():
                continue  # what others include
        except Exception as error:  # YAML fails in many ways
            found.append(f"The task file {str(path)!r} can't be read: {told(error)}")
    return found


def _resolve(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {key: _resolve(value, folder) for key, value in files.items()}
    if isinstance(files, list | tuple):
        return [_resolve(value, folder) for value in files]
    beside = folder / os.fspath(files)
    return str(beside.resolve()) if not Path(files).is_absolute() and beside.exists() else files

"""Loading lm-eval tasks, with errors that a user can mend and data files found from wherever one stands."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tailorlib.exceptions import DataError, TailorError, did_you_mean

SUPPORTED = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")
"""Output types of lm-eval that need log-likelihoods only."""


def load_tasks(
    names: Sequence[str], include_path: str | None, num_fewshot: int | None, fewshot_seed: int
) -> dict[str, Any]:
    """Load tasks, groups and tags by name, and set them up as ``lm_eval.simple_evaluate`` does.

    Args:
        names: Names of tasks, groups or tags.
        include_path: Folder with task files of the user's own; their relative data files are looked for beside
            the task file, and then in the working directory.
        num_fewshot: Number of examples; ``None`` for each task's own. A task that fixes 0 keeps it.
        fewshot_seed: Seed of the choice of examples.

    Returns:
        What ``TaskManager.load`` returns: ``tasks``, ``groups`` and ``group_map``.

    Raises:
        DataError: If a task is unknown, its data can't be loaded, or it needs generated text.
    """
    manager = find_tasks(names, include_path)
    try:
        with _relative_data_files():
            loaded: dict[str, Any] = manager.load(list(names))
    except TailorError:
        raise
    except Exception as error:  # a task may fail in any way: no network, no file, code of its own
        raise DataError(
            f"The lm-eval tasks {', '.join(names)} can't be loaded: {type(error).__name__}: {error}. A task whose "
            "data is on the hub needs a network, or a filled cache."
        ) from error
    for name, task in loaded["tasks"].items():
        kind = task.OUTPUT_TYPE
        if kind not in SUPPORTED:
            raise DataError(
                f"A task scores given answers ({', '.join(SUPPORTED)}), got {name!r} with output_type {kind}. Use "
                "a variant of the task that scores answers."
            )
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=fewshot_seed)
    return loaded


def find_tasks(names: Sequence[str], include_path: str | None) -> Any:
    """Return a ``TaskManager`` that knows tasks of these names.

    lm-eval's own tasks are thousands of files, which take seconds to index: they are left out if the user's
    folder defines all that is asked for.

    Raises:
        DataError: If a task is unknown, or ``include_path`` is no folder.
    """
    from lm_eval.tasks import TaskManager

    if not names:
        raise DataError("At least one lm-eval task is named, got none.")
    if include_path is not None:
        if not Path(include_path).is_dir():
            raise DataError(f"include_path is a folder with task files; there is no folder {include_path!r}.")
        own = TaskManager(include_path=include_path, include_defaults=False)
        if all(_is_complete(own, name) for name in names):
            return own
    manager = TaskManager(include_path=include_path)
    unknown = [name for name in names if name not in manager.task_index and not Path(name).is_file()]
    if unknown:
        name = unknown[0]
        raise DataError(f"lm-eval has no task called {name!r}.{_hint(name, manager.all_tasks)}")
    return manager


def _is_complete(manager: Any, name: str) -> bool:
    """Say whether a task, or a group with all its members, is known; a tag may have members elsewhere."""
    if name in manager.all_subtasks:
        return True
    if name not in manager.all_groups:
        return False
    members = manager.task_index[name].cfg.get("task")
    return isinstance(members, list) and all(isinstance(m, str) and _is_complete(manager, m) for m in members)


def _hint(name: str, known: Sequence[str]) -> str:
    hint = did_you_mean(name, known)
    # thousands of names are no hint
    return hint if hint.startswith(" Did") else " `lm-eval ls tasks` lists them; include_path adds your own."


@contextmanager
def _relative_data_files() -> Iterator[None]:
    """Resolve relative data files of a task against its file's folder."""
    from lm_eval.tasks._factory import TaskFactory

    original = TaskFactory._load_full_config

    def load(self: Any, entry: Any, overrides: Any = None) -> dict[str, Any]:
        config: dict[str, Any] = original(self, entry, overrides)
        settings = config.get("dataset_kwargs")
        if entry.yaml_path and isinstance(settings, dict) and "data_files" in settings:
            folder = Path(entry.yaml_path).parent
            config["dataset_kwargs"] = {**settings, "data_files": _resolve(settings["data_files"], folder)}
        return config

    TaskFactory._load_full_config = load
    try:
        yield
    finally:
        TaskFactory._load_full_config = original


def _resolve(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {key: _resolve(value, folder) for key, value in files.items()}
    if isinstance(files, list | tuple):
        return [_resolve(value, folder) for value in files]
    beside = folder / os.fspath(files)
    return str(beside.resolve()) if not Path(files).is_absolute() and beside.exists() else files

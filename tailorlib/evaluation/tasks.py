"""Loading lm-eval tasks, with errors that a user can mend and data files found from wherever one stands.

This module imports lm-eval only inside functions: that takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tailorlib.exceptions import DataError, TailorError, did_you_mean, shown

TaskEntry = str | Mapping[str, Any]
"""A task, group or tag: its name, a task file, or ``task: NAME`` with settings that replace the task's own."""

LIKELIHOOD = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")
"""Output types of lm-eval that need log-likelihoods only."""
SUPPORTED = (*LIKELIHOOD, "generate_until")
"""Output types that can be evaluated."""


@dataclass(frozen=True)
class TaskSettings:
    """Arguments of ``lm_eval.simple_evaluate``, with its names and defaults.

    Args:
        include_path: Folder with task files of the user's own; their relative data files are looked for beside
            the task file, and then in the working directory.
        num_fewshot: Number of examples in the context; ``None`` for each task's own. A task that fixes 0 keeps it.
        limit: Number of documents per task, or a fraction of them if below 1; ``None`` for all.
        samples: Which documents of a task to take, by its name; not together with ``limit``.
        system_instruction: System prompt.
        apply_chat_template: Whether prompts go through the tokenizer's chat template.
        fewshot_as_multiturn: Whether examples are turns of a conversation; with a chat template only.
        gen_kwargs: Settings of generation, over each task's own; a mapping, or ``"key=value,key=value"``.
        random_seed: Seed of Python's generator, which tasks may draw from.
        numpy_random_seed: Seed of NumPy's.
        torch_random_seed: Seed of PyTorch's; sampled text depends on it.
        fewshot_random_seed: Seed of the choice of examples.
        confirm_run_unsafe_code: Whether tasks that execute generated code may run.
        metadata: Further facts that a task may read.
        model_args: Arguments of lm-eval's Hugging Face model that concern text: ``add_bos_token``,
            ``prefix_token_id``, ``enable_thinking``, ``think_end_token``, ``chat_template_args``.
        generation_batch_size: Number of texts generated at once. Halved once, for good, when memory runs out.
    """

    include_path: str | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    samples: Mapping[str, Sequence[int]] | None = None
    system_instruction: str | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    gen_kwargs: Mapping[str, Any] | str | None = None
    random_seed: int = 0
    numpy_random_seed: int = 1234
    torch_random_seed: int = 1234
    fewshot_random_seed: int = 1234
    confirm_run_unsafe_code: bool = False
    metadata: Mapping[str, Any] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    generation_batch_size: int = 16


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
class LoadedTasks:
    """Tasks of lm-eval, set up.

    Args:
        tasks: Every task by name, groups and tags resolved.
        groups: Every group by name.
        options: What the entries say of each task.
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    options: Mapping[str, TaskOptions]

    def as_lm_eval(self) -> dict[str, Any]:
        """Return what ``lm_eval.evaluate`` takes."""
        group_map = {name: group.child_names for name, group in self.groups.items()}
        return {"tasks": dict(self.tasks), "groups": dict(self.groups), "group_map": group_map}


@dataclass(frozen=True)
class _Found:
    """An entry that was looked up: what it is in lm-eval's index, and what it changes."""

    label: str
    entry: Any
    overrides: Mapping[str, Any]
    options: TaskOptions


def load_tasks(entries: Sequence[TaskEntry], settings: TaskSettings) -> LoadedTasks:
    """Load tasks, groups and tags, and set them up as ``lm_eval.simple_evaluate`` does.

    Raises:
        DataError: If a task is unknown, is asked for twice, can't be loaded, or executes generated code without
            leave.
    """
    from lm_eval.api.group import Group

    registry, found = _look_up(entries, settings.include_path)
    factory = _factory(settings.metadata)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    options: dict[str, TaskOptions] = {}
    for one in found:
        try:
            built = factory.build(one.entry, overrides=dict(one.overrides) or None, registry=registry)
        except TailorError:
            raise
        except Exception as error:  # a task may fail in any way: no network, no file, code of its own
            raise DataError(
                f"The lm-eval task {one.label!r} can't be loaded: {type(error).__name__}: {error}. A task has at "
                "least one question, and one whose data is on the hub needs a network, or a filled cache."
            ) from error
        own = built if isinstance(built, list) else [built]
        members = [t for item in own for t in (item.get_all_tasks() if isinstance(item, Group) else [item])]
        for group in (item for item in own if isinstance(item, Group)):
            groups |= {g.name: g for g in (group, *group.get_all_groups())}
        for task in members:
            if task.task_name in tasks:
                raise DataError(f"Each task is asked for once, got {task.task_name!r} twice. Leave one out.")
            _set_up(task, one, settings)
            tasks[task.task_name], options[task.task_name] = task, one.options
    return LoadedTasks(tasks, groups, options)


def check_tasks(entries: Sequence[TaskEntry], include_path: str | None) -> None:
    """Look tasks up without loading their data.

    Raises:
        DataError: If a task is unknown, or ``include_path`` is no folder.
    """
    _look_up(entries, include_path)


def _set_up(task: Any, found: _Found, settings: TaskSettings) -> None:
    """Do to a task what ``simple_evaluate`` does before it evaluates."""
    from lm_eval.utils import simple_parse_args_string

    if task.OUTPUT_TYPE not in SUPPORTED or getattr(task, "MULTIMODAL", False):
        raise DataError(
            f"A task scores or generates text ({', '.join(SUPPORTED)}), got {task.task_name!r} with output_type "
            f"{task.OUTPUT_TYPE}{' over images or sound' if getattr(task, 'MULTIMODAL', False) else ''}."
        )
    if getattr(task, "UNSAFE_CODE", False) and not settings.confirm_run_unsafe_code:
        raise DataError(
            f"The task {task.task_name!r} executes code that the model writes. Set confirm_run_unsafe_code: true "
            "to allow it, in a place where it can do no harm."
        )
    if task.OUTPUT_TYPE == "generate_until":
        for given in (settings.gen_kwargs, found.options.gen_kwargs):
            parsed = simple_parse_args_string(given) if isinstance(given, str) else given
            if parsed:
                task.set_config(key="generation_kwargs", value=dict(parsed), update=True)
    own = task.get_config("num_fewshot")
    if settings.num_fewshot is not None and own != 0 and "num_fewshot" not in found.overrides:
        task.set_config(key="num_fewshot", value=settings.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    seed = found.options.fewshot_random_seed
    task.set_fewshot_seed(seed=settings.fewshot_random_seed if seed is None else seed)


def _look_up(entries: Sequence[TaskEntry], include_path: str | None) -> tuple[dict[str, Any], list[_Found]]:
    """Return the index of tasks, and the entries as they are found in it.

    lm-eval's own tasks are thousands of files, which take seconds to index: they are left out if the user's
    folder defines all that is asked for.
    """
    if not entries:
        raise DataError("At least one lm-eval task is named, got none.")
    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"include_path is a folder with task files; there is no folder {include_path!r}.")
    own = _index([Path(include_path)]) if include_path is not None else {}
    parsed = [_parse(entry) for entry in entries]
    wanted = [name for _, names, _, _ in parsed for name in names]
    registry = own if all(_is_complete(name, own) for name in wanted) else {**_default_index(), **own}
    return registry, [_find(*one, registry) for one in parsed]


def _parse(entry: TaskEntry) -> tuple[str, list[Any], dict[str, Any], TaskOptions]:
    """Return an entry's label, the names that it needs, its settings for lm-eval and its options."""
    if isinstance(entry, str):
        return entry, [entry], {}, TaskOptions()
    fields = set(TaskOptions.__dataclass_fields__)
    made_here = isinstance(entry.get("task"), list)
    label = entry.get("group") if made_here else entry.get("task", entry.get("group"))
    if not isinstance(label, str):
        raise DataError(f"An lm-eval task is a name, or a mapping with 'task' or 'group', got {shown(entry)}.")
    config = {name: value for name, value in entry.items() if name not in fields}
    options = TaskOptions(**{name: entry[name] for name in fields if name in entry})
    if made_here:
        return label, list(entry["task"]), config, options
    defines = "class" in entry or {"doc_to_text", "doc_to_target"} <= entry.keys()
    return label, [] if defines else [label], config, options


def _find(label: str, names: list[Any], config: dict[str, Any], options: TaskOptions, registry: Any) -> _Found:
    from lm_eval.tasks._index import TaskIndex

    overrides = {name: value for name, value in config.items() if name not in ("task", "group")}
    if isinstance(config.get("task"), list):  # a group that is defined right here
        return _Found(label, TaskIndex.entry_from_config(config), {}, options)
    entry = registry.get(label) or (TaskIndex.entry_from_path(Path(label)) if _is_file(label) else None)
    if entry is None and not names:
        return _Found(label, TaskIndex.entry_from_config(config), {}, options)
    if entry is None:
        raise DataError(f"lm-eval has no task called {label!r}.{_hint(label, list(registry))}")
    return _Found(label, entry, overrides, options)


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


def _hint(name: str, known: Sequence[str]) -> str:
    hint = did_you_mean(name, known)
    # thousands of names are no hint
    return hint if hint.startswith(" Did") else " `lm-eval ls tasks` lists them; include_path adds your own."


def _factory(metadata: Mapping[str, Any] | None) -> Any:
    """Return lm-eval's maker of tasks, which here looks for a task's data files beside its file."""
    from lm_eval.tasks._factory import TaskFactory

    class Factory(TaskFactory):  # type: ignore[misc] # lm-eval is untyped here
        def _load_full_config(self, entry: Any, overrides: Any = None) -> dict[str, Any]:
            config: dict[str, Any] = super()._load_full_config(entry, overrides)
            settings = config.get("dataset_kwargs")
            if entry.yaml_path and isinstance(settings, dict) and "data_files" in settings:
                folder = Path(entry.yaml_path).parent
                config["dataset_kwargs"] = {**settings, "data_files": _resolve(settings["data_files"], folder)}
            return config

    return Factory(meta=dict(metadata or {}))


def _resolve(files: Any, folder: Path) -> Any:
    if isinstance(files, dict):
        return {key: _resolve(value, folder) for key, value in files.items()}
    if isinstance(files, list | tuple):
        return [_resolve(value, folder) for value in files]
    beside = folder / os.fspath(files)
    return str(beside.resolve()) if not Path(files).is_absolute() and beside.exists() else files

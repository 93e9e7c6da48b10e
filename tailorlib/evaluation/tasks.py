"""Loading lm-eval tasks, with errors that a user can mend and data files found from wherever one stands.

This module imports lm-eval only inside functions: that takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailorlib.evaluation.task_entries import Found, TaskEntry, TaskOptions, is_numbers, look_up
from tailorlib.evaluation.task_factory import entry_faults, make_factory
from tailorlib.exceptions import DataError, TailorError, did_you_mean, shown, told

__all__ = ["LoadedTasks", "TaskEntry", "TaskOptions", "TaskSettings", "check_tasks", "load_tasks"]

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


def load_tasks(entries: Sequence[TaskEntry], settings: TaskSettings) -> LoadedTasks:
    """Load tasks, groups and tags, and set them up as ``lm_eval.simple_evaluate`` does.

    Raises:
        DataError: If a task is unknown, is asked for twice, can't be loaded, or executes generated code without
            leave.
    """
    from lm_eval.api.group import Group

    registry, found = look_up(entries, settings.include_path)
    factory = make_factory(settings.metadata)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    options: dict[str, TaskOptions] = {}
    faults: list[str] = []
    for one in found:
        try:
            built = factory.build(one.entry, overrides=dict(one.overrides) or None, registry=registry)
            own = built if isinstance(built, list) else [built]
            members = [t for item in own for t in (item.get_all_tasks() if isinstance(item, Group) else [item])]
            for group in (item for item in own if isinstance(item, Group)):
                groups |= {g.name: g for g in (group, *group.get_all_groups())}
            for task in members:
                if task.task_name in tasks:
                    raise DataError(f"Each task is asked for once, got {task.task_name!r} twice. Leave one out.")
                tasks[task.task_name], options[task.task_name] = task, one.options
                _set_up(task, one, settings)
        except TailorError as error:
            faults += error.faults
        except Exception as error:  # a task may fail in any way: no file, code of its own
            faults.append(f"The task {one.label!r} can't be loaded: {told(error)}")
    faults += _sample_faults(settings, tasks)
    if faults:
        raise DataError(faults)
    return LoadedTasks(tasks, groups, options)


def check_tasks(entries: Sequence[TaskEntry], include_path: str | None) -> None:
    """Look tasks up, and check their settings, without loading their data.

    Raises:
        DataError: If a task is unknown or has settings that make no sense, or ``include_path`` is no folder.
    """
    registry, found = look_up(entries, include_path)
    faults = [fault for one in found for fault in entry_faults(one.entry, one.overrides, registry)]
    if faults:
        raise DataError(list(dict.fromkeys(faults)))


def _set_up(task: Any, found: Found, settings: TaskSettings) -> None:
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


def _sample_faults(settings: TaskSettings, tasks: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with ``samples``, which name tasks."""
    found = []
    for name, samples in (settings.samples or {}).items():
        if name not in tasks:
            found.append(f"samples names the tasks that are asked for, got {name!r}.{did_you_mean(name, tasks)}")
        elif not is_numbers(samples):
            found.append(f"samples of {name!r} is a list of numbers of documents, got {shown(samples)}.")
    return found

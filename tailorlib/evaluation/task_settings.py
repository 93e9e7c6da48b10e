"""Settings of lm-eval tasks: what can be wrong with them before any data is read."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tailorlib.exceptions import did_you_mean, listed, shown

STRUCTURE = frozenset(
    {"task", "group", "tag", "class", "include", "task_list", "group_alias", "aggregate_metric_list"}
)
"""Keys of task files that say what they are, beside a task's settings."""
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_LISTS = ("metric_list", "filter_list")
_NUMBERS = {"num_fewshot": 0, "repeats": 1}
_DATA_KEYS = ("data_files", "data_dir")


def setting_faults(
    name: str, config: Mapping[Any, Any], options: Collection[str] = (), *, imported: bool = True
) -> list[str]:
    """Return what is wrong with a task's settings.

    Args:
        name: The task's.
        config: Its settings; functions may be there, or as the paths that stand for them.
        options: Names that an entry can give beside a task's settings, to suggest.
        imported: Whether the modules of its functions are: they can bring filters and metrics of their own.
    """
    from lm_eval.config.task import FewshotConfig, TaskConfig

    known = {*TaskConfig.__dataclass_fields__, *STRUCTURE}
    if "class" in config:  # a class of Python has rules of its own
        return []
    found = [*_unknown(config, known, f"The task {name!r}", "setting", (*known, *options))]
    own = config.get("fewshot_config")
    if isinstance(own, Mapping):
        fields = FewshotConfig.__dataclass_fields__
        found += _unknown(own, fields, f"fewshot_config of the task {name!r}", "setting", fields)
    faults = [*_types(config), *_output(config), *_sampler(own)]
    if imported:
        faults += [*_metrics(config), *_filters(config)]
    return [*found, *(f"The task {name!r}: {fault}" for fault in faults)]


def file_faults(name: str, config: Mapping[str, Any]) -> list[str]:
    """Return the data files of a task that are not there, or that its data names none.

    Where none is named, datasets takes every file below the working directory, and searches that for minutes.
    """
    kind = config.get("dataset_path")
    if not isinstance(kind, str) or kind not in builders() or Path(kind).exists() or "class" in config:
        return []
    settings = config.get("dataset_kwargs") or {}
    if not isinstance(settings, Mapping) or callable(config.get("custom_dataset")):
        return []
    if not any(settings.get(key) for key in _DATA_KEYS):
        hints = (did_you_mean(str(key), _DATA_KEYS) for key in settings if key not in _DATA_KEYS)
        close = next((hint for hint in hints if hint.startswith(" Did")), "")
        return [
            f"The task {name!r}: dataset_path {kind} is a kind of file, so dataset_kwargs names them with "
            f"{' or '.join(_DATA_KEYS)}; got {shown(dict(settings))}.{close}"
        ]
    missing = [path for path in _paths(settings.get("data_files")) if not _there(path, settings.get("data_dir"))]
    return [
        f"The task {name!r}: there is no data file {shown(path)}.{_beside(path)} Relative ones are looked for "
        "beside the task's file, and in the working directory."
        for path in dict.fromkeys(missing)
    ]


def is_local(config: Mapping[str, Any]) -> bool:
    """Say whether a task's data is made of files of this machine, so that nothing is fetched."""
    path = config.get("dataset_path")
    remote = any("://" in file for file in _paths((config.get("dataset_kwargs") or {}).get("data_files")))
    return callable(config.get("custom_dataset")) or (
        isinstance(path, str) and (path in builders() or Path(path).exists()) and not remote
    )


def builders() -> Collection[str]:
    """Return the kinds of files that a data set can be made of, as ``dataset_path`` names them."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return set(_PACKAGED_DATASETS_MODULES)


def _unknown(
    config: Mapping[Any, Any], known: Collection[str], subject: str, kind: str, close: Collection[str]
) -> Iterator[str]:
    for key in config:
        if not isinstance(key, str):
            yield f"{subject}: a key is a text, got {shown(key)}."
        elif key not in known:
            yield f"{subject} has no {kind} {shown(key)}.{did_you_mean(key, close)}"


def _types(config: Mapping[str, Any]) -> Iterator[str]:
    for key, least in _NUMBERS.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            yield f"{key} is a whole number of at least {least}, got {shown(value)}."
    for key in SPLITS:
        if not isinstance(config.get(key), str | None):
            yield f"{key} is the name of a split, got {shown(config[key])}."
    for key in _LISTS:
        value = config.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, Mapping) for v in value)):
            yield f"{key} is a list of mappings, got {shown(value)}."
    for key in ("dataset_kwargs", "generation_kwargs", "fewshot_config"):
        value = config.get(key)
        if isinstance(value, str | int | float | list):
            yield f"{key} is a mapping, got {shown(value)}."
    if config.get("doc_to_choice") is None and config.get("output_type") == "multiple_choice":
        yield "output_type multiple_choice needs doc_to_choice: the field, template or list of its choices."


def _output(config: Mapping[str, Any]) -> Iterator[str]:
    from lm_eval.api.instance import OutputType

    known = OutputType.__args__
    given = config.get("output_type", "generate_until")
    if given not in known:
        yield f"output_type is {listed(known)}; got {shown(given)}.{did_you_mean(str(given), known)}"


def _metrics(config: Mapping[str, Any]) -> Iterator[str]:
    import lm_eval.api.metrics  # noqa: F401 (registers them)
    from lm_eval.api.registry import AGGREGATION_REGISTRY, METRIC_AGGREGATION_REGISTRY, METRIC_REGISTRY, get_metric

    for entry in _mappings(config.get("metric_list")):
        metric, how = entry.get("metric"), entry.get("aggregation")
        if metric is None:
            yield f"an entry of metric_list names its 'metric', got {shown(dict(entry))}."
            continue
        own = entry.get("hf_evaluate") is True or config.get("process_results") is not None or not _is_name(metric)
        if not own and metric not in METRIC_REGISTRY and get_metric(str(metric)) is None:  # it asks evaluate
            yield f"lm-eval has no metric {shown(metric)}.{did_you_mean(str(metric), METRIC_REGISTRY.keys())}"
        elif how is None and _is_name(metric) and metric not in METRIC_AGGREGATION_REGISTRY:
            known = listed(sorted(AGGREGATION_REGISTRY.keys()))
            yield f"the metric {shown(metric)} needs an 'aggregation', one of {known}."
        if _is_name(how) and how not in AGGREGATION_REGISTRY:
            yield f"lm-eval has no aggregation {shown(how)}.{did_you_mean(str(how), AGGREGATION_REGISTRY.keys())}"


def _filters(config: Mapping[str, Any]) -> Iterator[str]:
    import lm_eval.filters  # noqa: F401 (registers them)
    from lm_eval.api.registry import FILTER_REGISTRY

    for entry in _mappings(config.get("filter_list")):
        steps = entry.get("filter")
        if "name" not in entry or not isinstance(steps, list):
            yield f"an entry of filter_list has a 'name' and a list 'filter', got {shown(dict(entry))}."
            continue
        for step in steps:
            function = step.get("function") if isinstance(step, Mapping) else None
            if function is None:
                yield f"a step of a filter names its 'function', got {shown(step)}."
            elif _is_name(function) and function not in FILTER_REGISTRY:
                yield f"lm-eval has no filter {shown(function)}.{did_you_mean(function, FILTER_REGISTRY.keys())}"


def _sampler(config: Any) -> Iterator[str]:
    from lm_eval.api.samplers import SAMPLER_REGISTRY

    name = config.get("sampler") if isinstance(config, Mapping) else None
    if _is_name(name) and name not in SAMPLER_REGISTRY:
        yield f"lm-eval has no sampler {shown(name)}.{did_you_mean(str(name), SAMPLER_REGISTRY)}"


def _is_name(value: Any) -> bool:
    """Say whether a value is a name, and neither a function nor the path that stands for one."""
    return isinstance(value, str) and os.sep not in value


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _paths(files: Any) -> list[str]:
    if isinstance(files, Mapping):
        return [path for value in files.values() for path in _paths(value)]
    if isinstance(files, list | tuple):
        return [path for value in files for path in _paths(value)]
    return [] if files is None else [os.fspath(files)]


def _there(path: str, folder: Any) -> bool:
    if "://" in path or any(c in path for c in "*?["):  # fetched, or a pattern
        return True
    return Path(folder or "", path).exists()


def _beside(path: str) -> str:
    """Return the file of a close name in the same folder, as a suggestion."""
    folder = Path(path).parent
    names = [entry.name for entry in folder.iterdir() if entry.is_file()] if folder.is_dir() else []
    hint = did_you_mean(Path(path).name, names)
    return hint if hint.startswith(" Did") else ""

"""Why the data of an lm-eval task can't be read or asked about: splits, fields, choices, answers, examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tailorlib.evaluation.task_fields import Fields
from tailorlib.evaluation.task_settings import SPLITS, builders, is_local
from tailorlib.exceptions import did_you_mean, listed, shown, told

_FETCHING = (
    "Connection",
    "Timeout",
    "Offline",
    "DatasetNotFound",
    "HfHub",
    "HTTP",
    "LocalEntryNotFound",
    "ProxyError",
)
"""Parts of the names of errors that mean: something was to be fetched, and could not be."""


def load_faults(name: str, config: Mapping[str, Any], error: Exception) -> list[str]:
    """Return why a task can't be loaded, found by going through its data step by step.

    Args:
        name: The task's.
        config: Its settings, with functions in place; :func:`setting_faults` finds nothing in them.
        error: What lm-eval raised.
    """
    try:
        found = [_not_loaded(config, error)] if _not_fetched(config, error) else list(_in_data(config))
    except Exception:  # the diagnosis itself: what lm-eval said is told then
        found = []
    return [f"The task {name!r}: {fault}" for fault in found] or [
        f"The task {name!r} can't be loaded: {told(error)}"
    ]


def document_faults(task: Any, documents: Iterable[tuple[int, Any]]) -> list[str]:
    """Return what is wrong with the questions and answers of a loaded task, the first document of each kind.

    Args:
        task: A task of lm-eval.
        documents: Documents with their numbers.
    """
    if getattr(task, "prompt", None) is not None or not hasattr(task, "features"):  # made by code
        return []
    config = {key: getattr(task.config, key) for key in ("doc_to_text", "doc_to_target", "doc_to_choice")}
    config |= {"output_type": task.OUTPUT_TYPE, "process_results": task.config.process_results}
    fields = Fields(config, task.features)
    return [f"The task {task.task_name!r}: {fault}" for fault in fields.faults(documents)]


def shots_fault(task: Any) -> str | None:
    """Return why a task has too few examples for its prompts; ``None`` if it has enough."""
    asked, sampler = task.config.num_fewshot or 0, getattr(task, "sampler", None)
    if not asked or sampler is None:
        return None
    there, own = len(sampler.fewshot_indices or sampler.df), task.fewshot_cfg.split == task.config.test_split
    if there >= asked + own:
        return None
    config = task.config
    split = task.fewshot_cfg.split
    if split is None and not (config.fewshot_config and task.fewshot_cfg.samples):
        split = config.training_split or config.validation_split or config.test_split
    where = "the samples of fewshot_config have" if split is None else f"the split {split!r} has"
    less = ", and no question is an example of itself" if own and there else ""
    return (
        f"The task {task.task_name!r}: {asked} examples are asked for, {where} {there}{less}. Lower num_fewshot, "
        "or name a larger fewshot_split."
    )


def _in_data(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a task's data, up to the first step that nothing can follow."""
    try:
        data = _load(config)
    except Exception as error:  # data sets fail in any way
        yield _not_loaded(config, error)
        return
    faults = list(_split_faults(config, data))
    yield from faults
    split = config.get("test_split") or config.get("validation_split")
    if faults or split is None:
        return
    documents, process = data[split], config.get("process_docs")
    if process is not None:
        try:
            documents = process(documents)
        except Exception as error:  # the task's own code
            yield f"process_docs fails: {told(error)} Fields: {listed(data[split].column_names)}."
            return
    if not len(documents):
        yield f"the split {split!r} has no document{' after process_docs' if process is not None else ''}."
    else:
        yield from Fields(config, list(documents[0])).faults(enumerate(documents))


def _load(config: Mapping[str, Any]) -> Any:
    from datasets import load_dataset

    settings = {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k != "trust_remote_code"}
    custom = config.get("custom_dataset")
    if callable(custom):
        return custom(**(config.get("metadata") or {}), **settings)
    return load_dataset(path=config.get("dataset_path"), name=config.get("dataset_name"), **settings)


def _not_loaded(config: Mapping[str, Any], error: Exception) -> str:
    path = config.get("dataset_path")
    if path is None:
        return f"dataset_path is missing: {listed(['json', 'csv', 'text'])} for files, or the name of a data set."
    root = _root(error)
    if is_local(config):
        if isinstance(error, StopIteration) or type(root).__name__ == "StopIteration":
            return "its data files hold no document."
        said = told(root) if "DatasetGeneration" in type(error).__name__ else told(error)
        return f"its data can't be read: {said}"
    if str(path).startswith((".", "/", "~")) or str(path).count("/") > 1:
        return (
            f"dataset_path is a folder, a kind of file or a data set on the hub; there is no folder {shown(path)}."
        )
    if _not_fetched(config, error):
        hint = did_you_mean(str(path), builders())
        close = f"{hint} That is the kind of a local file." if hint.startswith(" Did") else ""
        return (
            f"its data set {shown(path)} is to be fetched from the hub and can't be: {told(error)} That needs a "
            f"network, or a filled cache.{close}"
        )
    return f"its data set {shown(path)} can't be read: {told(error)}"


def _not_fetched(config: Mapping[str, Any], error: Exception) -> bool:
    """Say whether an error means that data was to be fetched, and could not be."""
    kinds = {*type(error).__mro__, type(_root(error))}
    return not is_local(config) and any(part in kind.__name__ for kind in kinds for part in _FETCHING)


def _root(error: Exception) -> Exception:
    while isinstance(cause := error.__cause__ or error.__context__, Exception):
        error = cause
    return error


def _split_faults(config: Mapping[str, Any], data: Any) -> Iterator[str]:
    own = config.get("fewshot_config")
    named = {key: config.get(key) for key in SPLITS}
    named["fewshot_config.split"] = own.get("split") if isinstance(own, Mapping) else None
    splits = list(data) if isinstance(data, Mapping) else []
    for key, split in named.items():
        if split is not None and split not in splits:
            hint = did_you_mean(split, splits)
            also = f" The data has {listed(splits)}." if hint.startswith(" Did") else ""
            yield f"{key} is a split of its data, got {shown(split)}.{hint}{also}"
    if config.get("test_split") is None and config.get("validation_split") is None:
        yield f"test_split or validation_split names the split to score, got neither. There is {listed(splits)}."

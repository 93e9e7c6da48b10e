"""lm-eval's own metrics of known answers, over all documents of its tasks or some of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tailorlib.evaluation.tasks import LoadedTasks
from tailorlib.exceptions import EvaluationError


@dataclass(frozen=True)
class TaskScores:
    """What a model reaches on compiled tasks.

    Args:
        metrics: Every metric of lm-eval as ``"task/metric"`` (``"task/metric,filter"`` if the filter is not the
            default one); groups included.
        probability: Mean probability of the right answer per task: of the choices of a multiple-choice document,
            normalised over them; of the target's tokens (geometric mean) otherwise. Tasks that generate have none.
        margin: Mean margin per task, nats: the log-likelihood of the best right choice less that of the best
            wrong one. Of tasks whose documents have both.
        decision: Mean of the logistic function of the margin, of the same tasks; in (0, 1), smooth.
        chance: What a model that guesses reaches in some of the metrics and in ``"task/probability"``.
    """

    metrics: Mapping[str, float]
    probability: Mapping[str, float]
    margin: Mapping[str, float] = field(default_factory=dict)
    decision: Mapping[str, float] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)


def lm_eval_metrics(
    loaded: LoadedTasks,
    answers: Mapping[int, tuple[float, bool]],
    texts: Mapping[int, Sequence[str]],
    documents: Mapping[str, Collection[int]] | None = None,
    *,
    confirm_run_unsafe_code: bool = False,
) -> dict[str, float]:
    """Let lm-eval make its metrics of answers.

    Args:
        loaded: Tasks whose requests are built; groups are aggregated.
        answers: Log-likelihood and greedy flag by the ``id`` of the lm-eval instance.
        texts: What was generated, by the ``id`` of the instance.
        documents: Numbers of the documents that count, at least one of each task; all by default.
        confirm_run_unsafe_code: Whether tasks that execute generated code may run.

    Returns:
        Every metric as ``"task/metric"``, or ``"task/metric,filter"`` if the filter is not the default one.

    Raises:
        EvaluationError: If a task's own metric fails.
    """
    from lm_eval import evaluator

    from tailorlib.evaluation.lm import Replay

    for task in loaded.tasks.values():
        for instance in task.instances:
            instance.resps, instance.filtered_resps = [], {}
    try:
        with ExitStack() as stack:
            for name, chosen in (documents or {}).items():
                stack.enter_context(_restricted(loaded.tasks[name], chosen))
            results = evaluator.evaluate(
                Replay(answers, texts),
                loaded.as_lm_eval(),
                bootstrap_iters=0,
                log_samples=False,
                confirm_run_unsafe_code=confirm_run_unsafe_code,
            )
    except Exception as error:  # metrics are the task's own code
        raise EvaluationError(
            f"The metrics of {', '.join(loaded.tasks)} can't be computed: {type(error).__name__}: {error}"
        ) from error
    return _flatten(results["results"])


def fix_documents(task: Any, documents: Sequence[tuple[int, Any]]) -> None:
    """Let a task keep the requests that it has built, and have the documents that they were built of."""
    task.build_all_requests = _do_nothing
    task.doc_iterator = partial(_given, documents)


@contextmanager
def _restricted(task: Any, chosen: Collection[int]) -> Iterator[None]:
    """Let a task have some of its documents only, in its own order."""
    instances, doc_iterator = task._instances, task.doc_iterator
    task._instances = [instance for instance in instances if instance.doc_id in chosen]
    task.doc_iterator = partial(_given, [(number, doc) for number, doc in doc_iterator() if number in chosen])
    try:
        yield
    finally:
        task._instances, task.doc_iterator = instances, doc_iterator


def _flatten(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float | np.number):
                continue
            found[f"{task}/{metric}" if kind == "none" else f"{task}/{key}"] = float(value)
    return found


def _do_nothing(**_: Any) -> None:
    return None


def _given(documents: Sequence[tuple[int, Any]], **_: Any) -> Any:
    return iter(documents)

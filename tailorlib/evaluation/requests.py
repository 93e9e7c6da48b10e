"""Tasks of lm-eval, compiled once: its prompts, tokenisation and metrics; only the forward passes are ours."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tailorlib.evaluation.packing import Request
from tailorlib.evaluation.tasks import load_tasks
from tailorlib.exceptions import DataError, EvaluationError

if TYPE_CHECKING:
    from tailorlib.evaluation.engine import Engine, Scores

# the seeds of lm_eval.simple_evaluate: a task that shuffles gives the same documents here and there
_PYTHON_SEED, _OTHER_SEED = 0, 1234


@dataclass(frozen=True)
class TaskScores:
    """What a model reaches on compiled tasks.

    Args:
        metrics: Every metric of lm-eval as ``"task/metric"`` (``"task/metric,filter"`` if the filter is not the
            default one); groups included.
        probability: Mean probability of the right answer per task: of the choices of a multiple-choice document,
            normalised over them; of the target's tokens (geometric mean) otherwise.
    """

    metrics: Mapping[str, float]
    probability: Mapping[str, float]


@dataclass(frozen=True)
class _Document:
    """A document whose right answer has a probability.

    Args:
        requests: The engine's requests of each choice, or of the one target.
        lengths: Number of bytes of each choice (1 to leave its log-likelihood as it is); tokens of the target.
        gold: Positions of the right choices; empty for a plain target.
    """

    requests: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    gold: tuple[int, ...]


class TaskRequests:
    """The requests of some lm-eval tasks, and how to make metrics of their scores.

    Args:
        tasks: Names of tasks, groups or tags.
        engine: Gives the tokenizer and the context length.
        include_path: Folder with task files of the user's own.
        num_fewshot: Number of examples in the context; ``None`` for each task's own.
        limit: Number of documents per task, or a fraction of them if below 1; ``None`` for all.
        apply_chat_template: Whether prompts go through the tokenizer's chat template.
        fewshot_as_multiturn: Whether examples are turns of a conversation; with a chat template only.
        system_instruction: System prompt.
        length_normalised: Whether a choice's log-likelihood is divided by its bytes before choices compete
            for probability.

    Raises:
        DataError: If a task is unknown, empty, broken, or needs generated text.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        engine: Engine,
        *,
        include_path: str | None = None,
        num_fewshot: int | None = None,
        limit: float | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        system_instruction: str | None = None,
        length_normalised: bool = True,
    ) -> None:
        from tailorlib.evaluation.lm import Encoder

        encoder = Encoder(engine.tokenizer, engine.max_length)
        self._limit = limit
        with quiet_lm_eval(), _lm_eval_seeds():
            self._loaded = load_tasks(tasks, include_path, num_fewshot, _OTHER_SEED)
            for name, task in self._loaded["tasks"].items():
                build = {
                    "limit": self._document_limit(task),
                    "system_instruction": system_instruction,
                    "apply_chat_template": apply_chat_template,
                    "fewshot_as_multiturn": fewshot_as_multiturn,
                    "chat_template": encoder.apply_chat_template if apply_chat_template else None,
                }
                try:
                    task.build_all_requests(**build)
                except ValueError as error:
                    raise DataError(f"The task {name!r} has no documents to evaluate: {error}") from error
                # compiled once: what lm-eval would build again at every evaluation is what it has here
                task.build_all_requests = _do_nothing
        self.requests: list[Request] = []
        self._of_instance: dict[int, tuple[int, ...]] = {}
        for task in self.tasks.values():
            for instance in task.instances:
                found = encoder.encode(instance)
                self._of_instance[id(instance)] = tuple(range(len(self.requests), len(self.requests) + len(found)))
                self.requests += found
        self.length_normalised = length_normalised
        self._documents = {name: self._answers(task) for name, task in self.tasks.items()}
        self.chance = {
            f"{name}/{metric}": value
            for name, task in self.tasks.items()
            if (value := _chance(self._documents[name])) is not None
            for metric in ("acc", "acc_norm", "acc_bytes", "probability")
            if metric == "probability" or metric in task.aggregation()
        }

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The tasks of lm-eval by name, groups resolved."""
        tasks: Mapping[str, Any] = self._loaded["tasks"]
        return tasks

    def evaluate(self, scores: Scores) -> TaskScores:
        """Make lm-eval's metrics, and the probabilities, of the engine's scores of :attr:`requests`.

        Raises:
            EvaluationError: If a task's own metric fails.
        """
        from lm_eval import evaluator

        from tailorlib.evaluation.lm import Replay

        for task in self.tasks.values():
            for instance in task.instances:
                instance.resps, instance.filtered_resps = [], {}
        log_likelihood, greedy = scores.log_likelihood.tolist(), scores.greedy.tolist()
        answers = {
            key: (sum(log_likelihood[i] for i in found), all(greedy[i] for i in found))
            for key, found in self._of_instance.items()
        }
        try:
            with quiet_lm_eval(), _lm_eval_seeds():
                results = evaluator.evaluate(
                    Replay(answers), self._loaded, limit=self._limit, bootstrap_iters=0, log_samples=False
                )
        except Exception as error:  # metrics are the task's own code
            raise EvaluationError(
                f"The metrics of {', '.join(self.tasks)} can't be computed: {type(error).__name__}: {error}"
            ) from error
        return TaskScores(
            metrics=_flatten(results["results"]),
            probability={
                name: float(np.mean([_probability(d, log_likelihood) for d in documents]))
                for name, documents in self._documents.items()
                if documents
            },
        )

    def _document_limit(self, task: Any) -> int | None:
        from lm_eval.evaluator_utils import get_sample_size

        size: int | None = get_sample_size(task, self._limit)
        return size

    def _answers(self, task: Any) -> list[_Document]:
        by_document: dict[int, list[Any]] = {}
        for instance in task.instances:
            by_document.setdefault(instance.doc_id, []).append(instance)
        found = []
        for instances in by_document.values():
            requests = tuple(
                self._of_instance[id(instance)] for instance in sorted(instances, key=lambda i: int(i.idx))
            )
            if task.OUTPUT_TYPE == "multiple_choice":
                document = self._choices(task, instances[0].doc, requests)
                if document is not None:
                    found.append(document)
            else:
                tokens = sum(len(self.requests[i].continuation) for i in requests[0])
                found.append(_Document(requests[:1], (max(1, tokens),), ()))
        return found

    def _choices(self, task: Any, doc: Any, requests: tuple[tuple[int, ...], ...]) -> _Document | None:
        choices = task.doc_to_choice(doc)
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        gold = [choices.index(g) if isinstance(g, str) and g in choices else g for g in _as_list(gold)]
        gold = [g for g in gold if isinstance(g, int) and 0 <= g < len(choices)]
        if not gold:
            return None
        # with the choices in the context every request scores the same text
        normalise = self.length_normalised and not task.multiple_input
        lengths = tuple(max(1, len(c.encode())) if normalise else 1 for c in choices)
        return _Document(requests[: len(choices)], lengths, tuple(gold))


def _probability(document: _Document, log_likelihood: Sequence[float]) -> float:
    sums = np.array([sum(log_likelihood[i] for i in found) for found in document.requests])
    scaled = sums / np.array(document.lengths)
    if not document.gold:
        return float(np.exp(scaled[0]))
    # lengths in bytes put all choices on the scale of one byte; the mean length brings them back to one answer
    scaled = scaled * np.mean(document.lengths)
    weights = np.exp(scaled - scaled.max())
    return float(weights[list(document.gold)].sum() / weights.sum())


def _chance(documents: Sequence[_Document]) -> float | None:
    shares = [len(d.gold) / len(d.requests) for d in documents if d.gold]
    return float(np.mean(shares)) if shares else None


def _flatten(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float | np.number):
                continue
            found[f"{task}/{metric}" if kind == "none" else f"{task}/{key}"] = float(value)
    return found


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _do_nothing(**_: Any) -> None:
    return None


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Keep lm-eval's notes, progress bars and those of datasets off the screen; errors still pass."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):  # tqdm has no other switch that every version honours
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _lm_eval_seeds() -> Iterator[None]:
    """Seed the global generators as ``simple_evaluate`` does, and leave them as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - tasks draw from the global one
    with torch.random.fork_rng(devices=[]):
        random.seed(_PYTHON_SEED)
        np.random.seed(_OTHER_SEED)  # noqa: NPY002
        torch.manual_seed(_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002

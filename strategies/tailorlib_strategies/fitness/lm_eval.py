"""LMEval: benchmarks of the lm-evaluation-harness as a fitness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from tailorlib.exceptions import DataError, RecipeError, did_you_mean
from tailorlib.fitness import Fitness, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import Engine


class LMEval(Fitness):
    """Scores a model by lm-evaluation-harness tasks that score given answers.

    The search's signal is smooth by default: the probability of the right answer moves with every weight, where
    an accuracy on 100 questions moves in steps of 1 %. The metrics are lm-eval's own either way.

    Args:
        tasks: Names of tasks, groups or tags.
        include_path: Folder with task files (YAML) of your own.
        num_fewshot: Number of examples in the context; by default each task's own number.
        limit: Number of documents per task, or a fraction of them if below 1.
        signal: What the search maximises, as a mean over tasks: the ``probability`` of the right answer (over a
            question's choices), or a ``metric``.
        metric: The metric of ``signal: metric``, such as ``acc_norm``; by default the first one of each task.
        length_normalised: Whether a choice's log-likelihood counts per byte in ``probability``.
        apply_chat_template: Whether prompts go through the tokenizer's chat template.
        fewshot_as_multiturn: Whether examples are turns of a conversation, with a chat template.
        system_instruction: System prompt.
    """

    def __init__(
        self,
        tasks: list[str],
        include_path: str | None = None,
        num_fewshot: int | None = None,
        limit: float | None = None,
        signal: Literal["probability", "metric"] = "probability",
        metric: str | None = None,
        length_normalised: bool = True,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = False,
        system_instruction: str | None = None,
    ) -> None:
        faults = [] if tasks else ["LMEval needs at least one task, got none."]
        if limit is not None and not limit > 0:
            faults.append(f"LMEval's limit is positive, got {limit}.")
        if num_fewshot is not None and num_fewshot < 0:
            faults.append(f"LMEval's num_fewshot is not negative, got {num_fewshot}.")
        if signal == "probability" and metric is not None:
            faults.append(f"LMEval takes a metric with signal: metric, got metric={metric!r} without it.")
        if faults:
            raise RecipeError(faults)
        self.names, self.include_path, self.num_fewshot, self.limit = tasks, include_path, num_fewshot, limit
        self.signal, self.metric, self.length_normalised = signal, metric, length_normalised
        self.apply_chat_template, self.fewshot_as_multiturn = apply_chat_template, fewshot_as_multiturn
        self.system_instruction = system_instruction

    @property
    def tokens(self) -> int:
        """Number of tokens that one evaluation runs through the model."""
        return self._compiled.tokens if hasattr(self, "_compiled") else 0

    def check(self) -> None:
        """Look the tasks up; their data is not loaded.

        Raises:
            DataError: If a task is unknown, or ``include_path`` is no folder.
        """
        from tailorlib.evaluation.requests import quiet_lm_eval
        from tailorlib.evaluation.tasks import find_tasks

        with quiet_lm_eval():
            find_tasks(self.names, self.include_path)

    def _setup(self, engine: Engine) -> None:
        from tailorlib.evaluation.requests import TaskRequests

        self._tasks = TaskRequests(
            self.names,
            engine,
            include_path=self.include_path,
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            apply_chat_template=self.apply_chat_template,
            fewshot_as_multiturn=self.fewshot_as_multiturn,
            system_instruction=self.system_instruction,
            length_normalised=self.length_normalised,
        )
        self._metrics = {
            name: self._metric_of(name, list(task.aggregation())) for name, task in self._tasks.tasks.items()
        }
        self._compiled = engine.compile(self._tasks.requests)

    def _metric_of(self, task: str, known: list[str]) -> str:
        if self.metric is None:
            return known[0]
        if self.metric not in known:
            raise DataError(f"The task {task!r} has no metric {self.metric!r}.{did_you_mean(self.metric, known)}")
        return self.metric

    def _evaluate(self, model: PreTrainedModel) -> Measurement:
        found = self._tasks.evaluate(self.engine.score(model, self._compiled))
        if self.signal == "probability":
            values = list(found.probability.values())
        else:
            values = [found.metrics[f"{task}/{metric}"] for task, metric in self._metrics.items()]
        probabilities = {f"{task}/probability": value for task, value in found.probability.items()}
        return Measurement(
            score=float(np.mean(values)),
            metrics={**found.metrics, **probabilities},
            chance=self._tasks.chance,
        )

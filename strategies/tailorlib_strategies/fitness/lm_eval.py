"""LMEval: benchmarks of the lm-evaluation-harness as a fitness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tailorlib.exceptions import DataError, RecipeError, did_you_mean
from tailorlib.fitness import Fitness, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import Engine


class LMEval(Fitness):
    """Scores a model by lm-evaluation-harness tasks.

    The search's signal is smooth by default: the probability of the right answer moves with every weight, where
    an accuracy on 100 questions moves in steps of 1 %. The metrics are lm-eval's own either way. Tasks of all
    kinds can stand side by side; one that lets the model write text counts by its metric.

    Args:
        tasks: Names of tasks, groups or tags, or paths of task files. An entry can be a mapping instead:
            ``task: NAME`` with ``limit``, ``samples``, ``gen_kwargs``, ``fewshot_random_seed`` or ``metric`` for
            it alone, and any setting of an lm-eval task to replace its own, such as ``num_fewshot``.
        include_path: Folder with task files (YAML) of your own.
        num_fewshot: Number of examples in the context; by default each task's own number.
        limit: Number of documents per task, or a fraction of them if below 1.
        samples: Which documents of a task to take, by the task's name.
        signal: What the search maximises, as a mean over tasks: the ``probability`` of the right answer (over a
            question's choices), or a ``metric``.
        metric: The metric of ``signal: metric``, such as ``acc_norm``; by default the first one of each task.
        length_normalised: Whether a choice's log-likelihood counts per byte in ``probability``.
        apply_chat_template: Whether prompts go through the tokenizer's chat template.
        fewshot_as_multiturn: Whether examples are turns of a conversation, with a chat template.
        system_instruction: System prompt.
        gen_kwargs: Settings of generation over each task's own, such as ``max_gen_toks``.
        generation_batch_size: Number of texts generated at once.
        confirm_run_unsafe_code: Whether tasks may run that execute code which the model writes.
        random_seed: Seed of Python's random numbers, for tasks that draw any.
        numpy_random_seed: Seed of NumPy's.
        torch_random_seed: Seed of PyTorch's, for text that is sampled.
        fewshot_random_seed: Seed of the choice of examples.
        metadata: Further facts that a task reads, such as a length.
        model_args: Arguments of lm-eval's Hugging Face model that concern text: ``add_bos_token``,
            ``prefix_token_id``, ``enable_thinking``, ``think_end_token``, ``chat_template_args``.
    """

    def __init__(
        self,
        tasks: list[str | dict[str, Any]],
        include_path: str | None = None,
        num_fewshot: int | None = None,
        limit: float | None = None,
        samples: dict[str, list[int]] | None = None,
        signal: Literal["probability", "metric"] = "probability",
        metric: str | None = None,
        length_normalised: bool = True,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = True,
        system_instruction: str | None = None,
        gen_kwargs: dict[str, Any] | None = None,
        generation_batch_size: int = 16,
        confirm_run_unsafe_code: bool = False,
        random_seed: int = 0,
        numpy_random_seed: int = 1234,
        torch_random_seed: int = 1234,
        fewshot_random_seed: int = 1234,
        metadata: dict[str, Any] | None = None,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        faults = [] if tasks else ["LMEval needs at least one task, got none."]
        faults += [f"LMEval's limit is positive, got {value}." for value in _limits(tasks, limit) if not value > 0]
        if num_fewshot is not None and num_fewshot < 0:
            faults.append(f"LMEval's num_fewshot is not negative, got {num_fewshot}.")
        if limit is not None and samples is not None:
            faults.append("LMEval takes a limit or samples, got both.")
        if signal == "probability" and metric is not None:
            faults.append(f"LMEval takes a metric with signal: metric, got metric={metric!r} without it.")
        if generation_batch_size < 1:
            faults.append(f"LMEval's generation_batch_size is at least 1, got {generation_batch_size}.")
        if faults:
            raise RecipeError(faults)
        self.names, self.include_path, self.limit = tasks, include_path, limit
        self.signal, self.metric, self.length_normalised = signal, metric, length_normalised
        self._settings: dict[str, Any] = {
            "include_path": include_path,
            "num_fewshot": num_fewshot,
            "limit": limit,
            "samples": samples,
            "system_instruction": system_instruction,
            "apply_chat_template": apply_chat_template,
            "fewshot_as_multiturn": fewshot_as_multiturn,
            "gen_kwargs": gen_kwargs,
            "random_seed": random_seed,
            "numpy_random_seed": numpy_random_seed,
            "torch_random_seed": torch_random_seed,
            "fewshot_random_seed": fewshot_random_seed,
            "confirm_run_unsafe_code": confirm_run_unsafe_code,
            "metadata": metadata,
            "model_args": model_args or {},
            "generation_batch_size": generation_batch_size,
        }

    @property
    def tokens(self) -> int:
        """Number of tokens that one evaluation runs through the model; generated texts count at their longest."""
        return self._compiled.tokens + self._tasks.generated_tokens if hasattr(self, "_compiled") else 0

    @property
    def truncated(self) -> Mapping[str, int]:
        """Number of questions of each task that are longer than the context, after :meth:`setup`."""
        return self._tasks.truncated

    def check(self) -> None:
        """Look the tasks up; their data is not loaded.

        Raises:
            DataError: If a task is unknown, or ``include_path`` is no folder.
        """
        from tailorlib.evaluation.requests import quiet_lm_eval
        from tailorlib.evaluation.tasks import check_tasks

        with quiet_lm_eval():
            check_tasks(self.names, self.include_path)

    def _setup(self, engine: Engine) -> None:
        from tailorlib.evaluation.requests import TaskRequests
        from tailorlib.evaluation.tasks import TaskSettings

        self._tasks = TaskRequests(
            self.names, engine, TaskSettings(**self._settings), length_normalised=self.length_normalised
        )
        self._signals = {name: self._signal_of(name) for name in self._tasks.tasks}
        self._compiled = engine.compile(self._tasks.requests)

    def _signal_of(self, task: str) -> str:
        """Return what a task counts by: the name of a metric, or ``"probability"``."""
        wanted = self._tasks.options[task].metric or self.metric
        known = self._tasks.metrics_of(task)
        if wanted is None:
            if self.signal == "probability" and self._tasks.has_probability(task):
                return "probability"
            wanted = next((metric for metric, higher in known.items() if higher), next(iter(known)))
        if wanted not in known:
            raise DataError(f"The task {task!r} has no metric {wanted!r}.{did_you_mean(wanted, known)}")
        if not known[wanted]:
            raise DataError(
                f"A search maximises its signal, and less of {wanted!r} of the task {task!r} is better. Take "
                "signal: probability, or another metric."
            )
        return wanted

    def _evaluate(self, model: PreTrainedModel) -> Measurement:
        scores = self.engine.score(model, self._compiled)
        found = self._tasks.evaluate(scores, self._tasks.generate(model))
        probabilities = {f"{task}/probability": value for task, value in found.probability.items()}
        metrics = {**found.metrics, **probabilities}
        values = [metrics[f"{task}/{signal}"] for task, signal in self._signals.items()]
        return Measurement(score=float(np.mean(values)), metrics=metrics, chance=self._tasks.chance)


def _limits(tasks: list[str | dict[str, Any]], limit: float | None) -> list[float]:
    own = [entry.get("limit") for entry in tasks if isinstance(entry, dict)]
    return [value for value in (limit, *own) if value is not None]

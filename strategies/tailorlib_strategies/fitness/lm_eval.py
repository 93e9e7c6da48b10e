"""LMEval: benchmarks of the lm-evaluation-harness as a fitness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tailorlib.exceptions import DataError, RecipeError, did_you_mean
from tailorlib.fitness import Fitness, Measurement, SampleResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import Engine
    from tailorlib.evaluation.overlap import Fingerprint


class LMEval(Fitness):
    """Scores a model by lm-evaluation-harness tasks.

    The search's signal is smooth by default: the probability of the right answer moves with every weight, where
    an accuracy on 100 questions moves in steps of 1 %. The metrics are lm-eval's own either way, with the
    probability and the margin beside them. Tasks of all kinds can stand side by side: one without wrong choices
    has no margin and counts by its probability instead, one that lets the model write text by its metric.

    A sample is a document. Each task's documents come in a seeded order, and tasks are mixed in proportion. A text
    that is sampled (``do_sample``) has a seed of its document's own, other than in ``lm_eval.simple_evaluate``.

    Args:
        tasks: Names of tasks, groups or tags, or paths of task files. An entry can be a mapping instead:
            ``task: NAME`` with ``limit``, ``samples``, ``gen_kwargs``, ``fewshot_random_seed`` or ``metric`` for
            it alone, and any setting of an lm-eval task to replace its own, such as ``num_fewshot``.
        include_path: Folder with task files (YAML) of your own.
        num_fewshot: Number of examples in the context; by default each task's own number.
        limit: Number of documents per task, or a fraction of them if below 1.
        samples: Which documents of a task to take, by the task's name.
        signal: What the search maximises, as a mean over tasks: the ``probability`` of the right answer (over a
            question's choices); the ``margin``, the log-likelihood of the best right choice less that of the best
            wrong one, as the mean of its logistic function (smooth, positive, 0.5 where the two are even; the
            metric ``TASK/margin`` is the mean in nats); or a ``metric``.
        metric: The metric of ``signal: metric``, such as ``acc_norm``; by default the first one of each task.
        length_normalised: Whether a choice's log-likelihood counts per byte in ``probability`` and ``margin``.
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
        order_seed: Seed of the order of each task's documents, in which fewer of them are taken first.
    """

    def __init__(
        self,
        tasks: list[str | dict[str, Any]],
        include_path: str | None = None,
        num_fewshot: int | None = None,
        limit: float | None = None,
        samples: dict[str, list[int]] | None = None,
        signal: Literal["probability", "margin", "metric"] = "probability",
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
        order_seed: int = 0,
    ) -> None:
        faults = [] if tasks else ["LMEval needs at least one task, got none."]
        faults += [f"LMEval's limit is positive, got {value}." for value in _limits(tasks, limit) if not value > 0]
        if num_fewshot is not None and num_fewshot < 0:
            faults.append(f"LMEval's num_fewshot is not negative, got {num_fewshot}.")
        if limit is not None and samples is not None:
            faults.append("LMEval takes a limit or samples, got both.")
        if signal != "metric" and metric is not None:
            faults.append(f"LMEval takes a metric with signal: metric, got metric={metric!r} without it.")
        if generation_batch_size < 1:
            faults.append(f"LMEval's generation_batch_size is at least 1, got {generation_batch_size}.")
        if faults:
            raise RecipeError(faults)
        self.names, self.include_path, self.limit = tasks, include_path, limit
        self.signal, self.metric, self.length_normalised = signal, metric, length_normalised
        self.order_seed = order_seed
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
        return self._samples.tokens if hasattr(self, "_samples") else 0

    @property
    def num_samples(self) -> int:
        """Number of documents of all tasks, after :meth:`setup`."""
        return len(self._samples.documents)

    @property
    def min_samples(self) -> int:
        """Number of first documents with which every task has one that it can count by."""
        return self._min_samples

    @property
    def truncated(self) -> Mapping[str, int]:
        """Number of questions of each task that are longer than the context, after :meth:`setup`."""
        return self._tasks.truncated

    @property
    def fingerprints(self) -> Sequence[Fingerprint]:
        """One for each document."""
        return self._tasks.fingerprints()

    @property
    def contents(self) -> Mapping[str, str]:
        """One digest for each task: of its definition, its documents, and what is asked of the model."""
        return self._tasks.contents()

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
        from tailorlib.evaluation.task_samples import TaskSamples
        from tailorlib.evaluation.tasks import TaskSettings

        self._tasks = TaskRequests(
            self.names, engine, TaskSettings(**self._settings), length_normalised=self.length_normalised
        )
        self._signals = {name: self._signal_of(name) for name in self._tasks.tasks}
        self._samples = TaskSamples(self._tasks, engine, self.order_seed)
        self._min_samples = self._samples.least(self._counts)

    def shards(self, samples: Sequence[int], number: int) -> list[list[int]]:
        """Share documents out; those with the same few-shot examples stay together."""
        return self._samples.shards(samples, number)

    def _signal_of(self, task: str) -> str:
        """Return what a task counts by: ``"probability"``, ``"margin"`` or the name of a metric."""
        wanted = self._tasks.options[task].metric or self.metric
        known = self._tasks.metrics_of(task)
        if wanted is None:
            if self.signal == "margin" and self._tasks.has_margin(task):
                return "margin"
            if self.signal != "metric" and self._tasks.has_probability(task):
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

    def _counts(self, task: str, number: int) -> bool:
        """Say whether a document is one that its task can count by."""
        document = self._tasks.document(task, number)
        if self._signals[task] == "margin":
            return document is not None and document.has_margin
        return document is not None or self._signals[task] != "probability"

    def _score_samples(self, model: PreTrainedModel, samples: Sequence[int]) -> list[SampleResult]:
        return self._samples.score(model, samples)

    def _summarise(self, results: Sequence[SampleResult]) -> Measurement:
        found = self._samples.measure(results)
        metrics = dict(found.metrics)
        for task in self._tasks.tasks:
            for name, values in (("probability", found.probability), ("margin", found.margin)):
                if task in values:
                    metrics[f"{task}/{name}"] = values[task]
        scores = [
            found.decision[task] if signal == "margin" else metrics[f"{task}/{signal}"]
            for task, signal in self._signals.items()
        ]
        return Measurement(score=float(np.mean(scores)), metrics=metrics, chance=found.chance)


def _limits(tasks: list[str | dict[str, Any]], limit: float | None) -> list[float]:
    own = [entry.get("limit") for entry in tasks if isinstance(entry, dict)]
    return [
        value for value in (limit, *own) if isinstance(value, int | float)
    ]  # others are refused with their task

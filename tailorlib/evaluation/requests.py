"""Tasks of lm-eval, compiled once: its prompts, tokenisation and metrics; only the forward passes are ours."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tailorlib.contents import digest_of
from tailorlib.evaluation.documents import Document, chance, documents_of, fingerprint_of, signals_of
from tailorlib.evaluation.packing import Request
from tailorlib.evaluation.surroundings import lm_eval_seeds, quiet_lm_eval
from tailorlib.evaluation.task_data import document_faults, shots_fault
from tailorlib.evaluation.task_metrics import TaskScores, fix_documents, lm_eval_metrics
from tailorlib.evaluation.task_settings import is_local
from tailorlib.evaluation.tasks import LIKELIHOOD, TaskEntry, TaskOptions, TaskSettings, load_tasks
from tailorlib.exceptions import DataError, listed, told

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import Engine, Scores
    from tailorlib.evaluation.overlap import Fingerprint

__all__ = ["TaskRequests", "TaskScores", "quiet_lm_eval"]

_log = logging.getLogger(__name__)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")


class TaskRequests:
    """The requests of some lm-eval tasks, and how to make metrics of their scores.

    Args:
        tasks: Names of tasks, groups or tags, or mappings with settings of their own.
        engine: Gives the tokenizer, the context length and the device.
        settings: The other arguments of ``lm_eval.simple_evaluate``.
        length_normalised: Whether a choice's log-likelihood is divided by its bytes before choices compete
            for probability.

    Raises:
        DataError: If a task is unknown, empty or broken, or an answer is longer than the context.
    """

    def __init__(
        self,
        tasks: Sequence[TaskEntry],
        engine: Engine,
        settings: TaskSettings | None = None,
        *,
        length_normalised: bool = True,
    ) -> None:
        from tailorlib.evaluation.lm import TEXT_ARGUMENTS, Encoder

        self.settings = settings or TaskSettings()
        unknown = sorted(set(self.settings.model_args) - set(TEXT_ARGUMENTS))
        if unknown:
            raise DataError(
                f"model_args are {', '.join(TEXT_ARGUMENTS)}; got {', '.join(unknown)}. The model is the family's."
            )
        self._engine, self.length_normalised = engine, length_normalised
        self._encoder = Encoder(engine.tokenizer, engine.max_length, self.settings.model_args)
        self.requests: list[Request] = []
        self._of_instance: dict[int, tuple[int, ...]] = {}
        self._instances: dict[str, dict[int, list[Any]]] = {}
        with quiet_lm_eval(), lm_eval_seeds(self.settings, engine.device):
            self._loaded = load_tasks(tasks, self.settings)
            self._each(self._build, self.tasks)
            scored = {name: task for name, task in self.tasks.items() if task.OUTPUT_TYPE in LIKELIHOOD}
            self._each(self._encode, scored)
            self._generator = self._make_generator()
        self._documents: dict[str, dict[int, Document]] = {
            name: documents_of(task, self._of_instance, self.requests, length_normalised)
            for name, task in scored.items()
        }
        self.truncated = self._count_truncated()

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The tasks of lm-eval by name, groups resolved."""
        return self._loaded.tasks

    @property
    def options(self) -> Mapping[str, TaskOptions]:
        """What the entries say of each task."""
        return self._loaded.options

    def requests_of(self, instance: Any) -> tuple[int, ...]:
        """Return the indices into :attr:`requests` of an lm-eval instance: one, or one per rolling window."""
        return self._of_instance[id(instance)]

    def metrics_of(self, task: str) -> dict[str, bool]:
        """Return the names of a task's metrics, and whether more is better."""
        known = self.tasks[task]
        higher = known.higher_is_better()
        filters = [ensemble.name for ensemble in known._filters]
        return {
            metric if name == "none" else f"{metric},{name}": bool(higher.get(metric, True))
            for metric in known.aggregation()
            for name in filters
        }

    def chance(self, documents: Mapping[str, Collection[int]] | None = None) -> dict[str, float]:
        """Return what a model that guesses reaches in some of the metrics, on all documents or on some."""
        found: dict[str, float] = {}
        for name, known in self._documents.items():
            value = chance(known[i] for i in known if documents is None or i in documents[name])
            if value is not None:
                accuracies = {"acc", "acc_norm", "acc_bytes"} & set(self.tasks[name].aggregation())
                found |= dict.fromkeys(
                    (f"{name}/{metric}" for metric in (*sorted(accuracies), "probability")), value
                )
        return found

    def documents_of(self, task: str) -> list[int]:
        """Return the numbers of a task's documents, in lm-eval's order."""
        return list(self._instances[task])

    def instances_of(self, task: str, document: int) -> Sequence[Any]:
        """Return the lm-eval instances of a document."""
        return self._instances[task][document]

    def fingerprints(self) -> list[Fingerprint]:
        """Return what stands for each document of all tasks, to find those that other data has, too."""
        with quiet_lm_eval(), lm_eval_seeds(self.settings, self._engine.device):
            return [
                fingerprint_of(self.tasks[name], own[0].doc, [instance.args for instance in own])
                for name, instances in self._instances.items()
                for own in instances.values()
                if own
            ]

    def contents(self) -> dict[str, str]:
        """Return a digest of each task: of its definition, its documents, and all that is asked about them."""
        return {name: self._content_of(name, task) for name, task in self.tasks.items()}

    def _content_of(self, name: str, task: Any) -> str:
        definition = {k: v for k, v in task.dump_config().items() if k not in ("dataset_path", "dataset_kwargs")}
        instances = [instance for own in self._instances[name].values() for instance in own]
        asked = (_plain_text([instance.doc, instance.args]) for instance in instances)
        return digest_of([_plain_text(definition), *asked])

    def generates(self, task: str) -> bool:
        """Say whether a task lets the model write."""
        return self.tasks[task].OUTPUT_TYPE not in LIKELIHOOD

    def document(self, task: str, document: int) -> Document | None:
        """Return a document whose right answer has a probability; ``None`` if it has not."""
        return self._documents.get(task, {}).get(document)

    def has_probability(self, task: str) -> bool:
        """Say whether the right answers of a task have a probability."""
        return bool(self._documents.get(task))

    def has_margin(self, task: str) -> bool:
        """Say whether a task has right choices and wrong ones."""
        return any(document.has_margin for document in self._documents.get(task, {}).values())

    @property
    def generated_tokens(self) -> int:
        """Number of tokens of the tasks that generate, at most: prompts, and texts at their longest."""
        return 0 if self._generator is None else self._generator.tokens

    def generated_tokens_of(self, task: str, document: int) -> int:
        """The same of one document."""
        if not self.generates(task):
            return 0
        return sum(self._generator.tokens_of(instance) for instance in self.instances_of(task, document))

    def generate(
        self, model: PreTrainedModel, documents: Mapping[str, Collection[int]] | None = None
    ) -> Mapping[int, Sequence[str]]:
        """Let a live model write what the tasks ask for; nothing if none does.

        Args:
            model: A live causal language model.
            documents: Numbers of the documents of each task; all by default. Then sampled texts are those of
                ``lm_eval.simple_evaluate``. With some documents a sampled text has a seed of its document's own,
                so that it doesn't depend on the others.

        Raises:
            EvaluationError: If the model gives NaN, or memory runs out.
        """
        if self._generator is None:
            return {}
        texts: dict[int, list[str]] = {}
        for batch, settings in self._generator.seeded(self.settings, documents):
            with quiet_lm_eval(), lm_eval_seeds(settings, self._engine.device):
                texts |= self._generator.generate(model, batch)
        return texts

    def evaluate(
        self,
        scores: Scores,
        texts: Mapping[int, Sequence[str]] | None = None,
        documents: Mapping[str, Collection[int]] | None = None,
    ) -> TaskScores:
        """Make lm-eval's metrics, the probabilities and the margins.

        Args:
            scores: The engine's scores of :attr:`requests`.
            texts: From :meth:`generate`.
            documents: As in :meth:`measure`.

        Raises:
            EvaluationError: If a task's own metric fails.
        """
        log_likelihood, greedy = scores.log_likelihood.tolist(), scores.greedy.tolist()
        answers = {
            key: (sum(log_likelihood[i] for i in found), all(greedy[i] for i in found))
            for key, found in self._of_instance.items()
        }
        return self.measure(answers, texts, documents)

    def measure(
        self,
        answers: Mapping[int, tuple[float, bool]],
        texts: Mapping[int, Sequence[str]] | None = None,
        documents: Mapping[str, Collection[int]] | None = None,
    ) -> TaskScores:
        """Make lm-eval's metrics, the probabilities and the margins of answers.

        Args:
            answers: Log-likelihood (nats) and greedy flag by the ``id`` of the lm-eval instance.
            texts: From :meth:`generate`.
            documents: Numbers of the documents that count, at least one of each task; all by default. Only
                their answers are needed.

        Raises:
            EvaluationError: If a task's own metric fails.
        """
        with quiet_lm_eval(), lm_eval_seeds(self.settings, self._engine.device):
            metrics = lm_eval_metrics(
                *(self._loaded, answers, texts or {}, documents),
                confirm_run_unsafe_code=self.settings.confirm_run_unsafe_code,
            )
        log_likelihood = {key: value for key, (value, _) in answers.items()}
        signals = {
            name: signals_of(
                (known[i] for i in known if documents is None or i in documents[name]), log_likelihood
            )
            for name, known in self._documents.items()
        }
        return TaskScores(
            metrics=metrics,
            chance=self.chance(documents),
            probability={name: found["probability"] for name, found in signals.items() if "probability" in found},
            margin={name: found["margin"] for name, found in signals.items() if "margin" in found},
            decision={name: found["decision"] for name, found in signals.items() if "decision" in found},
        )

    @staticmethod
    def _each(do: Callable[[str, Any], None], tasks: Mapping[str, Any]) -> None:
        """Do something to every task, and raise the faults of all of them together."""
        faults: list[str] = []
        for name, task in tasks.items():
            try:
                do(name, task)
            except DataError as error:
                faults += error.faults
        if faults:
            raise DataError(faults)

    def _build(self, name: str, task: Any) -> None:
        """Build a task's requests once: what lm-eval would build at every evaluation is what it finds here."""
        chosen = self._chosen(name, task)
        if (fault := shots_fault(task)) is not None:
            raise DataError(fault)
        try:
            task.build_all_requests(
                **chosen,
                system_instruction=self.settings.system_instruction,
                apply_chat_template=self.settings.apply_chat_template,
                fewshot_as_multiturn=self.settings.fewshot_as_multiturn,
                chat_template=self._encoder.apply_chat_template if self.settings.apply_chat_template else None,
            )
            documents = list(task.doc_iterator(**chosen))
        except Exception as error:  # tasks are code and templates of their own
            faults = document_faults(task, enumerate(task.eval_docs))
            raise DataError(
                faults or f"The requests of the task {name!r} can't be built: {told(error)}"
            ) from error
        if is_local(task.dump_config()) and (faults := document_faults(task, documents)):
            raise DataError(faults)
        fix_documents(task, documents)
        self._instances[name] = {number: [] for number, _ in documents}
        for instance in task.instances:
            self._instances[name][instance.doc_id].append(instance)

    def _chosen(self, name: str, task: Any) -> dict[str, Any]:
        """Return which documents of a task count, as lm-eval's arguments."""
        from lm_eval.evaluator_utils import get_sample_size

        options = self.options[name]
        samples, limit = options.samples, options.limit
        if samples is None and limit is None:
            samples, limit = (self.settings.samples or {}).get(name), self.settings.limit
        if samples is not None:
            beyond = [i for i in samples if i >= len(task.eval_docs)]
            if beyond:
                raise DataError(
                    f"The task {name!r} has the documents 0 to {len(task.eval_docs) - 1}; samples asks for "
                    f"{listed(beyond)}."
                )
            return {"samples": list(samples)}
        return {"limit": get_sample_size(task, limit)}

    def _encode(self, name: str, task: Any) -> None:
        for instance in task.instances:
            try:
                found = self._encoder.encode(instance)
            except Exception as error:  # such as a thinking model that is asked for log-likelihoods
                raise DataError(f"The task {name!r} can't be tokenised: {error}") from error
            longest = max((len(request.continuation) for request in found), default=0)
            if longest > self._engine.max_length:
                raise DataError(
                    f"An answer fits into the context of {self._engine.max_length} tokens; one of {name!r} has "
                    f"{longest}. Raise study.max_length, or leave the task out."
                )
            self._of_instance[id(instance)] = tuple(range(len(self.requests), len(self.requests) + len(found)))
            self.requests += found

    def _make_generator(self) -> Any:
        writing = [t for t in self.tasks.values() if t.OUTPUT_TYPE not in LIKELIHOOD]
        if not writing:
            return None
        from tailorlib.evaluation.generation import Generator

        return Generator(
            self._engine.tokenizer,
            self._engine.device,
            self._engine.max_length,
            [instance for task in writing for instance in task.instances],
            self.settings.generation_batch_size,
            self.settings.model_args,
        )

    def _count_truncated(self) -> dict[str, int]:
        """Count the documents of each task that are too long for the context, and say so."""
        cut: dict[str, set[int]] = {name: set() for name in self.tasks}
        generated = [] if self._generator is None else self._generator.truncated
        instances = () if self._generator is None else self._generator.instances
        for instance, truncated in zip(instances, generated, strict=True):
            if truncated:
                cut[instance.task_name].add(instance.doc_id)
        for name in self._documents:
            for instance in self.tasks[name].instances:
                own = [self.requests[i] for i in self._of_instance[id(instance)]]
                if any(len(r.context) + len(r.continuation) > self._engine.max_length + 1 for r in own):
                    cut[name].add(instance.doc_id)
        counts = {name: len(found) for name, found in cut.items()}
        for name, count in counts.items():
            if count:
                _log.warning(
                    "%d questions of the task %r are longer than the context of %d tokens: as with lm-eval, they "
                    "lose tokens from the left.",
                    count,
                    name,
                    self._engine.max_length,
                )
        return counts


def _plain_text(data: Any) -> str:
    """Return the same text for the same data in every process: of what JSON has no word for, its type."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        if isinstance(value, str):
            return _ADDRESS.sub("", value)  # of a function whose source isn't known
        return value if isinstance(value, int | float | None) else type(value).__qualname__

    return json.dumps(plain(data), sort_keys=True)

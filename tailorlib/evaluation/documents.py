"""Documents whose right answer has a probability: a signal that moves with every weight, unlike an accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorlib.evaluation.overlap import Fingerprint, question_fingerprint, text_fingerprint
from tailorlib.evaluation.packing import Request


@dataclass(frozen=True)
class Document:
    """A document whose right answer has a probability.

    Args:
        instances: The ``id`` of the lm-eval instance of each choice, or of the one target.
        lengths: Number of bytes of each choice (1 to leave its log-likelihood as it is); tokens of the target.
        gold: Positions of the right choices; empty for a plain target.
    """

    instances: tuple[int, ...]
    lengths: tuple[int, ...]
    gold: tuple[int, ...]

    @property
    def has_margin(self) -> bool:
        """Whether there are right choices and wrong ones."""
        return 0 < len(self.gold) < len(self.instances)

    def probability(self, log_likelihood: Mapping[int, float]) -> float:
        """Return the probability of the right choice among all of them, or of a token of the target.

        Args:
            log_likelihood: Of each instance by its ``id``, nats.
        """
        scaled = self._scaled(log_likelihood)
        if not self.gold:
            return float(np.exp(scaled[0]))
        weights = np.exp(scaled - scaled.max())
        return float(weights[list(self.gold)].sum() / weights.sum())

    def margin(self, log_likelihood: Mapping[int, float]) -> float:
        """Return by how much the best right choice is likelier than the best wrong one, nats.

        Positive if the model is right. Choices are normalised for their lengths as in :meth:`probability`.

        Args:
            log_likelihood: Of each instance by its ``id``, nats.

        Raises:
            ValueError: If not :attr:`has_margin`.
        """
        if not self.has_margin:
            raise ValueError("A margin is between right choices and wrong ones; this document has one kind only.")
        scaled = self._scaled(log_likelihood)
        right = np.zeros(len(scaled), dtype=bool)
        right[list(self.gold)] = True
        return float(scaled[right].max() - scaled[~right].max())

    def _scaled(self, log_likelihood: Mapping[int, float]) -> NDArray[np.float64]:
        """Return the log-likelihood of each choice, or of a token of the target."""
        values = np.array([log_likelihood[i] for i in self.instances], dtype=np.float64)
        scaled: NDArray[np.float64] = values / np.array(self.lengths)
        # lengths in bytes put all choices on the scale of one byte; the mean length brings them back to one answer
        return scaled * float(np.mean(self.lengths)) if self.gold else scaled


def documents_of(
    task: Any, of_instance: Mapping[int, tuple[int, ...]], requests: Sequence[Request], length_normalised: bool
) -> dict[int, Document]:
    """Return the documents of a task that scores given answers, by lm-eval's number of the document.

    Args:
        task: A task of lm-eval with its instances.
        of_instance: The engine's requests by the ``id`` of the instance.
        requests: All of the engine's requests.
        length_normalised: Whether a choice's log-likelihood counts per byte.
    """
    by_document: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    found = {}
    for number, instances in by_document.items():
        own = tuple(id(instance) for instance in sorted(instances, key=lambda i: int(i.idx)))
        if task.OUTPUT_TYPE == "multiple_choice":
            document = _choices(task, instances[0].doc, own, length_normalised)
            if document is not None:
                found[number] = document
        else:
            tokens = sum(len(requests[i].continuation) for i in of_instance[own[0]])
            found[number] = Document(own[:1], (max(1, tokens),), ())
    return found


def fingerprint_of(task: Any, doc: Any, arguments: Sequence[Any]) -> Fingerprint:
    """Return what stands for a document of any task: the question without its few-shot examples, and its answers.

    Args:
        task: A task of lm-eval.
        doc: The document, as the task has processed it.
        arguments: Those of the document's instances.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return text_fingerprint(str(arguments[0][0]))
    text = task.doc_to_text(doc)
    choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else ()
    # a number is the place of the right choice: the choices are in the context, and the target follows them
    context, answers = ("", [*choices, task.doc_to_target(doc)]) if isinstance(text, int) else (text, choices)
    return question_fingerprint(str(context), [str(answer) for answer in answers or [task.doc_to_target(doc)]])


def signals_of(documents: Iterable[Document], log_likelihood: Mapping[int, float]) -> dict[str, float]:
    """Return the smooth signals of a task, as means over its documents.

    Args:
        documents: The documents that count.
        log_likelihood: Of each instance by its ``id``, nats.

    Returns:
        ``probability``, if there is a document; ``margin`` (nats) and ``decision``, the logistic function of the
        margin, if a document has one.
    """
    chosen = list(documents)
    found = {}
    if chosen:
        found["probability"] = float(np.mean([document.probability(log_likelihood) for document in chosen]))
    margins = np.array([document.margin(log_likelihood) for document in chosen if document.has_margin])
    if len(margins):
        found["margin"] = float(np.mean(margins))
        found["decision"] = float(np.mean(0.5 * (1 + np.tanh(margins / 2))))  # logistic, without overflow
    return found


def chance(documents: Iterable[Document]) -> float | None:
    """Return the share of right choices, which a model that guesses reaches; ``None`` without choices."""
    shares = [len(d.gold) / len(d.instances) for d in documents if d.gold]
    return float(np.mean(shares)) if shares else None


def _choices(task: Any, doc: Any, instances: tuple[int, ...], length_normalised: bool) -> Document | None:
    choices = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    golds = list(gold) if isinstance(gold, list | tuple) else [gold]
    golds = [choices.index(g) if isinstance(g, str) and g in choices else g for g in golds]
    golds = [g for g in golds if isinstance(g, int) and 0 <= g < len(choices)]
    if not golds:
        return None
    # with the choices in the context every request scores the same text
    normalise = length_normalised and not task.multiple_input
    lengths = tuple(max(1, len(c.encode())) if normalise else 1 for c in choices)
    return Document(instances[: len(choices)], lengths, tuple(dict.fromkeys(golds)))

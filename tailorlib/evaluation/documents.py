"""Documents whose right answer has a probability: a signal that moves with every weight, unlike an accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tailorlib.evaluation.packing import Request


@dataclass(frozen=True)
class Document:
    """A document whose right answer has a probability.

    Args:
        requests: The engine's requests of each choice, or of the one target.
        lengths: Number of bytes of each choice (1 to leave its log-likelihood as it is); tokens of the target.
        gold: Positions of the right choices; empty for a plain target.
    """

    requests: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    gold: tuple[int, ...]

    def probability(self, log_likelihood: Sequence[float]) -> float:
        """Return the probability of the right choice among all of them, or of a token of the target.

        Args:
            log_likelihood: Of every request of the engine, nats.
        """
        sums = np.array([sum(log_likelihood[i] for i in found) for found in self.requests])
        scaled = sums / np.array(self.lengths)
        if not self.gold:
            return float(np.exp(scaled[0]))
        # lengths in bytes put all choices on the scale of one byte; the mean length brings them back to one answer
        scaled = scaled * np.mean(self.lengths)
        weights = np.exp(scaled - scaled.max())
        return float(weights[list(self.gold)].sum() / weights.sum())


def documents_of(
    task: Any, of_instance: Mapping[int, tuple[int, ...]], requests: Sequence[Request], length_normalised: bool
) -> list[Document]:
    """Return the documents of a task that scores given answers.

    Args:
        task: A task of lm-eval with its instances.
        of_instance: The engine's requests by the ``id`` of the instance.
        requests: All of the engine's requests.
        length_normalised: Whether a choice's log-likelihood counts per byte.
    """
    by_document: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    found = []
    for instances in by_document.values():
        own = tuple(of_instance[id(instance)] for instance in sorted(instances, key=lambda i: int(i.idx)))
        if task.OUTPUT_TYPE == "multiple_choice":
            document = _choices(task, instances[0].doc, own, length_normalised)
            if document is not None:
                found.append(document)
        else:
            tokens = sum(len(requests[i].continuation) for i in own[0])
            found.append(Document(own[:1], (max(1, tokens),), ()))
    return found


def chance(documents: Sequence[Document]) -> float | None:
    """Return the share of right choices, which a model that guesses reaches; ``None`` without choices."""
    shares = [len(d.gold) / len(d.requests) for d in documents if d.gold]
    return float(np.mean(shares)) if shares else None


def _choices(
    task: Any, doc: Any, requests: tuple[tuple[int, ...], ...], length_normalised: bool
) -> Document | None:
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
    return Document(requests[: len(choices)], lengths, tuple(golds))

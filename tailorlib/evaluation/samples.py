"""Samples: the order in which data is spent, and requests that are scored a few samples at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tailorlib.evaluation.packing import Request, TokenIds, shared_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import CompiledRequests, Engine

Answer = tuple[float, bool]
"""Log-likelihood of a request in nats, and whether it is the model's first choice throughout."""


def interleaved(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Mix several lists in proportion.

    The item j of a list of n has its place at j / n; ties go to the list that comes first. So the first items of
    all lists come first, and in every prefix a share x of each list has come, to within one item.

    Args:
        counts: Length of each list.

    Returns:
        The order, as (list, index in the list).
    """
    items = [(number, index) for number, count in enumerate(counts) for index in range(count)]
    return sorted(items, key=lambda item: (item[1] / counts[item[0]], item[0]))


class SampledRequests:
    """Requests of which a live model scores those of some samples.

    A set of samples is laid out when it is first asked for, and kept.

    Args:
        engine: Scores.
        requests: The requests of each sample.
    """

    def __init__(self, engine: Engine, requests: Sequence[Sequence[Request]]) -> None:
        self.engine = engine
        self.requests = tuple(map(tuple, requests))
        self._compiled: dict[tuple[int, ...], CompiledRequests] = {}

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def tokens(self) -> int:
        """Number of tokens that scoring all samples at once runs through the model."""
        return self.compiled(range(len(self))).tokens

    def compiled(self, samples: Sequence[int]) -> CompiledRequests:
        """Return the requests of some samples, laid out; in ascending order of the samples."""
        key = tuple(sorted(samples))
        if key not in self._compiled:
            self._compiled[key] = self.engine.compile([r for sample in key for r in self.requests[sample]])
        return self._compiled[key]

    def score(self, model: PreTrainedModel, samples: Sequence[int]) -> list[list[Answer]]:
        """Score the requests of some samples.

        Args:
            model: A live causal language model in evaluation mode.
            samples: Numbers of the samples, each once; their order changes no bit of an answer.

        Returns:
            An answer for each request of each sample, in the order asked for.

        Raises:
            EvaluationError: If the model gives NaN, or memory runs out; see :meth:`Engine.score`.
        """
        if not any(self.requests[sample] for sample in samples):
            return [[] for _ in samples]
        scores = self.engine.score(model, self.compiled(samples))
        answers = zip(scores.log_likelihood.tolist(), scores.greedy.tolist(), strict=True)
        found: Mapping[int, list[Answer]] = {
            sample: [next(answers) for _ in self.requests[sample]] for sample in sorted(samples)
        }
        return [found[sample] for sample in samples]

    def shards(self, samples: Sequence[int], number: int) -> list[list[int]]:
        """Share samples out; see :func:`shards`."""
        return shards([self.requests[sample] for sample in samples], samples, number)


def shards(requests: Sequence[Sequence[Request]], samples: Sequence[int], number: int) -> list[list[int]]:
    """Share samples out into at most ``number`` parts of about equal numbers of tokens, none of them empty.

    Samples that begin alike stay together, so that few-shot examples run in few parts: sorted by the tokens of
    their first request they are cut into contiguous parts. A token that a sample shares with its neighbour costs
    nothing, as when it is packed.

    Args:
        requests: The requests of each sample.
        samples: The samples' numbers.
        number: Largest number of parts.

    Returns:
        The samples' numbers in each part, ascending.
    """
    inputs = [[request.context + request.continuation for request in own] for own in requests]
    order = sorted(range(len(samples)), key=lambda i: inputs[i][0] if inputs[i] else ())
    costs: list[int] = []
    before: TokenIds = ()
    for i in order:
        cost = 0
        for tokens in inputs[i]:
            cost += len(tokens) - shared_prefix(before, tokens)
            before = tokens
        costs.append(cost)
    return [sorted(samples[order[i]] for i in part) for part in cut(costs, number)]


def cut(costs: Sequence[int], number: int) -> list[range]:
    """Cut a list into at most ``number`` contiguous stretches of about equal cost, none of them empty."""
    number = min(number, len(costs))
    left, start, found = sum(costs), 0, []
    for part in range(number, 0, -1):  # the parts that are still to be made
        stop, taken = start + 1, costs[start]
        # an item goes where more of it belongs; every later part keeps one
        while part > 1 and stop <= len(costs) - part and taken + costs[stop] / 2 <= left / part:
            taken += costs[stop]
            stop += 1
        stop = stop if part > 1 else len(costs)
        found.append(range(start, stop))
        left, start = left - taken, stop
    return found


def joined(lists: Sequence[Sequence[Sequence[int]]], number: int) -> list[list[int]]:
    """Join several lists of parts to one list of at most ``number`` parts, none of them empty.

    A list of less than ``number`` parts goes on where the list before it ended, so that no part gets all the rest.
    """
    found: list[list[int]] = [[] for _ in range(number)]
    start = 0
    for parts in lists:
        for k, part in enumerate(parts):
            found[(start + k) % number] += part
        start += len(parts)
    return [sorted(part) for part in found if part]

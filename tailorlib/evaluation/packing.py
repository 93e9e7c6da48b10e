"""Packing: which tokens run in which row, so that no shared prefix is computed twice.

The input tokens of all requests form a forest of prefixes. Sorted lexicographically, every request adds only the
tokens behind the prefix that it shares with the one before it, and a subtree is a contiguous stretch of a row.
So one number per token, the last index of its subtree, says who may attend to it: token i sees token j if and
only if ``j <= i <= last[j]``.

A layout says how rows form batches: ``single``, one long row at a time, without padding, for attention that knows
which tokens don't see each other; ``rows``, several rows of about one length; ``plain``, rows of one text each.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tailorlib.evaluation.tree import Block, cut_blocks

TokenIds = tuple[int, ...]
Layout = Literal["single", "rows", "plain"]

_WORTH_SHARING = 8
"""Length of a shared prefix below which texts are placed where they fit best."""
_LEAST_FILL = 0.75
"""Share of a batch's length below which a row rather opens the next batch."""
_WORTH_GROWING: Mapping[Layout, Callable[[int], int]] = {
    "single": lambda shared: 16 * shared,
    "rows": lambda shared: math.isqrt(6 * 1024 * shared),
}
"""Length up to which a row may grow before its shared prefix is rather computed again.

A row of L tokens with a prefix of P costs P / L more to split. Nothing speaks against growing a single row but the
processor's caches, which are worth up to 6 %. A row that attends as a whole costs, with hidden size h, L / (6 h)
more (a layer has about 12 h^2 parameters); the sum is least at L = sqrt(6 h P), here for h = 1024."""


@dataclass(frozen=True)
class Request:
    """Asks for the log-likelihood of a continuation given a context.

    Args:
        context: Token ids that are given; at least one.
        continuation: Token ids that are scored; at least one.
    """

    context: TokenIds
    continuation: TokenIds


@dataclass(frozen=True)
class Batch:
    """Rows of one length that run through the model together.

    Args:
        input_ids: Token ids, [rows, length].
        position_ids: Depth of each token in its tree, [rows, length]; ``None`` if every row is one plain text.
        last: Index of the last token of each token's subtree, [rows, length]; ``None`` like ``position_ids``.
        scored: Flat positions (row * length + column) whose next-token distribution is needed, sorted, [scored].
        pair_row: Index into ``scored`` of each scored (position, target) pair, sorted, [pairs].
        pair_target: Target token of each pair, [pairs].
        pair_request: Request of each pair, [pairs], on the CPU.
        first_pair: Index of the first pair of each scored position, and the number of pairs, [scored + 1], on the
            CPU.
        blocks: Which stretches of a single row attend together; ``None`` in other layouts.
        serial: Number of the batch in this process: no two batches share one.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    last: Tensor | None
    scored: Tensor
    pair_row: Tensor
    pair_target: Tensor
    pair_request: Tensor
    first_pair: Tensor
    blocks: tuple[Block, ...] | None = None
    serial: int = field(default_factory=itertools.count().__next__)


@dataclass(frozen=True)
class Plan:
    """How a list of requests runs.

    Args:
        batches: The batches, longest rows first.
        tokens: Number of tokens that run through the model, padding not counted.
        padded_tokens: The same with padding.
        raw_tokens: Number of input tokens of all requests, each on its own.
        scored_rows: Number of positions that the head is applied to.
        longest: Number of input tokens of the longest request.
        layout: How rows form batches.
        tokens_per_batch: Largest number of tokens of a batch that it was made for.
    """

    batches: tuple[Batch, ...]
    tokens: int
    padded_tokens: int
    raw_tokens: int
    scored_rows: int
    longest: int
    layout: Layout
    tokens_per_batch: int


@dataclass
class _Run:
    """Requests, neighbours in lexicographic order, that share enough to run in one row; ``tokens`` are unique."""

    requests: list[int]
    tokens: int


@dataclass
class _Row:
    """A row under construction: a forest in depth-first order."""

    tokens: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)  # (index in row, target, request)
    path: list[int] = field(default_factory=list)  # index in row of each token of the latest sequence
    branched: bool = False

    def add(self, sequence: TokenIds, shared: int) -> None:
        """Append a sequence whose first ``shared`` tokens are those of the latest one."""
        if shared < len(self.path):
            self.branched = True
        del self.path[shared:]
        for depth in range(shared, len(sequence)):
            self.path.append(len(self.tokens))
            self.tokens.append(sequence[depth])
            self.depth.append(depth)
            self.last.append(0)
        for index in self.path:
            self.last[index] = len(self.tokens) - 1

    def score(self, request: int, sequence_length: int, continuation: TokenIds) -> None:
        """Note that a continuation is predicted by the tail of the latest sequence's first tokens."""
        start = sequence_length - len(continuation)
        self.pairs += [(self.path[start + k], target, request) for k, target in enumerate(continuation)]


def plan(
    requests: Sequence[Request],
    *,
    max_length: int,
    tokens_per_batch: int,
    row_tokens: int,
    layout: Layout,
    device: torch.device,
) -> Plan:
    """Lay requests out in rows and batches.

    A request longer than the model's context loses tokens from the left, as lm-eval does it.

    Args:
        requests: What is to be scored.
        max_length: Largest number of input tokens of a request.
        tokens_per_batch: Largest number of tokens, padding included, of a batch of more than one row.
        row_tokens: Length that packed rows are filled up to.
        layout: How rows form batches.
        device: Where the batches live.

    Raises:
        ValueError: If a context or continuation is empty, or a continuation is longer than ``max_length``.
    """
    inputs = [_input_tokens(request, max_length) for request in requests]
    order = sorted(range(len(requests)), key=lambda i: inputs[i])
    runs = _find_runs(inputs, order, tokens_per_batch, row_tokens, layout)
    groups = [run.requests for run in runs] if layout == "plain" else _fill_up(runs, row_tokens)
    rows = sorted((_row(group, requests, inputs) for group in groups), key=lambda row: -len(row.tokens))
    parts = [[row] for row in rows] if layout == "single" else _split(rows, tokens_per_batch)
    batches = [_batch(part, device, layout) for part in parts]
    return Plan(
        batches=tuple(batches),
        tokens=sum(len(row.tokens) for row in rows),
        padded_tokens=sum(batch.input_ids.numel() for batch in batches),
        raw_tokens=sum(map(len, inputs)),
        scored_rows=sum(len(batch.scored) for batch in batches),
        longest=max(map(len, inputs), default=0),
        layout=layout,
        tokens_per_batch=tokens_per_batch,
    )


def _input_tokens(request: Request, max_length: int) -> TokenIds:
    if not request.context or not request.continuation:
        raise ValueError("A request has at least one context token and one continuation token, got an empty one.")
    if len(request.continuation) > max_length:
        raise ValueError(
            f"A continuation has at most max_length={max_length} tokens, got {len(request.continuation)}."
        )
    return (request.context + request.continuation)[-(max_length + 1) : -1]


def _find_runs(
    inputs: Sequence[TokenIds], order: Sequence[int], tokens_per_batch: int, row_tokens: int, layout: Layout
) -> list[_Run]:
    runs: list[_Run] = []
    previous: TokenIds = ()
    for i in order:
        sequence = inputs[i]
        shared = shared_prefix(previous, sequence) if runs else 0
        added = len(sequence) - shared
        if layout != "plain":
            limit = max(row_tokens, min(tokens_per_batch, _WORTH_GROWING[layout](shared)))
            together = runs and shared >= min(_WORTH_SHARING, len(sequence)) and runs[-1].tokens + added <= limit
        else:  # a request may extend the text before it (or equal it), but never branch off
            together = runs and shared == len(previous)
        if together:
            runs[-1].requests.append(i)
            runs[-1].tokens += added
        else:
            runs.append(_Run([i], len(sequence)))
        previous = sequence
    return runs


def _fill_up(runs: Sequence[_Run], row_tokens: int) -> list[list[int]]:
    """Put short runs together in rows of about one length (best fit, longest first): then little is padded."""
    groups: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, group), ascending
    for run in sorted(runs, key=lambda run: -run.tokens):
        at = bisect_left(room, (run.tokens, -1))
        if at < len(room):
            free, group = room.pop(at)
            groups[group] += run.requests
        else:
            free, group = row_tokens, len(groups)
            groups.append(list(run.requests))
        if free > run.tokens:
            insort(room, (free - run.tokens, group))
    return groups


def _row(group: Sequence[int], requests: Sequence[Request], inputs: Sequence[TokenIds]) -> _Row:
    row = _Row()
    previous: TokenIds = ()
    for i in group:
        row.add(inputs[i], shared_prefix(previous, inputs[i]))
        row.score(i, len(inputs[i]), requests[i].continuation)
        previous = inputs[i]
    return row


def _split(rows: Sequence[_Row], tokens_per_batch: int) -> Iterator[Sequence[_Row]]:
    """Cut rows, longest first, into batches; a large enough one ends where the next row would pad a lot."""
    start = 0
    for stop in range(1, len(rows) + 1):
        longest = len(rows[start].tokens)
        if stop < len(rows):
            full = (stop - start + 1) * longest > tokens_per_batch
            enough = 4 * (stop - start) * longest >= tokens_per_batch
            if not full and not (enough and len(rows[stop].tokens) < _LEAST_FILL * longest):
                continue
        yield rows[start:stop]
        start = stop


def shared_prefix(a: TokenIds, b: TokenIds) -> int:
    """Return the number of tokens that two sequences begin with alike."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit  # bisect: slices compare much faster than a Python loop over tokens
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _batch(rows: Sequence[_Row], device: torch.device, layout: Layout) -> Batch:
    length = len(rows[0].tokens)
    # a padding token attends to itself and to what its column allows, so that no softmax is over nothing
    tokens = [row.tokens + [0] * (length - len(row.tokens)) for row in rows]
    flat = sorted((r * length + index, target, i) for r, row in enumerate(rows) for index, target, i in row.pairs)
    scored, counts = torch.unique_consecutive(torch.tensor([p for p, _, _ in flat]), return_counts=True)
    position_ids = last = blocks = None
    if any(row.branched for row in rows):
        position_ids = torch.tensor([row.depth + [0] * (length - len(row.depth)) for row in rows], device=device)
        last = torch.tensor([row.last + list(range(len(row.last), length)) for row in rows], device=device)
        blocks = cut_blocks(rows[0].depth) if layout == "single" else None
    return Batch(
        input_ids=torch.tensor(tokens, device=device),
        position_ids=position_ids,
        last=last,
        scored=scored.to(device),
        pair_row=torch.repeat_interleave(counts).to(device),
        pair_target=torch.tensor([target for _, target, _ in flat], device=device),
        pair_request=torch.tensor([i for _, _, i in flat]),
        first_pair=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
        blocks=blocks,
    )

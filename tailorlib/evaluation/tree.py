"""Trees of tokens: which stretches of a packed row attend together, and to which keys.

A row holds a forest of prefixes in depth-first order, so a token's depth says all: its ancestors are the latest
tokens of each smaller depth. Attention over a whole row would spend most of its time on pairs that don't see each
other. So a row is cut into blocks of neighbouring queries, each with the keys that any of them sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""A stretch of a row: first index, and the index behind its last."""

_STRIDE = 64
"""Longest stretch of a chain that is never cut."""
_LONGEST = 512
"""Largest number of queries in a block that could be cut."""
_CALL = 1000
"""Number of (query, key) pairs that cost as much as one more block. About 500 were measured on one CPU thread with
9 heads of size 64; several threads have to meet at each block. Copying keys together costs nothing that shows."""


@dataclass(frozen=True)
class Block:
    """Queries that attend together.

    Args:
        start: Index of the first query in its row.
        stop: Index behind the last query.
        spans: The keys, ascending and disjoint: the ancestors of the first query, by depth from 0, and the queries
            themselves.
        low: Least depth of a query.
    """

    start: int
    stop: int
    spans: tuple[Span, ...]
    low: int

    def keys(self, window: int | None) -> tuple[Span, ...]:
        """Return the keys that any query sees, if it sees the last ``window`` tokens of its text up to itself."""
        unseen = 0 if window is None else self.low - window + 1
        found = []
        for start, stop in self.spans:
            skipped = min(max(unseen, 0), stop - start, max(0, self.start - start))  # ancestors only
            unseen -= stop - start
            if start + skipped < stop:
                found.append((start + skipped, stop))
        return tuple(found)


def cut_blocks(depth: Sequence[int]) -> tuple[Block, ...]:
    """Cut a row into blocks so that attention costs least.

    Args:
        depth: Depth of each token in its tree, in depth-first order.
    """
    chains = _chains(depth)
    cuts = [*(at for chain in chains for at in range(chain.start, chain.stop, _STRIDE)), len(depth)]
    owners = [chain for chain in chains for _ in range(chain.start, chain.stop, _STRIDE)]
    spans = [_ancestors(chain, at) for at, chain in zip(cuts, owners, strict=False)]
    cost, best = [0.0], [0]
    for j in range(1, len(cuts)):
        options = []
        for i in range(j - 1, -1, -1):
            length = cuts[j] - cuts[i]
            if length > _LONGEST and i < j - 1:
                break
            options.append((cost[i] + length * (depth[cuts[i]] + length) + _CALL, i))
        least, i = min(options)
        cost.append(least)
        best.append(i)
    blocks, j = [], len(cuts) - 1
    while j > 0:
        i = best[j]
        start, stop = cuts[i], cuts[j]
        blocks.append(Block(start, stop, _joined(spans[i], (start, stop)), min(depth[start:stop])))
        j = i
    return tuple(reversed(blocks))


@dataclass(frozen=True)
class _Chain:
    """Tokens of which each is the child of the one before it, and the chain and index that the first hangs on."""

    start: int
    stop: int
    parent: _Chain | None
    branch: int  # index of the first token's parent


def _chains(depth: Sequence[int]) -> list[_Chain]:
    starts = [i for i in range(len(depth)) if i == 0 or depth[i] != depth[i - 1] + 1]
    chains: list[_Chain] = []
    path: list[_Chain] = []  # chains that lead to the latest token
    for start, stop in zip(starts, [*starts[1:], len(depth)], strict=True):
        while path and depth[path[-1].start] >= depth[start]:
            path.pop()
        if path:
            parent = path[-1]
            chain = _Chain(start, stop, parent, parent.start + depth[start] - 1 - depth[parent.start])
        else:
            chain = _Chain(start, stop, None, -1)
        chains.append(chain)
        path.append(chain)
    return chains


def _ancestors(chain: _Chain, index: int) -> tuple[Span, ...]:
    """Return the ancestors of a token of a chain."""
    spans: tuple[Span, ...] = ()
    at: _Chain | None = chain
    stop = index
    while at is not None:
        if stop > at.start:
            spans = ((at.start, stop), *spans)
        stop, at = at.branch + 1, at.parent
    return _joined(spans)


def _joined(spans: Sequence[Span], *more: Span) -> tuple[Span, ...]:
    """Merge spans that touch."""
    found: list[Span] = []
    for start, stop in (*spans, *more):
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return tuple(found)

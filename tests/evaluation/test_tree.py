"""Blocks of a row: every token's ancestors are among its block's keys, at any window, and little else is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorlib.evaluation.tree import cut_blocks


def ancestors(depth: list[int], index: int) -> list[int]:
    """Return the ancestors of a token and itself, by the definition."""
    found, wanted = [index], depth[index] - 1
    for j in range(index - 1, -1, -1):
        if depth[j] == wanted:
            found.append(j)
            wanted -= 1
    return found


@st.composite
def forests(draw: st.DrawFn) -> list[int]:
    """Draw depths in depth-first order: each is at most one more than the one before."""
    rng = random.Random(draw(st.integers(0, 10**6)))
    depth = [0]
    for _ in range(draw(st.integers(0, 400))):
        branches = rng.random() < 0.1
        depth.append(rng.randint(0, depth[-1] + 1) if branches else depth[-1] + 1)
    return depth


@settings(max_examples=60, deadline=None)
@given(depth=forests(), window=st.one_of(st.none(), st.integers(1, 60)))
def test_blocks_cover_a_row_and_see_what_its_tokens_see(depth: list[int], window: int | None) -> None:
    blocks = cut_blocks(depth)
    assert [i for block in blocks for i in range(block.start, block.stop)] == list(range(len(depth)))
    for block in blocks:
        keys = [k for span in block.keys(window) for k in range(*span)]
        assert keys == sorted(set(keys))
        needed = {
            a
            for i in range(block.start, block.stop)
            for a in ancestors(depth, i)
            if window is None or depth[i] - depth[a] < window
        }
        assert needed <= set(keys)
        own = set(range(block.start, block.stop))
        if window is None:  # nothing but the first query's ancestors and the queries
            assert set(keys) == own | set(ancestors(depth, block.start))
        else:
            assert set(keys) <= own | set(ancestors(depth, block.start))
            lowest = min(depth[block.start : block.stop])
            assert all(depth[k] > lowest - window for k in set(keys) - own)


@pytest.mark.parametrize("questions", [5, 20])
def test_few_shot_questions_attend_to_the_examples_and_themselves(questions: int) -> None:
    examples, question = 600, 100
    depth = [*range(examples), *(examples + i for _ in range(questions) for i in range(question))]
    blocks = cut_blocks(depth)
    pairs = sum((b.stop - b.start) * sum(stop - start for start, stop in b.spans) for b in blocks)
    needed = examples**2 / 2 + questions * question * (examples + question / 2)
    assert pairs < 1.25 * needed
    assert pairs < 0.6 * len(depth) ** 2
    for block in blocks:
        # what is shared is not repeated for each question
        assert block.stop - block.start <= 512


def test_a_short_row_is_one_block() -> None:
    (block,) = cut_blocks([0, 1, 2, 2, 1])
    assert (block.start, block.stop, block.spans, block.low) == (0, 5, ((0, 5),), 0)

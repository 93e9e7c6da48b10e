"""Generated arithmetic word problems with worked answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from tailorlib.exceptions import DataError
from tailorlib.seeding import numpy_generator
from tailorlib.text import TextSource
from tailorlib_strategies.texts.arithmetic_templates import NAMES, TEMPLATES, THINGS, Template
from tailorlib_strategies.texts.splits import Split, check_count, check_split, split_of

_CLOSINGS = (
    "The answer is {result}.",
    "So the answer is {result}.",
    "That makes {result}.",
    "The result is {result}.",
)
_ATTEMPTS = 200


class ArithmeticProblems(TextSource):
    """Word problems of one to three steps, each a question with its worked answer.

    A problem is its template and its numbers; the SHA-256 of these says which split it is in, whatever the seed
    and the count, so another name never makes a training problem a test problem. All splits have the same mix of
    templates.

    Args:
        split: ``train``, ``search`` or ``test``.
        count: Number of problems.
        seed: Seed of the draws.
    """

    def __init__(self, split: Split = "train", count: int = 600, seed: int = 0) -> None:
        self.split, self.count, self.seed = check_split(split), check_count(count), seed

    def documents(self) -> Sequence[str]:
        """Return one document per problem.

        Raises:
            DataError: If more problems are asked for than the templates can give.
        """
        return _generate(self.split, self.count, self.seed)


@cache
def _generate(split: Split, count: int, seed: int) -> tuple[str, ...]:
    rng = numpy_generator("arithmetic", split, seed)
    documents: list[str] = []
    seen: set[str] = set()
    while len(documents) < count:
        for index in rng.permutation(len(TEMPLATES)):
            numbers = _draw_new(int(index), split, seen, rng, count)
            documents.append(_write(TEMPLATES[index], numbers, rng))
    return tuple(documents[:count])


def _draw_new(index: int, split: Split, seen: set[str], rng: np.random.Generator, count: int) -> dict[str, int]:
    """Draw the numbers of a problem that is in the split and has not been given yet."""
    for _ in range(_ATTEMPTS):
        numbers = {name: int(rng.integers(low, high + 1)) for name, (low, high) in TEMPLATES[index].ranges.items()}
        identity = f"arithmetic/{TEMPLATES[index].question}/{numbers}"
        if split_of(identity) == split and identity not in seen:
            seen.add(identity)
            return numbers
    raise DataError(
        f"ArithmeticProblems gives each problem once; count={count} is more than its templates have for the "
        f"{split!r} split. Ask for at most {len(TEMPLATES) * 40}."
    )


def _write(template: Template, numbers: dict[str, int], rng: np.random.Generator) -> str:
    who, friend = (NAMES[i] for i in rng.choice(len(NAMES), size=2, replace=False))
    words = {"who": who, "friend": friend, "things": THINGS[rng.integers(len(THINGS))]}
    fields = {**words, **numbers, **template.solve(**numbers)}
    closing = _CLOSINGS[rng.integers(len(_CLOSINGS))]
    text = f"Question: {template.question}\nAnswer: {template.answer} {closing}\n"
    return text.format(**fields)

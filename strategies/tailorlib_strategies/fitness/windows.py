"""What fitnesses over a text have in common: its windows are the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tailorlib.evaluation.overlap import Fingerprint, text_fingerprint
from tailorlib.evaluation.samples import SampledRequests
from tailorlib.evaluation.text import windows
from tailorlib.exceptions import RecipeError
from tailorlib.fitness import Fitness
from tailorlib.text import TextSource

if TYPE_CHECKING:
    from tailorlib.evaluation.engine import Engine

_KNOWN_BY = 1000
"""Characters that a document is known by at least, so that short windows are found in longer ones."""


class TextFitness(Fitness):
    """A fitness over the windows of a text.

    Args:
        text: Where the documents come from.
        context_length: Length in tokens of the windows that the documents are cut into.
        max_tokens: Number of tokens to score; ``None`` for the whole text.
        seed: Seed of the order in which documents are drawn.
    """

    def __init__(self, text: TextSource, context_length: int, max_tokens: int | None, seed: int) -> None:
        if context_length < 1 or (max_tokens is not None and max_tokens < 1):
            raise RecipeError(
                f"{type(self).__name__} takes a positive context_length and max_tokens, got {context_length}, "
                f"{max_tokens}."
            )
        self.text, self.context_length, self.max_tokens, self.seed = text, context_length, max_tokens, seed

    @property
    def tokens(self) -> int:
        """Number of tokens that one evaluation runs through the model."""
        return self._requests.tokens if hasattr(self, "_requests") else 0

    @property
    def num_samples(self) -> int:
        """Number of windows, after :meth:`setup`."""
        return len(self._windows)

    @property
    def fingerprints(self) -> Sequence[Fingerprint]:
        """One for each document that has a window."""
        stops: dict[int, int] = {}
        for window in self._windows:
            stops[window.document] = max(window.stop, stops.get(window.document, 0))
        documents = self.text.documents()
        return [text_fingerprint(documents[i][: max(stop, _KNOWN_BY)]) for i, stop in stops.items()]

    def check(self) -> None:
        """Read the text.

        Raises:
            DataError: If there is none.
        """
        self.text.documents()

    def shards(self, samples: Sequence[int], number: int) -> list[list[int]]:
        """Share windows out, about equal numbers of tokens to each part."""
        return self._requests.shards(samples, number)

    def _setup(self, engine: Engine) -> None:
        if self.context_length > engine.max_length:
            raise RecipeError(
                f"{type(self).__name__}'s context_length is at most the models' context of {engine.max_length} "
                f"tokens, got {self.context_length}. Lower it."
            )
        documents = self.text.documents()
        self._windows = windows(engine.tokenizer, documents, self.context_length, self.max_tokens, self.seed)
        self._requests = SampledRequests(engine, [[window.request] for window in self._windows])

"""Perplexity: how well a model predicts a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailorlib.evaluation.text import text_loss, windows
from tailorlib.exceptions import RecipeError
from tailorlib.fitness import Fitness, Measurement
from tailorlib.text import TextSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import Engine


class Perplexity(Fitness):
    """Scores a model by 1 / perplexity: the geometric mean of the probabilities that it gives to a text's tokens.

    Args:
        text: Where the documents come from.
        context_length: Length in tokens of the windows that the documents are cut into.
        max_tokens: Number of tokens to score; ``None`` for the whole text.
        seed: Seed of the order in which documents are drawn.
    """

    def __init__(
        self, text: TextSource, context_length: int = 256, max_tokens: int | None = 1024, seed: int = 0
    ) -> None:
        if context_length < 1 or (max_tokens is not None and max_tokens < 1):
            raise RecipeError(
                f"Perplexity takes a positive context_length and max_tokens, got {context_length}, {max_tokens}."
            )
        self.text, self.context_length, self.max_tokens, self.seed = text, context_length, max_tokens, seed

    @property
    def tokens(self) -> int:
        """Number of tokens that one evaluation runs through the model."""
        return self._compiled.tokens if hasattr(self, "_compiled") else 0

    def check(self) -> None:
        """Read the text.

        Raises:
            DataError: If there is none.
        """
        self.text.documents()

    def _setup(self, engine: Engine) -> None:
        if self.context_length > engine.max_length:
            raise RecipeError(
                f"Perplexity's context_length is at most the models' context of {engine.max_length} tokens, got "
                f"{self.context_length}. Lower it."
            )
        documents = self.text.documents()
        self._windows = windows(engine.tokenizer, documents, self.context_length, self.max_tokens, self.seed)
        self._compiled = engine.compile([window.request for window in self._windows])

    def _evaluate(self, model: PreTrainedModel) -> Measurement:
        scores = self.engine.score(model, self._compiled)
        loss = text_loss(self._windows, scores.log_likelihood.tolist())
        metrics = {
            "perplexity": loss.perplexity,
            "nats_per_token": loss.nats_per_token,
            "bits_per_byte": loss.bits_per_byte,
        }
        return Measurement(score=loss.probability, metrics=metrics)

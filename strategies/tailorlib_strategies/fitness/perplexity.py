"""Perplexity: how well a model predicts a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tailorlib.evaluation.text import text_loss
from tailorlib.fitness import Measurement, SampleResult
from tailorlib.text import TextSource
from tailorlib_strategies.fitness.windows import TextFitness

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Perplexity(TextFitness):
    """Scores a model by 1 / perplexity: the geometric mean of the probabilities that it gives to a text's tokens.

    A sample is a window of the text.

    Args:
        text: Where the documents come from.
        context_length: Length in tokens of the windows that the documents are cut into.
        max_tokens: Number of tokens to score; ``None`` for the whole text.
        seed: Seed of the order in which documents are drawn.
    """

    def __init__(
        self, text: TextSource, context_length: int = 256, max_tokens: int | None = 1024, seed: int = 0
    ) -> None:
        super().__init__(text, context_length, max_tokens, seed)

    def _score_samples(self, model: PreTrainedModel, samples: Sequence[int]) -> list[SampleResult]:
        return [log_likelihood for ((log_likelihood, _),) in self._requests.score(model, samples)]

    def _summarise(self, results: Sequence[SampleResult]) -> Measurement:
        loss = text_loss(self._windows[: len(results)], results)
        metrics = {
            "perplexity": loss.perplexity,
            "nats_per_token": loss.nats_per_token,
            "bits_per_byte": loss.bits_per_byte,
        }
        return Measurement(score=loss.probability, metrics=metrics)

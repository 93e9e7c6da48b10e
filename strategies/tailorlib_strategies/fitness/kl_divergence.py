"""KLDivergence: how far a model's predictions are from the dense model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tailorlib.evaluation.text import text_loss
from tailorlib.exceptions import PluginError, RecipeError
from tailorlib.fitness import Measurement, SampleResult
from tailorlib.text import TextSource
from tailorlib_strategies.fitness.windows import TextFitness

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.divergence import Reference
    from tailorlib.evaluation.engine import Engine

LEAST_TOP_K = 512
"""Fewest tokens of a position: their KL divergence is then close to that of all."""


class KLDivergence(TextFitness):
    """Scores a model by exp(-KL), where KL = mean KL(dense || model) of the next token over a text, in nats.

    The dense model is the family's base, which scores 1. Its predictions are computed once per process and kept on
    the device. A sample is a window of the text. The metrics are ``kl``, ``acceptance`` (see :class:`Acceptance`),
    ``top1_agreement`` (share of tokens where both models have the same first choice), ``perplexity`` and
    ``nats_per_token``.

    With ``top_k`` the dense model's most probable tokens count one by one and all others as one: by the log-sum
    inequality (Cover and Thomas, Elements of Information Theory, theorem 2.7.1) that is at most the full
    divergence, and goes to it as k grows.

    Args:
        text: Where the documents come from.
        context_length: Length in tokens of the windows that the documents are cut into.
        max_tokens: Number of tokens to score; ``None`` for the whole text.
        seed: Seed of the order in which documents are drawn.
        top_k: Number of tokens that are kept of the dense model's predictions, at least 512; all by default.
        max_memory_mib: Largest size of what is kept, MiB. The full predictions take the vocabulary times the
            bytes of the model's data type for each token of the text; ``top_k`` takes 8 bytes times k.
    """

    def __init__(
        self,
        text: TextSource,
        context_length: int = 256,
        max_tokens: int | None = 1024,
        seed: int = 0,
        top_k: int | None = None,
        max_memory_mib: int = 1024,
    ) -> None:
        super().__init__(text, context_length, max_tokens, seed)
        if top_k is not None and top_k < LEAST_TOP_K:
            raise RecipeError(f"{self._name}'s top_k is at least {LEAST_TOP_K}, or null for all, got {top_k}.")
        if max_memory_mib < 1:
            raise RecipeError(f"{self._name}'s max_memory_mib is at least 1, got {max_memory_mib}.")
        self.top_k, self.max_memory_mib = top_k, max_memory_mib
        self._reference: Reference | None = None

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def needs_dense(self) -> bool:
        """The dense model's predictions are what a model is compared with."""
        return True

    def observe_dense(self, model: PreTrainedModel) -> None:
        """Compute and keep the dense model's predictions.

        Raises:
            RecipeError: If they are larger than ``max_memory_mib``.
            EvaluationError: If the model gives NaN, or memory runs out.
        """
        from tailorlib.evaluation.divergence import Reference

        self._check_size(model.config.vocab_size, model.dtype.itemsize)
        self._reference = None  # let go of an earlier one first
        self._reference = Reference(model, self._requests, self.top_k)

    def _setup(self, engine: Engine) -> None:
        super()._setup(engine)
        self._reference = None
        # nothing is known of the model yet: two bytes are the least that a logit takes
        self._check_size(len(engine.tokenizer), 2)

    def _check_size(self, vocabulary: int, itemsize: int) -> None:
        from tailorlib.evaluation.divergence import reference_bytes

        positions = self._requests.compiled(range(len(self._requests))).plan.scored_rows
        wanted = reference_bytes(positions, vocabulary, self.top_k, itemsize) / 2**20
        if wanted <= self.max_memory_mib:
            return
        small = reference_bytes(positions, vocabulary, LEAST_TOP_K, itemsize) / 2**20
        kept = "all" if self.top_k is None else f"top_k: {self.top_k} of"
        cure = (
            "Lower"
            if self.top_k == LEAST_TOP_K
            else f"Set top_k: {LEAST_TOP_K}, which takes {small:.0f} MiB, lower"
        )
        raise RecipeError(
            f"{self._name} keeps the dense model's predictions within max_memory_mib: {self.max_memory_mib}; at "
            f"{positions} positions and {kept} {vocabulary} tokens they take at least {wanted:.0f} MiB. {cure} "
            "max_tokens, or raise max_memory_mib."
        )

    def _score_samples(self, model: PreTrainedModel, samples: Sequence[int]) -> list[SampleResult]:
        if self._reference is None:
            raise PluginError(f"{self._name} compares with the dense model: call observe_dense(model) first.")
        return [list(found) for found in self._reference.compare(model, samples)]

    def _summarise(self, results: Sequence[SampleResult]) -> Measurement:
        seen = self._windows[: len(results)]
        tokens = sum(len(window.request.continuation) for window in seen)
        kl = math.fsum(found[0] for found in results) / tokens
        loss = text_loss(seen, [found[2] for found in results])
        metrics = {
            "kl": kl,
            "acceptance": math.fsum(found[3] for found in results) / tokens,
            "top1_agreement": sum(found[1] for found in results) / tokens,
            "perplexity": loss.perplexity,
            "nats_per_token": loss.nats_per_token,
        }
        return Measurement(score=math.exp(-kl), metrics=metrics)


class Acceptance(KLDivergence):
    """Scores a model by how much of what it would write the dense model would write, too: the mean acceptance.

    At each position of a text that is ``sum_t min(p_t, q_t)`` with the dense model's probabilities p and the
    model's q: 1 minus their total variation distance, and the probability that speculative sampling keeps a token
    that the model drew (arXiv 2211.17192, eq. 2). It is in [0, 1], so single tokens that a model finds all but
    impossible don't outweigh all others, as they can in a divergence. Texts, settings and metrics are those of
    :class:`KLDivergence`; with ``top_k`` it is an upper bound.
    """

    def _summarise(self, results: Sequence[SampleResult]) -> Measurement:
        found = super()._summarise(results)
        return replace(found, score=found.metrics["acceptance"])

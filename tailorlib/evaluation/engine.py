"""Engine: log-likelihoods of many requests under one live model after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tailorlib.evaluation.forward import hidden_states, logits_of
from tailorlib.evaluation.packing import Batch, Plan, Request, plan

__all__ = ["CompiledRequests", "Engine", "Request", "Scores", "supports_packing"]

_log = logging.getLogger(__name__)

PACKED_ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gpt_neox"})
"""Model types whose packed and plain log-likelihoods are tested to agree."""
_LOGITS_PER_CHUNK = 2**25
"""Largest number of float32 logits held at once: 128 MB."""


@dataclass(frozen=True)
class Scores:
    """What the model says to each request, in the order of the requests.

    Args:
        log_likelihood: Sum over the continuation's tokens, nats, float64 [requests], on the CPU.
        greedy: Whether every token of the continuation is the model's first choice, bool [requests], on the CPU.
    """

    log_likelihood: Tensor
    greedy: Tensor


class CompiledRequests:
    """Requests laid out in batches, once per study; made by :meth:`Engine.compile`."""

    def __init__(self, requests: Sequence[Request], build: Callable[[bool], Plan], packed: bool) -> None:
        self.requests = tuple(requests)
        self._build = build
        self._plan = build(packed)

    @property
    def plan(self) -> Plan:
        """The layout in use."""
        return self._plan

    @property
    def packed(self) -> bool:
        """Whether shared prefixes are computed once."""
        return self._plan.packed

    @property
    def tokens(self) -> int:
        """Number of tokens that one scoring runs through the model, without padding."""
        return self._plan.tokens

    @property
    def raw_tokens(self) -> int:
        """Number of tokens without any sharing: what one row per request would run."""
        return self._plan.raw_tokens

    def unpack(self) -> None:
        """Lay the requests out as plain rows, for a model that is not known to understand packed ones."""
        if self.packed:
            self._plan = self._build(False)


class Engine:
    """Scores requests under live causal language models.

    Shared prefixes run once (for model types of which that is proven), the head is applied only where a token
    is scored, and nothing is tokenised or laid out twice in a study.

    Args:
        tokenizer: The base model's tokenizer.
        device: Where models and batches live.
        max_length: The models' context length; longer requests lose tokens from the left.
        tokens_per_batch: Largest number of tokens of a batch.
        row_tokens: Length that packed rows are filled up to: longer rows pad less and attend to more.
        packing: Whether shared prefixes may be computed once.
    """

    TOKENS_PER_BATCH: ClassVar[int] = 4096
    ROW_TOKENS: ClassVar[int] = 256

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        max_length: int,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        *,
        row_tokens: int = ROW_TOKENS,
        packing: bool = True,
    ) -> None:
        if min(max_length, tokens_per_batch, row_tokens) < 1:
            raise ValueError(
                f"An engine's lengths are positive, got max_length={max_length}, "
                f"tokens_per_batch={tokens_per_batch}, row_tokens={row_tokens}."
            )
        self.tokenizer, self.device, self.max_length = tokenizer, torch.device(device), max_length
        self.tokens_per_batch, self.row_tokens, self.packing = tokens_per_batch, row_tokens, packing

    def compile(self, requests: Sequence[Request]) -> CompiledRequests:
        """Lay requests out in batches, once per study.

        Raises:
            ValueError: If a context or continuation is empty, or a continuation exceeds ``max_length``.
        """

        def build(packed: bool) -> Plan:
            return plan(
                requests,
                max_length=self.max_length,
                tokens_per_batch=self.tokens_per_batch,
                row_tokens=min(self.row_tokens, self.tokens_per_batch),
                packed=packed,
                device=self.device,
            )

        return CompiledRequests(requests, build, packed=self.packing)

    @torch.inference_mode()
    def score(self, model: PreTrainedModel, compiled: CompiledRequests) -> Scores:
        """Return the log-likelihood of every request.

        Args:
            model: A causal language model in evaluation mode, on the engine's device.
            compiled: From :meth:`compile`.
        """
        if compiled.packed and not supports_packing(model):
            _log.warning(
                "Shared prefixes are computed once for %s with full attention; %s runs as plain rows.",
                ", ".join(sorted(PACKED_ARCHITECTURES)),
                model.config.model_type,
            )
            compiled.unpack()
        log_likelihood = torch.zeros(len(compiled.requests), dtype=torch.float64)
        misses = torch.zeros(len(compiled.requests), dtype=torch.long)
        # results stay on the device until the end: one synchronisation per scoring, not per batch
        results = [(batch, *_score_batch(model, batch)) for batch in compiled.plan.batches]
        for batch, log_probs, hits in results:
            log_likelihood.index_add_(0, batch.pair_request, log_probs.to("cpu", torch.float64))
            misses.index_add_(0, batch.pair_request, (~hits).to("cpu", torch.long))
        return Scores(log_likelihood=log_likelihood, greedy=misses == 0)


def supports_packing(model: PreTrainedModel) -> bool:
    """Say whether a model is known to score packed rows right: rotary positions, full attention everywhere."""
    config = model.config
    if config.model_type not in PACKED_ARCHITECTURES:
        return False
    if config._attn_implementation not in ("sdpa", "eager"):
        return False
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return set(layer_types) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


def _score_batch(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the log-probability (float32) and greedy flag of each pair of a batch, [pairs]."""
    hidden = hidden_states(model, batch)[batch.scored]  # [scored, hidden]
    chunk = max(1, _LOGITS_PER_CHUNK // model.config.vocab_size)
    log_probs = torch.empty(len(batch.pair_row), dtype=torch.float32, device=hidden.device)
    hits = torch.empty(len(batch.pair_row), dtype=torch.bool, device=hidden.device)
    for start in range(0, len(hidden), chunk):
        logits = logits_of(model, hidden[start : start + chunk]).float()  # [chunk, vocabulary]
        normaliser, best = logits.logsumexp(dim=-1), logits.argmax(dim=-1)
        (pairs,) = torch.where((batch.pair_row >= start) & (batch.pair_row < start + chunk))
        rows, targets = batch.pair_row[pairs] - start, batch.pair_target[pairs]
        log_probs[pairs] = logits[rows, targets] - normaliser[rows]
        hits[pairs] = best[rows] == targets
    return log_probs, hits

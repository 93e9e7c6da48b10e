"""Engine: log-likelihoods of many requests under one live model after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tailorlib.evaluation.faults import is_out_of_memory, memory_figure, release_memory, where_it_breaks
from tailorlib.evaluation.forward import OWN_ATTENTION, hidden_states
from tailorlib.evaluation.packing import Layout, Plan, Request, plan
from tailorlib.evaluation.scoring import LOGITS_PER_CHUNK, score_pairs
from tailorlib.evaluation.states import Reuse, StateCache, Work, reusing, stride_for
from tailorlib.evaluation.workspace import Workspace
from tailorlib.exceptions import EvaluationError
from tailorlib.models.own_code import is_own_code

__all__ = ["CompiledRequests", "Engine", "Request", "Scores", "supports_packing"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

PACKED_ARCHITECTURES = frozenset(
    {
        *("cohere", "falcon", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "gpt_neox", "granite", "llama"),
        *("mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
    }
)
"""Model types whose packed and plain log-likelihoods are tested to agree."""


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

    def __init__(self, requests: Sequence[Request], build: Callable[[Layout], Plan], layout: Layout) -> None:
        self.requests = tuple(requests)
        self._build = build
        self._plan = build(layout)

    @property
    def plan(self) -> Plan:
        """The layout in use."""
        return self._plan

    @property
    def packed(self) -> bool:
        """Whether shared prefixes are computed once."""
        return self._plan.layout != "plain"

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
            self._plan = self._build("plain")

    def fit(self, tokens_per_batch: int) -> None:
        """Lay the requests out again if that was for larger batches."""
        if self._plan.tokens_per_batch > tokens_per_batch:
            self._plan = self._build(self._plan.layout)


class Engine:
    """Scores requests under live causal language models.

    Shared prefixes run once (for model types of which that is proven), the head is applied only where a token
    is scored, and nothing is tokenised or laid out twice in a study.

    Args:
        tokenizer: The base model's tokenizer.
        device: Where models and batches live.
        max_length: The models' context length; longer requests lose tokens from the left.
        tokens_per_batch: Largest number of tokens of a batch. It is halved, once and for good, if memory runs out.
        row_tokens: Length that packed rows are filled up to; by default what suits the layout.
        packing: Whether shared prefixes may be computed once.
        layout: How packed requests run; by default ``single`` on a CPU, where many small attentions are as fast
            as a large one, and ``rows`` elsewhere.
        state_bytes: Bytes for hidden states that are kept between candidates, on the device.
        host_state_bytes: The same on the host, for what has no room on the device.
        bytes_per_token: Bytes of a token's hidden state, if known, to find budgets early that hold no batch.
    """

    TOKENS_PER_BATCH: ClassVar[int] = 4096
    ROW_TOKENS: ClassVar[Mapping[Layout, int]] = {"single": 512, "rows": 256, "plain": 1}

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        max_length: int,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        *,
        row_tokens: int | None = None,
        packing: bool = True,
        layout: Layout | None = None,
        state_bytes: int = 0,
        host_state_bytes: int = 0,
        bytes_per_token: int = 0,
    ) -> None:
        if min(max_length, tokens_per_batch, 1 if row_tokens is None else row_tokens) < 1:
            raise ValueError(
                f"An engine's lengths are positive, got max_length={max_length}, "
                f"tokens_per_batch={tokens_per_batch}, row_tokens={row_tokens}."
            )
        self.tokenizer, self.device, self.max_length = tokenizer, torch.device(device), max_length
        self.tokens_per_batch, self.row_tokens = tokens_per_batch, row_tokens
        self.layout: Layout = layout or ("single" if self.device.type == "cpu" else "rows")
        if not packing:
            self.layout = "plain"
        self._halved, self._logits_per_chunk = False, LOGITS_PER_CHUNK
        self._unpacked: set[str] = set()
        self.states = StateCache(self.device, state_bytes, host_state_bytes)
        self._footprint, self._bytes_per_token = 0, bytes_per_token
        self.workspace = Workspace()
        """Memory that scorings write their logits to."""
        self.work = Work()
        """What all candidates took so far that were scored inside :meth:`reusing`."""

    def compile(self, requests: Sequence[Request]) -> CompiledRequests:
        """Lay requests out in batches, once per study.

        Raises:
            ValueError: If a context or continuation is empty, or a continuation exceeds ``max_length``.
            DataError: If the budget of hidden states has no room for a batch.
        """

        def build(layout: Layout) -> Plan:
            return plan(
                requests,
                max_length=self.max_length,
                tokens_per_batch=self.tokens_per_batch,
                row_tokens=min(self.row_tokens or self.ROW_TOKENS[layout], self.tokens_per_batch),
                layout=layout,
                device=self.device,
            )

        compiled = CompiledRequests(requests, build, self.layout)
        largest = max((batch.input_ids.numel() for batch in compiled.plan.batches), default=0)
        self.states.check(largest * self._bytes_per_token)
        return compiled

    @contextmanager
    def reusing(
        self, model: PreTrainedModel, prefixes: Sequence[str], needed: Iterable[str] = ()
    ) -> Iterator[None]:
        """Inside the ``with`` block, layers don't run whose output is known from an earlier candidate.

        Args:
            model: The live model.
            prefixes: Names of what its hidden states depend on after 0, 1, ... layers
                (:attr:`tailorlib.tailoring.Tailoring.prefixes`).
            needed: Those of them that a later candidate is known to share.
        """
        stride = stride_for(len(prefixes) - 1, self._footprint, self.states.budget)
        reuse = Reuse(self.states, prefixes, needed, stride)
        try:
            with reusing(model, reuse):
                yield
        finally:
            self._footprint = max(self._footprint, sum(reuse.footprint.values()))
            self.work += reuse.work

    @torch.inference_mode()
    def score(self, model: PreTrainedModel, compiled: CompiledRequests) -> Scores:
        """Return the log-likelihood of every request.

        Args:
            model: A causal language model in evaluation mode, on the engine's device.
            compiled: From :meth:`compile`.

        Raises:
            EvaluationError: If the model gives NaN, with the layer where it begins, or if memory runs out even
                with batches of half the size.
        """
        scores = self.run(model, compiled, partial(_score, model, compiled, self.workspace))
        bad = scores.log_likelihood.isnan()
        if bad.any():
            first = bad.nonzero()[0]
            batch = next(b for b in compiled.plan.batches if (b.pair_request == first).any())
            raise EvaluationError(where_it_breaks(model, lambda: hidden_states(model, batch)))
        return scores

    def run(self, model: PreTrainedModel, compiled: CompiledRequests, work: Callable[[int], T]) -> T:
        """Lay requests out as suits a model and do some work on their batches.

        Args:
            model: A causal language model in evaluation mode, on the engine's device.
            compiled: From :meth:`compile`.
            work: Goes through ``compiled.plan``, and gets the largest number of logits to hold at once. Should
                memory run out, it is called again with half of it and with smaller batches.

        Raises:
            EvaluationError: If memory runs out even with batches of half the size.
        """
        if compiled.packed and not supports_packing(model, compiled.plan.longest):
            self._say_unpacked(model.config.model_type)
            compiled.unpack()
        compiled.fit(self.tokens_per_batch)
        done, result = self._attempt(compiled, work)
        if not done:  # outside of the exception, which holds on to the memory
            compiled.fit(self.tokens_per_batch)
            _, result = self._attempt(compiled, work)
        return cast(T, result)

    def _attempt(self, compiled: CompiledRequests, work: Callable[[int], T]) -> tuple[bool, T | None]:
        """Work; if memory runs out for the first time, halve the batch size and say that it isn't done."""
        try:
            return True, work(self._logits_per_chunk)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            largest = max(batch.input_ids.numel() for batch in compiled.plan.batches)
            figure = f"Memory ran out with a batch of {largest} tokens: {memory_figure(error)}"
            if self._halved:
                raise EvaluationError(
                    f"{figure} The batch size was halved once, to {self.tokens_per_batch} tokens. Lower "
                    "study.tokens_per_batch or study.max_length, or take a smaller dtype."
                ) from error
        half = self.tokens_per_batch // 2
        self._halved, self.tokens_per_batch = True, max(1, half if half < largest else largest // 2)
        self._logits_per_chunk //= 2
        self.states.give_up()  # what it would take again is what was short
        self.workspace.clear()
        _log.warning("%s Batches have at most %d tokens from now on.", figure, self.tokens_per_batch)
        release_memory(self.device)
        return False, None

    def _say_unpacked(self, model_type: str) -> None:
        if model_type not in self._unpacked:
            self._unpacked.add(model_type)
            _log.warning(
                "Shared prefixes are computed once where that is known to change nothing; %s runs as plain rows. "
                "It is known of %s; not with ALiBi, nor beyond the length that positions were trained for, if "
                "their scaling depends on it.",
                model_type,
                ", ".join(sorted(PACKED_ARCHITECTURES)),
            )


def supports_packing(model: PreTrainedModel, longest: int) -> bool:
    """Say whether a model is known to score packed rows right.

    Args:
        model: A live causal language model.
        longest: Number of tokens of the longest text.
    """
    config = model.config
    if config.model_type not in PACKED_ARCHITECTURES or is_own_code(model):
        return False
    if config.model_type in OWN_ATTENTION and config._attn_implementation not in ("sdpa", "eager"):
        return False
    if getattr(config, "alibi", False) or getattr(config, "use_bidirectional_attention", False):
        return False
    types = getattr(config, "layer_types", None) or ()
    known = set(types) <= {"full_attention", "sliding_attention"}
    return known and not any(_depends_on_length(rope, config, longest) for rope in _rope_parameters(config))


def _rope_parameters(config: Any) -> list[Mapping[str, Any]]:
    """Return the settings of rotary positions, of which there may be one for each type of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in settings.values() if isinstance(value, Mapping)]
    return nested or [settings]


def _depends_on_length(rope: Mapping[str, Any], config: Any, longest: int) -> bool:
    """Say whether the positions of a text depend on how long its neighbours in a batch are."""
    if rope.get("rope_type") not in ("dynamic", "longrope"):
        return False
    trained = rope.get("original_max_position_embeddings") or config.max_position_embeddings
    return longest > int(trained)


def _score(
    model: PreTrainedModel, compiled: CompiledRequests, workspace: Workspace, logits_per_chunk: int
) -> Scores:
    batches = compiled.plan.batches
    log_likelihood = torch.zeros(len(compiled.requests), dtype=torch.float64)
    misses = torch.zeros(len(compiled.requests), dtype=torch.long)
    if batches:
        log_probs, greedy = zip(*score_pairs(model, batches, workspace, logits_per_chunk), strict=True)
        requests = torch.cat([batch.pair_request for batch in batches])
        # results stay on the device until the end: one synchronisation per scoring, not per batch
        log_likelihood.index_add_(0, requests, torch.cat(log_probs).to("cpu", torch.float64))
        misses.index_add_(0, requests, (~torch.cat(greedy)).to("cpu", torch.long))
    return Scores(log_likelihood=log_likelihood, greedy=misses == 0)

"""The two faces of a model that lm-eval needs to see: one that tokenises, one that repeats known answers.

This module imports lm-eval, which takes seconds: import it inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from tailorlib.evaluation.packing import Request

TEXT_ARGUMENTS = ("add_bos_token", "prefix_token_id", "enable_thinking", "think_end_token", "chat_template_args")
"""Arguments of lm-eval's Hugging Face model that concern text, not the model."""


class Encoder(HFLM):  # type: ignore[misc] # lm-eval is untyped here
    """lm-eval's Hugging Face model without a model: its tokenisation alone.

    Args:
        tokenizer: The tokenizer.
        max_length: Context length; rolling windows have this length.
        arguments: Some of :data:`TEXT_ARGUMENTS`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, arguments: Mapping[str, Any] | None = None
    ) -> None:
        LM.__init__(self)  # HFLM's would load a model
        given = dict(arguments or {})
        self.tokenizer = tokenizer
        self.backend = "causal"
        self._max_length = max_length
        self.batch_size_per_gpu = 1
        self._rank, self._world_size = 0, 1
        self.add_bos_token: bool | None = given.get("add_bos_token")
        self.custom_prefix_token_id: int | None = given.get("prefix_token_id")
        self.enable_thinking: bool | None = given.get("enable_thinking")
        self.chat_template_args: dict[str, Any] = dict(given.get("chat_template_args") or {})
        if self.enable_thinking is not None:
            self.chat_template_args["enable_thinking"] = self.enable_thinking
        self._encoded: list[Request] = []

    def encode(self, instance: Instance) -> list[Request]:
        """Return the requests of an lm-eval instance: one, or one per rolling window."""
        self._encoded = []
        getattr(self, instance.request_type)([instance], disable_tqdm=True)
        return self._encoded

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        self._encoded += [Request(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        return [(0.0, False)] * len(requests)


class Replay(LM):  # type: ignore[misc] # lm-eval is untyped here
    """A model that knows the answers.

    Args:
        answers: Log-likelihood and greedy flag by the ``id`` of the lm-eval instance.
        texts: What was generated, as often as it is asked for, by the ``id`` of the instance.
    """

    def __init__(
        self, answers: Mapping[int, tuple[float, bool]], texts: Mapping[int, Sequence[str]] | None = None
    ) -> None:
        super().__init__()
        self.answers = answers
        self.texts = {key: iter(found) for key, found in (texts or {}).items()}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return what is known of each instance."""
        return [self.answers[id(request)] for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood of each instance."""
        return [self.answers[id(request)][0] for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the next text of each instance."""
        return [next(self.texts[id(request)]) for request in requests]

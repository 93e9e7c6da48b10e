"""Text for perplexity and calibration: documents cut into windows of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from tailorlib.evaluation.packing import Request
from tailorlib.exceptions import DataError
from tailorlib.seeding import numpy_generator

_PIECE = 2**18
"""Characters of a document that are tokenised first; twice as many whenever they are not enough."""
_OVERLAP = 2**14
"""Characters after a beginning that decide whether its last tokens stand."""


@dataclass(frozen=True)
class Window:
    """A stretch of one document.

    Args:
        request: The stretch as a request: its tokens are scored after the context, one prefix token.
        num_bytes: Length of the stretch in UTF-8.
        document: Which document it is a stretch of.
        stop: Number of the document's characters up to its end.
    """

    request: Request
    num_bytes: int
    document: int
    stop: int


@dataclass(frozen=True)
class TextLoss:
    """How well a model predicts a text.

    Args:
        nats_per_token: Mean negative log-likelihood of a token.
        bits_per_byte: Negative log-likelihood in bits per byte of UTF-8: comparable between tokenizers.
    """

    nats_per_token: float
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        """The exponential of the nats per token; infinite where that overflows."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def probability(self) -> float:
        """Geometric mean of the tokens' probabilities, 1 / perplexity, in [0, 1]."""
        return math.exp(-self.nats_per_token)


def windows(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    context_length: int,
    max_tokens: int | None = None,
    seed: int = 0,
) -> list[Window]:
    """Cut documents into windows, and draw some of them.

    The documents come in a seeded order and give one window each, then another each, until ``max_tokens`` are
    reached: a budget smaller than the text sees as many documents as it can. A smaller budget's windows are
    the first ones of a larger budget's.

    Args:
        tokenizer: Tokenises each document on its own, without special tokens.
        documents: The text.
        context_length: Largest number of tokens that run in one window, the prefix token (the tokenizer's
            beginning of sequence, or else its end of sequence) not counted.
        max_tokens: Number of tokens to score, all windows together; the last window is cut to meet it exactly.
            ``None`` for all of the text.
        seed: Seed of the order.

    Raises:
        DataError: If no document has a token, or the tokenizer has no token to start with.
    """
    prefix = prefix_token(tokenizer)
    order = numpy_generator(seed, "windows").permutation(len(documents))
    pending = [_cut(tokenizer, documents[int(i)], int(i), context_length, prefix) for i in order]
    found: list[Window] = []
    left = math.inf if max_tokens is None else max_tokens
    while pending and left > 0:
        alive = []
        for cuts in pending:
            window = next(cuts, None)
            if window is None:
                continue
            if len(window.request.continuation) > left:
                window = _shorten(tokenizer, window, int(left))
            found.append(window)
            alive.append(cuts)
            left -= len(window.request.continuation)
            if left <= 0:
                break
        pending = alive
    if not found:
        raise DataError(f"A text has at least one token, got {len(documents)} documents without any.")
    return found


def text_loss(windows: Sequence[Window], log_likelihoods: Sequence[float]) -> TextLoss:
    """Return the loss over all windows from the log-likelihood (nats) of each."""
    nats = -math.fsum(log_likelihoods)
    tokens = sum(len(window.request.continuation) for window in windows)
    num_bytes = sum(window.num_bytes for window in windows)
    return TextLoss(nats_per_token=nats / tokens, bits_per_byte=nats / math.log(2) / max(1, num_bytes))


def prefix_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that stands before a text: beginning of sequence, or else end of sequence.

    Raises:
        DataError: If the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise DataError("A text starts with a BOS or EOS token, and the tokenizer has neither. Set its bos_token.")


def _cut(
    tokenizer: PreTrainedTokenizerBase, document: str, number: int, context_length: int, prefix: int
) -> Iterator[Window]:
    start = done = 0
    for beginning in _beginnings(tokenizer, document):
        ids = beginning.ids
        while start + context_length <= len(ids) or (beginning.complete and start < len(ids)):
            tokens = tuple(ids[start : start + context_length])
            start += len(tokens)
            end = len(document) if beginning.complete and start == len(ids) else beginning.end(start)
            yield Window(Request((prefix,), tokens), len(document[done:end].encode()), number, end)
            done = max(done, end)


@dataclass(frozen=True)
class _Beginning:
    """The first tokens of a document.

    Args:
        tokenizer: Made them.
        ids: The tokens.
        offsets: First character of each, and the one after its last, where the tokenizer says so.
        complete: Whether they are all of the document's.
    """

    tokenizer: PreTrainedTokenizerBase
    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]] | None
    complete: bool

    def end(self, number: int) -> int:
        """Return the number of characters that the first tokens stand for."""
        return (
            len(self.tokenizer.decode(self.ids[:number])) if self.offsets is None else self.offsets[number - 1][1]
        )


def first_tokens(tokenizer: PreTrainedTokenizerBase, document: str, number: int) -> Sequence[int]:
    """Return the first tokens of a document, without special tokens; no more of it is tokenised than is needed."""
    ids: Sequence[int] = ()
    for beginning in _beginnings(tokenizer, document):
        ids = beginning.ids
        if len(ids) >= number:
            break
    return ids[:number]


def _beginnings(tokenizer: PreTrainedTokenizerBase, document: str) -> Iterator[_Beginning]:
    """Yield longer and longer beginnings of a document's tokens, and all of them at last.

    A tokenizer takes 180 times the memory of a text. The last tokens of a beginning can differ from the
    document's, as a word is cut. So a longer beginning decides which tokens stand: those that both have.
    """
    length = _PIECE
    while document:
        encoding = tokenizer(
            document[: length + _OVERLAP], add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast
        )
        ids, offsets = encoding["input_ids"], encoding.get("offset_mapping")
        complete = length + _OVERLAP >= len(document)
        if not complete:
            shorter = tokenizer(document[:length], add_special_tokens=False)["input_ids"]
            pairs = enumerate(zip(ids, shorter, strict=False))
            stand = next((i for i, (one, other) in pairs if one != other), min(len(ids), len(shorter)))
            ids, offsets = ids[:stand], offsets and offsets[:stand]
        yield _Beginning(tokenizer, ids, offsets, complete)
        if complete:
            return
        length *= 2


def _shorten(tokenizer: PreTrainedTokenizerBase, window: Window, length: int) -> Window:
    tokens = window.request.continuation[:length]
    text = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    return replace(window, request=Request(window.request.context, tokens), num_bytes=len(text.encode()))

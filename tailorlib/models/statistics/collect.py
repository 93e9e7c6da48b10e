"""Collecting: calibration text runs through one model, and hooks on its layers add up what a merge will ask for.

======  ========================================================================================================
GRAM    (1 / n) sum_i x_i x_i^T over the n inputs x_i of a linear layer, [in, in] (RegMean, arXiv 2212.09849)
FISHER  sum_r (grad log p(row r))^2, entry by entry, for every parameter: the diagonal of the empirical Fisher
        information, divided by its norm over the whole model (arXiv 2111.09832, and its reference code)
======  ========================================================================================================

Both are computed in float32, whatever the data type of the search, so that every data type merges alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tailorlib.models.architecture import Architecture
from tailorlib.operation import Statistic

_TOKENS_PER_PASS = 4096
_IGNORED = -100

Advance = Callable[[], None]
"""Called after each row, for a progress bar."""


@dataclass(frozen=True)
class Collected:
    """A statistic of one model.

    Args:
        tensors: Float32 tensors by name in checkpoint files.
        aliases: Tensors whose statistic is that of another name, such as projections of one input.
    """

    tensors: dict[str, Tensor]
    aliases: dict[str, str] = field(default_factory=dict)


def collect(
    kind: Statistic,
    model: PreTrainedModel,
    architecture: Architecture,
    rows: Sequence[Sequence[int]],
    advance: Advance = lambda: None,
) -> Collected:
    """Run rows of tokens through a model and return a statistic of its tensors.

    Args:
        kind: Which statistic.
        model: A live float32 model in evaluation mode; nothing else uses it.
        architecture: Where its parts live.
        rows: Token ids, each row beginning with the token that stands before a text.
        advance: Called after each row.
    """
    return {Statistic.GRAM: _gram, Statistic.FISHER: _fisher}[kind](model, architecture, rows, advance)


def calibration_rows(
    documents: Iterable[Sequence[int]], prefix: int, tokens: int, context_length: int
) -> list[list[int]]:
    """Lay out the first tokens of a text in rows.

    The documents follow one another, the prefix token between them. Every row begins with the prefix token, as a
    model that was trained with one expects, also where it goes on with a document.

    Args:
        documents: Token ids of each document, in the text's order; read only as far as needed.
        prefix: The token that stands before a text.
        tokens: Number of the text's own tokens to take; all of them if there are fewer.
        context_length: Largest length of a row, the prefix token included; at least 2.

    Returns:
        Rows of ``context_length`` tokens; the last one may be shorter.
    """
    rows: list[list[int]] = []
    row, left = [prefix], tokens
    for document in documents:
        if len(row) > 1 and document:
            row.append(prefix)
        for token in document[:left]:
            if len(row) >= context_length:
                rows.append(row[:context_length])
                row = [prefix]
            row.append(token)
        left -= len(document[:left])
        if left == 0:
            break
    return [*rows, row] if len(row) > 1 else rows


class _Grams:
    """Sums of x x^T over the inputs x of linear layers; layers that get one tensor share a sum."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.aliases: dict[str, str] = {}
        self._inputs: list[tuple[Tensor, str]] = []  # of the decoder layer that runs, and whose they were first

    def observe(self, name: str) -> Callable[..., None]:
        """Return a hook for the linear layer whose weight has that name in files."""

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            first = next((other for seen, other in self._inputs if seen is args[0]), None)
            if first is None:
                self._inputs.append((args[0], name))
                self._add(name, args[0].flatten(0, -2))
            else:
                self.aliases[name] = first

        return hook

    def forget(self, *_: Any) -> None:
        """Let go of the inputs of a decoder layer; a hook for its end."""
        self._inputs.clear()

    def _add(self, name: str, x: Tensor) -> None:
        """Add inputs, [n, in]."""
        if name not in self.sums:
            self.sums[name], self.counts[name] = x.new_zeros(x.shape[1], x.shape[1]), 0
        self.sums[name].addmm_(x.T, x)
        self.counts[name] += len(x)


@torch.no_grad()
def _gram(
    model: PreTrainedModel, architecture: Architecture, rows: Sequence[Sequence[int]], advance: Advance
) -> Collected:
    grams, handles = _Grams(), []
    for i, layer in enumerate(model.get_submodule(architecture.layers)):
        handles.append(layer.register_forward_hook(grams.forget))
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):  # transformers' Conv1D keeps [in, out], which no merge could tell
                live = f"{architecture.layer_prefix(i)}{name}.weight"
                (stored,) = architecture.stored_shapes({live: tuple(module.weight.shape)})
                handles.append(module.register_forward_hook(grams.observe(stored)))
    try:
        for batch in row_batches(rows):
            model.get_decoder()(input_ids=torch.tensor(batch, device=model.device), use_cache=False)
            for _ in batch:
                advance()
    finally:
        for handle in handles:
            handle.remove()
    return Collected({name: total.div_(grams.counts[name]) for name, total in grams.sums.items()}, grams.aliases)


def row_batches(
    rows: Sequence[Sequence[int]], tokens: int = _TOKENS_PER_PASS
) -> Iterable[Sequence[Sequence[int]]]:
    """Yield rows of one length together, up to a number of tokens."""
    batch: list[Sequence[int]] = []
    for row in rows:
        if batch and (len(row) != len(batch[0]) or (len(batch) + 1) * len(row) > tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _fisher(
    model: PreTrainedModel, architecture: Architecture, rows: Sequence[Sequence[int]], advance: Advance
) -> Collected:
    """Square the gradient of one row at a time; each parameter's is added and freed as soon as it is there."""
    sums: dict[str, Tensor] = {}

    def add(total: Tensor) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            total.addcmul_(parameter.grad, parameter.grad)
            parameter.grad = None

        return hook

    handles = []
    for name, parameter in model.named_parameters():  # tied weights are one parameter
        parameter.requires_grad_(True)
        sums[name] = torch.zeros_like(parameter, requires_grad=False)
        handles.append(parameter.register_post_accumulate_grad_hook(add(sums[name])))
    try:
        for row in rows:
            with torch.enable_grad():
                _log_likelihood(model, row).backward()  # type: ignore[no-untyped-call]
            advance()
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(False)
    norm = math.hypot(*(float(torch.linalg.vector_norm(total, dtype=torch.float64)) for total in sums.values()))
    for total in sums.values():
        total.div_(norm or 1.0)
    return Collected({n: t for name, total in sums.items() for n, t in _stored(architecture, name, total).items()})


def _log_likelihood(model: PreTrainedModel, row: Sequence[int]) -> Tensor:
    """Return the log-likelihood of a row's tokens; the prefix token, which no text predicts, is not scored."""
    ids = torch.tensor([row], device=model.device)  # [1, length]
    logits = model(input_ids=ids, use_cache=False).logits
    labels = ids.masked_fill(ids == row[0], _IGNORED)
    return -nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=_IGNORED, reduction="sum")


def _stored(architecture: Architecture, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
    """Return a live tensor under its name in files; a stack of experts' matrices gives one for each."""
    shapes = architecture.stored_shapes({name: tuple(tensor.shape)})
    (shape,) = set(shapes.values())
    return dict(zip(shapes, tensor.reshape(len(shapes), *shape), strict=True))

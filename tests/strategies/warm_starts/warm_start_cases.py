"""What the tests of warm starts share: a text, spaces, and figures that transformers' own model gives."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from tailorlib_strategies.operations import LayerRemoval
from tailorlib_strategies.warm_starts.removals import Calibrated
from torch import Tensor, nn
from transformers import PreTrainedModel

from tailorlib import SearchSpace, Subset, Tailoring, TextSource, WarmStartContext

CPU = torch.device("cpu")


class Given(TextSource):
    def documents(self) -> Sequence[str]:
        return ["The quick brown fox jumps over the lazy dog. " * 3, "def add(a, b): return a + b\n" * 4]


class VaryingRemoval(LayerRemoval):
    """A removal of ``least`` to ``count`` layers."""

    def __init__(self, least: int, count: int, protect: list[int] | None = None) -> None:
        super().__init__(count=count, protect=protect)
        self.least = least

    def subset(self, num_layers: int) -> Subset:
        return Subset(len(self.removable(num_layers)), self.number(num_layers), self.least)


def in_space(context: WarmStartContext, space: SearchSpace) -> WarmStartContext:
    space.setup(context.family.layout)
    return replace(context, space=space)


def removed(tailoring: Tailoring, num_layers: int = 6) -> tuple[int, ...]:
    """Return the layers that a tailoring of one source per layer lacks."""
    kept = [plan.sources[0].layer for plan in tailoring.layers]
    assert kept == sorted(kept)
    return tuple(i for i in range(num_layers) if i not in kept)


def token_ids(start: Calibrated, context: WarmStartContext) -> list[Tensor]:
    """Return each window's tokens, [1, length], the one before the text first."""
    requests = [window.request for window in start.windows(context)]
    assert len(requests) >= 2
    return [torch.tensor([(*r.context, *r.continuation)]) for r in requests]


@torch.no_grad()
def states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the input of each layer and the output of the last, no norm applied, [layers + 1, length, hidden]."""
    bare = copy.deepcopy(model)
    bare.model.norm = nn.Identity()
    found = bare(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    return torch.cat(found).double()


def less(model: PreTrainedModel, gone: Collection[int]) -> PreTrainedModel:
    """Return a copy of a model that has some layers less."""
    cut = copy.deepcopy(model)
    cut.model.layers = nn.ModuleList(layer for i, layer in enumerate(cut.model.layers) if i not in gone)
    cut.config.num_hidden_layers = len(cut.model.layers)
    return cut


def loss(model: PreTrainedModel, windows: Sequence[Tensor]) -> Tensor:
    """Return nats per token of all tokens but the first of each window."""
    nats, tokens = torch.zeros((), dtype=torch.float64), 0
    for ids in windows:
        log_probs = model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        nats = nats - log_probs.gather(1, ids[0, 1:, None]).sum()
        tokens += ids.shape[1] - 1
    return nats / tokens

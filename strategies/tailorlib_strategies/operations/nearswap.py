"""NearSwap: the base moves towards a source, where they are near it is the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tailorlib import Float, MergeOperation, Params
from tailorlib_strategies.operations.blocks import Blocks, by_block
from tailorlib_strategies.operations.hyperparameters import Range, number, searched


class NearSwap(MergeOperation):
    """NearSwap of exactly one source: theta = theta_base + clamp(theta_1 - theta_base, -t, t), entry by entry.

    The weight t / |theta_1 - theta_base|, at most 1, of the original (huggingface.co/alchemonaut,
    QuartetAnemoi-70B-t0.0001) is this clamp. mergekit 0.1.5 puts 1e-6 in place of smaller distances, which differs
    for t below 1e-6.

    Args:
        t: The farthest that an entry moves; a number fixes it, a pair is searched on a logarithmic scale.
    """

    needs_base = True
    min_sources = 1
    max_sources = 1

    def __init__(self, t: Range = (1e-5, 1e-2)) -> None:
        self.t = searched("NearSwap.t", t, low=0.0, log=True)

    def distributions(self) -> Mapping[str, Float]:
        """Return the range of ``t``."""
        return {"t": self.t}

    def merge(
        self,
        tensors: Sequence[Tensor],
        *,
        base: Tensor | None,
        params: Params,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Return theta_base + clamp(delta_1, -t, t)."""
        assert base is not None
        t = max(0.0, number(params, "t"))

        def compute(pieces: Blocks) -> Tensor:
            origin, source = pieces
            return (source - origin).clamp_(-t, t).add_(origin)

        return by_block(compute, base, tensors[0])

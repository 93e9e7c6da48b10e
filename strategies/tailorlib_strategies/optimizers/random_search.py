"""RandomSearch: the control that every search has to beat."""

from __future__ import annotations

from tailorlib import Optimizer, Params


class RandomSearch(Optimizer):
    """Every proposal is drawn from the distributions, whatever was learnt."""

    supports = frozenset({"conditional", "subset", "batch", "fidelity", "multi_objective"})

    def _ask(self) -> Params:
        return self.space.sample(self.rng)

"""ParametersRemoved: how much smaller a candidate is than the dense base."""

from __future__ import annotations

from tailorlib import Tailoring
from tailorlib.objective import Candidate, Objective
from tailorlib.tailoring import BASE


class ParametersRemoved(Objective):
    """The share of the dense base's parameters that a candidate does without, in [0, 1).

    The search space has to leave the number of removed layers open, such as ``LayerRemoval(count=[2, 10])``.
    """

    @property
    def name(self) -> str:
        """What tables call it."""
        return "parameters_removed"

    def score(self, candidate: Candidate) -> float:
        """Return 1 - parameters / parameters of the dense base."""
        family = candidate.family
        dense = family.num_parameters(Tailoring.whole(BASE, family.layout.num_layers))
        return 1.0 - family.num_parameters(candidate.tailoring) / dense

"""An objective of one's own: the fewer models a candidate is made of, the fewer licences to read."""

from tailorlib import Candidate, Objective


class FewModels(Objective):
    """1 / number of models that give something."""

    def score(self, candidate: Candidate) -> float:
        """Return 1 for one model, 1/2 for two, and so on."""
        return 1 / len(set(candidate.tailoring.models))

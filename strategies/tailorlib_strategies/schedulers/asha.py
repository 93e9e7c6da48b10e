"""ASHA: successive halving without rounds that wait to be filled."""

from __future__ import annotations

from tailorlib.exceptions import RecipeError
from tailorlib.scheduler import Promotion, Scheduler
from tailorlib.trial import Trial
from tailorlib_strategies.schedulers.rungs import best_of, check_budget, check_settings, rungs


class ASHA(Scheduler):
    """Promotes whoever is among the best 1/eta of those seen on a rung so far, at once.

    Nobody waits for a round to fill, which keeps several ranks busy; in return a candidate may go on that would
    not have in the end. Li et al. 2020 (arXiv 1810.05934), algorithm 2.

    Args:
        eta: Ratio of one rung's samples to the next; one candidate of eta is promoted.
        min_samples: Samples on the lowest rung, at least; a 27th of all by default.

    Raises:
        RecipeError: If a setting is out of range.
    """

    def __init__(self, eta: float = 3.0, min_samples: int | None = None) -> None:
        faults = check_settings("ASHA", eta, min_samples)
        if faults:
            raise RecipeError(faults)
        self.eta, self.min_samples = eta, min_samples

    def _setup(self, budget: float) -> None:
        self._rungs = rungs("ASHA", self.samples, self.least, self.eta, self.min_samples)
        check_budget("ASHA", 1.0, budget, "take no scheduler")
        self._told: dict[int, list[tuple[float, int, str]]] = {rung: [] for rung in self._rungs}
        self._promoted: dict[int, set[str]] = {rung: set() for rung in self._rungs}

    def _start(self) -> int:
        return self._rungs[0]

    def _promote(self, count: int) -> list[Promotion]:
        found: list[Promotion] = []
        for k in range(len(self._rungs) - 2, -1, -1):  # the highest rung first
            rung = self._rungs[k]
            for digest in best_of(self._told[rung], int(len(self._told[rung]) / self.eta)):
                if len(found) < count and digest not in self._promoted[rung]:
                    self._promoted[rung].add(digest)
                    found.append(Promotion(digest, self._rungs[k + 1]))
        return found

    def _tell(self, trial: Trial) -> None:
        if trial.samples in self._told:
            self._told[trial.samples].append((trial.loss, trial.number, trial.tailoring.digest))

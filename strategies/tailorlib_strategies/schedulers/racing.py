"""Racing: a candidate is given up as soon as it can hardly reach the best one."""

from __future__ import annotations

import math
from collections import deque

from tailorlib.exceptions import RecipeError
from tailorlib.scheduler import Promotion, Scheduler
from tailorlib.trial import Trial
from tailorlib_strategies.schedulers.rungs import check_budget, check_settings, rungs


class Racing(Scheduler):
    """Scores each candidate on more and more samples, until it is too far behind the best one.

    On a rung of n samples candidate c lies D = loss_n(c) - loss_n(best) behind the best candidate on the same
    samples. What is still to come changes that by the difference of their gains, gain(c) = loss_N(c) - loss_n(c),
    whose spread is known from the candidates that went all the way:

        sigma_n = sqrt(mean over known c of (gain(c) - gain(best))^2).

    The candidate is given up when D > z sigma_n: if gains are normal, one that would have won is lost in at most
    1 - Phi(z) of the cases. As F-race (Birattari et al. 2002), with a bound that asks nothing of the fitness but
    its samples' order. No candidate waits for another.

    Args:
        eta: Ratio of one rung's samples to the next.
        min_samples: Samples on the lowest rung, at least; a 27th of all by default.
        z: Standard deviations that a candidate may be behind.
        warmup: Number of candidates that go all the way before any is given up.

    Raises:
        RecipeError: If a setting is out of range.
    """

    def __init__(self, eta: float = 3.0, min_samples: int | None = None, z: float = 1.5, warmup: int = 5) -> None:
        faults = check_settings("Racing", eta, min_samples)
        if not (z >= 0 and math.isfinite(z)):
            faults.append(f"Racing.z is a number of standard deviations, at least 0, got {z}.")
        if warmup < 2:
            faults.append(f"Racing.warmup is at least 2: a spread needs two candidates; got {warmup}.")
        if faults:
            raise RecipeError(faults)
        self.eta, self.min_samples, self.z, self.warmup = eta, min_samples, z, warmup

    def _setup(self, budget: float) -> None:
        self._rungs = rungs("Racing", self.samples, self.least, self.eta, self.min_samples)
        check_budget("Racing", self.warmup, budget, "lower Racing.warmup")
        self._losses: dict[str, dict[int, float]] = {}
        self._finished: list[str] = []
        self._queue: deque[Promotion] = deque()

    def _start(self) -> int:
        return self._rungs[0]

    def _promote(self, count: int) -> list[Promotion]:
        return [self._queue.popleft() for _ in range(min(count, len(self._queue)))]

    def _tell(self, trial: Trial) -> None:
        if trial.samples not in self._rungs or not math.isfinite(trial.loss):
            return
        digest, level = trial.tailoring.digest, self._rungs.index(trial.samples)
        self._losses.setdefault(digest, {})[trial.samples] = trial.loss
        if trial.samples == self.samples:
            self._finished.append(digest)
        elif not self._hopeless(self._losses[digest][trial.samples], trial.samples):
            self._queue.append(Promotion(digest, self._rungs[level + 1]))

    def _hopeless(self, loss: float, rung: int) -> bool:
        known = [self._losses[d] for d in self._finished if rung in self._losses[d]]
        if len(known) < self.warmup:
            return False
        best = min(known, key=lambda losses: losses[self.samples])
        gains = [losses[self.samples] - losses[rung] for losses in known if losses is not best]
        own = best[self.samples] - best[rung]
        sigma = math.sqrt(sum((gain - own) ** 2 for gain in gains) / len(gains))
        return loss - best[rung] > self.z * sigma

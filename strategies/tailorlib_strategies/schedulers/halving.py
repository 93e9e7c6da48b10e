"""Successive halving and Hyperband: rounds in which the better candidates get more samples."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import cycle

from tailorlib.exceptions import RecipeError
from tailorlib.scheduler import Promotion, Scheduler
from tailorlib.trial import Trial
from tailorlib_strategies.schedulers.rungs import best_of, check_budget, check_settings, rungs


class Bracket:
    """One round: candidates start on the lowest rung, and a fixed number of the best goes on from each.

    Args:
        rungs: Numbers of samples, ascending.
        sizes: Number of candidates on each rung.
    """

    def __init__(self, rungs: Sequence[int], sizes: Sequence[int]) -> None:
        self.rungs, self.sizes = tuple(rungs), tuple(sizes)
        self.given = 0
        """Places on the lowest rung that were given away."""
        self._level = 0
        self._due = self.sizes[0]
        self._told: list[tuple[float, int, str]] = []
        self._here: set[str] = set()
        self._promoted: deque[str] = deque()

    @property
    def cost(self) -> float:
        """What it takes, in samples."""
        below = (0, *self.rungs)
        return sum(n * (r - b) for n, r, b in zip(self.sizes, self.rungs, below, strict=False))

    @property
    def full(self) -> bool:
        """Whether no new candidate can enter."""
        return self.given == self.sizes[0] or self._level > 0

    @property
    def over(self) -> bool:
        """Whether its last rung is done."""
        return self._level == len(self.rungs)

    def promote(self) -> Promotion | None:
        """Return the next candidate that goes on to the rung that is open now."""
        return Promotion(self._promoted.popleft(), self.rungs[self._level]) if self._promoted else None

    def take(self, trial: Trial) -> bool:
        """Take a trial's result, if it belongs here."""
        digest = trial.tailoring.digest
        entering = self._level == 0 and len(self._told) < self.given
        if self.over or trial.samples != self.rungs[self._level] or not (entering or digest in self._here):
            return False
        self._told.append((trial.loss, trial.number, digest))
        self._here.discard(digest)
        if len(self._told) == self._due:
            self._rise()
        return True

    def close(self) -> None:
        """Go on with those that are there."""
        if self._level == 0 and not self.full:
            self.given = self._due = len(self._told)
            self._rise()

    def _rise(self) -> None:
        """Go to the next rung; where nobody succeeded the round is over."""
        self._level += 1
        best = [] if self.over else best_of(self._told, self.sizes[self._level])
        self._told, self._here, self._promoted, self._due = [], set(best), deque(best), len(best)
        if not best:
            self._level = len(self.rungs)


class _Rounds(Scheduler):
    """Brackets one after the other; a new one begins when the last one is full."""

    def _begin(self, kinds: Iterator[Bracket]) -> None:
        self._kinds = kinds
        self._open: list[Bracket] = []

    def _start(self) -> int:
        if not self._open or self._open[-1].full:
            self._open.append(next(self._kinds))
        self._open[-1].given += 1
        return self._open[-1].rungs[0]

    def _promote(self, count: int) -> list[Promotion]:
        found: list[Promotion] = []
        for bracket in self._open:  # the oldest first, so that it ends
            while len(found) < count and (promotion := bracket.promote()) is not None:
                found.append(promotion)
        return found

    def _tell(self, trial: Trial) -> None:
        for bracket in self._open:
            if bracket.take(trial):
                break
        self._open = [bracket for bracket in self._open if not bracket.over]

    def exhausted(self) -> None:
        """Close the brackets that wait for candidates."""
        for bracket in self._open:
            bracket.close()
        self._open = [bracket for bracket in self._open if not bracket.over]


class SuccessiveHalving(_Rounds):
    """Rounds of candidates of which the best 1/eta go on to eta times the samples, until all samples are used.

    Jamieson and Talwalkar 2016 (arXiv 1502.07943).

    Args:
        eta: Ratio of one rung's samples to the next, and of the candidates' numbers.
        min_samples: Samples on the lowest rung, at least; a 27th of all by default.
        size: Candidates in a round; eta to the number of steps by default, so that one reaches all samples.

    Raises:
        RecipeError: If a setting is out of range.
    """

    def __init__(self, eta: float = 3.0, min_samples: int | None = None, size: int | None = None) -> None:
        faults = check_settings("SuccessiveHalving", eta, min_samples)
        if size is not None and size < 1:
            faults.append(f"SuccessiveHalving.size is a positive number of candidates, got {size}.")
        if faults:
            raise RecipeError(faults)
        self.eta, self.min_samples, self.size = eta, min_samples, size

    def _setup(self, budget: float) -> None:
        steps = rungs("SuccessiveHalving", self.samples, self.least, self.eta, self.min_samples)
        size = self.size or round(self.eta ** (len(steps) - 1))
        sizes = [max(1, math.floor(size / self.eta**k + 1e-9)) for k in range(len(steps))]
        cost = Bracket(steps, sizes).cost / self.samples
        check_budget("SuccessiveHalving", cost, budget, "lower SuccessiveHalving.size")
        self._begin(Bracket(steps, sizes) for _ in iter(int, 1))


class Hyperband(_Rounds):
    """Successive halving from several lowest rungs in turn, from many candidates on few samples to few on all.

    It hedges against samples that are too few to tell candidates apart. Li et al. 2018 (arXiv 1603.06560),
    algorithm 1; with eta 3 it is the schedule of the GPTailor paper.

    Args:
        eta: Ratio of one rung's samples to the next.
        min_samples: Samples on the lowest rung, at least; a 27th of all by default.

    Raises:
        RecipeError: If a setting is out of range.
    """

    def __init__(self, eta: float = 3.0, min_samples: int | None = None) -> None:
        faults = check_settings("Hyperband", eta, min_samples)
        if faults:
            raise RecipeError(faults)
        self.eta, self.min_samples = eta, min_samples

    def _setup(self, budget: float) -> None:
        steps = rungs("Hyperband", self.samples, self.least, self.eta, self.min_samples)
        top = len(steps) - 1
        kinds = []
        for s in range(top, -1, -1):
            size = math.ceil((top + 1) / (s + 1) * self.eta**s - 1e-9)
            sizes = [max(1, math.floor(size / self.eta**k + 1e-9)) for k in range(s + 1)]
            kinds.append((steps[top - s :], sizes))
        cost = Bracket(*kinds[0]).cost / self.samples
        check_budget("Hyperband", cost, budget, "raise Hyperband.min_samples")
        self._begin(Bracket(*kind) for kind in cycle(kinds))

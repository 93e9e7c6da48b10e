"""Arms: how trials are shared out between kinds of steps, by what each has brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tailorlib_strategies.optimizers.variation import Arm

FAILURES = 4
"""After so many trials in a row without a better candidate, steps stay nearer."""
MEMORY = 0.9
"""What an arm brought counts so much less with each trial of it: what was good at first is used up later."""
LEAST = 0.35
"""Share of the cost that an arm gets at least, where there are two."""


class Arms:
    """Decides which half of a candidate a trial changes, and how far it goes.

    What removals are worth and what merges are worth differs by orders of magnitude, and one wrong removal can
    spoil a candidate. Changed together, the small effects drown, and a model that is afraid of removals changes
    none. So a trial changes one of the halves. Each gets a share of the cost in proportion to what it improved per
    cost lately; a wrong removal that a scheduler stops early costs little, so more of them are tried.

    Args:
        arms: The halves that there are.
        radius: Largest number of steps of each at first.
    """

    def __init__(self, arms: Sequence[Arm], radius: Mapping[Arm, int]) -> None:
        self._radius = radius
        self._reach = {arm: float(radius[arm]) for arm in arms}
        self._failures = dict.fromkeys(arms, 0)
        self._gains = dict.fromkeys(arms, 0.0)
        self._costs = dict.fromkeys(arms, 0.0)
        self._spent = dict.fromkeys(arms, 0.0)

    def draw(self, rng: np.random.Generator) -> Arm | None:
        """Return the arm that has got least of what is due to it, ``None`` where there is none."""
        if len(self._reach) < 2:
            return next(iter(self._reach), None)
        cost = sum(self._costs.values())
        mean = sum(self._gains.values()) / cost if cost else 0.0
        worth = {a: (self._gains[a] + 2 * mean + 1e-12) / (self._costs[a] + 2) for a in self._reach}
        shares = {a: min(max(w / sum(worth.values()), LEAST), 1 - LEAST) for a, w in worth.items()}
        # a little chance, so that candidates of one batch don't all change the same half
        due = {a: (self._spent[a] + rng.random()) / share for a, share in shares.items()}
        return min(due, key=lambda arm: due[arm])

    def reach(self, arm: Arm | None) -> int:
        """Return the largest number of steps of an arm's next trial."""
        return 1 if arm is None else max(1, round(self._reach[arm]))

    def pay(self, arm: Arm, cost: float, *, new: bool) -> None:
        """Count what a trial cost.

        Args:
            arm: What it changed.
            cost: Share of all samples that it was scored on, beyond those of an earlier trial of the candidate.
            new: Whether it is the candidate's first trial.
        """
        if new:
            self._costs[arm] *= MEMORY
            self._gains[arm] *= MEMORY
        self._costs[arm] += cost
        self._spent[arm] += cost

    def pass_over(self, arm: Arm) -> None:
        """Count a turn that came to nothing new: once its steps are used up, an arm would be due for ever."""
        self._spent[arm] += 1

    def judge(self, arm: Arm, gain: float) -> None:
        """Learn what came of a trial.

        Args:
            arm: What it changed.
            gain: By how much it is better than all before; 0 if it isn't.
        """
        if gain > 0:
            self._gains[arm] += gain
            self._reach[arm] = min(2 * self._reach[arm], 4.0 * self._radius[arm])
            self._failures[arm] = 0
            return
        self._failures[arm] += 1
        if self._failures[arm] >= FAILURES:
            self._reach[arm], self._failures[arm] = max(1.0, self._reach[arm] / 2), 0

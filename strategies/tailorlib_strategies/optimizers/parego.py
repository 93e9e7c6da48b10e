"""ParEGO: several objectives for any optimizer of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tailorlib import Optimizer, Params, SearchSpace, Trial
from tailorlib.exceptions import RecipeError
from tailorlib.seeding import numpy_generator, seed_for
from tailorlib_strategies.optimizers.told import Key


class ParEGO(Optimizer):
    """Random scalarisations of several objectives, each searched by an optimizer of one (Knowles 2006).

    For each proposal a weight vector w is drawn uniformly from the simplex, and the losses are scaled to [0, 1]
    over what was told: f. The scalar loss is the augmented Tchebycheff function
    ``max_j w_j f_j + rho * sum_j w_j f_j`` (Knowles, "ParEGO", IEEE Trans. Evol. Comp. 10(1), 2006, equation 2;
    there w is drawn from a lattice). Its minima over all w are the Pareto front, concave parts included.

    The inner optimizer is set up anew for each proposal, with a seed of its own, and told everything that is
    known: the n-th proposal costs n tells, and what the inner one learns over many asks (step sizes, a trust
    region) starts afresh. Model-based optimizers are made for that; a (1+1) evolution strategy then takes one
    first step from the best candidate. Of candidates told repeatedly the latest counts. Those asked for and not
    told yet are told to the inner optimizer as the worst so far, so that it looks elsewhere.

    Args:
        optimizer: Searches for one objective.
        rho: Weight of the sum, at least 0; above 0 it keeps weakly dominated candidates from tying.

    Raises:
        RecipeError: If ``rho`` is negative.
    """

    supports = frozenset({"conditional", "subset", "batch", "fidelity", "multi_objective"})
    """With an inner optimizer that handles conditional parameters and subsets; an instance knows its own."""

    def __init__(self, optimizer: Optimizer, rho: float = 0.05) -> None:
        if not (math.isfinite(rho) and rho >= 0):
            raise RecipeError(f"ParEGO.rho is a finite number of at least 0, got {rho}.")
        self.optimizer, self.rho = optimizer, rho
        self.supports = optimizer.supports | {"multi_objective", "fidelity", "batch"}

    def _setup(self, space: SearchSpace, seed: int) -> None:
        self._seed, self._asked = seed, 0
        self._weights = numpy_generator(seed, "parego", "weights")
        self._trials: dict[Key, Trial] = {}
        self._pending: dict[Key, Params] = {}
        self.optimizer.setup(space, seed)  # refuses now what it can't search

    def _tell(self, trial: Trial) -> None:
        key = frozenset(trial.params.items())
        self._trials[key] = trial
        self._pending.pop(key, None)

    def _ask(self) -> Params:
        self.optimizer.setup(self.space, seed_for(self._seed, "parego", self._asked) % 2**31)
        self._asked += 1
        number = len(self.objectives)
        told = list(self._trials.values())
        losses = scalarised([t.losses for t in told], self._weights.dirichlet(np.ones(number)).tolist(), self.rho)
        for trial, loss in zip(told, losses, strict=True):
            self.optimizer.tell(replace(trial, fitness=None if math.isinf(loss) else -loss, objectives={}))
        worst = max((loss for loss in losses if math.isfinite(loss)), default=math.inf)
        for params in self._pending.values():
            self.optimizer.tell(self._liar(params, worst))
        params = self.optimizer.ask()
        self._pending[frozenset(params.items())] = params
        return params

    def _liar(self, params: Params, loss: float) -> Trial:
        """Return a made-up trial of a candidate that is not told yet."""
        failed = math.isinf(loss)
        return Trial(
            number=len(self._trials),
            params=params,
            tailoring=self.space.decode(params),
            state="failed" if failed else "complete",
            fitness=None if failed else -loss,
            reason="not told yet" if failed else None,
        )


def scalarised(losses: Sequence[Sequence[float]], weights: Sequence[float], rho: float) -> list[float]:
    """Return the augmented Tchebycheff value of each vector of losses (Knowles 2006, equation 2).

    Args:
        losses: Losses of each trial, all lower is better; infinite ones of trials that failed.
        weights: One for each objective, that sum to 1.
        rho: Weight of the sum.

    Returns:
        A value for each trial, at least 0; infinite for failed ones.
    """
    finite = np.array([row for row in losses if all(map(math.isfinite, row))])
    if not len(finite):
        return [math.inf] * len(losses)
    low, width = finite.min(0), np.ptp(finite, axis=0)
    width[width == 0] = 1.0
    found: list[float] = []
    for row in losses:
        if not all(map(math.isfinite, row)):
            found.append(math.inf)
            continue
        weighted = np.asarray(weights) * (np.asarray(row) - low) / width
        found.append(float(weighted.max() + rho * weighted.sum()))
    return found

"""StructuredBayes: a Bayesian linear model of what each layer and each source is worth."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tailorlib import Optimizer, Params
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError
from tailorlib.search_space import SearchSpace
from tailorlib.seeding import numpy_generator
from tailorlib.trial import Trial
from tailorlib_strategies.optimizers.arms import Arms
from tailorlib_strategies.optimizers.features import Features, Valuation
from tailorlib_strategies.optimizers.linear_model import LinearModel, clipped, standardised
from tailorlib_strategies.optimizers.neighbourhood import Neighbourhood
from tailorlib_strategies.optimizers.variation import Arm, Genome, Variation

Vector = NDArray[np.float64]
Key = frozenset[tuple[str, ParamValue]]
FIRST_VARIANCES = (0.1, 0.03, 0.03, 0.02, 0.01, 0.002, 0.002, 0.002, 0.05, 0.05)
"""Of the weights in each group of features, and of the noise; losses have variance 1."""
CLIP = 4.0
"""What is worse than the best by so many times the median's distance is hopeless, and need not be told apart."""

ATTEMPTS = 8
"""How often a step to a new candidate is tried in one way."""


class StructuredBayes(Optimizer):
    """Thompson sampling with a Bayesian linear model over layers, neighbouring layers and sources.

    What a tailoring loses is nearly a sum over its layers and sources, and a source or an operation is worth
    about the same in all layers, so few trials tell much
    (:class:`~tailorlib_strategies.optimizers.features.Features`). The posterior of a linear model is known in
    closed form, and its prior variances are those of largest evidence
    (:class:`~tailorlib_strategies.optimizers.linear_model.LinearModel`); the noise of a trial is larger by as
    much as it was scored on fewer samples. A proposal takes one draw of the posterior and goes downhill from one
    of the best candidates by typed steps, at most ``radius`` of them: in hundreds of dimensions a draw is wrong
    far away. The radius grows after a success and shrinks after failures, as in TuRBO (arXiv 1910.01739). Failed
    candidates count as bad ones. A proposal changes either which layers there are or what they are made of, each
    in proportion to what it brought (:class:`~tailorlib_strategies.optimizers.arms.Arms`).

    Args:
        starts: Number of trials before the model is used; those that warm starts don't fill are single steps from
            the best.
        radius: Largest number of steps from a known candidate, at first.
        tries: Number of steps that are tried for each that is taken.
        elite: Number of candidates to start from.
        swap: Probability that a tried step exchanges a removed layer.
        nudge: Probability of the other steps that they move a number.
        spread: Probability of the other steps that a run of layers takes them over.
        temper: Factor of a draw's distance from the posterior mean: 1 is Thompson sampling, 0 trusts the mean.

    Raises:
        RecipeError: If a number is out of range.
    """

    supports = frozenset({"conditional", "subset", "batch", "fidelity"})

    def __init__(
        self,
        starts: int = 8,
        radius: int = 4,
        tries: int = 64,
        elite: int = 3,
        swap: float = 0.35,
        nudge: float = 0.25,
        spread: float = 0.1,
        temper: float = 0.5,
    ) -> None:
        least = {"starts": starts, "radius": radius, "tries": tries, "elite": elite}
        faults = [f"StructuredBayes.{k} is at least 1, got {v}." for k, v in least.items() if v < 1]
        faults += [
            f"StructuredBayes.{k} is a probability, got {v}."
            for k, v in (("swap", swap), ("nudge", nudge), ("spread", spread))
            if not 0 <= v <= 1
        ]
        if not 0 <= temper < math.inf:
            faults.append(f"StructuredBayes.temper is a number from 0, got {temper}.")
        if faults:
            raise RecipeError(faults)
        self.starts, self.radius, self.tries, self.elite = starts, radius, tries, elite
        self.swap, self.nudge, self.spread, self.temper = swap, nudge, spread, temper

    def _setup(self, space: SearchSpace, seed: int) -> None:
        self._variation = Variation(space, self.swap, self.nudge, self.spread)
        self._features = Features(space)
        self._model = LinearModel(self._features.groups, FIRST_VARIANCES)
        self._neighbourhood = Neighbourhood(
            self._variation, self._features, numpy_generator(seed, "neighbourhood")
        )
        self._rows: dict[Key, int] = {}
        self._losses: list[float] = []
        self._fidelities: list[float] = []
        self._genomes: list[Genome] = []
        self._seen: set[Key] = set()
        self._arms = Arms(self._variation.arms, {"layers": max(1, self.radius // 2), "plans": self.radius})
        self._made: dict[Key, Arm] = {}

    def _tell(self, trial: Trial) -> None:
        key = frozenset(trial.params.items())
        self._seen.add(key)
        gain = self._gain(trial, key)
        own = trial.origin == "optimizer"  # a warm start says nothing of how far a proposal may go
        if key in self._rows:
            at = self._rows[key]
            if key in self._made:
                self._arms.pay(self._made[key], max(0.0, trial.fidelity - self._fidelities[at]), new=False)
            self._losses[at], self._fidelities[at] = trial.loss, trial.fidelity
            if key in self._made and gain > 0:  # it had its chance to fail when it was told first
                self._arms.judge(self._made[key], gain)
            return
        if not self._rows and not own:
            self._features.settle(trial.params)
        self._rows[key] = len(self._losses)
        self._model.add(self._features.cells(trial.params))
        self._losses.append(trial.loss)
        self._fidelities.append(trial.fidelity)
        self._genomes.append(self._variation.genome(trial.params))
        if key in self._made:
            self._arms.pay(self._made[key], trial.fidelity, new=True)
            self._arms.judge(self._made[key], gain)

    def _gain(self, trial: Trial, key: Key) -> float:
        """Return by how much a trial is better than all others, 0 if it isn't.

        It is one on as many samples as any: on fewer, somebody may only have been lucky.
        """
        if trial.fidelity < max(self._fidelities, default=0.0) or not math.isfinite(trial.loss):
            return 0.0
        others = [
            loss
            for i, (loss, fidelity) in enumerate(zip(self._losses, self._fidelities, strict=True))
            if fidelity >= trial.fidelity and i != self._rows.get(key) and math.isfinite(loss)
        ]
        return max(0.0, min(others) - trial.loss) if others else 0.0

    def _ask(self) -> Params:
        works = [i for i, loss in enumerate(self._losses) if math.isfinite(loss)]
        if len(works) < 2:
            return self._new(self.space.sample(self.rng))
        losses, valuation = np.array(self._losses), None
        if len(works) >= self.starts:
            targets, noise = standardised(clipped(losses, CLIP)), 1 / np.array(self._fidelities)
            self._model.fit(targets, noise)
            valuation = Valuation(self._features, self._model.draw(targets, noise, self.rng, temper=self.temper))
            losses = self._model.predicted(targets, noise)  # who was only lucky is no place to start from
        best = sorted(works, key=lambda i: (float(losses[i]), i))[: self.elite]
        arm: Arm | None = None
        for attempt in range(3 * ATTEMPTS):  # a known candidate teaches nothing: go further each time
            if attempt == ATTEMPTS and arm is not None:
                self._arms.pass_over(arm)
            start = dict(self._genomes[best[int(self.rng.integers(len(best)))]])
            arm = self._arms.draw(self.rng) if attempt < ATTEMPTS else None  # then steps of any kind, then blindly
            guide = valuation if attempt < 2 * ATTEMPTS else None
            steps = 1 + attempt % ATTEMPTS + int(self.rng.integers(1 if guide is None else self._arms.reach(arm)))
            params = self.space.active(self._moved(start, guide, steps, arm))
            if frozenset(params.items()) not in self._seen:
                break
        if valuation is not None and arm is not None:
            self._made[frozenset(params.items())] = arm
        return self._new(params)

    def _moved(self, genome: Genome, valuation: Valuation | None, steps: int, arm: Arm | None) -> Genome:
        if valuation is not None:
            return self._neighbourhood.descend(genome, valuation, steps, self.tries, self.rng, arm)
        for _ in range(steps):
            self._variation.step(genome, self.rng)
        return genome

    def _new(self, params: Params) -> Params:
        self._seen.add(frozenset(params.items()))
        return params

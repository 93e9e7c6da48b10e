# ruff: noqa: T201
"""Compare optimizers on a synthetic landscape of the paper's search space; run it as a script.

30 layers, 8 removed, 3 candidates, task arithmetic and TIES. The loss adds up over layers (the ends are dear to
remove, each fine-tune helps or hurts a layer), with a penalty for removed neighbours and for seams between unlike
neighbours, and noise that is fixed per candidate, as of a finite sample of questions. Every search starts from one
decent point. Reported is the noise-free loss of the incumbent, which the search picks by noisy losses.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from tailorlib_strategies.operations import TIES, LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import Nevergrad, RandomSearch
from tailorlib_strategies.optimizers.encoding import EDGE, NORMAL, NormalEncoding
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import FamilyLayout, LayerPlan, LayerSource, Optimizer, Params, Tailoring, Trial
from tailorlib.seeding import numpy_generator
from tailorlib.trial import incumbent

L, R, CANDIDATES = 30, 8, ("a", "b", "c")


class Landscape:
    """Loss of a tailoring; the seed draws the family."""

    def __init__(self, seed: int) -> None:
        rng = numpy_generator("landscape", seed)
        depth = np.linspace(-1, 1, L)
        self.importance = 0.06 + 0.5 * np.abs(depth) ** 4 + rng.gamma(2.0, 0.03, L)
        self.guess = self.importance + rng.normal(0, 0.05, L)  # what a calibration sees of it
        self.gain = rng.normal(0.004, 0.012, (L, len(CANDIDATES)))
        self.best_density = rng.uniform(0.3, 0.9, L)
        self.seed = seed

    def start(self, scale: float = 0.35) -> Tailoring:
        """The least important layers removed as calibration sees it, all candidates merged uniformly."""
        gone = set(np.argsort(self.guess)[:R].tolist())
        return Tailoring(
            tuple(
                LayerPlan(
                    tuple(LayerSource(c, i) for c in CANDIDATES),
                    "TaskArithmetic",
                    (("scale", scale),),
                    LayerSource("base", i),
                )
                for i in range(L)
                if i not in gone
            )
        )

    def weights(self, plan: LayerPlan) -> np.ndarray:
        """How much of each candidate's task vector a layer has."""
        w = np.array([float(any(s.model == c for s in plan.sources)) for c in CANDIDATES])
        params = dict(plan.params)
        if plan.operation == "TaskArithmetic":
            return w * float(params["scale"])
        if plan.operation == "TIES":
            miss = float(params["density"]) - self.best_density[plan.sources[0].layer]
            return w * float(params["scale"]) / max(w.sum(), 1) * 1.6 * (1 - miss**2)
        return w

    def loss(self, tailoring: Tailoring) -> float:
        """The noise-free loss, nats per token."""
        kept = [plan.sources[0].layer for plan in tailoring.layers]
        gone = np.array([i not in kept for i in range(L)])
        loss = 3.265 + self.importance[gone].sum() + 0.04 * (gone[1:] & gone[:-1]).sum()
        weights = [self.weights(plan) for plan in tailoring.layers]
        for i, w in zip(kept, weights, strict=True):
            loss += -(self.gain[i] * w).sum() * 2 + 0.006 * w.sum() ** 2 - 0.006 * w.sum()
        return loss + 0.003 * sum(np.abs(a - b).sum() for a, b in pairwise(weights))

    def measured(self, tailoring: Tailoring, sigma: float) -> float:
        """The loss with the noise of a finite sample, the same for the same candidate."""
        return self.loss(tailoring) + sigma * numpy_generator(self.seed, tailoring.digest).standard_normal()


class HillClimbing(Optimizer):
    """A yardstick: (1+1) over the distributions' own mutations, one to three active parameters at a time."""

    def _setup(self, space, seed):
        self.best = None

    def _ask(self) -> Params:
        if self.best is None:
            return self.space.sample(self.rng)
        child = dict(self.best[1])
        distributions = self.space.distributions()
        for _ in range(min(self.rng.integers(1, 4, 2))):
            names = ["removed"] * (len(child) // 5) + list(child)
            name = names[int(self.rng.integers(len(names)))]
            child[name] = distributions[name].mutate(child[name], self.rng)
        return child

    def _tell(self, trial):
        if self.best is None or trial.loss <= self.best[0]:
            self.best = (trial.loss, trial.params)


class FixedPlaces(NormalEncoding):
    """An ablation: every value at the middle of its cell, so that the keys of a subset are tied."""

    def encode(self, params: Params) -> list[float]:
        full = self.space.complete(params)
        places = [u for name, d in self.space.distributions().items() for u in d.encode(full[name])]
        return [NORMAL.inv_cdf(min(max(u, EDGE), 1 - EDGE)) for u in places]


class NevergradOnFixedPlaces(Nevergrad):
    def _setup(self, space, seed):
        super()._setup(space, seed)
        self._encoding = FixedPlaces(space, self.rng)


def run(make: Callable[[], Optimizer], seed: int, trials: int, noise: float) -> tuple[float, float, float]:
    """Return start, found (noise-free), and how many layers a child differs from the incumbent on average."""
    landscape = Landscape(seed)
    space = PruningSpace(LayerRemoval(count=R), merges=[TaskArithmetic(), TIES()])
    space.setup(FamilyLayout(CANDIDATES, L, ("full_attention",) * L))
    optimizer = make()
    optimizer.setup(space, seed)
    start = landscape.start()
    told = [Trial(0, space.encode(start), start, "complete", -landscape.measured(start, noise))]
    optimizer.tell(told[0])
    changed = []
    for number in range(1, trials):
        params = optimizer.ask()
        tailoring = space.decode(params)
        best = incumbent(told)
        changed.append(len(set(tailoring.layers) ^ set(best.tailoring.layers)) / 2)
        told.append(Trial(number, params, tailoring, "complete", -landscape.measured(tailoring, noise)))
        optimizer.tell(told[-1])
    return landscape.loss(start), landscape.loss(incumbent(told).tailoring), float(np.median(changed))


NAMES = (
    "DiscreteOnePlusOne",
    "OnePlusOne",
    "FastGADiscreteOnePlusOne",
    "PortfolioDiscreteOnePlusOne",
    "DiscreteLenglerOnePlusOne",
    "DiscreteDoerrOnePlusOne",
    "RecombiningPortfolioDiscreteOnePlusOne",
    "AnisotropicAdaptiveDiscreteOnePlusOne",
    "TinyLognormalDiscreteOnePlusOne",
    "OptimisticDiscreteOnePlusOne",
    "DE",
    "TwoPointsDE",
    "CMA",
    "NGOpt",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--noise", type=float, default=0.004, help="standard deviation of a measured loss")
    parser.add_argument("--names", nargs="*", default=list(NAMES))
    arguments = parser.parse_args()
    makes: dict[str, Callable[[], Optimizer]] = {"(hill climbing)": HillClimbing, "(random)": RandomSearch}
    makes |= {"(DiscreteOnePlusOne, keys tied)": NevergradOnFixedPlaces}
    makes |= {"(DiscreteOnePlusOne, repeats allowed)": lambda: Nevergrad("DiscreteOnePlusOne", retries=0)}
    makes |= {n: lambda n=n: Nevergrad(n, budget=arguments.trials) for n in arguments.names}
    print(f"{arguments.seeds} seeds, {arguments.trials} trials; gain over the start in nats, higher is better")
    print(
        f"{'optimizer':42} {'mean':>7} {'sd':>7} {'min':>7} {'max':>7} {'layers/child':>12} {'s/trial':>8}"
        f" {'paired difference to the yardstick':>34}"
    )
    yardstick: np.ndarray | None = None
    for name, make in makes.items():
        began = time.perf_counter()
        try:
            results = [run(make, seed, arguments.trials, arguments.noise) for seed in range(arguments.seeds)]
        except Exception as error:
            print(f"{name:42} {type(error).__name__}: {error}")
            continue
        seconds = (time.perf_counter() - began) / arguments.seeds / arguments.trials
        gains = np.array([start - found for start, found, _ in results])
        changed = np.mean([c for _, _, c in results])
        yardstick = gains if yardstick is None else yardstick
        error = (gains - yardstick).std(ddof=1) / len(gains) ** 0.5
        print(
            f"{name:42} {gains.mean():7.4f} {gains.std(ddof=1):7.4f} {gains.min():7.4f} {gains.max():7.4f} "
            f"{changed:12.1f} {seconds:8.3f} {(gains - yardstick).mean():24.4f} ± {error:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Synthetic landscapes with a known optimum, to hold optimizers against in seconds.

A landscape scores tailorings that remove some layers of a base model, and make each other layer from the base,
from a candidate, or from a merge of several. Its figures have the size of those measured on small models, in
nats per token. What is best is known exactly, so that a search is judged by its regret::

    landscape = Neighbours(seed=0)
    space.setup(landscape.layout)
    landscape.regret(space.decode(optimizer.ask()))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from tailorlib.distributions import Scalar
from tailorlib.search_space import FamilyLayout
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import BASE, SELECT, LayerPlan, LayerSource, Tailoring

Vector = NDArray[np.float64]
Mix = tuple[tuple[str, ...], str]
"""The models of a layer, and the operation that merges them."""

Ranges = Mapping[str, tuple[float, float]]
"""The hyperparameters of a merge by name, each with its range."""

MERGES: Mapping[str, Ranges] = {
    "TaskArithmetic": {"scale": (0.0, 1.0)},
    "TIES": {"density": (0.2, 1.0), "scale": (0.0, 1.5)},
}
"""Merges with what is searched of them, as the built-in ones of that name have by default."""
FIXED: Mapping[str, Mapping[str, Scalar]] = {"TIES": {"normalize": True, "rescale": "none"}}
"""Hyperparameters that stand in every plan, by merge."""
DENSE = -3.265
"""The score of the base model as it is: nats per token, negated."""


class Landscape:
    """A score that adds up over layers, and over neighbours in subclasses; higher is better.

    A removed layer costs its importance, which is largest at both ends. A kept one brings what its models and its
    operation are worth there, less a parabola in each hyperparameter around the best place. Models and operations
    are worth about the same in all layers. All of it is drawn from the seed.

    Args:
        seed: Draws the family.
        layers: Number of layers of the base.
        removed: Number of layers that go.
        candidates: Names of the candidates.
        noise: Standard deviation of a score that is measured on all samples.
        samples: Number of samples there are.
        merges: Merges of two or more candidates, by name, with the ranges of their hyperparameters.
    """

    def __init__(
        self,
        seed: int,
        *,
        layers: int = 32,
        removed: int = 8,
        candidates: Sequence[str] = ("a", "b", "c"),
        noise: float = 0.0,
        samples: int = 256,
        merges: Mapping[str, Ranges] = MERGES,
    ) -> None:
        self.seed, self.removed, self.noise, self.samples = seed, removed, noise, samples
        self.layout = FamilyLayout(tuple(candidates), layers, ("full_attention",) * layers)
        self.merges = merges
        self.mixes: tuple[Mix, ...] = (
            *(((model,), SELECT) for model in self.layout.models),
            *(
                (models, operation)
                for size in range(2, len(candidates) + 1)
                for models in combinations(candidates, size)
                for operation in merges
            ),
        )
        """All that a kept layer can be, but for hyperparameters."""
        self._index = {mix: m for m, mix in enumerate(self.mixes)}
        self._draw(numpy_generator("landscape", type(self).__name__, seed))

    def _draw(self, rng: np.random.Generator) -> None:
        layers, candidates = self.layout.num_layers, self.layout.candidates
        depth = np.linspace(-1, 1, layers)
        self.importance = 0.06 + 0.5 * depth**4 + rng.gamma(2.0, 0.03, layers)
        """What removing a layer costs, [layers]."""
        common = rng.normal(0.004, 0.008, len(candidates))
        alone = common + rng.normal(0.0, 0.012, (layers, len(candidates)))
        operation = dict(zip(self.merges, rng.normal(0.0, 0.005, len(self.merges)), strict=True))
        self.worth = np.zeros((layers, len(self.mixes)))
        """What a mix brings at its best hyperparameters, [layers, mixes]."""
        for m, (models, name) in enumerate(self.mixes):
            if name != SELECT:
                parts = alone[:, [candidates.index(model) for model in models]]
                own = rng.normal(0.0, 0.004, layers)
                self.worth[:, m] = 0.6 * (parts + 0.008).sum(axis=1) + operation[name] + own
            elif models != (BASE,):
                self.worth[:, m] = alone[:, candidates.index(models[0])]
        self.places = {
            (operation, name): np.clip(rng.uniform(0.3, 0.7) + rng.normal(0, 0.12, layers), 0.02, 0.98)
            for operation, ranges in self.merges.items()
            for name in ranges
        }
        """The best place of a hyperparameter in its range, in [0, 1], by operation and name, each [layers]."""
        self.curvature = 0.06
        """What a hyperparameter at the wrong end of its range costs."""
        self.adjacent = np.zeros(layers - 1)
        """What removing both layers i and i + 1 costs beyond each, [layers - 1]."""
        self.seams = np.zeros((len(self.mixes), len(self.mixes)))
        """What two mixes cost as neighbours, [mixes, mixes]."""
        self.guess = self.importance + rng.normal(0, 0.05, layers)
        """What a calibration sees of the importance, [layers]."""

    def score(self, tailoring: Tailoring) -> float:
        """Return the score without noise.

        Raises:
            ValueError: If the tailoring isn't one of the landscape's.
        """
        kept = [plan.sources[0].layer for plan in tailoring.layers]
        gone = sorted(set(range(self.layout.num_layers)) - set(kept))
        if len(gone) != self.removed or sorted(set(kept)) != kept:
            raise ValueError(
                f"A landscape scores tailorings without {self.removed} of {self.layout.num_layers} layers, got "
                f"one of the layers {kept}. Search with LayerRemoval(count={self.removed})."
            )
        mixes = [self._mix(plan) for plan in tailoring.layers]
        hyperparameters = sum(self._misplaced(plan) for plan in tailoring.layers)
        worth = float(self.worth[kept, mixes].sum()) if kept else 0.0
        seams = sum(float(self.seams[a, b]) for a, b in pairwise(mixes))
        return DENSE - self._cost(gone) + worth - seams - hyperparameters

    def measure(self, tailoring: Tailoring, samples: int | None = None) -> float:
        """Return the score as seen on the first samples.

        It is the mean of one value a sample, each drawn from (seed, tailoring, sample): the same samples give the
        same values again, and more of them come nearer to the score.

        Args:
            tailoring: The candidate.
            samples: How many first samples; all by default.

        Raises:
            ValueError: If there aren't as many samples.
        """
        count = self.samples if samples is None else samples
        if not 1 <= count <= self.samples:
            raise ValueError(f"A score is measured on 1 to {self.samples} samples, got {count}.")
        exact = self.score(tailoring)
        if not self.noise:
            return exact
        drawn = numpy_generator("noise", self.seed, tailoring.digest).standard_normal(self.samples)
        return exact + self.noise * math.sqrt(self.samples) * float(drawn[:count].mean())

    @cached_property
    def optimum(self) -> Tailoring:
        """The tailoring of highest score, found by dynamic programming over the layers."""
        # per state (mix of the last kept layer or -1, whether the layer below is gone, how many are gone) the best
        # value so far, and the choices that led there: a mix per layer, or -1 for removed
        states: dict[tuple[int, bool, int], tuple[float, tuple[int, ...]]] = {(-1, False, 0): (0.0, ())}
        for i in range(self.layout.num_layers):
            found: dict[tuple[int, bool, int], tuple[float, tuple[int, ...]]] = {}
            for (last, below_gone, count), (value, choices) in states.items():
                options = [(m, self.worth[i, m] - (self.seams[last, m] if last >= 0 else 0.0)) for m in self._all]
                if count < self.removed:
                    options.append((-1, -self.importance[i] - (self.adjacent[i - 1] if below_gone else 0.0)))
                for choice, gain in options:
                    state = (last, True, count + 1) if choice < 0 else (choice, False, count)
                    total = value + float(gain)
                    if state not in found or total > found[state][0]:
                        found[state] = (total, (*choices, choice))
            states = found
        _, choices = max(v for (_, _, count), v in states.items() if count == self.removed)
        return self.tailoring(choices)

    @cached_property
    def best(self) -> float:
        """The score of the optimum."""
        return self.score(self.optimum)

    def regret(self, tailoring: Tailoring) -> float:
        """Return how much the optimum is better, without noise; 0 for the optimum."""
        return self.best - self.score(tailoring)

    @cached_property
    def start(self) -> Tailoring:
        """A decent start: the least important layers as a calibration sees it are gone, the rest is merged."""
        gone = np.argsort(self.guess, kind="stable")[: self.removed].tolist()
        layers = range(self.layout.num_layers)
        names, operation = self.mixes[-len(self.merges)] if self.merges else self.mixes[0]
        plan = {name: 0.35 * high for name, (_, high) in self.merges.get(operation, {}).items()}
        return Tailoring(tuple(_plan(names, operation, i, plan) for i in layers if i not in gone))

    def tailoring(self, choices: Sequence[int]) -> Tailoring:
        """Return the tailoring with the best hyperparameters.

        Args:
            choices: Per layer the index of its mix in :attr:`mixes`, or -1 if it is removed, [layers].
        """
        plans = []
        for i, m in enumerate(choices):
            if m >= 0:
                models, operation = self.mixes[m]
                ranges = self.merges.get(operation, {})
                at = {n: low + (high - low) * self.places[operation, n][i] for n, (low, high) in ranges.items()}
                plans.append(_plan(models, operation, i, at))
        return Tailoring(tuple(plans))

    @property
    def _all(self) -> range:
        return range(len(self.mixes))

    def _cost(self, gone: Sequence[int]) -> float:
        """Return what removing layers costs."""
        neighbours = sum(float(self.adjacent[a]) for a, b in pairwise(gone) if b == a + 1)
        return float(self.importance[list(gone)].sum()) + neighbours

    def _mix(self, plan: LayerPlan) -> int:
        mix = (tuple(source.model for source in plan.sources), plan.operation)
        if mix not in self._index:
            raise ValueError(f"A layer of this landscape is one of {list(self.mixes)}, got {mix}.")
        return self._index[mix]

    def _misplaced(self, plan: LayerPlan) -> float:
        """Return what a layer's hyperparameters cost."""
        params, cost = dict(plan.params), 0.0
        for name, (low, high) in self.merges.get(plan.operation, {}).items():
            value = params[name]
            assert isinstance(value, int | float)
            off = (value - low) / (high - low) - self.places[plan.operation, name][plan.sources[0].layer]
            cost += self.curvature * float(off) ** 2
        return cost


class Additive(Landscape):
    """Everything adds up over the layers."""


class Neighbours(Landscape):
    """Neighbours interact: two removed ones cost more (at times less), and unlike kept ones have a seam."""

    def _draw(self, rng: np.random.Generator) -> None:
        super()._draw(rng)
        self.adjacent = rng.normal(0.04, 0.04, self.layout.num_layers - 1)
        vectors = np.array([[float(c in models) for c in self.layout.candidates] for models, _ in self.mixes])
        unlike = np.array([[float(a[1] != b[1]) for b in self.mixes] for a in self.mixes])
        self.seams = 0.003 * np.abs(vectors[:, None] - vectors[None]).sum(axis=2) + 0.002 * unlike


class Deceptive(Landscape):
    """The layers that are cheapest one by one are dear together, and others are cheap only as a block.

    As many layers as go form the *trap*: each seems free, but every pair of them that is removed costs 0.02
    more. Four other layers form the *block*: each costs 0.2 or more, all four together nothing. So the best
    tailoring without the block is a local optimum: no exchange of one layer leaves it.
    """

    def _draw(self, rng: np.random.Generator) -> None:
        super()._draw(rng)
        layers = self.layout.num_layers
        inner = rng.permutation(np.arange(layers // 8, layers - layers // 8))
        size = min(4, self.removed)
        if len(inner) < self.removed + size:
            needed = next(n for n in range(layers, 4 * layers + 64) if n - 2 * (n // 8) >= self.removed + size)
            raise ValueError(
                f"A deceptive landscape that removes {self.removed} layers needs {needed} layers, got {layers}."
            )
        self.trap = tuple(sorted(int(i) for i in inner[: self.removed]))
        """Layers that seem free."""
        self.block = tuple(sorted(int(i) for i in inner[self.removed :][:size]))
        """Layers that are free only together."""
        self.importance[list(self.trap)] = 0.02 + 0.02 * rng.random(self.removed)
        self.importance[list(self.block)] = 0.2 + 0.02 * rng.random(size)
        self.guess = self.importance + rng.normal(0, 0.02, layers)

    def _cost(self, gone: Sequence[int]) -> float:
        trapped = len(set(gone) & set(self.trap))
        blocked = len(set(gone) & set(self.block))
        return super()._cost(gone) + self._together(trapped, blocked)

    def _together(self, trapped: int, blocked: int) -> float:
        """Return what removed layers cost beyond each alone, given how many of them are in the trap and block."""
        saved = float(self.importance[list(self.block)].sum()) if blocked == len(self.block) else 0.0
        return 0.02 * math.comb(trapped, 2) - saved

    @cached_property
    def optimum(self) -> Tailoring:
        """The tailoring of highest score, over how many layers go of the trap, of the block and of the rest."""
        return max((self.tailoring(self._cheapest(t, b)) for t, b in self._counts()), key=self.score)

    @cached_property
    def decoy(self) -> Tailoring:
        """The best tailoring that keeps the block: where a search without bold steps ends."""
        return max((self.tailoring(self._cheapest(t, b)) for t, b in self._counts() if not b), key=self.score)

    def _counts(self) -> list[tuple[int, int]]:
        rest = self.layout.num_layers - len(self.trap) - len(self.block)
        return [
            (t, b)
            for t in range(len(self.trap) + 1)
            for b in range(len(self.block) + 1)
            if 0 <= self.removed - t - b <= rest
        ]

    def _cheapest(self, trapped: int, blocked: int) -> list[int]:
        """Return the choices that remove the cheapest layers, so many of the trap and of the block."""
        best = self.worth.argmax(axis=1)
        cost = self.importance + self.worth.max(axis=1)
        others = [i for i in range(self.layout.num_layers) if i not in (*self.trap, *self.block)]
        gone: list[int] = []
        for group, count in (
            (self.trap, trapped),
            (self.block, blocked),
            (others, self.removed - trapped - blocked),
        ):
            gone += sorted(group, key=lambda i: float(cost[i]))[:count]
        return [-1 if i in gone else int(best[i]) for i in range(self.layout.num_layers)]


class Noisy(Landscape):
    """Everything adds up, and what is measured has a standard deviation of 0.02 on all samples."""

    def __init__(self, seed: int, *, noise: float = 0.02, **settings: object) -> None:
        super().__init__(seed, noise=noise, **settings)  # type: ignore[arg-type]


LANDSCAPES: Mapping[str, type[Landscape]] = {
    "additive": Additive,
    "neighbours": Neighbours,
    "deceptive": Deceptive,
    "noisy": Noisy,
}
"""The landscapes by name."""


def _plan(models: Sequence[str], operation: str, layer: int, params: Mapping[str, float]) -> LayerPlan:
    sources = tuple(LayerSource(model, layer) for model in models)
    if operation == SELECT:
        return LayerPlan(sources)
    values = (*params.items(), *FIXED.get(operation, {}).items())
    return LayerPlan(sources, operation, values, LayerSource(BASE, layer))

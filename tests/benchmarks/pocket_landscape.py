# ruff: noqa: T201
"""What the pocket family's landscape is like: whether there is something for a search to find.

Prints what each layer is worth, and how random removals, selections and merges spread, in the search's fitness
and in a test that no search sees; and how long a trial takes. ::

    python tests/benchmarks/pocket_landscape.py --cache FOLDER
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pocket_family import DOMAINS, PocketFamily, add_arguments, made_by, prepared, show_models, study_parts
from scipy.stats import spearmanr
from tailorlib_strategies.operations import TaskArithmetic
from tailorlib_strategies.optimizers import RandomSearch

from tailorlib.search.evaluator import Evaluator
from tailorlib.search.proposer import Proposer
from tailorlib.search.study import Benchmark, Study, StudySettings
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Tailoring
from tailorlib.trial import Trial

LEAST_GAIN = 0.02
"""Score, relative to the base's, by which a search can do better than chance at least."""


class Figures(NamedTuple):
    """What a tailoring reaches.

    Args:
        search: Score in the search.
        test: Score in the test.
        nats: Nats per token of the test, mean of the domains.
    """

    search: float
    test: float
    nats: float


class Look:
    """What the family's landscape is like.

    Args:
        made: The family on disk.
        ratio: Share of layers to remove.
        number: Number of random tailorings of each kind.
    """

    def __init__(self, made: PocketFamily, ratio: float, number: int) -> None:
        self.made, self.number = made, number
        parts = study_parts(made, ratio)
        self.study = Study(
            parts.family,
            parts.space,
            RandomSearch(),
            parts.fitness,
            StudySettings(trials=number),
            benchmark=Benchmark(parts.test),
        )
        self.engine = prepared(self.study)
        self.fitness, self.test = parts.fitness, parts.test
        self.layers = self.study.family.layout.num_layers
        self.kept = self.layers - round(ratio * self.layers)
        for fitness in (self.fitness, self.test):
            fitness.set_reference(fitness.evaluate(self.study.family.stitch(self.study.dense)))

    def score(self, tailoring: Tailoring) -> Figures:
        """Return the score in the search, that in the test, and nats per token of the test (domains' mean)."""
        model = self.study.family.stitch(tailoring)
        with self.engine.reusing(model, tailoring.prefixes):
            search = self.fitness.evaluate(model).score
        found = self.test.evaluate(model)
        return Figures(search, found.score, statistics.mean(found.metrics[f"{d}/nats_per_token"] for d in DOMAINS))

    def leave_one_out(self) -> list[Figures]:
        """Score the base without each of its layers."""
        return [self.score(selection(set(range(self.layers)) - {i})) for i in range(self.layers)]

    def removals(self) -> list[Tailoring]:
        """Draw removals from the base, all different."""
        rng, found = numpy_generator("pocket", "removals"), dict[frozenset[int], Tailoring]()
        while len(found) < min(self.number, math.comb(self.layers, self.kept)):
            layers = frozenset(int(i) for i in rng.choice(self.layers, self.kept, replace=False))
            found.setdefault(layers, selection(set(layers)))
        return list(found.values())

    def selections(self, layers: set[int]) -> list[Tailoring]:
        """Draw the model that each kept layer comes from."""
        rng, names = numpy_generator("pocket", "selections"), (BASE, *DOMAINS)
        return [
            selection(layers, {i: names[int(rng.integers(len(names)))] for i in layers})
            for _ in range(self.number)
        ]

    def everything(self, scale: float) -> Tailoring:
        """Return all variants merged, whole."""
        return Tailoring(
            tuple(
                merged(tuple(LayerSource(name, i) for name in DOMAINS), LayerSource(BASE, i), scale)
                for i in range(self.layers)
            )
        )

    def merges(self, layers: set[int]) -> list[Tailoring]:
        """Draw which variants are merged into each kept layer, by task arithmetic with equal weights."""
        rng, found = numpy_generator("pocket", "merges"), []
        for _ in range(self.number):
            plans = []
            for i in sorted(layers):
                chosen = [d for d in DOMAINS if rng.random() < 0.7] or [DOMAINS[0]]
                sources = tuple(LayerSource(name, i) for name in chosen)
                plans.append(merged(sources, LayerSource(BASE, i), float(rng.uniform(0.2, 1.0))))
            found.append(Tailoring(tuple(plans)))
        return found

    def speed(self, trials: int) -> dict[str, list[float]]:
        """Return the milliseconds that each trial of a random search takes: proposal, stitching and scoring."""
        evaluator = Evaluator(self.study, self.engine)
        proposer = Proposer(self.study.space, self.study.optimizer, seed=0)
        found: dict[str, list[float]] = {"by the clock": [], "of the processor": []}
        for number in range(trials):
            started = time.perf_counter(), time.process_time()
            (proposal,) = proposer.propose(1)
            (outcome,) = evaluator.evaluate([proposal.tailoring])
            assert not isinstance(outcome.measurement, str), outcome.measurement
            score = outcome.measurement.score
            proposer.tell([Trial(number, proposal.params, proposal.tailoring, "complete", score)])
            found["by the clock"].append(1000 * (time.perf_counter() - started[0]))
            found["of the processor"].append(1000 * (time.process_time() - started[1]))
        return found


def selection(layers: set[int], models_of_layers: Mapping[int, str] | None = None) -> Tailoring:
    """Return some layers in their order, each of the base or of the model that is named."""
    owner = models_of_layers or {}
    return Tailoring(tuple(LayerPlan((LayerSource(owner.get(i, BASE), i),)) for i in sorted(layers)))


def merged(sources: tuple[LayerSource, ...], base: LayerSource, scale: float) -> LayerPlan:
    """Return a merge of some layers by task arithmetic."""
    return LayerPlan(sources, TaskArithmetic.name, (("scale", scale),), base)


def show(look: Look, trials: int) -> list[str]:
    """Print what the landscape is like; return what makes it unfit for comparing searches."""
    print(f"\nsearch: {look.fitness.num_samples} windows, {look.fitness.tokens} tokens; ", end="")
    print(f"test: {look.test.num_samples} windows, {look.test.tokens} tokens; scores are relative to the base\n")
    print(f"{'':40s}{'search score':>14s}{'test score':>14s}{'nats, test':>14s}")
    row("dense", look.score(look.study.dense))
    row("dense, all variants merged by half", look.score(look.everything(0.5)))
    for name in DOMAINS:
        row(f"dense, {name}", look.score(Tailoring.whole(name, look.layers)))
    for i, figures in enumerate(look.leave_one_out()):
        row(f"without layer {i}", figures)
    print(f"\n{look.layers - look.kept} of {look.layers} layers removed, {look.number} draws of each kind\n")
    tailorings = look.removals()
    removals = [look.score(tailoring) for tailoring in tailorings]
    best = max(range(len(removals)), key=lambda i: removals[i].search)
    layers = {plan.sources[0].layer for plan in tailorings[best].layers}
    spread("removals from the base", removals)
    row(f"the best: layers {' '.join(map(str, sorted(layers)))}", removals[best])
    selections, merges = ([look.score(t) for t in kind(layers)] for kind in (look.selections, look.merges))
    spread("these layers, selected", selections)
    spread("these layers, merged", merges)
    for name, kind in {"removals": removals, "selections": selections, "merges": merges}.items():
        rho = spearmanr([f.search for f in kind], [f.test for f in kind]).statistic
        print(f"rank correlation of search and test among {name}: {rho:.2f}")
    show_speed(look, trials)
    return faults_of(removals, removals[best], [*selections, *merges])


def faults_of(removals: Sequence[Figures], best: Figures, others: Sequence[Figures]) -> list[str]:
    """Say on which counts a search has nothing to find, by figures that it doesn't see."""
    faults = []
    typical = statistics.median(f.test for f in removals)
    if best.test < typical + LEAST_GAIN:
        faults.append(f"the best removal is no better than a typical one ({best.test:.3f} and {typical:.3f})")
    if max(f.search for f in others) < best.search + LEAST_GAIN:
        faults.append("no selection and no merge is better than the base's layers")
    return faults


def show_speed(look: Look, trials: int) -> None:
    """Print how long a trial takes, by the clock and of the processor."""
    for name, times in look.speed(trials).items():
        print(f"a trial of a random search, {name}: mean {statistics.mean(times):.1f} ms, ", end="")
        print(f"median {statistics.median(times):.1f}, least {min(times):.1f} ({trials} trials, one thread)")


def row(name: str, found: Figures) -> None:
    """Print one line of the table."""
    print(f"{name:40s}" + "".join(f"{value:14.3f}" for value in found), flush=True)


def spread(name: str, found: Sequence[Figures]) -> None:
    """Print median, standard deviation and extremes of each figure."""
    for what, pick in {
        "median": statistics.median,
        "deviation": statistics.stdev,
        "least": min,
        "most": max,
    }.items():
        row(f"{name}, {what}", Figures(*(float(pick(values)) for values in zip(*found, strict=True))))


def main() -> None:
    """Make the family and look at it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--number", type=int, default=30, help="of random tailorings of each kind")
    parser.add_argument("--trials", type=int, default=100, help="of a random search, to be timed")
    args = parser.parse_args()
    made = made_by(args)
    torch.set_num_threads(1)
    faults = [*show_models(made), *show(Look(made, args.ratio, args.number), args.trials)]
    if faults:
        raise SystemExit("not fit for comparing searches: " + "; ".join(faults))


if __name__ == "__main__":
    main()

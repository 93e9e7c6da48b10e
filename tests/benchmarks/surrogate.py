# ruff: noqa: T201
"""A surrogate of a real family's fitness, fitted to all evaluations that comparisons have made.

    python tests/benchmarks/surrogate.py fit FOLDER/evaluations.sqlite tests/benchmarks/surrogates/pocket.json
    python tests/benchmarks/surrogate.py fit scores.jsonl.gz tests/benchmarks/surrogates/smollm2.json
    python tests/benchmarks/surrogate.py search tests/benchmarks/surrogates/pocket.json --names SMAC Evolution

``fit`` fits ridge regression on features of layers and neighbours to four fifths of the candidates, and states the
rank correlation on the rest. It takes candidates and their scores as ``family_searches.py --scores`` writes them,
or a store: there the fitness of the most candidates, and the mean log-likelihood of its samples. ``search`` lets
optimizers search the surrogate, in seconds. What it says of optimizers holds as far as the surrogate holds: it is
a sum over layers and pairs of neighbours, which suits some of them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from evaluations import Evaluations
from scipy.stats import spearmanr
from searches import Setting, add_plugins, check_plugins, run_search
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import FamilyLayout, Fitness, Tailoring
from tailorlib.seeding import numpy_generator

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Penalties that are tried on a part of the training candidates."""
HOPELESS = 4.0
"""Scores that lie further behind the best by that many times the median's distance are cut off: how bad a broken
model is doesn't matter."""


@dataclass(frozen=True)
class Surrogate:
    """A linear model of a family's fitness.

    Args:
        candidates: Names of the candidates.
        layers: Number of layers of the base.
        removed: Number of layers that are removed.
        weights: Weight of each feature, the constant first.
        rank_correlation: Spearman's, on candidates that it was not fitted to.
        fitted: Number of candidates that it was fitted to.
        held_out: Number of those it was tested on.
    """

    candidates: tuple[str, ...]
    layers: int
    removed: int
    weights: tuple[float, ...]
    rank_correlation: float
    fitted: int
    held_out: int

    def score(self, tailoring: Tailoring) -> float:
        """Return the fitness that it expects."""
        return float(features(tailoring, self.candidates, self.layers) @ np.array(self.weights))

    @classmethod
    def read(cls, path: Path) -> Surrogate:
        """Read a surrogate that :func:`fit` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "candidates": tuple(data["candidates"]), "weights": tuple(data["weights"])})


def features(tailoring: Tailoring, candidates: Sequence[str], layers: int) -> np.ndarray:
    """Return what the model sees.

    Removed layers, and two or three of them in a row; how much of each candidate a layer has, and its square; the
    seams between layers that follow each other.
    """
    gone = np.ones(layers)
    share = np.zeros((layers, len(candidates)))
    for plan in tailoring.layers:
        at = plan.sources[0].layer
        gone[at] = 0.0
        scale = float(dict(plan.params).get("scale", 1.0))  # type: ignore[arg-type]
        for source in plan.sources:
            if source.model in candidates:
                share[at, candidates.index(source.model)] = scale
    kept = [plan.sources[0].layer for plan in tailoring.layers]
    seams = np.zeros(layers)
    for below, above in pairwise(kept):
        seams[above] = np.abs(share[below] - share[above]).sum()
    total = share.sum(axis=1)
    runs = np.concatenate([gone[1:] * gone[:-1], gone[2:] * gone[1:-1] * gone[:-2]])
    return np.concatenate([[1.0], gone, runs, share.ravel(), (share**2).ravel(), total**2, seams])


def fit(rows: np.ndarray, scores: np.ndarray, ridge: float) -> np.ndarray:
    """Return the weights of ridge regression; the constant is not penalised."""
    scale = rows.std(axis=0)
    scale[scale == 0] = 1.0
    scaled = rows / scale
    penalty = np.full(rows.shape[1], ridge)
    penalty[0] = 1e-9
    weights: np.ndarray = np.linalg.solve(scaled.T @ scaled + np.diag(penalty), scaled.T @ scores) / scale
    return weights


def scored(source: Path) -> list[tuple[Tailoring, float]]:
    """Return candidates and scores out of a store, or of a file of scores."""
    if source.suffix == ".gz":
        with gzip.open(source, "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file][1:]  # the first says what they are
        return [(Tailoring.from_dict(line["tailoring"]), line["score"]) for line in lines]
    store = Evaluations(source)
    family, fitness, _, _ = max(store.studies(), key=lambda study: study[2])
    every = store.samples(family, fitness)
    found = [(Tailoring.from_dict(data), results) for data, results in store.candidates(family, fitness, every)]
    dense = max(found, key=lambda pair: len(pair[0].layers))[1]
    return [(tailoring, _score(results, dense)) for tailoring, results in found]


def fitted(source: Path, removed: int | None) -> Surrogate:
    """Fit a surrogate."""
    found = scored(source)
    layers = max(len(tailoring.layers) for tailoring, _ in found)  # the dense base is one of them
    sizes = [layers - len(tailoring.layers) for tailoring, _ in found]
    wanted = removed or max(set(sizes) - {0}, key=sizes.count)
    found = [pair for pair, size in zip(found, sizes, strict=True) if size == wanted]
    names = sorted({s.model for t, _ in found for plan in t.layers for s in plan.sources} - {"base"})
    scores = np.array([score for _, score in found])
    best = float(scores.max())
    scores = np.maximum(scores, best - HOPELESS * (best - float(np.median(scores))))
    rows = np.stack([features(tailoring, names, layers) for tailoring, _ in found])
    order = numpy_generator("surrogate").permutation(len(rows))
    test, train = order[: len(rows) // 5], order[len(rows) // 5 :]
    part = len(train) // 5
    ridge = max(RIDGES, key=lambda r: _correlation(rows, scores, train[part:], train[:part], r))
    weights = fit(rows[train], scores[train], ridge)
    correlation = float(spearmanr(rows[test] @ weights, scores[test]).statistic)
    return Surrogate(
        tuple(names),
        layers,
        wanted,
        tuple(weights.round(6).tolist()),
        round(correlation, 4),
        len(train),
        len(test),
    )


def _correlation(rows: np.ndarray, scores: np.ndarray, train: np.ndarray, test: np.ndarray, ridge: float) -> float:
    return float(spearmanr(rows[test] @ fit(rows[train], scores[train], ridge), scores[test]).statistic)


def _score(results: Sequence[Any], dense: Sequence[Any]) -> float:
    """Return the mean log-likelihood of a sample, less the dense model's, in nats."""
    return float(np.mean([_first(r) for r in results]) - np.mean([_first(r) for r in dense]))


def _first(result: Any) -> float:
    """Return the first number of a sample's result: the log-likelihood of a window."""
    while isinstance(result, list | tuple):
        result = result[0]
    return float(result)


class _Whole(Fitness):
    """One sample: the surrogate's score."""


def search(surrogate: Surrogate, names: Sequence[str], budget: int, seeds: int) -> None:
    """Let optimizers search the surrogate, and print what they find."""
    layout = FamilyLayout(surrogate.candidates, surrogate.layers, ("full_attention",) * surrogate.layers)
    print(f"{'optimizer':40} {'best':>20} {'s/search':>9}")
    for name in names:
        began, ends = time.perf_counter(), []
        for seed in range(seeds):
            space = PruningSpace(LayerRemoval(count=surrogate.removed), merges=[TaskArithmetic(scale=[0.0, 1.0])])
            space.setup(layout)
            setting = Setting(name, seed=seed, budget=budget)
            found, _ = run_search(setting, space, _Whole(), lambda t, n: surrogate.score(t), ())
            ends.append(found.steps[-1].score)
        error = np.std(ends, ddof=1) / len(ends) ** 0.5 if len(ends) > 1 else float("nan")
        print(
            f"{name:40} {np.mean(ends):10.4f} ±{error:.4f} {(time.perf_counter() - began) / seeds:9.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("fit")
    make.add_argument("source", type=Path, help="a store of evaluations, or a file of scores")
    make.add_argument("target", type=Path)
    make.add_argument("--removed", type=int, help="number of removed layers; the most frequent one by default")
    use = verbs.add_parser("search")
    use.add_argument("surrogate", type=Path)
    use.add_argument("--names", nargs="+", default=["RandomSearch", "Nevergrad", "Evolution", "StructuredBayes"])
    use.add_argument("--budget", type=int, default=150)
    use.add_argument("--seeds", type=int, default=4)
    add_plugins(use)
    arguments = parser.parse_args()
    if arguments.verb == "search":
        check_plugins(parser, arguments.plugins, arguments.names, budget=arguments.budget)
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, NumPy {np.__version__}"
    )
    print(f"$ python {shlex.join(sys.argv)}")
    if arguments.verb == "fit":
        surrogate = fitted(arguments.source, arguments.removed)
        arguments.target.parent.mkdir(parents=True, exist_ok=True)
        arguments.target.write_text(json.dumps(vars(surrogate)) + "\n", encoding="utf-8")
    else:
        surrogate = Surrogate.read(arguments.surrogate)
    print(
        f"{surrogate.removed} of {surrogate.layers} layers removed; fitted to {surrogate.fitted} candidates, rank "
        f"correlation {surrogate.rank_correlation:.3f} on {surrogate.held_out} others"
    )
    if arguments.verb == "search":
        search(surrogate, arguments.names, arguments.budget, arguments.seeds)


if __name__ == "__main__":
    main()

# ruff: noqa: T201
"""Optimizers, schedulers and starts compared on the pocket family: a real network, trials of some 50 ms.

    python tests/benchmarks/pocket_searches.py --record FOLDER --budget 300 --seeds 5 --processes 2
    python tests/benchmarks/pocket_searches.py --record FOLDER --plugins my.py --optimizers Mine RandomSearch

Every search that the folder does not have is run; then all that it has are shown: the fitness of the best
candidate after so many evaluations on all samples, and its quality on text that no search saw. Quality is the mean
over code, prose and arithmetic of dense perplexity / perplexity: 1 is as good as the dense base. The figures are
means over seeds with their standard errors. Optimizers are named as in recipes, with settings after a colon; a
``!`` before one makes each domain an objective of its own. Starts are ``cold``, ``warm`` (Block Influence, and
merges of all variants there) and ``designed`` (the GPTailor paper's). The paper's setting is ``!SMAC`` with
``Hyperband`` and ``designed``.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from evaluations import Evaluations, Scorer
from pocket_family import pocket_family, prepared, source, study_parts
from searches import Found, Record, Setting, Starts, Step, add_plugins, check_plugins, run_all, run_search
from tailorlib_strategies.optimizers import RandomSearch
from tailorlib_strategies.texts import Interleaved
from tailorlib_strategies.warm_starts import AngularDistance, BlockInfluence, DesignedStart, LeaveOneOut

from tailorlib import SearchSpace, Tailoring, WarmStart
from tailorlib.evaluation.engine import Engine
from tailorlib.search.study import Benchmark, Study
from tailorlib.warm_start import WarmStartContext

OPTIMIZERS = ("RandomSearch", "Nevergrad", "Nevergrad:optimizer=DiscreteOnePlusOne", "Evolution", "Optuna", "SMAC")
OPTIMIZERS = (*OPTIMIZERS, "StructuredBayes")
SCALES = [0.3, 0.5, 0.8]


@dataclass(frozen=True)
class Arena:
    """What searches at one ratio share."""

    space: SearchSpace
    search: Scorer
    test: Scorer
    dense: Tailoring
    starts: dict[str, Starts]


@lru_cache
def arena(folder: Path, space: str) -> Arena:
    """Return the pocket family's arena.

    Args:
        folder: Where the family and the evaluations are kept.
        space: The share of layers to remove, such as ``0.25``; ``0.25x64`` to see 64 windows of each domain.
    """
    torch.set_num_threads(1)
    ratio, _, windows = space.partition("x")
    parts = study_parts(pocket_family(folder), float(ratio), int(windows or 16))
    study = Study(
        parts.family, parts.space, RandomSearch(), parts.fitness, benchmark=Benchmark(parts.test, variants=False)
    )
    engine = prepared(study)
    store = Evaluations(folder / "evaluations.sqlite")
    scorers = []
    for fitness in (parts.fitness, parts.test):
        scorer = Scorer(study.family, fitness, engine, store)
        fitness.set_reference(scorer.measure(study.dense), scorer.results(study.dense))
        scorers.append(scorer)
    return Arena(parts.space, scorers[0], scorers[1], study.dense, {"cold": (), **_starts(study, engine)})


def _starts(study: Study, engine: Engine) -> dict[str, Starts]:
    text = Interleaved([source(domain, "search", 8) for domain in study.family.layout.candidates])
    influence = BlockInfluence(text, context_length=64, max_tokens=2048, merge_scales=SCALES)
    others = [make(text, context_length=64, max_tokens=2048) for make in (AngularDistance, LeaveOneOut)]
    context = WarmStartContext(study.family, study.space, engine, 0)
    plugins: dict[str, WarmStart] = {"warm": influence, "designed": DesignedStart([influence, *others])}
    return {name: [(start.label, t) for t in start.starts(context)] for name, start in plugins.items()}


def search(folder: Path, setting: Setting) -> Found:
    """Run one search."""
    place = arena(folder, setting.space)

    def score(tailoring: Tailoring, samples: int) -> float:
        return place.search.measure(tailoring, samples).score

    def domains(tailoring: Tailoring, samples: int) -> dict[str, float]:
        return dict(place.search.measure(tailoring, samples).parts)

    return run_search(
        replace(setting, optimizer=setting.optimizer.removeprefix("!")),
        place.space,
        place.search.fitness,
        score,
        place.starts[setting.start],
        dense=place.dense,
        objectives=domains if setting.optimizer.startswith("!") else None,
        known_as=setting,
    )[0]


def quality(folder: Path, space: str, step: Step) -> float:
    """Return a candidate's score on text that no search saw."""
    return arena(folder, space).test.measure(Tailoring.from_dict(step.tailoring)).score


Groups = dict[tuple[str, str], list[Found]]


def grouped(record: Record, budget: float) -> dict[str, Groups]:
    """Return the searches of one budget by space, and in it by start and label."""
    groups: dict[str, Groups] = defaultdict(lambda: defaultdict(list))
    for found in sorted(record, key=lambda f: f.setting.seed):
        setting = found.setting
        if setting.budget == budget:
            name = " + ".join(part for part in (setting.optimizer, setting.scheduler) if part)
            groups[setting.space][setting.start, name].append(found)
    return groups


def show(groups: dict[str, Groups], marks: Sequence[int], tested: Callable[[str, Step], float]) -> None:
    """Print a table for each space: fitness at each mark, and the quality of what was found in the end."""
    for space, of_space in groups.items():
        print(f"\n{space} of the layers removed: fitness after so many evaluations, and quality on unseen text")
        heads = " ".join(f"{mark:>15d}" for mark in marks)
        print(f"{'start':8} {'optimizer':58} {heads} {'unseen':>15} {'seeds':>5} {'s/trial':>8}")
        for (start, name), runs in sorted(of_space.items(), key=lambda item: (item[0][0], -_final(item[1]))):
            curves = np.array([[_score(run.at(mark)) for mark in marks] for run in runs])
            ends = np.array([tested(space, run.steps[-1]) for run in runs])
            cells = [_cell(column) for column in (*curves.T, ends)]
            thinking = np.mean([run.thinking / run.trials for run in runs])
            print(f"{start:8} {name:58} {' '.join(cells)} {len(runs):5d} {thinking:8.3f}", flush=True)


def _score(step: Step | None) -> float:
    return float("nan") if step is None else step.score


def _final(runs: Sequence[Found]) -> float:
    return float(np.mean([run.steps[-1].score for run in runs]))


def _cell(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    if not len(values):
        return f"{'–':>15}"
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{values.mean():7.4f} ±{error:.4f}"


def plot(groups: dict[str, Groups], path: Path, budget: float) -> None:
    """Draw the mean fitness of the best candidate over what was spent, with standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    starts = sorted({start for of_space in groups.values() for start, _ in of_space})
    figure, axes = plt.subplots(
        len(starts), len(groups), figsize=(5.4 * len(groups), 4.2 * len(starts)), squeeze=False, sharex=True
    )
    names = sorted({name for of_space in groups.values() for _, name in of_space})
    grid = np.unique(np.geomspace(4, budget, 60).round()).astype(int)
    for column, (space, of_space) in enumerate(sorted(groups.items())):
        for row, start in enumerate(starts):
            axis, heights = axes[row][column], list[float]()
            for at, name in enumerate(names):
                runs = of_space.get((start, name), [])
                if not runs:
                    continue
                curves = np.array([[_score(run.at(x)) for x in grid] for run in runs])
                middle, error = curves.mean(axis=0), curves.std(axis=0) / max(1, len(runs) - 1) ** 0.5
                style = {"color": f"C{at % 10}", "linestyle": ("-", "--", ":")[at // 10 % 3]}  # the same in all
                axis.plot(grid, middle, label=name, linewidth=1.5, **style)
                axis.fill_between(grid, middle - error, middle + error, color=style["color"], alpha=0.15)
                heights += [x for x in curves.ravel()[np.tile(grid >= 20, len(runs))] if np.isfinite(x)]
            axis.set(title=f"{space} removed, {start} start", xscale="log")
            if heights:  # what a cold start has at first may be next to nothing
                axis.set_ylim(np.quantile(heights, 0.02) - 0.02, max(heights) + 0.01)
            axis.grid(alpha=0.3, which="both")
    for axis in axes[-1]:
        axis.set_xlabel("evaluations on all samples")
    for line_of_axes in axes:
        line_of_axes[0].set_ylabel("fitness of the best candidate")
    handles = {label: h for a in axes.flat for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    rows = -(-len(handles) // 3)
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, (0.06 * rows + 0.02) / len(starts), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True, help="folder of the family, evaluations and results")
    parser.add_argument("--optimizers", nargs="*", default=list(OPTIMIZERS))
    parser.add_argument("--schedulers", nargs="*", default=[""], help="with settings after a colon; '' for none")
    parser.add_argument("--starts", nargs="*", default=["cold", "warm"], choices=["cold", "warm", "designed"])
    parser.add_argument("--ratios", nargs="*", default=["0.25"], help="0.25x64: on 64 windows a domain, not 16")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=300)
    parser.add_argument("--processes", type=int, default=2)
    add_plugins(parser)
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--plot", type=Path, help="where to write the picture, a PNG")
    arguments = parser.parse_args()
    check_plugins(parser, arguments.plugins, arguments.optimizers, arguments.schedulers, arguments.budget)
    folder = arguments.record
    pocket_family(folder)
    record = Record(folder / "searches.jsonl")
    settings = [
        Setting(optimizer, scheduler, start, ratio, seed, arguments.budget)
        for seed, ratio, start, scheduler, optimizer in product(
            range(arguments.seeds),
            arguments.ratios,
            arguments.starts,
            arguments.schedulers,
            arguments.optimizers,
        )
    ]
    if not arguments.show:
        run_all(settings, record, partial(search, folder), arguments.processes, arguments.plugins)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {versions}")
    print(f"$ python {shlex.join(sys.argv)}")
    groups = grouped(record, arguments.budget)
    marks = [mark for mark in (10, 25, 50, 100, 200, 300, 500) if mark < arguments.budget]
    marks.append(round(arguments.budget))
    show(groups, marks, partial(quality, folder))
    if arguments.plot:
        plot(groups, arguments.plot, arguments.budget)


if __name__ == "__main__":
    main()

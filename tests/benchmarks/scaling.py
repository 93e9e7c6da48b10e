# ruff: noqa: T201
"""How the time of a trial grows with layers, samples, candidates and donors; run it as a script.

A trial is stitching and scoring, float32, on a live family; nothing is reused of the trial before, neither hidden
states nor merged layers. Of each point the median counts. Four curves:

- layers: so many of the base's layers are kept, evenly spread;
- samples: so many of the questions are scored, the first ones in the fitness's order;
- candidates: families of so many candidates, each layer taken of any model at random, after all were used once;
- donors: so many candidates in each of a few freshly merged layers; merging is timed apart from scoring.

Candidates beyond those given are the same folders under other names. An exponent is the slope of a straight line
through the logarithms, with its standard error; beside it a straight line through the times themselves, because a
trial also has parts that don't grow, such as the head. Example::

    python tests/benchmarks/scaling.py --base MODEL --candidate math=FOLDER --candidate code=FOLDER --data DATA \\
        --threads 2 --picture scaling.png
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from evaluation_speed import ZERO_SHOT, machine
from local_tasks import write_tasks
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from tailorlib_strategies.fitness import LMEval

from tailorlib.evaluation.engine import Engine
from tailorlib.models.family import ModelFamily
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Tailoring

CPU = torch.device("cpu")
_clock = time.perf_counter


@dataclass(frozen=True)
class Fit:
    """Time as a function of size: a power law, and a straight line."""

    exponent: float
    error: float
    factor: float
    fixed: float
    slope: float

    @property
    def line(self) -> str:
        """The straight line, in words."""
        return f"{self.fixed:.3f} {'-' if self.slope < 0 else '+'} {abs(self.slope):.4f} n"

    @classmethod
    def of(cls, sizes: Sequence[float], seconds: Sequence[float]) -> Fit:
        """Return the least-squares fits; the standard error is that of a regression with n - 2 degrees."""
        x, y = np.log(sizes), np.log(seconds)
        exponent, level = np.polyfit(x, y, 1)
        left = y - level - exponent * x
        error = np.sqrt((left**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
        slope, fixed = np.polyfit(sizes, seconds, 1)
        return cls(float(exponent), float(error), float(np.exp(level)), float(fixed), float(slope))


@dataclass
class Curve:
    """Times by size."""

    name: str
    unit: str
    seconds: dict[int, list[float]] = field(default_factory=dict)

    @property
    def medians(self) -> dict[int, float]:
        """The median time of each size, in seconds."""
        return {size: statistics.median(taken) for size, taken in sorted(self.seconds.items())}

    @property
    def fit(self) -> Fit:
        """Fits of the medians."""
        return Fit.of(list(self.medians), list(self.medians.values()))

    def add(self, size: int, seconds: float) -> None:
        """Add a measurement."""
        self.seconds.setdefault(size, []).append(seconds)


class Bench:
    """Stitches and scores tailorings of a family that is given more candidates than it has."""

    def __init__(self, args: argparse.Namespace, tasks: str) -> None:
        self.args = args
        given = [pair.split("=", 1) for pair in args.candidate]
        count = max(*args.candidates, *args.donors)
        turns = [divmod(i, len(given)) for i in range(count)]
        self.names = {given[k][0] + (f"_{turn + 1}" if turn else ""): given[k][1] for turn, k in turns}
        self.family = self.open(count)
        self.depth = self.family.layout.num_layers
        longest = min(2048, self.family.config.max_position_embeddings)
        self.fitness = LMEval(list(ZERO_SHOT), include_path=tasks, limit=args.questions)
        self.fitness.setup(Engine(self.family.tokenizer, CPU, longest))
        self.samples = min(args.at_samples, self.fitness.num_samples)
        self.kept = args.at_layers or self.depth - self.depth // 4

    def open(self, candidates: int) -> ModelFamily:
        """Return a family of the first candidates, ready to be stitched."""
        names = dict(list(self.names.items())[:candidates])
        family = ModelFamily(self.args.base, names, dtype="float32", merge_cache_mib=0)
        family.load(CPU)
        return family

    def trial(self, family: ModelFamily, tailoring: Tailoring, samples: int) -> tuple[float, float]:
        """Return the times of stitching and of scoring, in seconds."""
        start = _clock()
        model = family.stitch(tailoring)
        stitched = _clock()
        self.fitness.evaluate(model, samples)
        return stitched - start, _clock() - stitched

    def in_turns(self, sizes: Sequence[int], measure: Callable[[int, int], None]) -> None:
        """Measure all sizes in turns, after a turn that isn't counted (its number is -1)."""
        for turn in range(-1, self.args.repeats):
            for size in sizes:
                measure(turn, size)

    def spread(self, kept: int) -> list[int]:
        """Return the numbers of the layers that are kept, evenly spread."""
        return [self.depth * i // kept for i in range(kept)]

    def base(self, kept: int) -> Tailoring:
        """Return a tailoring of the base's layers."""
        return Tailoring(tuple(LayerPlan((LayerSource(BASE, i),)) for i in self.spread(kept)))

    def layers(self, sizes: Sequence[int]) -> Curve:
        """Time trials by the number of layers kept."""
        curve = Curve("layers", f"layers kept, {self.samples} samples")

        def measure(turn: int, kept: int) -> None:
            seconds = sum(self.trial(self.family, self.base(kept), self.samples))
            if turn >= 0:
                curve.add(kept, seconds)

        self.in_turns(sizes, measure)
        return curve

    def by_samples(self, sizes: Sequence[int]) -> Curve:
        """Time trials by the number of samples."""
        curve = Curve("samples", f"samples, {self.kept} layers kept")

        def measure(turn: int, samples: int) -> None:
            seconds = sum(self.trial(self.family, self.base(self.kept), samples))
            if turn >= 0:
                curve.add(samples, seconds)

        self.in_turns(sizes, measure)
        return curve

    def candidates(self, sizes: Sequence[int]) -> Curve:
        """Time trials that take layers of any model, by the number of candidates; each family by itself."""
        curve = Curve("candidates", f"candidates in the family, {self.kept} layers, {self.samples} samples")
        for count in sizes:
            family = self.open(count)
            models = family.layout.models
            for name in models:
                family.stitch(Tailoring.whole(name, self.depth))
            for turn in range(-1, self.args.repeats):
                drawn = numpy_generator("candidates", count, turn).integers(len(models), size=self.kept)
                sources = [LayerSource(models[m], i) for m, i in zip(drawn, self.spread(self.kept), strict=True)]
                tailoring = Tailoring(tuple(LayerPlan((source,)) for source in sources))
                seconds = sum(self.trial(family, tailoring, self.samples))
                if turn >= 0:
                    curve.add(count, seconds)
            held = sum(family.stitcher.memory()[name] for name in models)
            print(f"{count} candidates: the family holds {held / 2**20:,.0f} MiB", flush=True)
            del family
            gc.collect()
        return curve

    def donors(self, sizes: Sequence[int]) -> tuple[Curve, Curve]:
        """Time trials with freshly merged layers, merging and scoring apart, by the number of donors."""
        merged = min(self.args.merged, self.kept)
        merging = Curve("donors", f"donors of each of {merged} merged layers, of {self.kept} layers")
        scoring = Curve("donors, scoring", merging.unit)

        def measure(turn: int, donors: int) -> None:
            params = (("scale", 0.5 + 0.01 * turn), ("weights", (1 / donors,) * donors))
            plans = list(self.base(self.kept).layers)
            for k in range(merged):
                at = k * self.kept // merged
                i = plans[at].sources[0].layer
                sources = tuple(LayerSource(name, i) for name in list(self.names)[:donors])
                plans[at] = LayerPlan(sources, "TaskArithmetic", params, base=LayerSource(BASE, i))
            stitched, scored = self.trial(self.family, Tailoring(tuple(plans)), self.samples)
            if turn >= 0:
                merging.add(donors, stitched)
                scoring.add(donors, scored)

        self.in_turns(sizes, measure)
        return merging, scoring


def doublings(largest: int, count: int, least: int = 1) -> list[int]:
    """Return ``largest`` and its halves, ascending."""
    return sorted({max(least, largest >> i) for i in range(count)})


def draw(panel: Axes, curves: Sequence[Curve], label: str) -> None:
    """Draw curves, their power laws and (dotted) their straight lines into a panel."""
    for curve, colour in zip(curves, ("tab:blue", "tab:orange"), strict=False):
        sizes, medians, fit = list(curve.medians), list(curve.medians.values()), curve.fit
        lowest = [m - min(curve.seconds[s]) for s, m in curve.medians.items()]
        highest = [max(curve.seconds[s]) - m for s, m in curve.medians.items()]
        name = "merging: " if len(curves) > 1 and curve is curves[0] else "scoring: " if len(curves) > 1 else ""
        panel.errorbar(sizes, medians, yerr=(lowest, highest), fmt="o", color=colour, capsize=3)
        x = np.geomspace(sizes[0], sizes[-1])
        power, straight = fit.factor * x**fit.exponent, fit.fixed + fit.slope * x
        panel.plot(x, power, color=colour, label=f"{name}exponent {fit.exponent:.2f} ± {fit.error:.2f}")
        panel.plot(x, np.where(straight > 0, straight, np.nan), ":", color=colour, label=f"{name}{fit.line}")
    panel.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds per trial")
    panel.xaxis.set_major_locator(FixedLocator(sizes))
    panel.xaxis.set_minor_locator(FixedLocator([]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    low, high = panel.get_ylim()
    widen = max(1.0, (8 / (high / low)) ** 0.5)  # a flat curve shall look flat
    panel.set_ylim(low / widen, high * widen * 1.5 ** len(curves))  # with room for the legend
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3)
    panel.legend(
        loc="upper left",
        frameon=False,
        ncols=len(curves),
        fontsize=("small", "x-small")[len(curves) - 1],
        handlelength=1.3,
    )


def picture(curves: Sequence[Sequence[Curve]], title: str, path: Path) -> None:
    """Write the four panels."""
    figure = Figure(figsize=(11, 8), layout="constrained", facecolor="white")
    for panel, drawn in zip(figure.subplots(2, 2).flat, curves, strict=True):
        draw(panel, drawn, drawn[0].unit)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def report(curves: Sequence[Curve]) -> None:
    """Print times, exponents and straight lines."""
    print("\n| time against | size: median seconds (fastest to slowest) | exponent | straight line, s |")
    print("| --- | --- | --- | --- |")
    for curve in curves:
        times = "; ".join(
            f"{s}: {m:.3f} ({min(curve.seconds[s]):.3f} to {max(curve.seconds[s]):.3f})"
            for s, m in curve.medians.items()
        )
        fit = curve.fit
        print(f"| {curve.name} | {times} | {fit.exponent:.3f} ± {fit.error:.3f} | {fit.line} |")


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="folder or name of the base model")
    parser.add_argument("--candidate", action="append", required=True, help="NAME=FOLDER")
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per data set")
    parser.add_argument("--questions", type=int, default=24, help="of each of three zero-shot tasks, at most")
    parser.add_argument("--layers", type=int, nargs="*", help="numbers of layers; by default all, and halves")
    parser.add_argument("--samples", type=int, nargs="*", help="numbers of samples; by default all, and halves")
    parser.add_argument("--candidates", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--donors", type=int, nargs="*", default=[2, 3, 4, 6, 8])
    parser.add_argument("--merged", type=int, default=8, help="layers that are merged where donors count")
    parser.add_argument("--at-samples", type=int, default=24, help="samples where others count")
    parser.add_argument("--at-layers", type=int, help="layers where others count; by default three quarters")
    parser.add_argument("--repeats", type=int, default=3, help="of each point, after one that isn't counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count CPU seconds: for a busy machine, one thread"
    )
    parser.add_argument("--picture", type=Path, required=True, help="PNG file to write")
    args = parser.parse_args()
    wrong = [n for n in ("layers", "samples", "candidates", "donors") if 0 < len(set(getattr(args, n) or ())) < 3]
    if wrong:
        parser.error(f"a fit with its error takes three sizes or more; fewer of {', '.join(wrong)}")
    return args


def main() -> None:
    """Measure and print."""
    args = arguments()
    if args.cpu_time:
        global _clock
        _clock, args.threads = time.process_time, 1
    torch.set_num_threads(args.threads)
    print(
        f"machine: {machine(CPU)}; python {platform.python_version()}, torch {torch.__version__}, float32"
        + (", CPU time" if args.cpu_time else "")
    )
    print(f"command: {shlex.join(sys.argv)}")
    print(f"load before: {os.getloadavg()[0]:.2f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(args.data, Path(folder))
        bench = Bench(args, folder)
        every, least = bench.fitness.num_samples, bench.fitness.min_samples
        numbers = sorted(args.samples or doublings(every, 5, least))
        if len(numbers) < 3 or not least <= numbers[0] <= numbers[-1] <= every:
            sys.exit(f"three numbers of samples from {least} to {every} are needed, got {numbers}: more questions")
        layers = bench.layers(sorted(args.layers or doublings(bench.depth, 5)))
        samples = bench.by_samples(numbers)
        merging, scoring = bench.donors(sorted(args.donors))
        candidates = bench.candidates(sorted(args.candidates))
    report([layers, samples, candidates, merging, scoring])
    title = f"{Path(args.base).name}, float32, {machine(CPU)}"
    picture([[layers], [samples], [candidates], [merging, scoring]], title, args.picture)
    print(f"\nload after: {os.getloadavg()[0]:.2f}; picture: {args.picture}")


if __name__ == "__main__":
    main()

# ruff: noqa: T201
"""Regret of optimizers on synthetic landscapes: 32 layers, 8 removed, 3 candidates, the optimum known.

    python tests/benchmarks/optimizers_synthetic.py --trials 500 --plot docs/images/optimizers_synthetic.png
    python tests/benchmarks/optimizers_synthetic.py --plugins my.py --names Mine Nevergrad:optimizer=DE

Every registered optimizer takes part by its name; settings follow a colon. Trials come through the same proposer
as in a study, so that no candidate is scored twice. A search starts cold, or from a decent guess with ``--start
warm``. Reported is the regret without noise of the incumbent, which the search picks by what it measured.
"""

from __future__ import annotations

import argparse
import inspect
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from searches import add_plugins, check_plugins, optimizer_of
from tailorlib_strategies.operations import TIES, LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import Optimizer, Trial
from tailorlib.optimizer import OPTIMIZERS
from tailorlib.search.proposer import Proposer
from tailorlib.testing.landscapes import LANDSCAPES, Landscape
from tailorlib.trial import incumbent

MARKS = (25, 50, 100, 200, 500)
"""Numbers of trials that the table shows."""
LEAST = 1e-3
"""The picture's logarithmic scale ends here: nats per token that nobody would notice."""


@dataclass(frozen=True)
class Run:
    """What one search found.

    Args:
        regret: Of the incumbent after each trial, [trials], nats per token.
        seconds: Time of the optimizer per trial, asks and tells.
    """

    regret: np.ndarray
    seconds: float


def space_of(landscape: Landscape) -> PruningSpace:
    """Return the paper's space for a landscape."""
    space = PruningSpace(LayerRemoval(count=landscape.removed), merges=[TaskArithmetic(), TIES()])
    space.setup(landscape.layout)
    return space


class Timed:
    """Counts the seconds within an optimizer's ``ask`` and ``tell``."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.seconds, self._optimizer = 0.0, optimizer

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._optimizer, name)
        if name not in {"ask", "tell"}:
            return attribute

        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return attribute(*args)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def run(landscape: Landscape, optimizer: Optimizer, trials: int, seed: int, warm: bool) -> Run:
    """Search a landscape once."""
    space = space_of(landscape)
    optimizer.setup(space, seed)
    timed = Timed(optimizer)
    proposer = Proposer(space, timed, [("start", landscape.start)] if warm else [], seed)  # type: ignore[arg-type]
    told: list[Trial] = []
    regret: list[float] = []
    while len(told) < trials:
        proposals = proposer.propose(1)
        if not proposals:
            regret += regret[-1:] * (trials - len(told))  # it has converged
            break
        (one,) = proposals
        score = landscape.measure(one.tailoring)
        samples = landscape.samples
        told.append(
            Trial(len(told), one.params, one.tailoring, "complete", score, samples=samples, origin=one.origin)
        )
        proposer.tell(told[-1:])
        best = incumbent(told)
        assert best is not None
        regret.append(landscape.regret(best.tailoring) if best is told[-1] else regret[-1])
    return Run(np.array(regret), timed.seconds / trials)


def needs(name: str) -> list[str]:
    """Return the settings without which an optimizer can't be made."""
    parameters = inspect.signature(OPTIMIZERS.get(name)).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


def compare(
    specs: Sequence[str],
    names: Sequence[str],
    trials: int,
    seeds: int,
    warm: bool,
    report: Callable[[str, str, list[Run]], None],
) -> dict[str, dict[str, list[Run]]]:
    """Run every optimizer on every landscape with every seed."""
    found: dict[str, dict[str, list[Run]]] = {name: {} for name in names}
    for name in names:
        for spec in specs:
            runs = [run(LANDSCAPES[name](s), optimizer_of(spec, trials), trials, s, warm) for s in range(seeds)]
            found[name][spec] = runs
            report(name, spec, runs)
    return found


def row(name: str, spec: str, runs: Sequence[Run], marks: Sequence[int]) -> str:
    """Return a line of the table: mean and standard deviation of the regret at each mark."""
    curves = np.stack([one.regret for one in runs])[:, [m - 1 for m in marks]]
    spread = curves.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(marks))
    cells = " ".join(f"{m:7.3f} ±{s:6.3f}" for m, s in zip(curves.mean(axis=0), spread, strict=True))
    return f"{name:12} {spec:48} {cells} {np.mean([one.seconds for one in runs]):9.4f}"


def plot(found: dict[str, dict[str, list[Run]]], path: Path, title: str) -> None:
    """Draw the median regret over the trials, with the quartiles, a panel for each landscape."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(5.2 * len(found), 4.6), squeeze=False)
    for axis, (name, by_optimizer) in zip(axes[0], found.items(), strict=True):
        for at, (spec, runs) in enumerate(by_optimizer.items()):
            curves = np.maximum([one.regret for one in runs], LEAST)
            low, middle, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
            trials = np.arange(1, len(middle) + 1)
            style = ("-", "--", ":")[at // 10 % 3]
            (line,) = axis.plot(trials, middle, style, label=spec, linewidth=1.6)
            axis.fill_between(trials, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(xlabel="trials", title=name, xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    axes[0][0].set_ylabel("regret of the incumbent, nats per token")
    figure.suptitle(title)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.tight_layout()
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False}
    figure.legend(handles, labels, ncols=min(2 * len(found), len(labels)), **place)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", help="optimizers, with settings after a colon; all by default")
    add_plugins(parser)
    parser.add_argument("--landscapes", nargs="*", default=list(LANDSCAPES), choices=list(LANDSCAPES))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--start", choices=["cold", "warm"], default="cold")
    parser.add_argument("--plot", type=Path, help="where to write the picture, a PNG")
    arguments = parser.parse_args()
    check_plugins(parser, arguments.plugins, arguments.names or (), budget=arguments.trials)
    specs = arguments.names or [name for name in OPTIMIZERS.names() if not needs(name)]
    marks = [m for m in MARKS if m < arguments.trials] + [arguments.trials]
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    command = f"python {shlex.join(sys.argv)}"
    print(f"{machine}, NumPy {np.__version__}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}")
    print(f"$ {command}")
    for name in () if arguments.names else filter(needs, OPTIMIZERS.names()):
        print(f"(without {name}, which needs {', '.join(needs(name))}: give it in --names)")
    print(f"{arguments.seeds} seeds, {arguments.start} start; regret of the incumbent: mean ± standard deviation")
    print(f"{'landscape':12} {'optimizer':48} {' '.join(f'{m:>15}' for m in marks)} {'s/trial':>9}")

    def report(name: str, spec: str, runs: list[Run]) -> None:
        print(row(name, spec, runs, marks), flush=True)

    warm = arguments.start == "warm"
    found = compare(specs, arguments.landscapes, arguments.trials, arguments.seeds, warm, report)
    if arguments.plot:
        plot(found, arguments.plot, f"{arguments.seeds} seeds, {arguments.start} start: median and quartiles")


if __name__ == "__main__":
    main()

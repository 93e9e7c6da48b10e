# ruff: noqa: T201
"""Searches compared on a real family: a 135M model and its fine-tunes, on questions and texts that no search saw.

    python tests/benchmarks/family_searches.py --base MODEL --candidates math=A commonsense=B code=C \\
        --data DATA --record FOLDER --settings settings.txt --seeds 3 --show --baselines 0.25

``settings.txt`` has a line for each kind of search: optimizer, scheduler, start, space and budget, separated by
``|``; what stands after ``#`` is a remark. Names of spaces and starts are those of ``family_lab.py``; a ``!``
before the optimizer weighs the parts of the fitness as objectives of their own.

Searched is the mean over four parts of score / dense score: windows of code, worked arithmetic problems and web
text (1 / perplexity), and ARC-easy (probability of the right answer); ``--fitness`` takes another one. Every
evaluation is kept in the folder and shared by all searches; an interrupted comparison goes on where it was. Then
the best of each search, and baselines without a search, are scored on other tasks and other texts.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from family_lab import (
    BASELINES,
    QUESTIONS,
    TESTED,
    Place,
    SpaceName,
    add_place,
    baseline,
    lab,
    meant,
    measure_unseen,
    place_of,
    pooled,
    search_fitness,
    space_of,
    starts_of,
)
from searches import Found, Record, Setting, add_plugins, check_plugins, run_all, run_search

from tailorlib import Tailoring
from tailorlib.fitness import Measurement
from tailorlib.report.table import BenchmarkRow, retained_above_chance


def search(place: Place, setting: Setting) -> Found:
    """Run one search."""
    place = pooled(place, setting.space)
    scorer, dense = lab(place).search, lab(place).dense
    names = tuple(search_fitness(place).parts)

    def score(tailoring: Tailoring, samples: int) -> float:
        return scorer.measure(meant(setting.space, tailoring), samples).score

    def parts(tailoring: Tailoring, samples: int) -> dict[str, float]:
        found = scorer.measure(meant(setting.space, tailoring), samples).parts
        return {name: found[name] for name in names}

    several = setting.optimizer.startswith("!")
    return run_search(
        setting if not several else replace(setting, optimizer=setting.optimizer.removeprefix("!")),
        space_of(place, setting.space),
        scorer.fitness,
        score,
        starts_of(place, setting.start, setting.space),
        dense=dense,
        objectives=parts if several else None,
        known_as=setting,
    )[0]


# -- The table --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A row of the table: a kind of search, or a baseline, and its models."""

    name: str
    spent: float
    scores: list[float]
    tailorings: list[Tailoring]


def lines_of(place: Place, record: Record) -> Iterator[Line]:
    """Yield a line for each kind of search."""
    kinds: dict[Setting, list[Found]] = defaultdict(list)
    for found in sorted(record, key=lambda f: f.setting.seed):
        kinds[replace(found.setting, seed=0)].append(found)
    for kind, runs in kinds.items():
        ends = [run.steps[-1] for run in runs]
        tailorings = [meant(kind.space, Tailoring.from_dict(end.tailoring)) for end in ends]
        yield Line(f"{kind.label} [{kind.space}]", kind.budget, [end.score for end in ends], tailorings)


def baselines(place: Place, names: Sequence[str], share: str) -> Iterator[Line]:
    """Yield a line for each baseline: the first that it proposes."""
    for name in names:
        tailoring = baseline(place, name, share)
        if tailoring is not None:
            yield Line(f"{name} @{share}", 0, [lab(place).search.measure(tailoring).score], [tailoring])


def prepare(place: Place, job: tuple[str, str] | Tailoring) -> None:
    """Propose a baseline, or score a model on what no search saw; the folder has the result."""
    if isinstance(job, Tailoring):
        measure_unseen(place, job)
    else:
        baseline(place, *job)


def prepare_all(place: Place, jobs: Sequence[tuple[str, str] | Tailoring], processes: int) -> None:
    """Do what takes minutes a model in several processes."""
    began = time.perf_counter()
    with get_context("spawn").Pool(processes) as pool:
        for number, _ in enumerate(pool.imap_unordered(partial(prepare, place), jobs), start=1):
            minutes = (time.perf_counter() - began) / 60
            print(f"{number}/{len(jobs)} baselines and models; {minutes:.1f} min", file=sys.stderr, flush=True)


def show(place: Place, lines: list[Line]) -> None:
    """Print the table: nats per token, accuracies, and what is retained of texts and tasks."""
    own = lab(place)
    dense = measure_unseen(place, own.dense)
    tasks = QUESTIONS if place.questions else ()
    heads = [f"{name:>13}" for name in (*TESTED, "texts %", *tasks)]
    heads += [f"{'plain %':>13}", f"{'chance-corr. %':>14}"] if tasks else []
    print(f"\n{'search':84} {'spent':>6} {'fitness':>14} {' '.join(heads)}")
    print(_row("dense base", 0.0, [1.0], [dense], dense, tasks))
    for line in sorted(lines, key=lambda line: -float(np.mean(line.scores))):
        found = [measure_unseen(place, tailoring) for tailoring in line.tailorings]
        print(_row(line.name, line.spent, line.scores, found, dense, tasks), flush=True)
    print(
        "\nTexts in nats per token; texts %: mean over them of dense perplexity / perplexity. Behind ±: the "
        "standard error over seeds."
    )
    if tasks:
        error = 100 * (0.25 / place.questions) ** 0.5
        print(
            f"Tasks in percent, {place.questions} questions each: one accuracy has a standard error of up to "
            f"{error:.1f} points. plain:\nmean over tasks of accuracy / dense; chance-corrected: of (accuracy - "
            "chance) / (dense - chance)."
        )


def _row(
    name: str,
    spent: float,
    scores: list[float],
    found: list[Measurement],
    dense: Measurement,
    tasks: Sequence[str],
) -> str:
    cells = [_cell([_nats(m, text) for m in found], 3) for text in TESTED]
    cells.append(_cell([texts_retained(m, dense) for m in found], 1))
    cells += [_cell([100 * m.parts[task] for m in found], 1) for task in tasks]
    if tasks:
        plain = [100 * float(np.mean([m.parts[t] / dense.parts[t] for t in tasks])) for m in found]
        cells += [_cell(plain, 1), _cell([above_chance(m, dense) for m in found], 1)]
    return f"{name:84} {spent:6.0f} {_cell(scores, 4):>14} {' '.join(cells)}"


def _nats(found: Measurement, text: str) -> float:
    return found.metrics[f"{text}/nats_per_token"]


def texts_retained(found: Measurement, dense: Measurement) -> float:
    """Return the mean over unseen texts of dense perplexity / perplexity in percent."""
    return 100 * float(np.mean([np.exp(_nats(dense, text) - _nats(found, text)) for text in TESTED]))


def above_chance(found: Measurement, dense: Measurement) -> float:
    """Return the mean over tasks of (accuracy - chance) / (dense accuracy - chance) in percent."""
    rows = [BenchmarkRow("", 0, m, 0.0) for m in (found, dense)]
    by_metric = retained_above_chance(*rows)
    wanted = [f"{t}/local_{t}/{'acc' if t == 'blimp' else 'acc_norm'}" for t in QUESTIONS]
    return float(np.mean([by_metric[name] for name in wanted]))


def _cell(values: list[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        mean += f" ±{np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}"
    return f"{mean:>13}"


def read_settings(path: Path, seeds: int) -> list[Setting]:
    """Return the searches of a file, all kinds of the first seed first.

    Raises:
        SystemExit: A line is no setting.
    """
    kinds = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        wanted = line.partition("#")[0].strip()
        if not wanted:
            continue
        try:
            optimizer, scheduler, start, space, budget = (part.strip() for part in wanted.split("|"))
            kinds.append(Setting(optimizer, scheduler, start, space, 0, float(budget)))
        except ValueError:
            rule = "optimizer | scheduler | start | space | budget"
            raise SystemExit(f"{path}, line {number}: a setting is {rule}, got {wanted!r}.") from None
        SpaceName.of(space)
    return [replace(kind, seed=seed) for seed in range(seeds) for kind in kinds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place(parser)
    parser.add_argument("--settings", type=Path, help="the searches to run; none without it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--baselines", nargs="*", default=[], help="shares of layers to show baselines at")
    parser.add_argument("--baseline-names", nargs="*", choices=list(BASELINES), default=list(BASELINES))
    add_plugins(parser)
    parser.add_argument(
        "--show", action="store_true", help="score what was found on unseen data, and print the table"
    )
    parser.add_argument("--scores", type=Path, help="write all candidates and their search scores")
    arguments = parser.parse_args()
    settings = read_settings(arguments.settings, arguments.seeds) if arguments.settings else []
    optimizers, schedulers = {s.optimizer for s in settings}, {s.scheduler for s in settings}
    check_plugins(parser, arguments.plugins, sorted(optimizers), sorted(schedulers))
    place = place_of(arguments)
    record = Record(place.record / "searches.jsonl")
    if settings:
        run_all(settings, record, partial(search, place), arguments.processes, arguments.plugins)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {versions}")
    print(f"$ python {shlex.join(sys.argv)}")
    if arguments.scores:
        own = lab(place).search
        number = own.store.export(
            arguments.scores, *own.keys, own.fitness.num_samples, lambda r: own.fitness.summarise(r).score
        )
        print(f"{number} candidates in {arguments.scores}")
    if arguments.show:
        began = time.perf_counter()
        wanted = [(name, share) for share in arguments.baselines for name in arguments.baseline_names]
        prepare_all(place, wanted, arguments.processes)
        lines = list(lines_of(place, record))
        for share in arguments.baselines:
            lines += baselines(place, arguments.baseline_names, share)
        models = {t.digest: t for t in (lab(place).dense, *(t for line in lines for t in line.tailorings))}
        prepare_all(place, list(models.values()), arguments.processes)
        show(place, lines)
        print(f"{time.perf_counter() - began:.0f} s for scores on unseen data")


if __name__ == "__main__":
    main()

# ruff: noqa: T201
"""Searches compared on a real family: a 135M model and its fine-tunes, on questions and texts that no search saw.

    python tests/benchmarks/family_searches.py --base MODEL --candidates math=A commonsense=B code=C \\
        --data DATA --record FOLDER --settings settings.txt --seeds 3 --show --baselines 0.25

``settings.txt`` has a line for each kind of search: optimizer, scheduler, start, space and budget, separated by
``|``; what stands after ``#`` is a remark. Spaces are ``merge``, ``select``, ``remove`` (the base's layers),
``fold`` and ``only-NAME`` (removal from one candidate), each with ``@`` and the share of layers that goes; a ``!``
before the optimizer weighs the parts of the fitness as objectives of their own. Starts are sets of warm starts:
``influence`` (Block Influence and merges of all candidates), ``designed`` (the paper's), or ``cold``.

Searched is the mean over four parts of score / dense score: windows of code, worked arithmetic problems and web
text (1 / perplexity), and ARC-easy (probability of the right answer). Every evaluation is kept in the folder and
shared by all searches; an interrupted comparison goes on where it was. Then the best of each search, and baselines
without a search, are scored on other tasks and other texts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from evaluations import Evaluations, Scorer
from local_tasks import write_tasks
from searches import Found, Record, Setting, Starts, optimizer_of, run_all, run_search
from tailorlib_strategies.fitness import LMEval, Perplexity, WeightedMean
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import RandomSearch
from tailorlib_strategies.search_spaces import FoldingSpace, PruningSpace
from tailorlib_strategies.texts import Interleaved, JSONLines
from tailorlib_strategies.warm_starts import BlockInfluence, DesignedStart

from tailorlib import LayerPlan, LayerSource, SearchSpace, Tailoring, WarmStart
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import TailorError
from tailorlib.fitness import Fitness, Measurement
from tailorlib.models.family import ModelFamily
from tailorlib.registry import load_plugin
from tailorlib.report.table import BenchmarkRow, retained_above_chance
from tailorlib.search.study import Study
from tailorlib.warm_start import WARM_STARTS, WarmStartContext

TEXTS = {"code": "python_code", "math": "gsm8k", "web": "c4_sample", "encyclopedia": "wikitext2"}
SEARCHED = ("code", "math", "web")
TESTED = ("code", "math", "encyclopedia")
QUESTIONS = ("hellaswag", "piqa", "sciq", "blimp")
SCALES = [0.2, 0.35, 0.5, 0.8]


@dataclass(frozen=True)
class Place:
    """Where everything is.

    Args:
        base: The base model.
        candidates: Pairs (name, model or adapter).
        data: Folder of the data sets.
        record: Folder of tasks, evaluations and results.
        questions: Number of questions of each task of the test.
    """

    base: str
    candidates: tuple[tuple[str, str], ...]
    data: Path
    record: Path
    questions: int


def write_data(place: Place) -> None:
    """Write the tasks, and texts that are shared out to search and test."""
    write_tasks(place.data, place.record / "tasks")
    for name, folder in TEXTS.items():
        split = "train" if folder == "c4_sample" else "validation"
        text = (place.data / folder / f"{split}.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line]
        documents = [row.get("text") or f"{row['question']}\n{row['answer']}" for row in rows]
        third = len(documents) // 3
        for part, own in (("search", documents[:third]), ("test", documents[third:])):
            lines = "".join(json.dumps({"text": document}) + "\n" for document in own)
            (place.record / f"{name}_{part}.jsonl").write_text(lines, encoding="utf-8")


def text(place: Place, name: str, part: str) -> JSONLines:
    return JSONLines(str(place.record / f"{name}_{part}.jsonl"))


def search_fitness(place: Place) -> WeightedMean:
    """Return what searches see: 16 windows of 32 tokens of each text, and 16 questions."""
    parts: dict[str, Fitness] = {
        name: Perplexity(text(place, name, "search"), context_length=32, max_tokens=512) for name in SEARCHED
    }
    parts["questions"] = LMEval(["local_arc_easy"], include_path=str(place.record / "tasks"), limit=16)
    return WeightedMean(parts)


def test_fitness(place: Place) -> WeightedMean:
    """Return what no search sees: longer windows of other texts, and other tasks."""
    parts: dict[str, Fitness] = {
        name: Perplexity(text(place, name, "test"), context_length=128, max_tokens=5120) for name in TESTED
    }
    for name in QUESTIONS:
        metric = "acc" if name == "blimp" else "acc_norm"
        parts[name] = LMEval(
            [f"local_{name}"],
            include_path=str(place.record / "tasks"),
            limit=place.questions,
            signal="metric",
            metric=metric,
        )
    return WeightedMean(parts)


@dataclass(frozen=True)
class Lab:
    """A loaded family and its scorers."""

    family: ModelFamily
    engine: Engine
    search: Scorer
    test: Scorer
    dense: Tailoring


@lru_cache
def lab(place: Place) -> Lab:
    """Load the family, once in a process."""
    torch.set_num_threads(1)
    family = ModelFamily(place.base, dict(place.candidates), dtype="float32")
    search, test = search_fitness(place), test_fitness(place)
    study = Study(family, PruningSpace(LayerRemoval(count=1)), RandomSearch(), search)
    engine = study.prepare(torch.device("cpu"))
    test.setup(engine)
    family.load(torch.device("cpu"))
    store = Evaluations(place.record / "evaluations.sqlite")
    scorers = [Scorer(family, fitness, engine, store) for fitness in (search, test)]
    search.set_reference(scorers[0].measure(study.dense), scorers[0].results(study.dense))
    return Lab(family, engine, *scorers, study.dense)


@lru_cache
def space_of(place: Place, name: str) -> SearchSpace:
    """Return a search space by its name in a setting."""
    kind, _, share = name.partition("@")
    removal, merges = LayerRemoval(ratio=float(share)), [TaskArithmetic(scale=[0.0, 1.0])]
    space: SearchSpace
    if kind == "merge":
        space = PruningSpace(removal, merges=merges)  # type: ignore[arg-type]
    elif kind == "select":
        space = PruningSpace(removal)
    elif kind == "remove" or kind.startswith("only-"):
        space = PruningSpace(removal, selection=None)
    elif kind == "fold":
        space = FoldingSpace(removal, merges=merges)  # type: ignore[arg-type]
    else:
        raise SystemExit(f"A space is merge, select, remove, fold or only-NAME with a share, got {name!r}.")
    space.setup(lab(place).family.layout)
    return space


def meant(space: str, tailoring: Tailoring) -> Tailoring:
    """Return what a tailoring means in a space: in ``only-NAME`` all layers are that candidate's."""
    kind = space.partition("@")[0]
    if not kind.startswith("only-"):
        return tailoring
    own = kind.removeprefix("only-")
    return Tailoring(tuple(LayerPlan((LayerSource(own, plan.sources[0].layer),)) for plan in tailoring.layers))


@lru_cache
def starts_of(place: Place, start: str, space: str) -> Starts:
    """Return a set of warm starts; they see the search's texts."""
    if start == "cold":
        return ()
    calibration = Interleaved([text(place, name, "search") for name in SEARCHED])
    influence = BlockInfluence(calibration, merge_scales=SCALES)
    removals: list[WarmStart] = [influence]
    for name in ("LeaveOneOut", "AngularDistance"):
        if start == "designed":
            removals.append(WARM_STARTS.get(name)(calibration))  # type: ignore[call-arg]
    chosen = influence if start == "influence" else DesignedStart(removals)
    own = lab(place)
    context = WarmStartContext(own.family, space_of(place, space), own.engine, 0)
    return [(chosen.label, tailoring) for tailoring in chosen.starts(context)]


def search(place: Place, setting: Setting) -> Found:
    """Run one search."""
    scorer, dense = lab(place).search, lab(place).dense

    def score(tailoring: Tailoring, samples: int) -> float:
        return scorer.measure(meant(setting.space, tailoring), samples).score

    def parts(tailoring: Tailoring, samples: int) -> dict[str, float]:
        found = scorer.measure(meant(setting.space, tailoring), samples).parts
        return {name: found[name] for name in (*SEARCHED, "questions")}

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


def test(place: Place, tailoring: Tailoring) -> Measurement:
    """Score a model on what no search saw."""
    return lab(place).test.measure(tailoring)


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


def baselines(place: Place, share: str) -> Iterator[Line]:
    """Yield a line for each warm start that can stand alone: the first that it proposes."""
    own, calibration = lab(place), Interleaved([text(place, name, "search") for name in SEARCHED])
    made: dict[str, Callable[[], WarmStart]] = {
        name: partial(WARM_STARTS.get(name), calibration)  # type: ignore[call-arg]
        for name in ("BlockInfluence", "AngularDistance", "LeaveOneOut", "TaylorImportance")
    }
    made["LeaveOneOut, greedy"] = partial(WARM_STARTS.get("LeaveOneOut"), calibration, greedy=True)  # type: ignore[call-arg]
    made["MagnitudeImportance"] = WARM_STARTS.get("MagnitudeImportance")
    made["LaCo"] = WARM_STARTS.get("LaCo")
    made["random tailoring"] = WARM_STARTS.get("RandomTailoring")
    for name, make in made.items():
        space = f"fold@{share}" if name == "LaCo" else f"merge@{share}"
        context = WarmStartContext(own.family, space_of(place, space), own.engine, 0)
        try:
            tailoring = make().propose(context)[0]
        except TailorError as error:
            print(f"{name}: {error}")
            continue
        yield Line(f"{name} @{share}", 0, [own.search.measure(tailoring).score], [tailoring])


def show(place: Place, lines: list[Line]) -> None:
    """Print the table: nats per token, accuracies, and what is retained, plain and above chance."""
    own = lab(place)
    dense = test(place, own.dense)
    heads = [f"{name:>13}" for name in (*TESTED, *QUESTIONS)]
    print(f"\n{'search':84} {'spent':>6} {'fitness':>14} {' '.join(heads)} {'plain %':>13} {'chance-corr. %':>14}")
    print(_row("dense base", 0.0, [1.0], [dense], dense))
    for line in sorted(lines, key=lambda line: -float(np.mean(line.scores))):
        found = [test(place, tailoring) for tailoring in line.tailorings]
        print(_row(line.name, line.spent, line.scores, found, dense), flush=True)
    error = 100 * (0.25 / place.questions) ** 0.5
    print(
        f"\nTexts in nats per token; tasks in percent, {place.questions} questions each: one accuracy has a"
        f"\nstandard error of up to {error:.1f} points. Behind ±: the standard error over seeds. plain: mean over"
        "\ntasks of accuracy / dense; chance-corrected: of (accuracy - chance) / (dense - chance)."
    )


def _row(name: str, spent: float, scores: list[float], found: list[Measurement], dense: Measurement) -> str:
    cells = [_cell([m.metrics[f"{text}/nats_per_token"] for m in found], 3) for text in TESTED]
    cells += [_cell([100 * m.parts[task] for m in found], 1) for task in QUESTIONS]
    plain = [100 * float(np.mean([m.parts[t] / dense.parts[t] for t in QUESTIONS])) for m in found]
    return f"{name:84} {spent:6.0f} {_cell(scores, 4):>14} {' '.join(cells)} {_cell(plain, 1)} " + _cell(
        [above_chance(m, dense) for m in found], 1
    )


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
    """Return the searches of a file, all kinds of the first seed first."""
    kinds = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.partition("#")[0].strip():
            optimizer, scheduler, start, space, budget = (p.strip() for p in line.partition("#")[0].split("|"))
            optimizer_of(optimizer.removeprefix("!"), float(budget))  # what can't be is said before anything runs
            kinds.append(Setting(optimizer, scheduler, start, space, 0, float(budget)))
    return [replace(kind, seed=seed) for seed in range(seeds) for kind in kinds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--candidates", nargs="+", required=True, help="NAME=MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--settings", type=Path, help="the searches to run; none without it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--baselines", nargs="*", default=[], help="shares of layers to show baselines at")
    parser.add_argument("--plugins", nargs="*", default=[])
    parser.add_argument(
        "--show", action="store_true", help="score what was found on unseen data, and print the table"
    )
    arguments = parser.parse_args()
    for spec in arguments.plugins:
        load_plugin(spec)
    candidates = tuple(tuple(pair.split("=", 1)) for pair in arguments.candidates)
    place = Place(arguments.base, candidates, arguments.data, arguments.record, arguments.questions)  # type: ignore[arg-type]
    place.record.mkdir(parents=True, exist_ok=True)
    write_data(place)
    record = Record(place.record / "searches.jsonl")
    if arguments.settings:
        settings = read_settings(arguments.settings, arguments.seeds)
        run_all(settings, record, partial(search, place), arguments.processes, arguments.plugins)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {versions}")
    print(f"$ python {shlex.join(sys.argv)}")
    if arguments.show:
        began = time.perf_counter()
        lines = list(lines_of(place, record))
        for share in arguments.baselines:
            lines += baselines(place, share)
        show(place, lines)
        print(f"{time.perf_counter() - began:.0f} s for scores on unseen data")


if __name__ == "__main__":
    main()

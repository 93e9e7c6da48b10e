# ruff: noqa: T201
"""A real family set up for comparisons: what searches see and what they don't; spaces, starts, baselines by name.

A space is ``KIND@SHARE``, or ``KIND:key=value,...@SHARE``, with the share of the base's layers that goes. Kinds:

- ``remove``: the base's layers; ``only-NAME``: one candidate's layers
- ``select``: each kept layer out of any model
- ``merge``: that, or several models merged; ``operation`` names how (``TaskArithmetic``)
- ``fold``: merged layers, and removed ones folded into their neighbours

``pool=A+B`` leaves only these candidates: :func:`pooled` makes the place for it. A start is ``cold``,
``influence`` (Block Influence, and all candidates merged at some scales), ``greedy`` (the same of greedy
leave-one-out), ``laco`` (for ``fold``) or ``designed`` (the GPTailor paper's); ``influence:text=NAME`` calibrates
on one text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from evaluations import Evaluations, Scorer
from local_tasks import write_tasks
from searches import Starts
from tailorlib_strategies.fitness import KLDivergence, LMEval, Perplexity, WeightedMean
from tailorlib_strategies.operations import LayerRemoval
from tailorlib_strategies.optimizers import RandomSearch
from tailorlib_strategies.search_spaces import FoldingSpace, PruningSpace
from tailorlib_strategies.texts import Interleaved, JSONLines
from tailorlib_strategies.warm_starts import (
    AngularDistance,
    BlockInfluence,
    DesignedStart,
    LaCo,
    LeaveOneOut,
    MagnitudeImportance,
    RandomTailoring,
    TaylorImportance,
    UniformMix,
)

from tailorlib import LayerPlan, LayerSource, SearchSpace, Tailoring, TextSource, WarmStart
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import TailorError
from tailorlib.fitness import Fitness, Measurement
from tailorlib.models.family import ModelFamily
from tailorlib.operation import OPERATIONS
from tailorlib.search.study import Study
from tailorlib.warm_start import WarmStartContext

TEXTS = {"code": "python_code", "math": "gsm8k", "web": "c4_sample", "encyclopedia": "wikitext2"}
SEARCHED = ("code", "math", "web")
TESTED = ("code", "math", "encyclopedia")
QUESTIONS = ("hellaswag", "piqa", "sciq", "blimp")
SCALES = [0.2, 0.35, 0.5, 0.8]
FITNESSES = ("likelihood", "divergence", "accuracy")
"""What searches can maximise; see :func:`search_fitness`."""
GREEDY_TOKENS = 512
"""Tokens that greedy leave-one-out ranks layers on as a start: it scores hundreds of models."""


@dataclass(frozen=True)
class Place:
    """Where everything is.

    Args:
        base: The base model.
        candidates: Pairs (name, model or adapter).
        data: Folder of the data sets.
        record: Folder of tasks, evaluations and results.
        questions: Number of questions of each task of the test; none to score on texts alone.
        samples: Number of samples of each part of what searches see.
        fitness: What searches maximise, one of :data:`FITNESSES`.
    """

    base: str
    candidates: tuple[tuple[str, str], ...]
    data: Path
    record: Path
    questions: int
    samples: int = 16
    fitness: str = "likelihood"


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where everything is."""
    parser.add_argument("--base", required=True)
    parser.add_argument("--candidates", nargs="+", required=True, help="NAME=MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True, help="folder of tasks, evaluations and results")
    parser.add_argument("--questions", type=int, default=500, help="of each unseen task; 0: texts only")
    parser.add_argument(
        "--samples", type=int, default=16, help="of each part that searches see; one RECORD has one such number"
    )
    parser.add_argument(
        "--fitness", choices=FITNESSES, default=FITNESSES[0], help="what searches maximise; one RECORD has one"
    )


def place_of(arguments: argparse.Namespace) -> Place:
    """Return the place that the options name, with its data written."""
    if wrong := [pair for pair in arguments.candidates if "=" not in pair]:
        raise SystemExit(f"Candidates are given as NAME=MODEL, got {', '.join(wrong)}.")
    candidates = tuple((name, model) for name, _, model in (pair.partition("=") for pair in arguments.candidates))
    place = Place(
        arguments.base,
        candidates,
        arguments.data,
        arguments.record,
        arguments.questions,
        arguments.samples,
        arguments.fitness,
    )
    place.record.mkdir(parents=True, exist_ok=True)
    write_data(place)
    return place


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
    """Return what searches see: windows of 32 tokens of each text, and as many questions.

    ``likelihood`` is that of the texts' tokens and of the right answers; ``divergence`` how far predictions over
    the texts are from the dense base's, beside the right answers; ``accuracy`` that of as many questions as the
    others have samples.
    """
    tokens, tasks = 32 * place.samples, str(place.record / "tasks")
    if place.fitness == "accuracy":
        asked = LMEval(
            ["local_arc_easy"], include_path=tasks, limit=4 * place.samples, signal="metric", metric="acc"
        )
        return WeightedMean({"questions": asked})
    of_text = KLDivergence if place.fitness == "divergence" else Perplexity
    parts: dict[str, Fitness] = {
        name: of_text(text(place, name, "search"), context_length=32, max_tokens=tokens) for name in SEARCHED
    }
    parts["questions"] = LMEval(["local_arc_easy"], include_path=tasks, limit=place.samples)
    return WeightedMean(parts)


def test_fitness(place: Place) -> WeightedMean:
    """Return what no search sees: longer windows of other texts, and other tasks."""
    parts: dict[str, Fitness] = {
        name: Perplexity(text(place, name, "test"), context_length=128, max_tokens=5120) for name in TESTED
    }
    for name in QUESTIONS if place.questions else ():
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
    if search.needs_dense:
        search.observe_dense(family.stitch(study.dense))
    store = Evaluations(place.record / "evaluations.sqlite")
    scorers = [Scorer(family, fitness, engine, store) for fitness in (search, test)]
    search.set_reference(scorers[0].measure(study.dense), scorers[0].results(study.dense))
    return Lab(family, engine, *scorers, study.dense)


def measure_unseen(place: Place, tailoring: Tailoring) -> Measurement:
    """Score a model on what no search saw."""
    return lab(place).test.measure(tailoring)


# -- Spaces and starts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpaceName:
    """A space's name in a setting, taken apart.

    Args:
        kind: ``remove``, ``select``, ``merge``, ``fold`` or ``only-NAME``.
        share: Share of layers that goes, as text.
        operation: How models are merged.
        pool: Candidates that may be used; empty for all.
    """

    kind: str
    share: str
    operation: str = "TaskArithmetic"
    pool: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str) -> SpaceName:
        """Read a name."""
        head, _, share = name.rpartition("@")
        kind, _, rest = head.partition(":")
        options = dict(item.split("=", 1) for item in rest.split(",") if item)
        if kind not in {"remove", "select", "merge", "fold"} and not kind.startswith("only-"):
            raise SystemExit(f"A space is merge, select, remove, fold or only-NAME, @ and a share, got {name!r}.")
        if unknown := set(options) - {"operation", "pool"}:
            raise SystemExit(f"A space has the options operation and pool, got {sorted(unknown)} in {name!r}.")
        pool = tuple(options.get("pool", "").split("+")) if "pool" in options else ()
        return cls(kind, share, options.get("operation", "TaskArithmetic"), pool)

    def merges(self) -> list[Any]:
        """Return the merge operations, with a scale between 0 and 1 where they have one."""
        cls: Any = OPERATIONS.get(self.operation)
        return [cls(scale=[0.0, 1.0]) if self.scaled else cls()]

    @property
    def scaled(self) -> bool:
        """Whether the merge has a scale, at which a start can merge all candidates."""
        cls: Any = OPERATIONS.get(self.operation)
        return "scale" in cls().distributions()


@lru_cache
def space_of(place: Place, name: str) -> SearchSpace:
    """Return a search space by its name in a setting."""
    wanted = SpaceName.of(name)
    removal = LayerRemoval(ratio=float(wanted.share))
    space: SearchSpace
    if wanted.kind == "merge":
        space = PruningSpace(removal, merges=wanted.merges())
    elif wanted.kind == "select":
        space = PruningSpace(removal)
    elif wanted.kind == "fold":
        space = FoldingSpace(removal, merges=wanted.merges())
    else:
        space = PruningSpace(removal, selection=None)
    space.setup(lab(place).family.layout)
    return space


def pooled(place: Place, space: str) -> Place:
    """Return a place with only the candidates that a space names."""
    pool = SpaceName.of(space).pool
    if unknown := set(pool) - set(dict(place.candidates)):
        raise SystemExit(f"A pool names candidates, got {sorted(unknown)} in {space!r}.")
    return replace(place, candidates=tuple(c for c in place.candidates if c[0] in pool)) if pool else place


def meant(space: str, tailoring: Tailoring) -> Tailoring:
    """Return what a tailoring means in a space: in ``only-NAME`` all layers are that candidate's."""
    kind = SpaceName.of(space).kind
    if not kind.startswith("only-"):
        return tailoring
    own = kind.removeprefix("only-")
    return Tailoring(tuple(LayerPlan((LayerSource(own, plan.sources[0].layer),)) for plan in tailoring.layers))


@lru_cache
def starts_of(place: Place, start: str, space: str) -> Starts:
    """Return a set of warm starts; they see the search's texts."""
    if start == "cold":
        return ()
    kind, _, source = start.partition(":text=")
    calibration: TextSource = text(place, source, "search") if source else calibration_of(place)
    wanted = SpaceName.of(space)
    scales, merge = (SCALES, wanted.operation) if wanted.scaled else (None, "TaskArithmetic")
    influence = BlockInfluence(calibration, merge_scales=scales, merge=merge)
    if kind == "laco":
        proposed = baseline(place, "LaCo", wanted.share)
        return () if proposed is None else (("LaCo", proposed),)
    chosen: WarmStart = influence
    if kind == "greedy":
        chosen = LeaveOneOut(calibration, greedy=True, max_tokens=GREEDY_TOKENS, merge_scales=scales, merge=merge)
    if kind == "designed":
        chosen = DesignedStart([influence, LeaveOneOut(calibration), AngularDistance(calibration)])
    own = lab(place)
    context = WarmStartContext(own.family, space_of(place, space), own.engine, 0)
    return [(chosen.label, tailoring) for tailoring in chosen.starts(context)]


def calibration_of(place: Place) -> Interleaved:
    """Return what warm starts and baselines may look at: the search's texts."""
    return Interleaved([text(place, name, "search") for name in SEARCHED])


# -- Baselines --------------------------------------------------------------------------------------------------


BASELINES: dict[str, Callable[[TextSource], WarmStart]] = {
    "BlockInfluence": BlockInfluence,
    "AngularDistance": AngularDistance,
    "LeaveOneOut": LeaveOneOut,
    "LeaveOneOut, greedy": partial(LeaveOneOut, greedy=True),
    "TaylorImportance": TaylorImportance,
    "MagnitudeImportance": lambda _: MagnitudeImportance(),
    "LaCo": LaCo,
    "random tailoring": lambda _: RandomTailoring(),
    "uniform mix": lambda text: UniformMix(removal=BlockInfluence(text)),
}
"""What proposes a model without a search, by the names of tables."""


def baseline(place: Place, name: str, share: str) -> Tailoring | None:
    """Return what a baseline proposes, ``None`` if it can't; kept in the folder, as some take minutes."""
    path = place.record / "baselines.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for row in map(json.loads, lines):
        if (row["name"], row["share"]) == (name, share):
            return None if row["tailoring"] is None else Tailoring.from_dict(row["tailoring"])
    own = lab(place)
    space = space_of(place, f"{'fold' if name == 'LaCo' else 'merge'}@{share}")
    proposals: Sequence[Tailoring] = ()
    try:
        proposals = BASELINES[name](calibration_of(place)).propose(
            WarmStartContext(own.family, space, own.engine, 0)
        )
    except TailorError as error:
        print(f"{name} @{share}: {error}")
    tailoring = proposals[0] if proposals else None
    row = {"name": name, "share": share, "tailoring": None if tailoring is None else tailoring.to_dict()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return tailoring

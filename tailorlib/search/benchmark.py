"""The final table: the dense model, the best variant, baselines and the found tailoring on unseen data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.markup import escape

from tailorlib.console import say, step
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import EvaluationError
from tailorlib.fitness import Fitness
from tailorlib.report.table import BenchmarkRow
from tailorlib.search.study import Study
from tailorlib.tailoring import BASE, Tailoring

DENSE = "dense base"
FOUND = "found tailoring"


def run_benchmark(
    study: Study, engine: Engine, found: Tailoring | None, *, found_note: str = ""
) -> list[BenchmarkRow]:
    """Score the models of the final table, the dense base first.

    Args:
        study: A prepared and loaded study with a benchmark fitness.
        engine: Its evaluation engine.
        found: The tailoring that the search found; without it only the baselines are scored.
        found_note: What to say of it below the table.

    Raises:
        EvaluationError: If the recipe has no benchmark.
    """
    fitness = study.benchmark.fitness
    if fitness is None:
        raise EvaluationError("A final table needs 'benchmark.fitness' in the recipe, got none.")
    rows: list[BenchmarkRow] = []
    for name, tailoring, note in _entries(study, engine, found, found_note):
        try:
            with step(f"Benchmark: {name}"):
                row = _measure(study, fitness, name, tailoring, note)
        except Exception as error:  # a baseline that can't be built must not cost the others their rows
            if name in (DENSE, FOUND):
                raise
            say(f"[yellow]![/] Benchmark: {escape(name)} failed and has no row: {escape(str(error))}")
            continue
        if name == DENSE:
            row = replace(row, measurement=fitness.set_reference(row.measurement))
        rows.append(row)
    return rows


def _entries(
    study: Study, engine: Engine, found: Tailoring | None, found_note: str
) -> Iterator[tuple[str, Tailoring, str]]:
    layers = study.family.layout.num_layers
    yield DENSE, Tailoring.whole(BASE, layers), ""
    if study.benchmark.variants and study.family.layout.candidates:
        name = _best_variant(study, study.family.layout.candidates)
        yield f"best single variant ({name})", Tailoring.whole(name, layers), "by the search's fitness"
    context = study.context(engine)
    for baseline in study.benchmark.baselines:
        try:
            proposals = baseline.propose(context)
        except Exception as error:  # such as one that lies outside the search space
            label, why = escape(baseline.label), escape(str(error))
            say(f"[yellow]![/] Benchmark: {label} proposes nothing and has no row: {why}")
            continue
        for proposal in proposals[:1]:
            yield baseline.label, proposal, ""
    if found is not None:
        yield FOUND, found, found_note


def _best_variant(study: Study, names: Sequence[str]) -> str:
    """Return the candidate that is fittest as a whole, judged on the search's data so as not to peek."""
    layers = study.family.layout.num_layers

    def fitness(name: str) -> float:
        return study.fitness.evaluate(study.family.stitch(Tailoring.whole(name, layers))).score

    with step("Single variants compared on the search's data"):
        return max(names, key=fitness)


def _measure(study: Study, fitness: Fitness, name: str, tailoring: Tailoring, note: str) -> BenchmarkRow:
    start = time.perf_counter()
    measurement = fitness.evaluate(study.family.stitch(tailoring))
    seconds = time.perf_counter() - start
    return BenchmarkRow(name, study.family.num_parameters(tailoring), measurement, seconds, note)

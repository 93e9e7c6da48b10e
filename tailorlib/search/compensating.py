"""Compensation of what was found: the best few candidates, each with and without, on data that decided nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from tailorlib.compensation import COMPENSATIONS, Compensation, CompensationContext, unbridged
from tailorlib.console import say, step
from tailorlib.exceptions import RecipeError
from tailorlib.fitness import Fitness
from tailorlib.journal import FILE_NAME, Journal
from tailorlib.models.terms import FOLDER, TermFiles
from tailorlib.search.study import Study
from tailorlib.tailoring import Tailoring


@dataclass(frozen=True)
class Finalist:
    """A candidate that was scored.

    Args:
        name: What tables call it.
        tailoring: The candidate.
        fitness: Its score by the search's fitness.
        validation: Its score by the recipe's validation, if it has one.
    """

    name: str
    tailoring: Tailoring
    fitness: float
    validation: float | None = None

    @property
    def score(self) -> float:
        """What decides: the validation, where there is one."""
        return self.fitness if self.validation is None else self.validation


def finalists(run: Path, count: int) -> list[tuple[str, Tailoring]]:
    """Return the best trials of a run, with names.

    Raises:
        RecipeError: If the run has no complete trial.
    """
    trials = Journal.read(run).trials if (run / FILE_NAME).exists() else []
    whole = [t for t in trials if t.fitness is not None and t.fidelity >= 1]
    best = sorted(whole, key=lambda t: (-float(t.fitness or 0.0), t.number))[:count]
    if not best:
        raise RecipeError(f"The study in {str(run)!r} has no complete trial yet; there is nothing to compensate.")
    return [(f"trial {t.number}", t.tailoring) for t in best]


def compensation_of(study: Study, method: str | None) -> Compensation:
    """Return the compensation to apply: a method by name, with the recipe's calibration text and teacher.

    Raises:
        RecipeError: If the recipe has no calibration text, or there is no such method.
    """
    own = study.compensation
    if method is None and own is not None and not own.per_candidate:
        return own
    if own is None or own.calibration is None:
        raise RecipeError(
            "A compensation is fitted on calibration text, and the recipe has none: give it a section "
            "'compensation' (docs/compensation.md), with --config."
        )
    cls = COMPENSATIONS.get(method or "Refit")
    return cls(calibration=own.calibration, teacher=getattr(own, "teacher", "auto"))  # type: ignore[call-arg]


def compensate(
    study: Study, device: torch.device, compensation: Compensation, chosen: Sequence[tuple[str, Tailoring]]
) -> list[Finalist]:
    """Score tailorings as they are and compensated, the best first; the study is loaded.

    Args:
        study: The study; its family finds the terms of the tailorings.
        device: Where to compute.
        compensation: The method.
        chosen: Tailorings with names.
    """
    family, fitness = study.family, study.fitness
    number = family.layout.num_layers
    for name, tailoring in chosen:
        for reason in unbridged(tailoring, number):
            say(f"[yellow]![/] {name}: {reason}; there is nothing to compensate there")
    compensation.prepare(
        CompensationContext(family, device, number - 1, lambda t: _score(study, fitness, t), study.settings.seed)
    )
    validation = study.validation.fitness
    if validation is not None:
        validation.set_reference(validation.evaluate(family.stitch(study.dense)))
    found = []
    for name, tailoring in _with_and_without(compensation, chosen):
        with step(f"Scored: {name}"):
            checked = None if validation is None else _score(study, validation, tailoring)
            found.append(Finalist(name, tailoring, _score(study, fitness, tailoring), checked))
    return sorted(found, key=lambda finalist: -finalist.score)


def _with_and_without(
    compensation: Compensation, chosen: Sequence[tuple[str, Tailoring]]
) -> Iterator[tuple[str, Tailoring]]:
    for name, tailoring in chosen:
        yield name, tailoring
        yield f"{name}, {compensation.label}", compensation.complete(tailoring.bare)


def _score(study: Study, fitness: Fitness, tailoring: Tailoring) -> float:
    return fitness.evaluate(study.family.stitch(tailoring)).score


def finalists_table(found: Sequence[Finalist]) -> Table:
    """Return the finalists as a table, the best first."""
    validated = any(f.validation is not None for f in found)
    table = Table("candidate", "fitness", *(["validation"] if validated else []), title_justify="left")
    for finalist in found:
        cells = [f"{finalist.fitness:.4g}"]
        cells += ["" if finalist.validation is None else f"{finalist.validation:.4g}"] if validated else []
        table.add_row(Text(finalist.name), *cells)
    return table


def keep_found(tailoring: Tailoring, folder: Path, others: Sequence[Path]) -> None:
    """Put all terms of a tailoring into a folder of its own.

    Args:
        tailoring: The tailoring.
        folder: The folder; the terms go into its ``terms``.
        others: Folders that may have them, beside the cache.
    """
    files = TermFiles(folder / FOLDER, cached=True, others=others)
    for name in tailoring.terms:
        files.keep(name)

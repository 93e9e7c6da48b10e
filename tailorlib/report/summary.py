"""The summary of a study, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tailorlib.report.names import clean, duration
from tailorlib.report.pictures import layer_map_text
from tailorlib.search_space import FamilyLayout
from tailorlib.tailoring import Tailoring
from tailorlib.trial import Trial, incumbent


def study_summary(
    trials: Sequence[Trial],
    dense_fitness: float | None,
    seconds: float,
    *,
    layout: FamilyLayout | None = None,
    title: str = "Study",
    best: Trial | None = None,
) -> RenderableType:
    """Return a panel that says what a study found, what it cost, and where the best trial came from.

    Args:
        trials: The study's trials.
        dense_fitness: Fitness of the dense base model, if it is known.
        seconds: Wall time of the study.
        layout: The family's layout; with it the best tailoring's layer map is shown.
        title: Title of the panel.
        best: The study's result; the fittest trial by default.
    """
    best = best or incumbent(trials)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    for name, text in summary_facts(trials, dense_fitness, seconds, best).items():
        grid.add_row(name, Text(clean(text)))
    parts: list[RenderableType] = [grid]
    if best is not None and layout is not None:
        parts += ["", layer_map_text(best.tailoring, layout)]
    return Panel(Group(*parts), title=Text(clean(title)), title_align="left", expand=False, padding=(0, 1))


def summary_facts(
    trials: Sequence[Trial], dense_fitness: float | None, seconds: float, best: Trial | None = None
) -> dict[str, str]:
    """Return the lines of :func:`study_summary` as plain text, by heading."""
    best = best or incumbent(trials)
    facts = {"best": "no trial is complete" if best is None else _best(best, dense_fitness)}
    if best is not None:
        facts["found by"] = _origin(best, trials)
    facts["trials"] = _counts(trials)
    reasons = [t.reason for t in trials if t.reason]
    if reasons:  # one is enough to see what is wrong; the journal has them all
        facts["last failure"] = reasons[-1]
    spent = [t.seconds for t in _distinct(trials) if t.state == "complete"]
    each = f"; median {median(spent):.2f} s a trial" if spent else ""
    facts["time"] = f"{duration(seconds)}{each}"
    if any(t.costs for t in trials):
        facts["reused"] = _reused(trials)
    return facts


def duplicates(trials: Sequence[Trial]) -> int:
    """Return how many trials repeat the tailoring of an earlier one."""
    return len(trials) - len(_distinct(trials))


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    """The first trial of each tailoring. A repeated one costs next to nothing and would pull the median down."""
    first: dict[Tailoring, Trial] = {}
    for trial in sorted(trials, key=lambda t: t.number):
        first.setdefault(trial.tailoring, trial)
    return list(first.values())


def _best(best: Trial, dense_fitness: float | None) -> str:
    text = f"trial {best.number}, fitness {best.fitness:.4g}"
    if best.fitness is not None and dense_fitness is not None:
        share = f", {100 * best.fitness / dense_fitness:.1f} % retained" if dense_fitness > 0 else ""
        text += f" (dense {dense_fitness:.4g}{share})"
    return text


def _origin(best: Trial, trials: Sequence[Trial]) -> str:
    if best.origin != "optimizer":
        return f"warm start {best.origin}; the optimizer found nothing better"
    start = incumbent([t for t in trials if t.origin != "optimizer"])
    if start is None:
        return "optimizer"
    return f"optimizer; the best warm start was {start.origin} (trial {start.number}) with {start.fitness:.4g}"


def _counts(trials: Sequence[Trial]) -> str:
    complete = sum(t.state == "complete" for t in trials)
    text = f"{complete} complete, {len(trials) - complete} failed"
    if any(t.fidelity < 1 for t in trials):
        whole = {t.tailoring for t in trials if t.fidelity == 1}
        candidates = len(_distinct(trials))
        return f"{text}; {candidates} candidates, of which {len(whole)} were scored on all samples"
    repeated = duplicates(trials)
    return f"{text}; {repeated} of them repeat an earlier tailoring" if repeated else text


def _reused(trials: Sequence[Trial]) -> str:
    """Say what the caches saved, and how large they were at most."""

    def total(name: str) -> float:
        return sum(t.costs.get(name, 0.0) for t in trials)

    def most(name: str) -> str:
        return f"{max(t.costs.get(name, 0.0) for t in trials):.0f} MiB"

    layers, merges = total("layers_reused"), total("merges_reused")
    text = f"{layers / max(1e-9, layers + total('layers_run')):.0%} of layers ({most('prefix_cache_mib')})"
    if merges + total("merges"):
        share = merges / (merges + total("merges"))
        text += f", {share:.0%} of merged layers ({most('merge_cache_mib')})"
    return text

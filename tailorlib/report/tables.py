"""Tables of a study, as plain text in cells: what pages, terminals and scripts show alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tailorlib.pareto import front
from tailorlib.report.importance import Effect
from tailorlib.report.names import clean, decision_text, duration, number, percent
from tailorlib.report.run import Run, class_text, section
from tailorlib.report.table import table_cells
from tailorlib.trial import Trial, incumbent

EDGE = 15
"""Number of the best and of the last trials that a table shows."""
REASONS = 20
"""Largest number of reasons of failure that a table shows."""


@dataclass(frozen=True)
class Sheet:
    """A table.

    Args:
        heads: Heads of the columns.
        rows: Rows of text.
        caption: What it shows.
        words: Columns of words, which are aligned to the left; the first is one.
        notes: Remarks below it.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: tuple[int, ...] = (0,)
    notes: Sequence[str] = ()


def asked(run: Run) -> dict[str, str]:
    """Return what a study was asked for, by heading."""
    recipe, study = run.recipe, section(run.recipe, "study")
    family = section(recipe, "family").get("init_args")
    settings = family if isinstance(family, Mapping) else {}
    layers = "" if run.layout is None else f" ({run.layout.num_layers} layers)"
    unit = "evaluations on all samples" if run.has_scheduler else "trials"
    facts = {
        "base model": f"{clean(settings.get('base', '–'))}{layers}",
        "candidates": _candidates(settings) or ("–" if run.layout is None else ", ".join(run.layout.candidates)),
        "search space": _space(section(recipe, "search_space")),
        "optimizer": class_text(recipe.get("optimizer")),
        "scheduler": class_text(recipe.get("scheduler")),
        "fitness": _fitness(section(recipe, "fitness")),
        "objectives": ", ".join(class_text(o) for o in _listed(recipe.get("objectives"))) or "–",
        "warm starts": ", ".join(class_text(w) for w in _listed(recipe.get("warm_starts"))) or "–",
        "budget": "–" if run.asked is None else f"{run.asked} {unit}",
        "seed": clean(study.get("seed", "–")),
    }
    return {name: clean(text) for name, text in facts.items() if text != "–"}


def key_figures(run: Run) -> dict[str, str]:
    """Return what a study found in a few figures, by heading; the first to be read."""
    best = run.best
    figures = {
        "state": run.state,
        "trials": trial_counts(run),
        "best fitness": "–" if best is None else number(best.fitness),
        "retained of dense": percent(run.retained(best)),
    }
    if best is not None:
        layers = "" if run.layout is None else f" of {run.layout.num_layers}"
        figures["layers kept"] = f"{len(best.tailoring.layers)}{layers}"
        figures["parameters removed"] = percent(run.removed_parameters(best.tailoring))
    figures["evaluation time"] = duration(sum(t.seconds for t in run.trials))
    return {name: text for name, text in figures.items() if text != "–"}


def trial_counts(run: Run) -> str:
    """Return how many trials there are, and were asked for."""
    failed = sum(t.fitness is None for t in run.trials)
    text = str(len(run.trials))
    if run.has_scheduler:
        text += f" (spent {run.spent:.1f} of {run.asked or '?'})"
    elif run.asked is not None:
        text += f" of {run.asked}"
    return f"{text}, {failed} failed" if failed else text


def origins(run: Run) -> Sheet:
    """Return what each warm start and the optimizer found; the fidelity is the highest that there is."""
    most = max((t.fidelity for t in run.trials if t.fitness is not None), default=1.0)
    groups: dict[str, list[Trial]] = {}
    for trial in run.trials:
        groups.setdefault(trial.origin, []).append(trial)
    rows = []
    for origin, trials in groups.items():
        scores = [t.fitness for t in trials if t.fitness is not None and t.fidelity == most]
        best = incumbent(t for t in trials if t.fidelity == most)
        rows.append(
            [
                clean(origin),
                str(len(trials)),
                number(max(scores, default=None)),
                percent(run.retained(best)),
                number(median(scores) if scores else None),
                "–" if best is None else str(best.number),
            ]
        )
    heads = ["origin", "trials", "best fitness", "retained", "median fitness", "best trial"]
    return Sheet(heads, rows, "Warm starts and the optimizer")


def fidelities(run: Run) -> Sheet | None:
    """Return how many candidates were scored on how many samples; ``None`` if all were on all of them."""
    levels = sorted({t.fidelity for t in run.trials})
    if levels in ([], [1.0]):
        return None
    rows = []
    for level in levels:
        trials = [t for t in run.trials if t.fidelity == level]
        scores = [t.fitness for t in trials if t.fitness is not None]
        anew = sum(t.costs.get("samples", 0.0) for t in trials)
        rows.append([percent(level), str(max(t.samples for t in trials)), str(len(trials))])
        rows[-1] += [number(max(scores, default=None)), f"{anew:.0f}", duration(sum(t.seconds for t in trials))]
    heads = ["share of samples", "samples", "trials", "best fitness", "samples scored", "time"]
    return Sheet(heads, rows, "Candidates by the samples they were scored on", words=())


def trial_row(run: Run, trial: Trial, marks: Mapping[int, str]) -> list[str]:
    """Return a trial's row; see :func:`trials_sheet`."""
    scores = [number(trial.objectives.get(name)) for name in run.objectives]
    share = [percent(trial.fidelity, 0)] if run.has_scheduler else []
    return [
        str(trial.number),
        clean(trial.origin),
        number(trial.fitness),
        percent(run.retained(trial)),
        *scores,
        *share,
        str(len(trial.tailoring.layers)),
        duration(trial.seconds),
        marks.get(trial.number, "failed" if trial.fitness is None else ""),
    ]


def trials_sheet(run: Run) -> Sheet:
    """Return the best and the last trials."""
    most = max((t.fidelity for t in run.trials), default=1.0)
    complete = sorted(
        (t for t in run.trials if t.fitness is not None), key=lambda t: (-t.fidelity, t.loss, t.number)
    )
    shown = {t.number for t in [*complete[:EDGE], *run.trials[-EDGE:]]}
    marks = {} if run.best is None else {run.best.number: "result"}
    if run.objectives:
        marks = {t.number: "front" for t in front(run.trials)} | marks
    chosen = [t for t in complete if t.number in shown] + [
        t for t in run.trials if t.fitness is None and t.number in shown
    ]
    share = ["samples"] if run.has_scheduler else []
    heads = ["trial", "origin", "fitness", "retained", *map(clean, run.objectives), *share, "layers", "time", ""]
    left = len(run.trials) - len(chosen)
    note = f"The {EDGE} best and the {EDGE} last trials; {left} more are left out."
    what = "on all samples first" if most < 1 or run.has_scheduler else "the best first"
    rows = [trial_row(run, t, marks) for t in chosen]
    return Sheet(heads, rows, f"Trials, {what}", (1, len(heads) - 1), [note] if left else [])


def failures(run: Run) -> Sheet | None:
    """Return the reasons of failed trials, the most frequent first; ``None`` if none failed."""
    reasons: dict[str, list[int]] = {}
    for trial in (t for t in run.trials if t.fitness is None):
        reasons.setdefault(clean(trial.reason or "unknown", 400), []).append(trial.number)
    if not reasons:
        return None
    ordered = sorted(reasons.items(), key=lambda pair: (-len(pair[1]), pair[1]))
    rows = [
        [reason, str(len(found)), ", ".join(map(str, found[:8])) + (" …" if len(found) > 8 else "")]
        for reason, found in ordered[:REASONS]
    ]
    left = len(ordered) - len(rows)
    notes = [f"{left} more reasons are left out; the journal has them."] if left else []
    return Sheet(["reason", "trials", "numbers"], rows, "Failed trials", notes=notes)


def front_sheet(run: Run) -> Sheet | None:
    """Return the Pareto front; ``None`` without several objectives."""
    best = front(run.trials) if len(run.objectives) > 1 else []
    if not best:
        return None
    chosen = run.best
    rows = [
        [
            str(t.number),
            str(len(t.tailoring.layers)),
            percent(run.removed_parameters(t.tailoring)),
            *(number(t.objectives[name]) for name in run.objectives),
            "result" if chosen is not None and t.number == chosen.number else "",
        ]
        for t in best
    ]
    heads = ["trial", "layers", "parameters removed", *(f"{clean(name)} ↑" for name in run.objectives), ""]
    return Sheet(heads, rows, "Pareto front", (0, len(heads) - 1))


def validations(run: Run) -> Sheet | None:
    """Return what validation found; ``None`` if there was none."""
    if not run.validations:
        return None
    rows = [
        [
            str(n),
            number(trial.fitness if (trial := run.trial(n)) is not None else None),
            number(found.score),
            "result" if run.best is not None and run.best.number == n else "",
        ]
        for n, found in run.validations.items()
    ]
    return Sheet(
        ["trial", "fitness", "validation score", ""], rows, "Validation on data that the search never used"
    )


def metrics(run: Run, trial: Trial) -> Sheet | None:
    """Return every figure of a trial beside the dense model's; ``None`` if there is none."""
    dense = {} if run.journal.dense is None else run.journal.dense.metrics
    rows = [[clean(name), number(value), number(dense.get(name))] for name, value in trial.metrics.items()]
    return Sheet(["figure", "this trial", "dense base"], rows, "All figures") if rows else None


def costs(run: Run) -> dict[str, str]:
    """Return what the trials took, by heading."""
    spent = [t.seconds for t in run.trials if t.fitness is not None]
    facts = {"evaluation": f"{duration(sum(t.seconds for t in run.trials))} in {len(run.trials)} trials"}
    if spent:
        facts["a trial"] = f"{duration(median(spent))} (median; {duration(min(spent))} to {duration(max(spent))})"
    totals = {name: sum(t.costs.get(name, 0.0) for t in run.trials) for name in ("samples", "tokens")}
    facts |= {f"{name} scored": f"{total:,.0f}" for name, total in totals.items() if total}
    for what, run_name, reused_name, cache in (
        ("layers reused", "layers_run", "layers_reused", "prefix_cache_mib"),
        ("merged layers reused", "merges", "merges_reused", "merge_cache_mib"),
    ):
        done = sum(t.costs.get(run_name, 0.0) for t in run.trials)
        saved = sum(t.costs.get(reused_name, 0.0) for t in run.trials)
        most = max((t.costs.get(cache, 0.0) for t in run.trials), default=0.0)
        if done + saved:
            facts[what] = f"{saved / (done + saved):.0%} (the cache held {most:.0f} MiB at most)"
    return facts


def sessions(run: Run) -> Sheet | None:
    """Return the processes that worked on the study; ``None`` where the journal doesn't say."""
    rows = []
    for session in run.journal.sessions:
        ended = session.get("ended")
        end = f"{ended.get('how')}, {ended.get('time')}" if isinstance(ended, Mapping) else "no end recorded"
        facts = [session.get(key, "–") for key in ("time", "host", "device", "ranks", "trials")]
        rows.append([clean(fact, 60) for fact in [*facts, end]])
    heads = ["start", "host", "device", "processes", "trials before", "end"]
    return Sheet(heads, rows, "Sessions", (0, 1, 2, 5)) if rows else None


def version_changes(run: Run) -> list[str]:
    """Return which versions changed between the sessions of a study."""
    found, last = [], dict(run.journal.header.environment)
    for session in run.journal.sessions:
        versions = session.get("versions")
        now = {str(k): str(v) for k, v in versions.items()} if isinstance(versions, Mapping) else {}
        when = clean(session.get("time", "–"))
        found += [
            f"{clean(name)} {clean(last[name])} → {clean(now[name])} (session of {when})"
            for name in now
            if name in last and now[name] != last[name]
        ]
        last |= now
    return found


def benchmark(run: Run) -> Sheet | None:
    """Return the benchmark table; ``None`` if there is none."""
    if not run.benchmark:
        return None
    heads, body, remarks = table_cells(run.benchmark)
    rows = [[clean(cell) for cell in row] for row in body]
    return Sheet(
        [clean(h).replace("\n", " ").replace("/", "/\u200b").replace("_", "_\u200b") for h in heads],
        rows,
        "Benchmark",
        notes=[clean(r) for r in remarks],
    )


def effects(found: Sequence[Effect], caption: str) -> Sheet:
    """Return effects with their intervals."""
    rows = [
        [decision_text(e.decisions), f"{e.mean:+.3g}", f"{e.low:+.3g} to {e.high:+.3g}", str(e.trials)]
        for e in found
    ]
    return Sheet(["decision", "mean effect", "90 % interval", "candidates that did it"], rows, caption)


def _candidates(settings: Mapping[str, Any]) -> str:
    named: Mapping[str, Any] = next(
        (settings[k] for k in ("candidates", "variants") if isinstance(settings.get(k), Mapping)), {}
    )
    return ", ".join(f"{clean(k)} ({clean(v)})" if isinstance(v, str) else clean(k) for k, v in named.items())


def _space(space: Mapping[str, Any]) -> str:
    settings = space.get("init_args")
    inside = settings if isinstance(settings, Mapping) else {}
    parts = {
        "removal": class_text(inside.get("removal")),
        "merges": ", ".join(class_text(m) for m in _listed(inside.get("merges"))) or "–",
    }
    text = "; ".join(f"{name}: {part}" for name, part in parts.items() if part != "–")
    return " – ".join(filter(None, [class_text({"class_path": space.get("class_path", "–")}), text]))


def _fitness(fitness: Mapping[str, Any]) -> str:
    settings = fitness.get("init_args")
    parts = settings.get("parts") if isinstance(settings, Mapping) else None
    if not isinstance(parts, Mapping):
        return class_text(fitness)
    inside = ", ".join(f"{clean(k)}: {class_text({'class_path': _class(v)})}" for k, v in parts.items())
    return f"{class_text(fitness)} of {inside}"


def _class(data: Any) -> Any:
    return data.get("class_path", "–") if isinstance(data, Mapping) else data


def _listed(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []

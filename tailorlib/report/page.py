"""The report of one or several studies: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tailorlib.escaping import visible
from tailorlib.pareto import front
from tailorlib.report import tables
from tailorlib.report.difference import Line, recipe_difference, tailoring_difference
from tailorlib.report.figures import (
    ROWS,
    comparison_figure,
    effects_figure,
    front_figure,
    history_figure,
    layer_map_figure,
)
from tailorlib.report.history import Across
from tailorlib.report.importance import Importance, importance
from tailorlib.report.names import clean, number, owner_text, percent, plan_text, ranges
from tailorlib.report.run import Run
from tailorlib.report.summary import summary_facts
from tailorlib.report.svg import to_svg
from tailorlib.trial import Trial

MAPS = 12
"""Largest number of layer maps of the Pareto front."""
RECIPE = 200_000
"""Most characters of a recipe that are shown."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Args:
        svg: The ``<svg>`` element.
        caption: What it shows.
        wide: Whether it keeps its size and scrolls, instead of shrinking to a narrow screen.
    """

    svg: Markup
    caption: str
    wide: bool = False


def render(runs: Sequence[Run]) -> str:
    """Return the HTML of a report.

    Args:
        runs: The study; of several studies a comparison is made.
    """
    environment = Environment(
        loader=PackageLoader("tailorlib.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda found: found if isinstance(found, Markup) else visible(found),
    )
    # markup of its own, and no string of a study, goes in unescaped
    style = Markup(environment.get_template("report.css").render().strip())
    digest = base64.b64encode(hashlib.sha256(str(style).encode()).digest()).decode()
    page = study_page(runs[0]) if len(runs) == 1 else comparison_page(runs)
    return environment.get_template("report.html").render(style=style, style_hash=digest, **page)


def study_page(run: Run) -> dict[str, Any]:
    """Return what the template shows of one study."""
    best = run.best
    return {
        "title": run.name,
        "kind": "study",
        "story": story(run),
        "figures": tables.key_figures(run),
        "remarks": run.remarks,
        "asked": tables.asked(run),
        "facts_": {name: clean(text) for name, text in _facts(run).items()},
        "benchmark": tables.benchmark(run),
        "metrics": None if best is None else tables.metrics(run, best),
        "map": _map(run, best, "map"),
        "layers": [] if best is None else [(str(i), plan_text(p)) for i, p in enumerate(best.tailoring.layers)],
        "parts": {} if best is None else {k: owner_text(v) for k, v in best.tailoring.parts.items()},
        "tailoring": None if best is None else clean(best.tailoring.to_yaml()),
        "origins": tables.origins(run),
        "histories": _histories(run),
        "fidelities": tables.fidelities(run),
        "front": tables.front_sheet(run),
        "front_picture": _front(run),
        "front_maps": _front_maps(run),
        "importance": _importance(run),
        "validations": tables.validations(run),
        "trials": tables.trials_sheet(run),
        "failures": tables.failures(run),
        "costs": tables.costs(run),
        "sessions": tables.sessions(run),
        "changes": tables.version_changes(run),
        "environment": {clean(k): clean(v) for k, v in run.journal.header.environment.items()},
        "commands": commands(run),
        "recipe": None if run.recipe_text is None else clean(run.recipe_text[:RECIPE]),
    }


def comparison_page(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the template shows of several studies."""
    names = [f"{_letter(i)}: {run.name}" for i, run in enumerate(runs)]
    facts = [{**tables.key_figures(run), **tables.asked(run)} for run in runs]
    heads = dict.fromkeys(key for found in facts for key in found)
    rows = [[key, *(found.get(key, "–") for found in facts)] for key in heads]
    differences = recipe_difference([run.recipe for run in runs])
    words = tuple(range(len(runs) + 1))
    return {
        "title": " and ".join(run.name for run in runs) if len(runs) == 2 else f"{len(runs)} studies",
        "kind": "comparison",
        "names": names,
        "remarks": [f"{name}: {remark}" for name, run in zip(names, runs, strict=True) for remark in run.remarks],
        "table": tables.Sheet(["", *names], rows, "The studies side by side", words),
        "comparable": _comparable(runs),
        "histories": _comparison(runs, names),
        "recipes": tables.Sheet(
            ["setting", *names], [[key, *values] for key, values in differences], "Settings that differ", words
        ),
        "maps": [
            (name, _map(run, run.best, f"map{i}")) for i, (name, run) in enumerate(zip(names, runs, strict=True))
        ],
        "difference": _difference(runs, names),
        "commands": [
            f"tailor diff {shlex.quote(clean(runs[0].folder))} {shlex.quote(clean(run.folder))}"
            for run in runs[1:]
        ],
    }


def story(run: Run) -> list[str]:
    """Return what a study is about, in sentences."""
    best, layout = run.best, run.layout
    if best is None:
        what = "failed" if run.trials else "was finished yet"
        return [f"No trial is complete: {'each of them' if run.trials else 'none'} {what}."]
    kept = len(best.tailoring.layers)
    removed = (
        []
        if layout is None
        else sorted(set(range(layout.num_layers)) - {s.layer for p in best.tailoring.layers for s in p.sources})
    )
    text = f"The result keeps {kept} layers" + (f" of {layout.num_layers}" if layout is not None else "")
    text += f" (without {ranges(removed)})" if removed else ""
    share = run.retained(best)
    if share is not None:
        text += f" and {percent(share)} of the dense model's fitness"
    sentences = [f"{text}; it is trial {best.number}, found by {_finder(best)}."]
    if best.objectives:
        scores = ", ".join(f"{clean(name)} {number(score)}" for name, score in best.objectives.items())
        sentences.append(f"Its objectives: {scores}.")
    starts = [
        t for t in run.trials if t.origin != "optimizer" and t.fitness is not None and t.fidelity == best.fidelity
    ]
    if best.origin == "optimizer" and starts and best.fitness is not None:
        start = max(starts, key=lambda t: (t.fitness or 0.0, -t.number))
        sentences.append(
            f"The best warm start, {clean(start.origin)} (trial {start.number}), reached {number(start.fitness)}; "
            f"the optimizer's best is {number(best.fitness)}."
        )
    elif best.origin != "optimizer":
        sentences.append("The optimizer found nothing better.")
    return sentences


def commands(run: Run) -> list[tuple[str, str]]:
    """Return the commands that repeat, continue and use a study, each with what it does."""
    folder = shlex.quote(clean(run.folder))
    found = []
    if run.recipe_text is not None:
        again = (
            f"tailor search --config {shlex.quote(clean(run.folder / 'recipe.yaml'))} --study.directory NEW_FOLDER"
        )
        found.append(("Repeat the study, from the recipe below", again))
        if run.state != "finished":
            found.append(("Go on with it", f"tailor search --resume {folder}"))
    if run.best is not None and run.recipe_text is not None:
        number = "" if not run.objectives and not run.validations else f" --trial {run.best.number}"
        found.append(("Write the result as a model", f"tailor export {folder}{number} --output model"))
        found.append(("Score the result on the benchmark", f"tailor evaluate {folder}{number}"))
    found.append(("Make this page again", f"tailor report {folder}"))
    return found


def _facts(run: Run) -> dict[str, str]:
    return summary_facts(run.trials, run.dense_fitness, sum(t.seconds for t in run.trials), run.best)


def _finder(best: Trial) -> str:
    return "the optimizer" if best.origin == "optimizer" else f"the warm start {clean(best.origin)}"


def _map(run: Run, trial: Trial | None, name: str) -> Picture | None:
    if trial is None or run.layout is None:
        return None
    figure = layer_map_figure(run.trials, run.layout, trial=trial)
    title = f"Layer map of trial {trial.number}"
    about = (
        f"{len(trial.tailoring.layers)} of {run.layout.num_layers} layers are kept; the list says what each is."
    )
    return Picture(to_svg(figure, name, title, about), f"{title}. Columns are the base's layers.", wide=True)


def _histories(run: Run) -> list[Picture]:
    if not run.trials:
        return []
    pictures = [_history(run, "trials", run.dense_fitness)]
    if sum(t.costs.get("samples", 0.0) for t in run.trials):
        pictures.append(_history(run, "samples", None))
    if sum(t.seconds for t in run.trials):
        pictures.append(_history(run, "seconds", None))
    return pictures


def _history(run: Run, across: Across, dense: float | None) -> Picture:
    what = {
        "trials": "by trial",
        "samples": "by samples that were scored anew",
        "seconds": "by time of evaluation",
    }
    title = f"Fitness {what[across]}"
    best = run.best
    about = f"{len(run.trials)} trials" + ("" if best is None else f"; the best fitness is {number(best.fitness)}")
    width = 7.2 if across == "trials" else 5.4
    figure = history_figure(run.trials, run.layout, dense_fitness=dense, across=across, width=width)
    return Picture(to_svg(figure, f"history-{across}", title, about), f"{title}.")


def _front(run: Run) -> Picture | None:
    if len(run.objectives) < 2 or not front(run.trials):
        return None
    about = f"The front has {len(front(run.trials))} trials, which the table lists."
    figure = front_figure(run.trials, run.layout)
    return Picture(
        to_svg(figure, "front", "Pareto front", about), "Pareto front: no trial beats one of it in all."
    )


def _front_maps(run: Run) -> list[Picture]:
    if len(run.objectives) < 2:
        return []
    pictures = (_map(run, t, f"map-{t.number}") for t in front(run.trials)[:MAPS])
    return [p for p in pictures if p is not None]


def _importance(run: Run) -> dict[str, Any]:
    if run.layout is None:
        return {"found": None, "why": "The journal doesn't say how many layers the base has."}
    found = importance(run.trials, run.layout)
    if found.layers is None:
        return {"found": None, "why": found.left_out or "All candidates do the same to each layer."}
    effects = found.layers.effects
    clear = sum(e.is_clear for e in effects)
    about = (
        f"{len(effects)} effects, of which {clear} have an interval that leaves out zero; the table lists them."
    )
    picture = partial(to_svg, title="Effects on the fitness", description=about)
    return {
        "found": found,
        "why": None,
        "warnings": [*_warnings(found), *_as_many(run)],
        "picture": Picture(picture(effects_figure(effects[:ROWS]), "effects"), _effects_caption(len(effects))),
        "table": tables.effects(effects[: 5 * ROWS], "Effects of decisions about layers"),
        "shares": None
        if found.shares is None
        else tables.effects(found.shares.effects, "Effects of drawing on a model in 10 % more of the layers"),
        "r2": f"{found.layers.r2:.2f}",
        "shares_r2": "" if found.shares is None else f"{found.shares.r2:.2f}",
        "folds": found.layers.folds,
        "certain": clear,
        "number": len(effects),
        "fidelity": percent(found.fidelity, 0),
    }


def _effects_caption(count: int) -> str:
    shown = f"The {ROWS} largest of {count} effects" if count > ROWS else f"{count} effects"
    return f"{shown} on the fitness. A filled mark: the interval leaves out zero."


def _warnings(found: Importance) -> list[str]:
    model = found.layers
    assert model is not None
    said = []
    if model.r2 <= 0:
        said.append(
            "Candidates that the model hasn't seen are predicted no better by it than by the mean of the others "
            "(R² is not above 0). Don't read the effects below as facts."
        )
    elif model.r2 < 0.5:
        said.append("Less than half of the variance is explained: take the effects below as hints.")
    if found.trials < 3 * len(model.effects):
        said.append(
            f"There are {found.trials} candidates for {len(model.effects)} effects: most of them can't be told "
            "apart from each other, and the intervals lean on the assumption that effects are small."
        )
    return said


def _as_many(run: Run) -> list[str]:
    kept = {
        len({s.layer for p in t.tailoring.layers for s in p.sources}) for t in run.trials if t.fitness is not None
    }
    if len(kept) > 1:
        return []
    return [
        "All candidates remove as many layers: to remove one is to keep another. The effect of a removal is held "
        "against the other layers' mean."
    ]


def _comparable(runs: Sequence[Run]) -> list[str]:
    """Say what keeps the fitness of studies from being compared."""
    first, notes = runs[0].journal.header.identity, []
    for key, what in (("fitness", "fitness"), ("family", "model family")):
        if any(run.journal.header.identity.get(key) != first.get(key) for run in runs):
            notes.append(f"The studies differ in their {what}: equal figures don't mean equal quality.")
    return notes


def _comparison(runs: Sequence[Run], names: Sequence[str]) -> list[Picture]:
    trials = {name: run.trials for name, run in zip(names, runs, strict=True) if run.trials}
    pictures: list[Picture] = []
    for across, what in (
        ("samples", "by samples that were scored anew"),
        ("seconds", "by time of evaluation"),
        ("trials", "by trial"),
    ):
        if across == "samples" and not all(any(t.costs.get("samples") for t in ts) for ts in trials.values()):
            continue
        if trials:
            title = f"Best fitness so far, {what}"
            figure = comparison_figure(trials, across=across)  # type: ignore[arg-type]
            pictures.append(Picture(to_svg(figure, f"history-{across}", title, ", ".join(trials)), f"{title}."))
    return pictures


def _difference(runs: Sequence[Run], names: Sequence[str]) -> list[tuple[str, tables.Sheet]]:
    best = runs[0].best
    found = []
    for name, run in list(zip(names, runs, strict=True))[1:]:
        if best is None or run.best is None:
            continue
        lines = tailoring_difference(best.tailoring, run.best.tailoring, _layers(runs[0], run))
        found.append((f"{names[0]} and {name}", difference_sheet(lines, names[0], name)))
    return found


def difference_sheet(lines: Sequence[Line], first: str, second: str) -> tables.Sheet:
    """Return the lines that differ as a table."""
    rows = [[line.what, line.first, line.second] for line in lines if not line.same]
    same = [line.what.removeprefix("layer ") for line in lines if line.same and line.what.startswith("layer ")]
    notes = [f"The same in both: layers {ranges(map(int, same))}."] if same else []
    return tables.Sheet(["", first, second], rows, "Layers that differ", (0, 1, 2), notes)


def _layers(*runs: Run) -> int | None:
    return max((run.layout.num_layers for run in runs if run.layout is not None), default=None)


def _letter(i: int) -> str:
    return chr(ord("A") + i) if i < 26 else str(i + 1)

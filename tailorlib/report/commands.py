"""The verbs that look at studies: ``tailor report | list | show | diff``. They change nothing in a run folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tailorlib.console import emit, say
from tailorlib.exceptions import JournalError, RecipeError, TailorError
from tailorlib.files import write_text
from tailorlib.journal import FILE_NAME
from tailorlib.report import tables
from tailorlib.report.difference import tailoring_difference
from tailorlib.report.names import clean, duration, number, owner_text, percent, plan_text, ranges
from tailorlib.report.run import Run, read_run
from tailorlib.tailoring import Tailoring
from tailorlib.trial import Trial

DEPTH = 4
"""How many levels below a folder runs are looked for."""


def report(runs: list[str], output: str | None = None) -> None:
    """Write one HTML file: a study's story, or several studies side by side: `tailor report RUN ...`.

    Args:
        runs: Run folders. Of several a comparison is made.
        output: File to write: RUN/report.html by default, report.html in the working folder for several runs.

    Raises:
        TailorError: If a folder has no readable journal, or the file can't be written.
    """
    found = [read_run(folder) for folder in runs]
    from tailorlib.report.page import render  # matplotlib takes a second to import

    default = found[0].folder / "report.html" if len(found) == 1 else Path("report.html")
    target = Path(output) if output is not None else default
    if target.is_dir():
        raise RecipeError(f"A report is a file, got the folder {str(target)!r}. Name a file: --output FILE.")
    text = render(found)
    write_text(target, text)
    say(Text.assemble(("✓", "green"), f" Report written to {clean(target)} ({len(text.encode()) / 1024:.0f} KiB)"))
    emit("report", {"output": str(target), "runs": [run_facts(run) for run in found]})


def list_runs(folder: str = "runs") -> None:
    """List the studies in a folder and below it: `tailor list [FOLDER]`.

    Args:
        folder: Where to look.

    Raises:
        RecipeError: If there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise RecipeError(f"Studies are listed from a folder; {folder!r} is none. Name one: tailor list FOLDER.")
    table = _table(
        ["run", "state", "trials", "best fitness", "retained", "layers", "last activity"], words=(0, 1, 6)
    )
    count = 0
    for journal in sorted(_journals(root)):
        count += 1
        name = str(journal.parent.relative_to(root))
        try:
            run = read_run(journal.parent)
        except (TailorError, OSError) as error:
            emit("run", {"run": str(journal.parent), "state": "damaged", "error": str(error)})
            table.add_row(*map(Text, [clean(name), "damaged", "–", "–", "–", "–", clean(error, 60)]))
            continue
        facts = run_facts(run)
        emit("run", facts)
        best, layers = run.best, "–"
        if best is not None:
            whole = "" if run.layout is None else f"/{run.layout.num_layers}"
            layers = f"{len(best.tailoring.layers)}{whole}"
        row = [clean(name), run.state, tables.trial_counts(run), number(facts["best_fitness"])]
        row += [percent(run.retained(best)), layers, run.last_activity or "–"]
        table.add_row(*map(Text, row))
    if count:
        say(table)
    else:
        say(Text(f"There is no study in {clean(folder)} (a folder with a {FILE_NAME}), {DEPTH} levels deep."))


def show(run: str, trial: int | None = None) -> None:
    """Show what a study found, or all about one of its trials: `tailor show RUN [--trial N]`.

    Args:
        run: The run folder.
        trial: Number of the trial.

    Raises:
        JournalError: If the folder has no readable journal.
        RecipeError: If the study has no such trial.
    """
    found = read_run(run)
    if trial is None:
        _show_study(found)
        return
    _show_trial(found, _trial_of(found, trial))


def diff(first: str, second: str) -> None:
    """Compare two tailorings layer by layer: `tailor diff A B`.

    Args:
        first: A run folder (its best trial), RUN@N (its trial N), or a tailoring file.
        second: Another one.

    Raises:
        TailorError: If one of them is none of these.
    """
    (one, layers), (two, more) = _tailoring_of(first), _tailoring_of(second)
    lines = tailoring_difference(one, two, max([n for n in (layers, more) if n], default=None))
    emit(
        "difference",
        {
            "first": first,
            "second": second,
            "same": one.digest == two.digest,
            "lines": [{"what": x.what, "first": x.first, "second": x.second, "same": x.same} for x in lines],
        },
    )
    table = _table(["", clean(first), clean(second)], words=(0, 1, 2))
    for line in (line for line in lines if not line.same):
        table.add_row(Text(line.what), Text(line.first), Text(line.second))
    same = [int(line.what.split()[1]) for line in lines if line.same and line.what.startswith("layer ")]
    if all(line.same for line in lines):
        say(Text("Both are the same tailoring."))
        return
    say(table)
    say(Text(f"The same in both: layers {ranges(same)}." if same else "No layer is the same in both."))


def run_facts(run: Run) -> dict[str, Any]:
    """Return a study in a few figures, as plain data."""
    best = run.best
    return {
        "run": str(run.folder),
        "state": run.state,
        "holder": run.holder,
        "trials": len(run.trials),
        "failed": sum(t.fitness is None for t in run.trials),
        "asked": run.asked,
        "dense_fitness": run.dense_fitness,
        "best_trial": None if best is None else best.number,
        "best_fitness": None if best is None else best.fitness,
        "retained": run.retained(best),
        "layers": None if best is None else len(best.tailoring.layers),
        "layers_of_base": None if run.layout is None else run.layout.num_layers,
        "parameters_removed": None if best is None else run.removed_parameters(best.tailoring),
        "seconds": sum(t.seconds for t in run.trials),
        "last_activity": run.last_activity,
    }


def _show_study(run: Run) -> None:
    from tailorlib.report.summary import study_summary  # imports matplotlib

    seconds = sum(t.seconds for t in run.trials)
    emit(
        "study",
        {
            **run_facts(run),
            "asked_for": tables.asked(run),
            "remarks": list(run.remarks),
            "validations": {str(n): found.score for n, found in run.validations.items()},
            "best": None if run.best is None else run.best.to_dict(),
            "sessions": list(run.journal.sessions),
        },
    )
    say(_facts({"run": str(run.folder), "state": run.state, **tables.asked(run)}))
    say(study_summary(run.trials, run.dense_fitness, seconds, layout=run.layout, title=run.name, best=run.best))
    for sheet in (tables.origins(run), tables.front_sheet(run), tables.validations(run), tables.failures(run)):
        if sheet is not None and sheet.rows:
            say(sheet_table(sheet))
    for remark in run.remarks:
        say(Text.assemble(("!", "yellow"), f" {remark}"))


def _show_trial(run: Run, trial: Trial) -> None:
    from tailorlib.report.pictures import layer_map_text

    emit("trial", {"run": str(run.folder), "retained": run.retained(trial), **trial.to_dict()})
    removed = run.removed_parameters(trial.tailoring)
    facts = {
        "trial": f"{trial.number} of {run.name}" + (", the study's result" if trial is run.best else ""),
        "state": trial.state,
        "proposed by": trial.origin,
        "fitness": f"{number(trial.fitness, 6)} (retained {percent(run.retained(trial))})",
        "reason": trial.reason or "",
        "objectives": ", ".join(f"{k} {number(v, 6)}" for k, v in trial.objectives.items()),
        "samples": f"{trial.samples or '?'} ({percent(trial.fidelity, 0)} of all)",
        "time": duration(trial.seconds),
        "costs": ", ".join(f"{k} {v:g}" for k, v in trial.costs.items()),
        "layers": str(len(trial.tailoring.layers)) + (f" of {run.layout.num_layers}" if run.layout else ""),
        "removed": "" if removed is None else f"{percent(removed)} of the base's parameters",
        **{name: owner_text(owner) for name, owner in trial.tailoring.parts.items()},
        "seed": str(trial.tailoring.seed),
        "digest": trial.tailoring.digest,
    }
    say(_facts(facts))
    if run.layout is not None:
        say(layer_map_text(trial.tailoring, run.layout))
    layers = [[str(i), plan_text(plan)] for i, plan in enumerate(trial.tailoring.layers)]
    say(sheet_table(tables.Sheet(["layer", "made of"], layers, "Layers", (1,))))
    metrics = tables.metrics(run, trial)
    if metrics is not None:
        say(sheet_table(metrics))
    found = run.validations.get(trial.number)
    if found is not None:
        say(_facts({"validation": number(found.score, 6)}))


def _tailoring_of(name: str) -> tuple[Tailoring, int | None]:
    """Return the tailoring that a name stands for, and the number of the base's layers where it is known."""
    path = Path(name)
    if path.is_file():
        return Tailoring.load(path), None
    run, _, trial = name.rpartition("@")
    if run and re.fullmatch("[0-9]{1,9}", trial) and not path.exists():
        found = read_run(run)
        return _trial_of(found, int(trial)).tailoring, _layers(found)
    if path.is_dir() and not (path / FILE_NAME).exists() and (path / "tailoring.yaml").is_file():
        return Tailoring.load(path / "tailoring.yaml"), None  # an import's folder, or an exported model's
    if not path.exists():
        raise RecipeError(
            f"A tailoring is named by a run folder, RUN@N for its trial N, or a tailoring file; {name!r} is none."
        )
    found = read_run(path)
    if found.best is None:
        raise JournalError(f"The study in {name!r} has no complete trial yet; there is nothing to compare.")
    return found.best.tailoring, _layers(found)


def _trial_of(run: Run, number: int) -> Trial:
    found = run.trial(number)
    if found is None:
        lost = f" ({ranges(run.journal.lost)} lost to damage)" if run.journal.lost else ""
        known = f"the trials 0 to {run.trials[-1].number}{lost}" if run.trials else "no trial yet"
        raise RecipeError(f"The study in {str(run.folder)!r} has {known}, got trial {number}.")
    return found


def _layers(run: Run) -> int | None:
    return None if run.layout is None else run.layout.num_layers


def _journals(root: Path, depth: int = DEPTH) -> Iterable[Path]:
    """Find journals without following links: a link to a folder above would never end."""
    if (root / FILE_NAME).is_file():
        yield root / FILE_NAME
    if depth:
        try:
            folders = [p for p in root.iterdir() if p.is_dir() and not p.is_symlink()]
        except OSError:  # not ours to read
            return
        for folder in folders:
            yield from _journals(folder, depth - 1)


def sheet_table(sheet: tables.Sheet) -> Table:
    """Return a table for a terminal."""
    table = _table(sheet.heads, words=sheet.words)
    table.title, table.title_justify = Text(sheet.caption), "left"
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    if sheet.notes:
        table.caption, table.caption_justify = Text("\n".join(sheet.notes)), "left"
    return table


def _table(heads: Iterable[str], words: Iterable[int]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if i in words else "right", overflow="fold")
    return table


def _facts(facts: Mapping[str, str]) -> Group:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, text in facts.items():
        if text:
            grid.add_row(name, Text(clean(text)))
    return Group(grid, Text(""))

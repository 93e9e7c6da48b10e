"""The benchmark table: the dense model, the baselines and what the search found, side by side.

Two figures say how much of the dense model is left. *Retained* divides each part's score by the dense model's
and averages the parts. *Above chance* does the same for accuracies after taking off what guessing gives, since
a model that guesses at four choices keeps "half" of a 50 % accuracy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tailorlib.escaping import markdown, visible
from tailorlib.exceptions import TailorError
from tailorlib.files import write_text
from tailorlib.fitness import Measurement

UNDEFINED = "–"
HEADLINES = ("perplexity", "acc_norm", "acc")
"""Metrics worth a column, the first that a part or task has."""
ACCURACIES = ("acc", "acc_norm")
MAX_TASK_COLUMNS = 4
"""A part with more tasks than this gets one column, their mean."""


@dataclass(frozen=True)
class BenchmarkRow:
    """One model of the benchmark.

    Args:
        name: What to call it.
        parameters: Number of its parameters.
        measurement: What the benchmark's fitness found.
        seconds: Wall time of the evaluation.
        note: A remark, printed below the table.
    """

    name: str
    parameters: int
    measurement: Measurement
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class _Column:
    """A headline column: the mean of ``metrics`` (mostly one)."""

    head: str
    metrics: tuple[str, ...]
    percent: bool

    def text(self, row: BenchmarkRow) -> str:
        values = [row.measurement.metrics.get(name, math.nan) for name in self.metrics]
        value = sum(values) / len(values)
        return _number(100 * value, ".1f") if self.percent else _number(value, ".3f" if value < 10 else ".2f")


def retained(row: BenchmarkRow, dense: BenchmarkRow) -> float:
    """Return how much of the dense model's score is left, in percent: mean over parts of part / dense part.

    Without parts the score itself is compared. NaN where a dense part is zero or negative, since a ratio says
    nothing there.

    Raises:
        ValueError: If the two rows were measured on different parts.
    """
    parts, dense_parts = _parts(row), _parts(dense)
    if parts.keys() != dense_parts.keys():
        raise ValueError(
            f"Rows of one benchmark have the same parts, got {sorted(parts)} for {row.name!r} and "
            f"{sorted(dense_parts)} for {dense.name!r}."
        )
    ratios = [parts[name] / dense_parts[name] if dense_parts[name] > 0 else math.nan for name in parts]
    return 100 * sum(ratios) / len(ratios)


def retained_above_chance(row: BenchmarkRow, dense: BenchmarkRow) -> dict[str, float]:
    """Return, for each accuracy of known chance, (x - chance) / (dense - chance) in percent.

    NaN where the dense model is no better than chance: nothing was there to retain.
    """
    result: dict[str, float] = {}
    for name, chance in row.measurement.chance.items():
        if _leaf(name) not in ACCURACIES or name not in row.measurement.metrics:
            continue
        above, dense_above = row.measurement.metrics[name] - chance, dense.measurement.metrics[name] - chance
        result[name] = 100 * above / dense_above if dense_above > 0 else math.nan
    return result


def mean_above_chance(row: BenchmarkRow, dense: BenchmarkRow) -> float:
    """Return the mean of :func:`retained_above_chance` over the headline accuracies (one per task).

    Accuracies for which it is undefined don't count; NaN if none is left.
    """
    headlines = {name for metrics in headline_metrics(row.measurement).values() for name in metrics}
    values = [v for k, v in retained_above_chance(row, dense).items() if k in headlines and not math.isnan(v)]
    return sum(values) / len(values) if values else math.nan


def headline_metrics(measurement: Measurement) -> dict[str, tuple[str, ...]]:
    """Return the headline metric of every text and task, by part: the first of :data:`HEADLINES` it has."""
    groups: dict[str, set[str]] = {}
    for name in measurement.metrics:
        prefix, _, leaf = name.rpartition("/")
        groups.setdefault(prefix, set()).add(leaf)
    parts: dict[str, tuple[str, ...]] = {}
    for prefix, leaves in groups.items():
        headline = next((h for h in HEADLINES if h in leaves), None)
        if headline is not None:
            part = prefix.partition("/")[0]
            parts[part] = (*parts.get(part, ()), f"{prefix}/{headline}" if prefix else headline)
    return parts


def render_table(rows: Sequence[BenchmarkRow], *, title: str = "Benchmark") -> Table:
    """Return the table for a terminal; the first row is the dense model that the others are held against."""
    heads, body, remarks = table_cells(rows)
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False, show_edge=False
    )
    table.caption, table.caption_justify = Text(visible("\n".join(remarks))), "left"
    # A log is 80 characters wide: names wrap, both figures of the parameters share a cell, the rest stays whole.
    table.add_column(heads[0], overflow="fold", min_width=9)
    table.add_column("params", justify="right", no_wrap=True)
    for head in heads[3:]:
        table.add_column(Text(visible(head.replace("/", "\n"))), justify="right", no_wrap=True)
    for i, (name, millions, share, *figures) in enumerate(body):
        table.add_row(Text(visible(name)), f"{millions} M\n{share} %", *map(Text, figures), end_section=i == 0)
    return table


def markdown_table(rows: Sequence[BenchmarkRow]) -> str:
    """Return the table and its legend as Markdown; the first row is the dense model."""
    heads, body, remarks = table_cells(rows)
    lines = [" | ".join(map(markdown, heads)), " | ".join(["---"] + ["---:"] * (len(heads) - 1))]
    lines += [" | ".join(map(markdown, cells)) for cells in body]
    table = "\n".join(f"| {line} |" for line in lines)
    return table + "\n\n" + "\n".join(f"- {markdown(remark)}" for remark in remarks) + "\n"


def benchmark_dict(rows: Sequence[BenchmarkRow]) -> dict[str, Any]:
    """Return every figure of the benchmark as plain data; undefined ones are ``None``."""
    dense = _dense(rows)
    return {
        "dense": dense.name,
        "rows": [
            {
                "name": row.name,
                "parameters": row.parameters,
                "parameters_percent": _finite(100 * row.parameters / dense.parameters),
                "score": _finite(row.measurement.score),
                "retained_percent": _finite(retained(row, dense)),
                "above_chance_percent": _finite(mean_above_chance(row, dense)),
                "above_chance_percent_by_metric": {
                    k: _finite(v) for k, v in retained_above_chance(row, dense).items()
                },
                "parts": {k: _finite(v) for k, v in row.measurement.parts.items()},
                "metrics": {k: _finite(v) for k, v in row.measurement.metrics.items()},
                "chance": {k: _finite(v) for k, v in row.measurement.chance.items()},
                "seconds": round(row.seconds, 2),
                "note": row.note,
            }
            for row in rows
        ],
    }


def write_benchmark(rows: Sequence[BenchmarkRow], path: Path) -> None:
    """Write :func:`benchmark_dict` as JSON (``benchmark.json``)."""
    text = json.dumps(benchmark_dict(rows), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def table_cells(rows: Sequence[BenchmarkRow]) -> tuple[list[str], list[list[str]], list[str]]:
    """Return column heads, rows of text, and the remarks below the table; the first row is the dense model."""
    dense = _dense(rows)
    columns = _columns(dense.measurement)
    heads = ["model", "parameters\nM", "parameters\n% of dense", *(c.head for c in columns)]
    heads += ["score\n↑", "retained\n%", "above\nchance\n%", "time\ns"]
    body = [
        [
            row.name,
            _number(row.parameters / 1e6, ".1f"),
            _number(100 * row.parameters / dense.parameters, ".1f"),
            *(column.text(row) for column in columns),
            _number(row.measurement.score, ".4f"),
            _number(retained(row, dense), ".1f"),
            _number(mean_above_chance(row, dense), ".1f"),
            _number(row.seconds, ".1f"),
        ]
        for row in rows
    ]
    remarks = [_legend(dense), *_reasons(dense), *(f"{row.name}: {row.note}" for row in rows if row.note)]
    return heads, body, remarks


def read_benchmark(path: Path) -> list[BenchmarkRow]:
    """Read what :func:`write_benchmark` wrote; figures that were not finite are NaN.

    Raises:
        TailorError: If it can't be read, or is something else.
    """
    try:
        return [
            BenchmarkRow(
                str(row["name"]),
                int(row["parameters"]),
                Measurement(
                    _known(row["score"]),
                    {str(k): _known(v) for k, v in row["metrics"].items()},
                    {str(k): _known(v) for k, v in row["chance"].items()},
                    {str(k): _known(v) for k, v in row["parts"].items()},
                ),
                _known(row["seconds"]),
                str(row["note"]),
            )
            for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise TailorError(f"{str(path)!r} is no benchmark of a study, or can't be read: {error!r}.") from error


def _known(value: object) -> float:
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def _columns(measurement: Measurement) -> list[_Column]:
    columns: list[_Column] = []
    for part, metrics in headline_metrics(measurement).items():
        if len(metrics) > MAX_TASK_COLUMNS:
            columns.append(_Column(f"{part or 'tasks'}\nmean acc\n% ↑", metrics, percent=True))
            continue
        for name in metrics:
            prefix, leaf = name.rpartition("/")[0], _leaf(name)
            percent = leaf in ACCURACIES
            head = f"{leaf}\n% ↑" if percent else "ppl\n↓"
            columns.append(_Column(f"{prefix}\n{head}" if prefix else head, (name,), percent))
    return columns


def _legend(dense: BenchmarkRow) -> str:
    """Explain the columns that the table has."""
    leaves = {_leaf(n) for names in headline_metrics(dense.measurement).values() for n in names}
    lines = ["ppl: perplexity, lower is better"] if "perplexity" in leaves else []
    if "acc" in leaves:
        lines.append("acc: accuracy")
    if "acc_norm" in leaves:
        lines.append("acc_norm: accuracy by length-normalised likelihood")
    what = "mean over parts of score / dense score" if dense.measurement.parts else "score / dense score"
    lines += ["score: the fitness, higher is better", f"retained: {what}"]
    lines.append("above chance: mean over accuracies of (acc - chance) / (dense acc - chance)")
    lines.append("time: of one evaluation")
    return "; ".join(lines) + "."


def _reasons(dense: BenchmarkRow) -> list[str]:
    """Say why a column of retained percentages shows a dash."""
    reasons = [
        f"retained {UNDEFINED}: the dense score of {name or 'the fitness'} is {value:.4g}; a ratio needs > 0."
        for name, value in _parts(dense).items()
        if value <= 0
    ]
    above = retained_above_chance(dense, dense)
    if not above:
        reasons.append(f"above chance {UNDEFINED}: no accuracy with a known chance was measured.")
    for name, value in above.items():
        if math.isnan(value):
            accuracy, chance = dense.measurement.metrics[name], dense.measurement.chance[name]
            reasons.append(
                f"above chance leaves out {name}: the dense model's {100 * accuracy:.1f} % is not above chance "
                f"({100 * chance:.1f} %), so nothing could be retained."
            )
    return reasons


def _dense(rows: Sequence[BenchmarkRow]) -> BenchmarkRow:
    if not rows:
        raise ValueError("A benchmark table needs at least the dense model's row, got none.")
    return rows[0]


def _parts(row: BenchmarkRow) -> dict[str, float]:
    return dict(row.measurement.parts) or {"": row.measurement.score}


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]


def _number(value: float, spec: str) -> str:
    return format(value, spec) if math.isfinite(value) else UNDEFINED


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

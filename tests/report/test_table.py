"""The benchmark table against figures computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tailorlib import Measurement
from tailorlib.report.table import (
    BenchmarkRow,
    benchmark_dict,
    headline_metrics,
    markdown_table,
    mean_above_chance,
    render_table,
    retained,
    retained_above_chance,
    write_benchmark,
)

CHANCE = {
    "quiz/letters/acc": 0.25,
    "quiz/letters/acc_norm": 0.25,
    "quiz/pairs/acc": 0.5,
    "quiz/letters/probability": 0.25,
}


def row(
    name: str, code: float, quiz: float, accuracies: tuple[float, float, float], **changes: object
) -> BenchmarkRow:
    acc, acc_norm, pairs = accuracies
    metrics = {
        "code/perplexity": 1 / code,
        "code/nats_per_token": math.log(1 / code),
        "quiz/letters/acc": acc,
        "quiz/letters/acc_norm": acc_norm,
        "quiz/letters/probability": 0.4,
        "quiz/pairs/acc": pairs,
    }
    measurement = Measurement((code + quiz) / 2, metrics, CHANCE, {"code": code, "quiz": quiz})
    return BenchmarkRow(name, int(changes.pop("parameters", 1000)), measurement, seconds=2.0, **changes)  # type: ignore[arg-type]


DENSE = row("dense", code=0.2, quiz=0.5, accuracies=(0.65, 0.75, 0.9))
FOUND = row("found", code=0.1, quiz=0.4, accuracies=(0.45, 0.50, 0.7), parameters=750, note="trial 3")


def text_of(rows: list[BenchmarkRow], width: int = 200) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(render_table(rows))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def plain(
    score: float, metrics: Mapping[str, float] | None = None, chance: Mapping[str, float] | None = None
) -> BenchmarkRow:
    return BenchmarkRow("plain", 10, Measurement(score, metrics or {}, chance or {}), 1.0)


def test_retained_is_the_mean_ratio_over_the_parts() -> None:
    assert retained(FOUND, DENSE) == pytest.approx(100 * (0.1 / 0.2 + 0.4 / 0.5) / 2)
    assert retained(DENSE, DENSE) == pytest.approx(100)


def test_retained_without_parts_compares_the_scores() -> None:
    assert retained(plain(0.3), plain(0.4)) == pytest.approx(75)


def test_retained_is_undefined_where_the_dense_score_is_not_positive() -> None:
    assert math.isnan(retained(plain(-4.0), plain(-2.0)))
    assert "a ratio needs > 0" in text_of([plain(-2.0), plain(-4.0)])


def test_rows_of_other_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="same parts"):
        retained(plain(0.3), DENSE)


def test_above_chance_takes_off_what_guessing_gives() -> None:
    assert retained_above_chance(FOUND, DENSE) == {
        "quiz/letters/acc": pytest.approx(100 * 0.2 / 0.4),
        "quiz/letters/acc_norm": pytest.approx(100 * 0.25 / 0.5),
        "quiz/pairs/acc": pytest.approx(100 * 0.2 / 0.4),
    }


def test_mean_above_chance_counts_each_task_once() -> None:
    other = row("other", 0.1, 0.4, accuracies=(0.65, 0.25, 0.9))
    assert mean_above_chance(other, DENSE) == pytest.approx((0 + 100) / 2)  # acc_norm of letters, acc of pairs


def test_worse_than_chance_is_negative() -> None:
    assert mean_above_chance(row("bad", 0.1, 0.4, accuracies=(0.1, 0.15, 0.3)), DENSE) == pytest.approx(
        100 * (-0.1 / 0.5 - 0.2 / 0.4) / 2
    )


def test_a_dense_model_at_chance_has_nothing_to_retain_and_the_table_says_so() -> None:
    dense = plain(0.5, {"quiz/acc": 0.25}, {"quiz/acc": 0.25})
    better = plain(0.5, {"quiz/acc": 0.50}, {"quiz/acc": 0.25})
    assert math.isnan(retained_above_chance(better, dense)["quiz/acc"])
    assert math.isnan(mean_above_chance(better, dense))
    assert "leaves out quiz/acc: the dense model's 25.0 % is not above chance (25.0 %)" in " ".join(
        text_of([dense, better]).split()
    )


def test_headline_is_perplexity_then_acc_norm_then_acc() -> None:
    assert headline_metrics(DENSE.measurement) == {
        "code": ("code/perplexity",),
        "quiz": ("quiz/letters/acc_norm", "quiz/pairs/acc"),
    }
    assert headline_metrics(Measurement(1.0, {"perplexity": 3.0, "nats_per_token": 1.0})) == {"": ("perplexity",)}


def test_terminal_table_has_every_figure() -> None:
    text = text_of([DENSE, FOUND])
    for head in ("code", "ppl", "letters", "acc_norm", "pairs", "retained", "chance"):
        assert head in text
    found = next(line for line in text.splitlines() if "10.00" in line)
    assert found.split() == ["found", "0.0", "M", "10.00", "50.0", "70.0", "0.2500", "65.0", "50.0", "2.0"]
    assert "75.0 %" in text
    assert "found: trial 3" in text
    assert "ppl: perplexity, lower is better" in text


def test_a_log_of_80_characters_cuts_no_figure_and_no_name() -> None:
    text = text_of(
        [replace(DENSE, name="dense base"), replace(FOUND, name="best single variant (code)")], width=80
    )
    for figure in ("dense base", "10.00", "0.2500", "65.0", "(code)"):
        assert figure in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_part_of_many_tasks_is_one_column_their_mean() -> None:
    metrics = {f"mmlu/task{i}/acc": i / 10 for i in range(6)}
    text = text_of([plain(0.25, metrics)])
    assert "mean acc" in text
    assert "25.0" in text
    assert "task0" not in text


def test_markdown_table_is_well_formed() -> None:
    lines = markdown_table([DENSE, FOUND]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    assert table[0].startswith("| model | parameters M | parameters % of dense | code ppl ↓ |")
    assert table[3].split(" | ")[3:6] == ["10.00", "50.0", "70.0"]
    assert lines[5].startswith("- ppl: perplexity")


def test_json_holds_plain_figures_and_null_for_undefined(tmp_path: Path) -> None:
    write_benchmark([DENSE, FOUND], tmp_path / "benchmark.json")
    data = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert data == benchmark_dict([DENSE, FOUND])
    assert data["rows"][1]["retained_percent"] == pytest.approx(65)
    assert data["rows"][1]["parameters_percent"] == pytest.approx(75)
    assert benchmark_dict([plain(-1.0)])["rows"][0]["retained_percent"] is None
    assert benchmark_dict([plain(-1.0)])["rows"][0]["above_chance_percent"] is None


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="dense"):
        render_table([])

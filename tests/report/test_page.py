"""The report's page: complete, closed to the network, and safe whatever its strings are."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tailorlib import FamilyLayout, LayerPlan, LayerSource, Measurement, Tailoring, Trial
from tailorlib.exceptions import JournalError, RecipeError
from tailorlib.journal import Journal
from tailorlib.report.commands import report
from tailorlib.report.figures import front_figure, history_figure, importance_figure, layer_map_figure
from tailorlib.report.page import render
from tailorlib.report.run import read_run
from tailorlib.report.svg import to_svg
from tailorlib.report.table import BenchmarkRow, read_benchmark, write_benchmark

MakeRun = Callable[..., Path]
HOSTILE = '"onload=alert(1) <script>alert(2)</script> ]]> $\\frac{ $ &amp; \x1b[31m \u202e'
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Elements with attributes, checked to be nested; the text of each."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def page_of(*folders: Path) -> tuple[str, Page]:
    text = render([read_run(folder) for folder in folders])
    return text, Page(text)


def check_closed(text: str, page: Page) -> None:
    """Nothing is loaded, nothing runs, ids are unique, references are met, and the policy allows the one style."""
    ids = [str(a["id"]) for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "image", "img", "foreignobject", "base"}
        for key, value in attrs.items():
            assert not key.startswith("on") and key not in {"style", "src", "srcset", "action"}
            if key in {"href", "xlink:href"}:
                assert str(value).startswith("#") and str(value)[1:] in ids
            for target in re.findall(r"url\(#([^)]*)\)", str(value)):
                assert target in ids
            if key == "aria-labelledby":
                assert set(str(value).split()) <= set(ids)
    (style,) = page.texts["style"]
    assert "url(" not in style and "@import" not in style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [str(a["content"]) for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert text.encode("utf-8")


def test_the_story_of_a_study(make_run: MakeRun, trials: tuple[Trial, ...]) -> None:
    text, page = page_of(make_run("a study", trials))
    check_closed(text, page)
    assert page.texts["h1"] == ["a study"]
    said = " ".join(d for texts in page.texts.values() for d in texts)
    assert "keeps 4 layers of 6 (without 2, 5) and 62.5 % of the dense model's fitness; it is trial 3" in said
    assert "The best warm start, BlockInfluence (trial 0), reached 0.3; the optimizer's best is 0.5." in said
    cards = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    assert cards["parameters removed"] == "20.0 %"  # 2 layers of 10 of 100 parameters
    assert cards["trials"] == "4 complete, 1 failed"
    assert cards["base model"] == "the/base (6 layers)"
    assert cards["budget"] == "5 trials"
    assert "loss is NaN" in page.texts["th"]
    assert "There are 4 different candidates" in said
    assert "optimizer: {class_path: Nevergrad" in said  # the recipe
    assert any("tailor export" in code for code in page.texts["code"])


def test_headings_are_in_order_and_pictures_have_names(make_run: MakeRun, trials: tuple[Trial, ...]) -> None:
    _, page = page_of(make_run("x", trials))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all(svg["role"] == "img" and svg["aria-labelledby"] for svg in page.all("svg"))
    assert len(page.all("svg")) == 3  # layer map, history by trial and by seconds
    assert all("scope" in th for th in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun, trials: tuple[Trial, ...]) -> None:
    folder = make_run("x", trials)
    assert page_of(folder)[0] == page_of(folder)[0]


def hostile_trials(objectives: bool) -> list[Trial]:
    def made(i: int) -> Tailoring:
        sources = (LayerSource(HOSTILE, i % 6), LayerSource("base", (i + 1) % 6))
        plans = [LayerPlan(sources, HOSTILE, ((HOSTILE, 0.5), ("word", HOSTILE)), LayerSource("base", 0))]
        return Tailoring((*plans, LayerPlan((LayerSource("base", 5),))), embeddings=HOSTILE, seed=i)

    scores = [{HOSTILE: 0.1 * i, f"b{HOSTILE}": 1 - 0.1 * i} if objectives else {} for i in range(12)]
    whole = [
        Trial(i, {}, made(i), "complete", 0.1 * i, {HOSTILE: 1.0}, origin=HOSTILE, objectives=scores[i])
        for i in range(12)
    ]
    return [*whole, Trial(12, {}, made(1), "failed", None, origin=HOSTILE, reason=HOSTILE)]


@pytest.mark.parametrize("objectives", [False, True])
def test_every_hostile_string_is_only_text(make_run: MakeRun, tmp_path: Path, objectives: bool) -> None:
    layout = FamilyLayout((HOSTILE,), 6, ("full_attention",) * 6)
    recipe = (
        f"family: {{class_path: {HOSTILE!r}, init_args: {{base: {HOSTILE!r}}}}}\n# {HOSTILE}\nstudy: {{seed: 1}}\n"
    )
    recipe = recipe.replace("\x1b", "?").replace("\u202e", "?").replace("\\x1b", "?").replace("\\u202e", "?")
    folder = make_run("<script>'x", hostile_trials(objectives), recipe=recipe, layout=layout)
    journal = Journal.open(folder)
    journal.begin_session({"time": HOSTILE, "host": HOSTILE, "versions": {"torch": HOSTILE}})
    journal.end_session(HOSTILE, HOSTILE)
    journal.add_validation(3, Measurement(0.5))
    journal.close()
    rows = [BenchmarkRow(HOSTILE, 100, Measurement(0.5, {f"{HOSTILE}/acc": 0.5}), 1.0, HOSTILE)] * 2
    write_benchmark(rows, folder / "benchmark.json")
    for text, page in (page_of(folder), page_of(folder, folder)):
        check_closed(text, page)
        assert "<script" not in text and "]]>" not in text.replace("]]&gt;", "")
        assert "\x1b" not in text and "\u202e" not in text
        assert any("<script>alert(2)" in d for d in page.texts["text"])  # inside pictures, as text
        assert any("<script>alert(2)" in d for d in [*page.texts["td"], *page.texts["th"]])


@pytest.mark.parametrize("count", [0, 1])
def test_a_study_that_has_just_begun_has_a_page(
    make_run: MakeRun, make_trial: Callable[..., Trial], count: int
) -> None:
    folder = make_run("x", [make_trial(i, None) for i in range(count)], dense=None, layout=None, recipe=None)
    text, page = page_of(folder)
    check_closed(text, page)
    assert "There is no recipe.yaml" in text
    assert "No trial is complete" in text


def test_a_torn_journal_has_a_page_without_what_was_torn(make_run: MakeRun, trials: tuple[Trial, ...]) -> None:
    folder = make_run("x", trials)
    journal = folder / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-50])
    assert "4 of 5, 1 failed" in render([read_run(folder)])


def test_what_is_no_study_gives_one_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"journal\.jsonl"):
        report([str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("recipe.yaml", "- a list", "A recipe is a mapping"),
        ("recipe.yaml", "{", "can&#39;t be read"),
        ("benchmark.json", "{}", "There is no benchmark table"),
        ("benchmark.json", '{"rows": [{"name": 1}]}', "There is no benchmark table"),
    ],
)
def test_a_broken_file_beside_the_journal_is_told(
    make_run: MakeRun, trials: tuple[Trial, ...], name: str, content: str, said: str
) -> None:
    folder = make_run("x", trials)
    (folder / name).write_text(content)
    assert said in render([read_run(folder)])


def test_thousands_of_trials_make_no_large_page(make_run: MakeRun, trials: tuple[Trial, ...]) -> None:
    many = [replace(trials[3], number=i, fitness=0.3 + (i * 37 % 1000) / 5000) for i in range(3000)]
    folder = make_run("x", [])
    journal = Journal.read(folder)
    journal.trials = many
    journal.path.write_bytes(b"".join(line + b"\n" for line in journal.lines()))  # an append waits for the disk
    text, page = page_of(folder)
    assert len(text) < 1_000_000
    assert "The 15 best and the 15 last trials; 2970 more are left out." in text
    assert "best fitness" in page.texts["dt"]


def test_runs_are_compared(make_run: MakeRun, trials: tuple[Trial, ...]) -> None:
    first = make_run("one", trials)
    second = make_run("two", trials[:3], recipe=(first / "recipe.yaml").read_text().replace("seed: 3", "seed: 4"))
    text, page = page_of(first, second)
    check_closed(text, page)
    assert page.texts["h1"] == ["one and two"]
    cells = [*page.texts["th"], *page.texts["td"]]
    assert "study.seed" in cells and "fitness.class_path" not in cells
    assert {"A: one", "B: two"} <= set(page.texts["text"])  # in the picture
    assert "differ in their fitness" not in text


def test_validation_decides_the_result(make_run: MakeRun, trials: tuple[Trial, ...]) -> None:
    folder = make_run("x", trials)
    journal = Journal.open(folder)
    journal.add_validation(3, Measurement(0.1))
    journal.add_validation(4, Measurement(0.2))
    journal.close()
    assert read_run(folder).best == read_run(folder).trials[4]
    assert "--trial 4" in render([read_run(folder)])


def test_changed_versions_are_told(make_run: MakeRun, trials: tuple[Trial, ...]) -> None:
    folder = make_run("x", trials)
    journal = Journal.open(folder)
    for version in ("2.12", "2.13"):
        journal.begin_session({"time": "2026-01-02", "versions": {"torch": version}})
    journal.close()
    text = render([read_run(folder)])
    assert text.count("torch 2.12 → 2.13 (session of 2026-01-02)") == 1
    assert "no end recorded" in text


def test_a_fitness_relative_to_the_dense_model_is_held_against_one(
    make_run: MakeRun, trials: tuple[Trial, ...]
) -> None:
    recipe = "fitness: {class_path: WeightedMean, init_args: {relative_to_dense: true}}\n"
    run = read_run(make_run("x", trials, recipe=recipe))
    assert (run.dense_fitness, run.retained(run.best)) == (1.0, 0.5)


def test_the_default_place_and_the_files_that_are_refused(
    make_run: MakeRun, trials: tuple[Trial, ...], tmp_path: Path
) -> None:
    folder = make_run("x", trials)
    report([str(folder)])
    assert (folder / "report.html").read_text() == render([read_run(folder)])
    with pytest.raises(RecipeError, match="--output FILE"):
        report([str(folder)], str(tmp_path))


def test_figures_have_colours_of_the_page_and_unique_ids(trials: tuple[Trial, ...], layout: FamilyLayout) -> None:
    for make in (history_figure, layer_map_figure, front_figure, importance_figure):
        svg = str(to_svg(make(trials, layout), "name", "t<", "d&"))
        root = ElementTree.fromstring(svg)
        ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
        assert all(i.startswith("name-") for i in ids) and len(ids) == len(set(ids))
        assert svg == str(to_svg(make(trials, layout), "name", "t<", "d&"))
        colours = {e.attrib[k] for e in root.iter() for k in ("fill", "stroke") if k in e.attrib}
        assert all(re.fullmatch(r"none|var\(--[a-z]+\)|url\(#name-\d+\)", c) for c in colours), colours
        assert root[0].text == "t<"


def test_a_benchmark_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [BenchmarkRow("a", 5, Measurement(0.5, {"x/acc": 0.5}, {"x/acc": 0.25}, {"x": 0.5}), 1.5, "n")]
    write_benchmark(rows, tmp_path / "b.json")
    assert read_benchmark(tmp_path / "b.json") == rows

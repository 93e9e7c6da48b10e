"""Strings of models, tasks, plugins and users: whatever they are, each output shows them as text."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.table import Table
from rich.text import Text

from tailorlib import FamilyLayout, LayerPlan, LayerSource, Measurement, Tailoring, Trial, console
from tailorlib.console import SafeConsole, bar, say, speaking, step, tell_error
from tailorlib.exceptions import ModelError
from tailorlib.export.card import CardInfo, render_card
from tailorlib.export.licenses import License
from tailorlib.export.verify import Check, VerifyReport
from tailorlib.journal import Journal
from tailorlib.journal_header import JournalHeader
from tailorlib.report.front import front_table
from tailorlib.report.page import render
from tailorlib.report.run import read_run
from tailorlib.report.summary import study_summary
from tailorlib.report.table import BenchmarkRow, markdown_table, render_table
from tailorlib.search.tracking import trial_figures

HOSTILE = (
    "a\x1b[31mred\x1b]8;;http://e.vil\x07link",
    "\x9b2J\rover\x08\x7f\x00",
    "left\u202eright\u2066x\u2069\u200b\ufeff\u2028",
    "[bold]b[/] [link=http://e.vil]l[/link] [/]",
    "<script>alert(1)</script>|<img src=x onerror=alert(1)>",
    "# h\n\n![x](http://e.vil)\n- item",
)
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def trials(text: str) -> list[Trial]:
    """Return a trial whose every string is the text."""
    plan = LayerPlan((LayerSource(text, 0), LayerSource("base", 0)), text, ((text, text),))
    found = Trial(
        number=0,
        state="complete",
        params={},
        tailoring=Tailoring((plan,), embeddings=text),
        fitness=0.5,
        metrics={text: 1.0},
        seconds=1.0,
        origin=text,
        objectives={text: 0.5, "size": 0.1},
    )
    return [found]


def rows(text: str) -> list[BenchmarkRow]:
    measured = Measurement(0.5, {f"{text}/acc": 0.5}, {f"{text}/acc": 0.25}, {text: -0.5})
    return [BenchmarkRow(text, 10, measured, 1.0, note=text)]


def shown(text: str) -> None:
    say(Text(text))


def table(text: str) -> None:
    found = Table(title=Text(text))
    found.add_column(Text(text))
    found.add_row(Text(text))
    say(found)


def steps(text: str) -> None:
    with step(text), bar(text, 1) as advance:
        advance()


def warned(text: str) -> None:
    sys.stderr.write(warnings.formatwarning(text, UserWarning, text, 1))


def logged(text: str) -> None:
    logging.getLogger("tailorlib.models.opening").warning("Candidate %s has %s.", text, [text])


def error(text: str) -> None:
    tell_error(ModelError(text), text)


LAYOUT = FamilyLayout(("a",), 2, ("full_attention",) * 2)
TERMINAL: dict[str, Callable[[str], None]] = {
    "say": shown,
    "table": table,
    "steps": steps,
    "warning": warned,
    "log": logged,
    "error": error,
    "benchmark": lambda text: say(render_table(rows(text))),
    "front": lambda text: say(front_table(trials(text))),
    "summary": lambda text: say(study_summary(trials(text), 1.0, 1.0, layout=LAYOUT, title=text)),
    "verification": lambda text: say(VerifyReport(Path("x" + text), (Check(text, text),), 1.0).table()),
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("output", TERMINAL)
def test_no_string_steers_a_terminal(
    output: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.console, "width", 2000)
    handler = logging.StreamHandler(stream := io.StringIO())
    logging.getLogger("tailorlib").addHandler(handler)
    try:
        with speaking(()):
            TERMINAL[output](text)
    finally:
        logging.getLogger("tailorlib").removeHandler(handler)
    written = "".join(capsys.readouterr()) + stream.getvalue()
    assert UNSEEN.search(written) is None
    if text.startswith("[bold]"):
        assert "[bold]b" in written
    elif output in ("say", "steps", "log", "error", "summary"):
        assert text.startswith("#") or "\\" in written or "<script>" in written


def test_colours_and_the_cursor_are_left_to_rich() -> None:
    out = io.StringIO()
    terminal = SafeConsole(file=out, force_terminal=True, color_system="standard", highlight=False)
    terminal.print("[red]x\x1b[0m[/]")
    terminal.show_cursor(False)
    assert out.getvalue() == "\x1b[31mx\\x1b[0m\x1b[0m\n\x1b[?25l"


def elements(markdown: str) -> list[str]:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = [t for token in parser.parse(markdown) for t in (token, *(token.children or []))]
    return [t.type for t in tokens if t.type not in ("text", "text_special", "softbreak")]


def card(text: str) -> str:
    return render_card(
        CardInfo(title=text, recipe=f"study: {text}"),
        trials(text)[0].tailoring,
        title="x",
        references={"base": text, text: text},
        layer_kinds=(text, "b", text, "b"),
        num_parameters=1,
        licenses={"base": (License(text, "README.md"),)},
        code=[text],
    )


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("make", [lambda text: markdown_table(rows(text)), card], ids=["benchmark.md", "card"])
def test_no_string_is_markup_in_markdown(make: Callable[[str], str], text: str) -> None:
    found, plain = (make(t).split("\n---\n")[-1] for t in (text, "word"))
    assert elements(found) == elements(plain)
    assert UNSEEN.search(found) is None


class Tags(HTMLParser):
    """Collects the elements of a page with their attributes' names."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


@pytest.mark.parametrize("text", [*HOSTILE[:3], HOSTILE[4]])
def test_no_string_is_markup_in_a_report(text: str, tmp_path: Path) -> None:
    pages = []
    for i, word in enumerate((text, "word")):
        folder = tmp_path / str(i)
        header = JournalHeader({"study": word}, {word: word})
        journal = Journal.create(folder, header)
        journal.append(trials(word)[0])
        journal.close()
        (folder / "recipe.yaml").write_text(f"family: {{init_args: {{base: {word!r}}}}}")
        pages.append(render([read_run(folder)]))
    assert UNSEEN.search(pages[0]) is None
    tags = [Tags() for _ in pages]
    for page, found in zip(pages, tags, strict=True):
        found.feed(page)
    assert not {"script", "img"} & {tag for tag, _ in tags[0].found}
    assert {name for _, names in tags[0].found for name in names} <= {n for _, ns in tags[1].found for n in ns}


def test_figures_of_loggers_have_names_that_can_be_seen() -> None:
    names = [name for text in HOSTILE for name in trial_figures(trials(text)[0], None, None)]
    assert all(UNSEEN.search(name) is None for name in names)

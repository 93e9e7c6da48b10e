"""Pages that are made of the code: they have every plugin, setting and option, and say what each is."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import pytest

from tailorlib.light import LIGHT, VERBS
from tailorlib.plugins import REGISTRIES

ROOT = Path(__file__).parents[2]
OWN = ("tailorlib", "tailorlib_strategies")


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.group)
def test_every_plugin_is_there_with_its_settings(registry: object, generated: ModuleType) -> None:
    page = generated.plugins()
    for name, cls in registry.load_all().items():  # type: ignore[attr-defined]
        if cls.__module__.partition(".")[0] not in OWN:
            continue
        _, found, entry = page.partition(f"### `{name}` {{#{name}}}")
        assert found, name
        entry = entry.partition("\n## ")[0].partition("\n### ")[0]
        rows = [line.split(" | ")[0] for line in entry.splitlines() if line.startswith("| `")]
        assert rows == [f"| `{parameter}`" for parameter in inspect.signature(cls).parameters]


def test_every_setting_says_what_it_is(generated: ModuleType) -> None:
    for text in (generated.plugins(), generated.sections()):
        rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
        assert len(rows) > 3
        assert [row for row in rows if len(row) < 4 or not row[3].strip()] == []


def test_a_setting_is_described_as_the_parser_has_it(generated: ModuleType) -> None:
    page = generated.sections()
    assert "| `trials` | `int` | `100` | Number of candidates to evaluate" in page
    assert "| `existing` | `refuse`, `archive`, `resume` | `refuse` |" in page
    assert "| `text` | `TextSource` | needed |" in generated.plugins()
    assert "| `density` | number or pair | `[0.2, 1.0]` |" in generated.plugins().partition("{#TIES}")[2]


def test_every_verb_is_there_with_its_options(generated: ModuleType) -> None:
    page = generated.commands()
    assert set(generated.TOLD) == set(VERBS)
    for verb in (*VERBS, *LIGHT):
        assert f"## tailor {verb} {{#{verb}}}\n" in page
    assert "| `--verify` | `false` |" in page
    assert "| `--legacy_base_index` | `false` |" in page
    assert "--trainer" not in page


def test_no_role_of_sphinx_is_left(generated: ModuleType) -> None:
    html = "<p>See :meth:<code>~tailorlib.trial.Trial.to_dict</code> and <code>x</code>.</p>"
    assert generated.on_page_content(html) == "<p>See <code>to_dict</code> and <code>x</code>.</p>"
    for text in (generated.plugins(), generated.sections(), generated.commands()):
        assert ":class:" not in text and ":meth:" not in text and ":func:" not in text


def test_pages_name_parts_that_there_are(generated: ModuleType) -> None:
    named = [
        mark
        for page in (ROOT / "docs").rglob("*.md")
        for mark in generated._MARK.findall(page.read_text(encoding="utf-8"))
    ]
    assert sorted(named) == sorted(generated.PARTS)

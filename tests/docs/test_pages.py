"""The documentation's pages: what they show is what the library takes, and their links lead somewhere."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tailorlib.recipe import REQUIRED, SECTIONS, check_recipe, read_recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_the_example_recipe_is_accepted_and_has_every_section() -> None:
    recipe = read_recipe(ROOT / "docs" / "example-recipe.yaml")
    assert check_recipe(recipe) == []
    assert list(recipe) == [*SECTIONS, "trainer"]


def test_the_recipe_page_explains_every_section() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert re.findall(r"^### `(\w+)`", text, flags=re.MULTILINE) == [*SECTIONS, "trainer"]
    assert ", ".join(f"`{name}`" for name in REQUIRED[:-1]) in text


@pytest.fixture(scope="module")
def anchors(generated: ModuleType) -> Callable[[Path], set[str]]:
    """Return a function that says which anchors a page has, generated ones included."""

    @cache
    def of(page: Path) -> set[str]:
        text = generated.filled(page.read_text(encoding="utf-8"))
        text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}

    return of


def slug(heading: str) -> str:
    """Return the anchor that mkdocs gives a heading; its strict build holds the same links to the real ones."""
    own = re.search(r"\{#([\w-]+)\}", heading)
    if own:
        return own[1]
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_included_files_exist(page: Path, anchors: Callable[[Path], set[str]]) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.resolve())):
            broken.append(link)
    assert broken == []
    included = re.findall(r'--8<-- "([^":]+)(?::[\w-]+)?"', page.read_text(encoding="utf-8"))
    assert [file for file in included if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_external_links_are_safe_ones(page: Path) -> None:
    assert re.findall(r"\]\(http://", page.read_text(encoding="utf-8")) == []


def test_pages_load_nothing_from_elsewhere() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in settings and "https://" not in settings and "extra_javascript" not in settings
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", (ROOT / "docs" / "style.css").read_text(encoding="utf-8"))


def test_navigation_lists_every_page() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = [
        path for section in navigation for pages in section.values() for page in pages for path in page.values()
    ]
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES)

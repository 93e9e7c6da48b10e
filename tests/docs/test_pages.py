"""The documentation's pages: what they show is what the library takes, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_included_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [file for file in re.findall(r'--8<-- "([^"]+)"', text) if not (ROOT / file).exists()] == []


def test_navigation_lists_every_page() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = {path for entry in navigation for path in entry.values()}
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in PAGES}

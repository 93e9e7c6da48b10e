"""The documentation's page on search spaces: its recipes are accepted, and its parameters exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentParser
from space_cases import layout

from tailorlib import SearchSpace
from tailorlib.recipe import check_recipe
from tailorlib.search_space import SEARCH_SPACES

PAGE = (Path(__file__).parents[3] / "docs" / "search-spaces.md").read_text(encoding="utf-8")
RECIPES: list[dict[str, Any]] = [
    yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
]


def test_every_space_has_a_section_and_a_recipe() -> None:
    assert {recipe["search_space"]["class_path"] for recipe in RECIPES} == set(SEARCH_SPACES.names())
    assert set(SEARCH_SPACES.names()) <= set(re.findall(r"^## (\w+)", PAGE, flags=re.MULTILINE))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r["search_space"]["class_path"])
def test_recipes_are_accepted_and_searched(recipe: dict[str, Any]) -> None:
    assert check_recipe(recipe) == []
    space = made(recipe)
    params = space.sample(np.random.default_rng(0))
    assert space.encode(space.decode(params)) == params


@pytest.mark.parametrize("name", SEARCH_SPACES.names())
def test_parameters_of_the_tables_exist(name: str) -> None:
    section = PAGE.split(f"## {name}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| `([^`…]+)`", section, flags=re.MULTILINE)
    assert cells
    known = {
        n
        for recipe in RECIPES
        if recipe["search_space"]["class_path"] == name
        for n in made(recipe).distributions()
    }
    for cell in cells:
        pattern = re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(cell))
        if "ResidualScale" not in cell:
            assert any(re.fullmatch(pattern, parameter) for parameter in known), cell


def made(recipe: dict[str, Any]) -> SearchSpace:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SearchSpace, "search_space")
    config = parser.parse_object(recipe)
    space: SearchSpace = getattr(parser, "instantiate", parser.instantiate_classes)(config).search_space
    space.setup(layout(12))
    return space

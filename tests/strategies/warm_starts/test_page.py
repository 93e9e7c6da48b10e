"""The documentation's page on warm starts: its recipe is accepted, and it speaks of every warm start."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tailorlib.recipe import check_recipe
from tailorlib.warm_start import WARM_STARTS

PAGE = (Path(__file__).parents[3] / "docs" / "warm-starts.md").read_text(encoding="utf-8")


def test_the_recipe_is_accepted() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    recipe = yaml.safe_load(text)
    assert len(recipe["benchmark"]["baselines"]) == 8
    assert check_recipe(recipe) == []


def test_every_warm_start_has_a_row() -> None:
    own = [n for n in WARM_STARTS.names() if WARM_STARTS.get(n).__module__.startswith("tailorlib_strategies")]
    rows = re.findall(r"^\| `(\w+)`", PAGE, flags=re.MULTILINE)
    assert set(own) == set(rows)

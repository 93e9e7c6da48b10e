"""What is said of a value of a wrong type or kind: where it stands, what belongs there, what was given."""

from __future__ import annotations

from typing import Any

import pytest

from tailorlib.parser_messages import clean_message
from tailorlib.recipe import check_recipe

REMOVAL = {"class_path": "LayerRemoval", "init_args": {"ratio": "lots"}}


def given(section: str, cls: str, **settings: Any) -> dict[str, Any]:
    return {section: {"class_path": cls, "init_args": settings}}


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        (given("family", "ModelFamily", base="b", candidates="X"), "family.candidates is a mapping, got 'X'."),
        (given("family", "ModelFamily", base="b", candidates={"a": 3}), "family.candidates is a text, got 3."),
        (
            given("search_space", "PruningSpace", removal=REMOVAL),
            "search_space.removal.ratio is a number or a list, got 'lots'.",
        ),
        (given("scheduler", "Racing", z=[1]), "scheduler.z is a number, got [1]."),
        (given("scheduler", "Racing", z="1: [", min_samples=3), "scheduler.z is a number, got '1: ['."),
        (given("fitness", "WeightedMean", parts={"a": 3}), "fitness.parts is a Fitness, got 3."),
        ({"study": {"trials": "x"}}, "study.trials is a whole number, got 'x'."),
        ({"study": {"trials": [3]}}, "study.trials is a whole number, got [3]."),
        (
            {"scheduler": "TIES"},
            "scheduler: 'TIES' is no Scheduler. Known: ASHA, Hyperband, Racing, SuccessiveHalving.",
        ),
        (
            {"scheduler": "zzz"},
            "scheduler: There is no class 'zzz'. Known: ASHA, Hyperband, Racing, SuccessiveHalving.",
        ),
        ({"warm_starts": [{"class_path": "BlockInfluenc"}]}, "Did you mean 'BlockInfluence'?"),
        (
            {"benchmark": {"fitness": "Perplexty"}},
            "benchmark.fitness: There is no class 'Perplexty'. Did you mean",
        ),
    ],
)
def test_a_fault_is_told_with_its_place_the_rule_and_what_was_given(recipe: dict[str, Any], fault: str) -> None:
    (told,) = check_recipe(recipe)
    assert fault in told
    assert "Parser key" not in told and "<class" not in told


def test_names_of_other_kinds_are_not_suggested() -> None:
    (told,) = check_recipe(given("search_space", "PruningSpace", merges=["qqqq"]))
    assert "TaskArithmetic" in told
    assert "Nevergrad" not in told and "Perplexity" not in told


def test_a_list_is_not_told_to_be_a_list() -> None:
    (told,) = check_recipe({"warm_starts": [{"class_path:BlockInfluence": None}]})
    assert told.startswith("warm_starts") and "is a list, got [" not in told


def test_what_is_not_understood_is_left_as_it_is() -> None:
    assert clean_message("Something else: is wrong.") == "Something else: is wrong."
    assert clean_message("Problem:\n  Errors:\n    - first\n    - second") == "Problem: first second"

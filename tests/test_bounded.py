"""Keys of YAML are texts: each that is none is named with its place, in every kind of file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tailorlib.bounded import load_yaml
from tailorlib.exceptions import RecipeError
from tailorlib.interchange.mergekit_import import from_mergekit
from tailorlib.recipe import read_recipe
from tailorlib.tailoring import Tailoring


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1: x", "got 1, which YAML reads as a number, line 1 of the text. Put it in quotes ('1')"),
        ("1.5: x", "got 1.5, which YAML reads as a number"),
        ("a: {b: [{no: x}]}", "got no, which YAML reads as true or false, in a.b[0], line 1 of"),
        ("a:\n  on: x", "got on, which YAML reads as true or false, in a, line 2 of"),
        ("null: x", "got null, which YAML reads as null"),
        ("~: x", "got ~, which YAML reads as null"),
        ("? \n: x", "got nothing, which YAML reads as null"),
        ("2024-01-01: x", "got 2024-01-01, which YAML reads as a date"),
        ("? [a, b]\n: x", "got a list, line 1 of the text. Write a name."),
        ("? {a: b}\n: x", "got a mapping, line 1"),
        ("!!binary YQ==: x", "which YAML reads as a value of the kind 'binary'"),
        ("!mine a: x", "which YAML reads as a value of the kind '!mine'"),
        ("a: &x {1: 2}\nb: {<<: *x}", "got 1, which YAML reads as a number, in a, line 1 of"),
        (
            "a: {b: 1, 'b': 2}",
            "A mapping names each key once, got 'b' twice, in a, in the lines 1 and 1 of the text.",
        ),
    ],
)
def test_a_key_that_is_no_text_is_named_with_its_place(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_yaml(text, "The text")
    assert said in str(caught.value)
    assert len(caught.value.faults) <= 2


def test_all_keys_are_told_at_once_and_an_anchor_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_yaml("a: &x {1: 2, no: 3}\nb: *x\nc: {d: 1, d: 2, 5: 1}", "A text")
    assert [fault.split(",")[0] for fault in caught.value.faults[:2]] == ["A key is a text"] * 2
    assert sum("got 1," in fault for fault in caught.value.faults) == 2  # at two places
    assert any("'d' twice" in fault for fault in caught.value.faults)
    assert any("got 5," in fault for fault in caught.value.faults)


def test_keys_in_quotes_and_merge_keys_are_taken() -> None:
    text = "base: &b {'1': 2}\nown: {<<: *b, 'no': 3, =: 4}"
    assert load_yaml(text, "A text")["own"] == {"1": 2, "no": 3, "=": 4}


def test_a_model_card_may_have_any_keys() -> None:
    assert load_yaml("license: mit\nno: 1", "A card", any_keys=True) == {"license": "mit", False: 1}


@pytest.mark.parametrize("read", [Tailoring.from_yaml, from_mergekit])
def test_it_holds_for_every_kind_of_text(read: Callable[[str], object]) -> None:
    with pytest.raises(RecipeError, match=r"A key is a text, got 1, .* in layers, line 1"):
        read("layers: {1: 2}")


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("study: {1: 2}\n")
    with pytest.raises(RecipeError, match=r"in study, line 1 of the recipe '.*recipe\.yaml'"):
        read_recipe(path)

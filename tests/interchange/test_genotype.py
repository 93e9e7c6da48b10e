"""Genotypes of the paper's code: closed forms of what they mean, and every fault at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interchange_cases import our_tensors, read_tensors
from model_cases import LAYERS
from torch import Tensor

from tailorlib.exceptions import RecipeError, TailorError
from tailorlib.interchange import Imported, from_genotype
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, PartPlan

KEPT = {0: (0, 1, 1), 1: (1, 0, 0), 3: (0, 0, 0), 4: (1, 1, 1), 5: (1, 0, 1)}
"""Candidates that contribute to each kept layer; layer 2 is removed."""
SCALES = {0: 0.3, 1: 0.7, 3: 0.7, 4: 0.4, 5: 0.9}
CANDIDATES = ("wizard", "math", "code")


def genotype(**changes: object) -> dict[str, Any]:
    """Return the genotype of the table."""
    data: dict[str, Any] = {"remove_idx_0": 2}
    for i, flags in KEPT.items():
        data |= {f"layer_{i}_candidate_{j}": flag for j, flag in enumerate(flags)}
        data |= {f"layer_{i}_merge_scale_factor": SCALES[i], f"layer_{i}_output_scale": 1.0}
    return {**data, **changes}


def read(data: object, *, legacy: bool = False, layers: int = LAYERS) -> Imported:
    """Read a genotype of three candidates."""
    return from_genotype(data, base="llama", candidates=CANDIDATES, num_layers=layers, legacy_base_index=legacy)


def test_what_a_genotype_means() -> None:
    imported = read(genotype())
    first = (LayerSource("math", 0), LayerSource("code", 0))
    assert imported.tailoring.layers[:3] == (
        LayerPlan(first, "TaskArithmetic", (("scale", 0.3),), LayerSource(BASE, 0)),
        LayerPlan((LayerSource("wizard", 1),)),
        LayerPlan((LayerSource(BASE, 3),)),
    )
    assert [plan.base.layer for plan in imported.tailoring.layers if plan.base] == [0, 4, 5]
    assert imported.tailoring.embeddings == PartPlan(("math", "code"), "TaskArithmetic", (("scale", 0.3),), BASE)
    assert imported.tailoring.head == PartPlan(("wizard", "code"), "TaskArithmetic", (("scale", 0.9),), BASE)
    assert imported.tailoring.norm == imported.tailoring.head
    assert (imported.base, dict(imported.candidates)) == ("llama", {name: name for name in CANDIDATES})


def test_the_legacy_switch_counts_the_bases_layers_as_the_output_does() -> None:
    imported = read(genotype(), legacy=True)
    assert [plan.base.layer for plan in imported.tailoring.layers if plan.base] == [0, 3, 4]
    assert [plan.sources[0].layer for plan in imported.tailoring.layers] == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("legacy", [False, True])
def test_its_tensors_in_closed_form(llama: ModelFamily, legacy: bool, tmp_path: Path) -> None:
    references = dict(llama.references)
    imported = from_genotype(
        genotype(),
        base=references[BASE],
        candidates=[references[name] for name in "abc"],
        num_layers=LAYERS,
        legacy_base_index=legacy,
    )
    assert dict(imported.candidates) == {name: references[name] for name in "abc"}
    base, *models = (read_tensors(Path(references[name])) for name in (BASE, *"abc"))
    ours = our_tensors(llama, imported.tailoring, tmp_path)

    def expected(layer: int, number: int, name: str) -> Tensor:
        def of(model: dict[str, Tensor], i: int) -> Tensor:
            return model[name.replace("#", str(i))].double()

        chosen = [model for model, flag in zip(models, KEPT[layer], strict=True) if flag]
        if len(chosen) < 2:
            return of(chosen[0] if chosen else base, layer)
        origin = of(base, number if legacy else layer)
        return origin + SCALES[layer] * sum(of(model, layer) - origin for model in chosen)

    checked = set()
    for number, layer in enumerate(KEPT):
        for name in ours:
            if name.startswith(f"model.layers.{number}."):
                general = name.replace(f"layers.{number}.", "layers.#.")
                torch.testing.assert_close(
                    ours[name].double(), expected(layer, number, general), rtol=0, atol=1e-6
                )
                checked.add(name)
    for name, layer in {"model.embed_tokens.weight": 0, "model.norm.weight": 5, "lm_head.weight": 5}.items():
        torch.testing.assert_close(ours[name].double(), expected(layer, layer, name), rtol=0, atol=1e-6)
        checked.add(name)
    assert checked == set(ours)


def test_with_a_scale_of_one_nth_the_base_drops_out(llama: ModelFamily, tmp_path: Path) -> None:
    thirds = {f"layer_{i}_merge_scale_factor": 1 / max(1, sum(flags)) for i, flags in KEPT.items()}
    found = []
    for legacy in (False, True):
        imported = from_genotype(
            genotype(**thirds),
            base=llama.references[BASE],
            candidates=[llama.references[name] for name in "abc"],
            num_layers=LAYERS,
            legacy_base_index=legacy,
        )
        assert imported.notes == ()
        found.append(our_tensors(llama, imported.tailoring, tmp_path / str(legacy)))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-6)


def test_what_is_left_out_or_read_otherwise_is_noted() -> None:
    scaled, other = read(genotype(layer_1_output_scale=1.2, layer_5_output_scale=0.0)).notes
    assert "layer_i_output_scale of the layers 1, 5 is left out" in scaled
    assert "merges the layers 4, 5 against other layers of the base" in other
    assert read(genotype(), legacy=True).notes == ()


def test_entries_of_removed_layers_do_not_matter() -> None:
    extra = {"layer_2_candidate_0": "x", "layer_2_merge_scale_factor": None}
    assert read(genotype(**extra)).tailoring == read(genotype()).tailoring


def test_a_missing_scale_is_1_as_in_the_papers_code() -> None:
    data = genotype()
    del data["layer_4_merge_scale_factor"]
    assert dict(read(data).tailoring.layers[3].params) == {"scale": 1.0}


def test_nothing_removed() -> None:
    data = {f"layer_{i}_candidate_{j}": 0 for i in range(2) for j in range(3)}
    assert [plan.sources for plan in read(data, layers=2).tailoring.layers] == [
        (LayerSource(BASE, 0),),
        (LayerSource(BASE, 1),),
    ]


def test_every_fault_is_told_at_once() -> None:
    data = genotype(
        remove_idx_2=17,
        remove_idx_3=2,
        layer_0_candidate_1=0.5,
        layer_1_merge_scale_factor="0.3",
        layer_4_output_scale=float("nan"),
        layer_9_candidate_0=1,
        layer_4_candidate_3=1,
        colour="red",
    )
    del data["layer_3_candidate_2"]
    with pytest.raises(RecipeError) as caught:
        read(data)
    expected = (
        "got also 'colour'",
        "count from 0, got n = 0, 2, 3",
        "one of 0 to 5, got 17",
        "removed once, got 2 several times",
        "names 9",
        "3 candidates are given, numbered from 0; the genotype names 3",
        "lacking are layer_3_candidate_2",
        "layer_0_candidate_1: 0.5",
        "layer_1_merge_scale_factor: '0.3', layer_4_output_scale: nan",
    )
    for fault, part in zip(caught.value.faults, expected, strict=True):
        assert part in fault


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": ""}, "give the base"),
        ({"candidates": []}, "give the candidates"),
        ({"candidates": ["a", "a"]}, "are different models"),
        ({"num_layers": 0}, "1 to 1,000 layers"),
        ({"num_layers": 10**9}, "1 to 1,000 layers"),
        ({"data": [1]}, "is a mapping of numbers"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    given = {"data": genotype(), "base": "b", "candidates": list(CANDIDATES), "num_layers": LAYERS, **arguments}
    with pytest.raises(RecipeError, match=message):
        from_genotype(given.pop("data"), **given)


def test_all_layers_removed() -> None:
    with pytest.raises(RecipeError, match="keeps at least one layer"):
        read({"remove_idx_0": 0, "remove_idx_1": 1}, layers=2)


KEYS = st.one_of(
    st.sampled_from(sorted(genotype())), st.sampled_from(["remove_idx_01", "layer_9999999_candidate_0", "x"])
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers())
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(VALUES, st.dictionaries(KEYS, VALUES, max_size=6)), st.booleans())
def test_no_data_raises_anything_else(data: object, whole: bool) -> None:
    try:
        read({**genotype(), **data} if whole and isinstance(data, dict) else data)
    except TailorError as error:
        assert str(error)


def test_it_is_json() -> None:
    assert read(json.loads(json.dumps(genotype()))).tailoring == read(genotype()).tailoring

"""Folding neighbouring layers: which can be folded, what a run of them becomes, and what lies outside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from space_cases import layout
from tailorlib_strategies.operations import LayerFolding, LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import FoldingSpace

from tailorlib import Categorical, LayerPlan, LayerSource, Subset, Tailoring
from tailorlib.exceptions import RecipeError
from tailorlib.search_space import SpaceSize


def space(
    num_layers: int = 6, candidates: str = "ab", kinds: str = "", count: int = 2, **settings: Any
) -> FoldingSpace:
    made = FoldingSpace(LayerRemoval(count=count, protect=settings.pop("protect", None)), **settings)
    made.setup(layout(num_layers, candidates, kinds))
    return made


def run(model: str, *layers: int, scale: float = 1.0) -> LayerPlan:
    return LayerPlan(tuple(LayerSource(model, i) for i in layers), "LayerFolding", (("scale", scale),))


def kept(model: str, layer: int) -> LayerPlan:
    return LayerPlan((LayerSource(model, layer),))


def test_a_run_of_folded_layers_goes_into_the_kept_layer_below() -> None:
    s = space(folding=LayerFolding((0.0, 1.0)))
    params = {"folded": (1, 2), "layer.1.LayerFolding.scale": 0.5}  # of the layers 1 .. 5
    sources = {f"layer.{i}.source": "b" if i == 1 else "base" for i in range(6)}
    layers = s.decode({**s.complete(params), **sources}).layers
    assert layers == (kept("base", 0), run("b", 1, 2, 3, scale=0.5), kept("base", 4), kept("base", 5))


def test_only_layers_of_the_kind_below_are_folded_and_no_protected_ones() -> None:
    assert space(7, kinds="ssfsssf").distributions()["folded"] == Subset(3, 2)  # layers 1, 4 and 5
    s = space(7, kinds="ssfsssf", protect=[1], folding=LayerFolding((0.5, 1.0)))
    runs = [p.sources for p in s.decode(s.complete({"folded": (0, 1)})).layers if len(p.sources) > 1]
    assert [[source.layer for source in sources] for sources in runs] == [[3, 4, 5]]
    heads = [n for n in s.distributions() if "LayerFolding" in n]
    assert heads == [f"layer.{i}.LayerFolding.scale" for i in (3, 4)]  # nothing else can have a layer folded in


def test_a_run_is_of_one_model_and_a_single_layer_may_be_merged() -> None:
    s = space(merges=[TaskArithmetic()], count=1, protect=[1, 2, 3, 4])
    assert s.distributions()["layer.4.source"] == Categorical(("base", "a", "b"))
    assert "layer.3.source" not in s.distributions()
    bits = {f"layer.{i}.{c}": 1 for i in range(6) for c in "ab"}
    layers = s.decode({**s.complete({}), **bits, "layer.4.source": "a"}).layers
    assert [p.operation for p in layers] == ["TaskArithmetic"] * 4 + ["LayerFolding"]
    assert layers[-1] == run("a", 4, 5)


def test_the_paper_sized_space_is_counted_exactly() -> None:
    # 32 layers, 9 folded, base only: which are folded is all there is to choose
    assert space(32, "", count=9).size() == SpaceSize(20160075, 0)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([kept("base", i) for i in (0, 3, 4, 5)], r"drops the layers \[1, 2\], where the space folds"),
        ([kept("base", i) for i in range(6)], "folds 0 layers, where the space folds 2"),
        ([run("a", 0, 1, 2), kept("a", 3), run("a", 4, 5)], "folds 3 layers, where the space folds 2"),
        ([run("a", 0, 1), run("a", 2, 3), kept("a", 4), kept("z", 5)], "layer 5: z is no model"),
        ([run("z", 0, 1, 2), kept("a", 3), kept("a", 4), kept("a", 5)], "layer 0: z is no model"),
        ([run("a", 0, 1, 2, scale=2.0), *(kept("a", i) for i in (3, 4, 5))], r"scale=2\.0 is not in"),
        ([replace(run("a", 0, 1, 2), params=()), *(kept("a", i) for i in (3, 4, 5))], "scale is missing"),
        ([kept("a", 0), run("a", 2, 1, 3), kept("a", 4), kept("a", 5)], "not ascending numbers below 6"),
        ([run("a", 0, 1, 3), run("b", 2), kept("a", 4), kept("a", 5)], "not ascending numbers below 6"),
        (
            [kept("a", 0), kept("a", 1), kept("a", 2), run("a", 3, 4, 5)],
            r"folds the layers \[5\], where .* \[1, 2, ",
        ),
        (
            [
                replace(
                    run("a", 0, 1, 2), sources=(LayerSource("a", 0), LayerSource("b", 1), LayerSource("a", 2))
                ),
                *(kept("a", i) for i in (3, 4, 5)),
            ],
            "can't be had; the nearest is .*'a:1'",
        ),
    ],
)
def test_a_tailoring_outside_is_refused_with_the_reason(layers: list[LayerPlan], message: str) -> None:
    s = space(folding=LayerFolding((0.0, 1.0)), protect=[-1])
    with pytest.raises(RecipeError, match=message):
        s.encode(Tailoring(tuple(layers)))


def test_a_tailoring_inside_is_accepted() -> None:
    s = space(folding=LayerFolding((0.0, 1.0)), protect=[-1])
    tailoring = Tailoring((run("a", 0, 1), kept("b", 2), run("base", 3, 4, scale=0.25), kept("base", 5)), seed=3)
    assert s.decode(s.encode(tailoring), seed=3) == tailoring


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: space(count=6), "keeps at least one layer"),
        (lambda: space(kinds="ssfsff", count=3), "got 2 such layers for 3 to fold"),
        (lambda: space(protect=[1, 2, 3, 4]), "got 1 such layers for 2 to fold"),
        (lambda: space(merges=[LayerFolding()]), "merges are of several models, got LayerFolding"),
        (lambda: space(merges=[TaskArithmetic(), TaskArithmetic()]), "TaskArithmetic again"),
        (lambda: _with_candidates("a", "source"), r"'layer\.0\.source' twice"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def _with_candidates(*names: str) -> None:
    made = FoldingSpace(LayerRemoval(count=1), merges=[TaskArithmetic()])
    made.setup(replace(layout(), candidates=names))

"""The paper's space: conditionality, the inverse, the exact size, and the recipe."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from space_cases import Single, Triple, Weighted
from tailorlib_strategies.operations import SLERP, TIES, LayerRemoval, Linear, ResidualScale, TaskArithmetic
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import Categorical, FamilyLayout, Float, LayerPlan, LayerSource, SearchSpace, Subset, Tailoring
from tailorlib.exceptions import RecipeError
from tailorlib.search_space import SpaceSize
from tailorlib.tailoring import PartPlan


def layout(num_layers: int = 6, candidates: str = "abc") -> FamilyLayout:
    return FamilyLayout(tuple(candidates), num_layers, ("full_attention",) * num_layers)


def space(num_layers: int = 6, candidates: str = "abc", **settings: Any) -> PruningSpace:
    made = PruningSpace(settings.pop("removal", LayerRemoval(count=2)), **settings)
    made.setup(layout(num_layers, candidates))
    return made


SPACES = {
    "removal only": space(candidates=""),
    "one candidate": space(candidates="a", merges=[TaskArithmetic()]),
    "no selection, no merges": space(selection=None),
    "selection": space(),
    "merges": space(merges=[TaskArithmetic(), TIES(density=0.5)]),
    "merges of unlike arity": space(merges=[SLERP(), TaskArithmetic(), Linear()]),
    "one merge for three": space(merges=[SLERP(), TaskArithmetic()]),
    "merges without selection": space(merges=[TaskArithmetic(scale=0.3)], selection=None),
    "protected": space(removal=LayerRemoval(count=2, protect=[0, -1]), merges=[TIES()]),
}


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_active_parameters_name_the_candidate(name: str, seed: int) -> None:
    space, rng = SPACES[name], np.random.default_rng(seed)
    params = {n: d.sample(rng) for n, d in space.distributions().items()}
    active = space.active(params)
    tailoring = space.decode(params, seed=3)
    assert tailoring.seed == 3
    assert space.decode(active, seed=3) == tailoring
    assert space.encode(tailoring) == active
    redrawn = {n: d.sample(rng) for n, d in space.distributions().items() if n not in active}
    assert space.decode({**params, **redrawn}, seed=3) == tailoring
    assert space.active({**params, **redrawn}) == active


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_active_parameter_matters(name: str, seed: int) -> None:
    space, rng = SPACES[name], np.random.default_rng(seed)
    active = dict(space.sample(rng))
    changed = str(rng.choice(list(active)))
    value = space.distributions()[changed].mutate(active[changed], rng)
    other = space.complete({**active, changed: value})
    same_name = space.active(other) == active
    assert same_name == (space.decode(other) == space.decode(active))


@pytest.mark.parametrize("name", SPACES)
def test_the_size_follows_from_enumerating_one_layer(name: str) -> None:
    space = SPACES[name]
    fixed = {**space.complete({}), "removed": (0, 1)}
    kept = next(p.sources[0].layer for p in space.decode(fixed).layers)
    free = {n: _values(d) for n, d in space.distributions().items() if n.startswith(f"layer.{kept}.")}
    choices = {
        space.decode({**fixed, **dict(zip(free, values, strict=True))}).layers[0]
        for values in product(*free.values())
    }
    removals = space.distributions()["removed"].cardinality
    assert space.size().discrete == removals * len(choices) ** 4


def _values(distribution: object) -> list[Any]:
    match distribution:
        case Categorical(choices=choices):
            return list(choices)
        case Subset(n=n, k=k):
            return list(combinations(range(n), k))
        case Float(low=low):
            return [low]
    raise AssertionError(distribution)


@pytest.mark.parametrize("candidates, merges", [("abc", []), ("ab", [Linear(0.0)]), ("ab", [SLERP(0.5)])])
def test_brute_force_over_all_parameters_counts_the_size(candidates: str, merges: list[Any]) -> None:
    tiny = space(4, candidates, removal=LayerRemoval(count=1), merges=merges)
    values = {n: _values(d) for n, d in tiny.distributions().items()}
    found = {tiny.decode(dict(zip(values, v, strict=True))) for v in product(*values.values())}
    assert tiny.size() == SpaceSize(len(found), 0)


def test_the_paper_sized_space_is_counted_exactly() -> None:
    size = space(30, merges=[TaskArithmetic(), TIES()], removal=LayerRemoval(0.25)).size()
    assert size == SpaceSize(5852925 * (1 + 3 + 3 * 2 + 1 * 2) ** 22, 2 * 22)


def test_a_removed_layer_has_no_active_parameters() -> None:
    active = SPACES["merges"].active(SPACES["merges"].complete({"removed": (1, 4)}))
    assert {n.split(".")[1] for n in active if n != "removed"} == {"0", "2", "3", "5"}


def test_layer_parameters_depend_on_the_number_of_sources() -> None:
    s = SPACES["merges"]
    full = {**s.complete({"removed": (0, 1)}), "layer.2.operation": "TIES"}
    bits = {f"layer.2.{c}": 0 for c in "abc"}

    def names(**chosen: int) -> set[str]:
        params = {**full, **bits, **{f"layer.2.{c}": bit for c, bit in chosen.items()}}
        return {n.removeprefix("layer.2.") for n in s.active(params) if n.startswith("layer.2.")}

    assert names() == names(a=1) == {"a", "b", "c"}
    assert names(a=1, c=1) == {"a", "b", "c", "operation", "TIES.scale"}


def test_an_operation_is_a_choice_only_where_it_admits_the_number_of_sources() -> None:
    names = SPACES["merges of unlike arity"].distributions()
    assert names["layer.0.operation.2"] == Categorical(("SLERP", "TaskArithmetic", "Linear"))
    assert names["layer.0.operation.3"] == Categorical(("TaskArithmetic", "Linear"))
    assert "layer.0.operation.3" not in SPACES["one merge for three"].distributions()


def test_the_base_of_a_merge_is_the_bases_layer_of_the_same_depth() -> None:
    s = SPACES["protected"]
    params = {**s.complete({"removed": (0, 1)}), **{f"layer.{i}.{c}": 1 for i in range(6) for c in "ab"}}
    plans = s.decode(params).layers
    assert [p.base for p in plans] == [LayerSource("base", i) for i in (0, 3, 4, 5)]


def test_protected_layers_are_never_removed() -> None:
    s, rng = SPACES["protected"], np.random.default_rng(0)
    assert s.distributions()["removed"] == Subset(4, 2)
    for _ in range(20):
        kept = [p.sources[0].layer for p in s.decode(s.sample(rng)).layers]
        assert kept[0] == 0 and kept[-1] == 5


def test_a_weight_per_contributing_candidate_is_searched() -> None:
    s = space(merges=[Weighted(Float(0.0, 2.0)), TaskArithmetic()])
    params = {**s.complete({"removed": (0, 1)}), "layer.2.operation": "Weighted", "layer.2.b": 0}
    params |= {"layer.2.a": 1, "layer.2.c": 1, "layer.2.Weighted.weight.a": 0.25, "layer.2.Weighted.weight.c": 1.5}
    active = s.active(params)
    assert {n for n in active if "layer.2.Weighted" in n} == {f"layer.2.Weighted.weight.{c}" for c in "ac"}
    plan = s.decode(params).layers[0]
    assert plan == LayerPlan(plan.sources, "Weighted", (("weights", (0.25, 1.5)),))
    assert [source.model for source in plan.sources] == ["a", "c"]


def test_weights_that_are_all_1_are_left_out_of_the_plan() -> None:
    s = space(merges=[Weighted(Float(0.0, 2.0))])
    bits = {f"layer.2.{c}": int(c in "ac") for c in "abc"}
    weights = {f"layer.2.Weighted.weight.{c}": 1.0 for c in "ac"}
    tailoring = s.decode({**s.complete({"removed": (0, 1)}), **bits, **weights})
    assert tailoring.layers[0].params == ()
    assert weights.items() <= s.encode(tailoring).items()


def test_fixed_weights_stand_in_the_plan_and_are_no_parameters() -> None:
    for weight, params in ((0.5, (("weights", (0.5, 0.5, 0.5)),)), (1.0, ())):
        s = space(merges=[Weighted(Float(weight, weight))])
        assert not [n for n in s.distributions() if "weight" in n]
        plan = s.decode({**s.complete({}), **dict.fromkeys(s.distributions(), 1), "removed": (0, 1)}).layers[0]
        assert (len(plan.sources), plan.params) == (3, params)


def test_a_candidate_can_be_changed_by_an_operation_on_one_source() -> None:
    s = space(merges=[TaskArithmetic(), Single()])
    assert s.distributions()["layer.2.operation.1"] == Categorical(("LayerSelection", "Single"))
    bits = {"layer.2.a": 0, "layer.2.b": 1, "layer.2.c": 0}
    plan = s.decode({**s.complete({"removed": (0, 1)}), **bits, "layer.2.operation.1": "Single"}).layers[0]
    assert plan == LayerPlan((LayerSource("b", 2),), "Single", (), LayerSource("base", 2))


def test_residual_scales_are_searched_per_kept_layer() -> None:
    s = space(residual_scale=ResidualScale(attention=0.75, mlp=(0.5, 1.5)))
    params = s.complete({"removed": (0, 1), "layer.3.ResidualScale.mlp": 1.25})
    assert {n for n in s.active(params) if "Scale" in n} == {f"layer.{i}.ResidualScale.mlp" for i in (2, 3, 4, 5)}
    assert [(p.attention_scale, p.mlp_scale) for p in s.decode(params).layers] == [
        (0.75, 1.0),
        (0.75, 1.25),
        (0.75, 1.0),
        (0.75, 1.0),
    ]


def test_outer_parts_are_selected_and_merged() -> None:
    s = space(merges=[TaskArithmetic()], outer=["embeddings", "head"])
    bits = {"embeddings.a": 1, "embeddings.b": 0, "embeddings.c": 1, "head.a": 0, "head.b": 1, "head.c": 0}
    tailoring = s.decode({**s.complete({}), **bits, "embeddings.TaskArithmetic.scale": 0.25})
    assert tailoring.embeddings == PartPlan(("a", "c"), "TaskArithmetic", (("scale", 0.25),), "base")
    assert (tailoring.norm, tailoring.head) == ("base", "b")


MERGE = LayerPlan(
    (LayerSource("a", 2), LayerSource("b", 2)), "TaskArithmetic", (("scale", 0.5),), LayerSource("base", 2)
)


def tailored(*plans: LayerPlan, **owners: str) -> Tailoring:
    """Layers 0 and 1 removed; ``plans`` from layer 2 on, the rest the base's."""
    rest = (LayerPlan((LayerSource("base", i),)) for i in range(2 + len(plans), 6))
    return Tailoring((*plans, *rest), **owners)


@pytest.mark.parametrize(
    ("tailoring", "message"),
    [
        (Tailoring.whole("base", 6), "keeps 6 layers"),
        (Tailoring.whole("base", 6, without=(1, 2, 3)), "keeps 3 layers"),
        (Tailoring.whole("base", 7, without=(1, 2, 3)), "ascending numbers below 6"),
        (Tailoring.whole("a", 6, without=(1, 2)), "embeddings are a's"),
        (tailored(head="b"), "head are b's"),
        (tailored(LayerPlan((LayerSource("z", 2),))), "layer 2: z is no model"),
        (
            tailored(LayerPlan(MERGE.sources, "SLERP", (("t", 0.5),))),
            r"SLERP is not among PruningSpace\.merges \(TaskArithmetic, TIES\)",
        ),
        (tailored(replace(MERGE, params=(("scale", 1.5),))), "scale=1.5 is not in"),
        (tailored(replace(MERGE, params=())), "scale is missing"),
        (tailored(replace(MERGE, params=(("scale", 0.5), ("weights", (1.0, 0.5))))), "weight.b=0.5 is not 1.0"),
        (tailored(replace(MERGE, params=(("scale", 0.5), ("weights", (1.0,))))), "one weight per source"),
        (tailored(replace(MERGE, params=(("scale", 0.5), ("tilt", 1.0)))), "tilt=1.0 is no hyperparameter"),
        (tailored(replace(MERGE, sources=MERGE.sources[:1])), "TaskArithmetic of 1 candidates is not"),
        (tailored(replace(MERGE, mlp_scale=0.5)), r"layer 2: ResidualScale\.mlp=0\.5 is not 1\.0"),
        (tailored(replace(MERGE, parts=(("mlp", LayerPlan((LayerSource("a", 2),))),))), "made in parts"),
        (tailored(head=PartPlan(("a", "b"), "Linear")), "head are Linear of a, b's, not the base's"),
        (tailored(replace(MERGE, base=None)), "can't be had"),
        (tailored(replace(MERGE, sources=MERGE.sources[::-1])), "can't be had"),
        (tailored(replace(MERGE, sources=(MERGE.sources[0], LayerSource("b", 3)))), "can't be had"),
    ],
)
def test_a_tailoring_outside_is_refused_with_the_reason(tailoring: Tailoring, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SPACES["merges"].encode(tailoring)


def test_every_way_in_which_a_tailoring_lies_outside_is_named() -> None:
    strange, scaled = LayerPlan((LayerSource("z", 2),)), LayerPlan((LayerSource("a", 3),), mlp_scale=2.0)
    with pytest.raises(RecipeError) as caught:
        SPACES["merges"].encode(
            tailored(strange, scaled, replace(scaled, sources=(LayerSource("a", 4),)), norm="a")
        )
    message = str(caught.value)
    for fault in ("norm are a's", "layer 2: z is no model", "layer 3, layer 4: ResidualScale.mlp=2.0 is not"):
        assert fault in message


def test_a_tailoring_inside_is_accepted() -> None:
    tailoring = tailored(MERGE)
    assert SPACES["merges"].decode(SPACES["merges"].encode(tailoring)) == tailoring


def test_selection_is_refused_where_it_is_off() -> None:
    with pytest.raises(RecipeError, match="can't be had"):
        SPACES["merges without selection"].encode(tailored(LayerPlan((LayerSource("a", 2),))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PruningSpace(LayerRemoval(0.2), merges=[TIES(), TIES(density=0.2)]), "TIES again"),
        (lambda: space(merges=[SLERP()]), "none that merges 3"),
        (lambda: space(removal=LayerRemoval(count=6)), "at least one layer"),
        (lambda: _setup_with(("a", "operation")), "twice"),
        (lambda: _setup_with(("a", "TIES.scale")), "twice"),
        (
            lambda: space(candidates="ab", merges=[TIES(), Triple()]),
            "up to 2 candidates, got Triple merges 3 or more",
        ),
        (lambda: space(merges=[Single()]), "none that merges 2: Single merges exactly 1"),
        (lambda: space(outer=["head", "head"]), "embeddings, norm, head, each once"),
        (lambda: ResidualScale(attention=(-0.5, 1.0)), r"ResidualScale\.attention .* within \[0, inf\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def _setup_with(candidates: tuple[str, ...]) -> None:
    PruningSpace(LayerRemoval(count=1), merges=[TaskArithmetic(), TIES()]).setup(
        FamilyLayout(candidates, 3, ("full_attention",) * 3)
    )


RECIPE = """
search_space:
  class_path: PruningSpace
  init_args:
    removal: {class_path: LayerRemoval, init_args: {ratio: 0.25, protect: [0, -1]}}
    merges:
    - {class_path: TaskArithmetic, init_args: {scale: [0.1, 0.5]}}
    - {class_path: TIES, init_args: {density: 0.3}}
"""


def test_a_recipe_builds_the_space_by_short_class_names() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SearchSpace, "search_space")
    for extra, has_selection in (("", True), ("    selection: null\n", False)):
        config = parser.parse_string(RECIPE + extra)
        dumped = yaml.safe_load(parser.dump(config, skip_none=False))["search_space"]["init_args"]
        assert (dumped["selection"] is not None) == has_selection
        made = getattr(parser, "instantiate", parser.instantiate_classes)(config).search_space
        made.setup(layout(8))
        assert (made.selection is not None) == has_selection
        assert made.distributions()["removed"] == Subset(6, 2)
        assert made.distributions()["layer.0.TaskArithmetic.scale"] == Float(0.1, 0.5)
        assert made.distributions()["layer.0.TIES.scale"] == Float(0.0, 1.5)
        assert "layer.0.TIES.density" not in made.distributions()  # fixed: there is nothing to draw

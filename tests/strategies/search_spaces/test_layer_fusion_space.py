"""Groups of parameters by bins of layers: parts in one canonical form, and what lies outside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from space_cases import layout
from tailorlib_strategies.operations import TIES, LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import LayerFusionSpace

from tailorlib import LayerPlan, LayerSource, Tailoring
from tailorlib.exceptions import RecipeError


def space(num_layers: int = 5, candidates: str = "ab", **settings: Any) -> LayerFusionSpace:
    made = LayerFusionSpace(settings.pop("groups", None), settings.pop("granularity", 2), **settings)
    made.setup(layout(num_layers, candidates))
    return made


def select(model: str, layer: int, **parts: str) -> LayerPlan:
    inner = tuple((name, LayerPlan((LayerSource(m, layer),))) for name, m in parts.items())
    return LayerPlan((LayerSource(model, layer),), parts=inner)


def chosen(s: LayerFusionSpace, **sources: str) -> tuple[LayerPlan, ...]:
    """Decode with ``b0_mlp="a"`` and so on, everything else the base's."""
    given = {f"bin.{name[1]}.{name[3:]}.source": model for name, model in sources.items()}
    base = {name: "base" for name in s.distributions() if name.endswith("source")}
    return s.decode({**s.complete({}), **base, **given}).layers


def test_groups_of_a_bin_are_made_alike() -> None:
    layers = chosen(space(), b0_self_attn="a", b0_mlp="b", b1_rest="b")
    assert layers[:2] == tuple(select("base", i, self_attn="a", mlp="b") for i in (0, 1))
    assert layers[2:4] == tuple(select("b", i, self_attn="base", mlp="base") for i in (2, 3))
    assert layers[4] == select("base", 4)


def test_groups_at_the_end_that_are_made_like_the_rest_are_no_parts() -> None:
    s = space()
    assert chosen(s, b0_self_attn="a", b0_mlp="a", b0_rest="a")[0] == select("a", 0)
    assert chosen(s, b0_self_attn="a")[0] == select("base", 0, self_attn="a")
    # a part before another one stays: the other's filter might match its tensors too
    assert chosen(s, b0_mlp="a")[0] == select("base", 0, self_attn="base", mlp="a")
    assert chosen(s, b0_self_attn="a", b0_rest="a", b0_mlp="b")[0] == select("a", 0, self_attn="a", mlp="b")


def test_filters_that_overlap_keep_their_meaning() -> None:
    s = space(groups=["self_attn.q_proj", "self_attn"])
    for sources in (
        {"b0_self_attn": "a"},
        {"b0_self_attn.q_proj": "a"},
        {"b0_self_attn.q_proj": "a", "b0_self_attn": "b"},
        {"b0_self_attn": "a", "b0_rest": "a"},
    ):
        plan = chosen(s, **sources)[0]
        for group, tensor in (
            ("self_attn.q_proj", "self_attn.q_proj.weight"),
            ("self_attn", "self_attn.k_proj.weight"),
            ("rest", "mlp.up_proj.weight"),
        ):
            assert plan.plan_of(tensor).sources[0].model == sources.get(f"b0_{group}", "base")


def test_a_bin_without_layers_has_no_active_parameters() -> None:
    s = space(removal=LayerRemoval(count=2))
    active = s.active(s.complete({"removed": (2, 3)}))
    assert {n.split(".")[1] for n in active if n != "removed"} == {"0", "2"}
    assert {n.split(".")[1] for n in s.active(s.complete({"removed": (1, 2)})) if n != "removed"} == {
        "0",
        "1",
        "2",
    }


def test_parts_are_merged_each_in_its_own_way() -> None:
    s = space(1, merges=[TaskArithmetic(), TIES(density=0.5)], selection=None)
    bits = {f"bin.0.{group}.{c}": 1 for group in ("self_attn", "mlp") for c in "ab"}
    rest = {f"bin.0.rest.{c}": 0 for c in "ab"}
    operations = {"bin.0.self_attn.operation": "TaskArithmetic", "bin.0.mlp.operation": "TIES"}
    values = {"bin.0.self_attn.TaskArithmetic.scale": 0.25, "bin.0.mlp.TIES.scale": 1.25}
    params = s.complete({**bits, **rest, **operations, **values})
    (plan,) = s.decode(params).layers
    attention, mlp = (part for _, part in plan.parts)
    assert plan.sources == (LayerSource("base", 0),)
    assert (attention.operation, dict(attention.params)["scale"]) == ("TaskArithmetic", 0.25)
    assert (mlp.operation, dict(mlp.params)["scale"]) == ("TIES", 1.25)
    assert s.encode(s.decode(params)) == s.active(params)


def test_a_whole_model_is_expressed_without_parts() -> None:
    s = space(removal=LayerRemoval(count=2))
    tailoring = Tailoring(tuple(select("b", i) for i in (0, 3, 4)))
    params = s.encode(tailoring)
    assert {value for name, value in params.items() if name != "removed"} == {"b"}
    assert s.decode(params) == tailoring


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: select("a", 0), 1: select("b", 1)}, "layer 1: it is made unlike the layers below it in its bin of 2"),
        (
            {4: select("a", 4, mlp="b")},
            r"layer 4: its parts are \['mlp'\], where the space has \['self_attn', 'mlp'\]",
        ),
        ({4: select("a", 4, self_attn="b", mlp="a")}, "layer 4: its last part 'mlp' is made like its rest"),
        ({4: select("a", 4, self_attn="z")}, "layer 4, self_attn: z is no model"),
        ({4: select("z", 4)}, "layer 4: z is no model"),
        ({4: select("z", 4, self_attn="a")}, "layer 4, rest: z is no model"),
        ({4: replace(select("a", 4), attention_scale=0.5)}, "layer 4: ResidualScale.attention=0.5 is not 1.0"),
        ({3: select("a", 2)}, "not ascending numbers below 5"),
        (
            {4: LayerPlan((LayerSource("a", 4), LayerSource("b", 4)), "SLERP", (("t", 0.5),))},
            r"layer 4: SLERP is not among LayerFusionSpace\.merges \(none\)",
        ),
        (
            {4: replace(select("a", 4), parts=(("self_attn", select("b", 3)),))},
            "layer 4, self_attn: .*'b:3'.* can't be had; the nearest is .*'b:4'",
        ),
    ],
)
def test_a_tailoring_outside_is_refused_with_the_reason(change: dict[int, LayerPlan], message: str) -> None:
    layers = [change.get(i, select("base", i)) for i in range(5)]
    with pytest.raises(RecipeError, match=message):
        space().encode(Tailoring(tuple(layers)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: space(groups=["mlp", "mlp"]), "distinct parts of tensors' names"),
        (lambda: space(groups=["rest"]), "'rest' by itself"),
        (lambda: space(groups=[""]), "distinct parts"),
        (lambda: space(granularity=0), "granularity is 1 or more"),
        (lambda: space(removal=LayerRemoval(count=5)), "at least one layer"),
        (lambda: space(candidates=""), "something to search"),
        (lambda: _with_candidates("q.x", "x"), r"'bin\.0\.self_attn\.q\.x' twice"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def _with_candidates(*names: str) -> None:
    made = LayerFusionSpace(["self_attn.q", "self_attn"], merges=[TaskArithmetic()])
    made.setup(replace(layout(), candidates=names))

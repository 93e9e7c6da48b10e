from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorlib import LayerPlan, LayerSource, PartPlan, Tailoring, Trial
from tailorlib.exceptions import JournalError, RecipeError

MERGE = LayerPlan(
    (LayerSource("math", 3), LayerSource("code:v2", 3)),
    "TaskArithmetic",
    (("scale", 0.35),),
    LayerSource("base", 3),
)
TAILORING = Tailoring((LayerPlan((LayerSource("base", 0),)), LayerPlan((LayerSource("math", 2),)), MERGE), seed=11)

names = st.text("abc-:/ é", min_size=1, max_size=6)
sources = st.builds(LayerSource, names, st.integers(0, 99))
values = st.one_of(
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.lists(st.integers(0, 9) | st.floats(0, 1), max_size=3).map(tuple),
)
params = st.dictionaries(st.sampled_from(["scale", "density", "weights"]), values).map(lambda d: tuple(d.items()))
operations = st.sampled_from(["TIES", "My_Merge"])
parts = st.builds(
    LayerPlan,
    st.lists(sources, min_size=1, max_size=3, unique=True).map(tuple),
    operations,
    params,
    st.none() | sources,
)
scales = st.floats(-2, 2) | st.just(1.0)
plans = st.builds(
    LayerPlan,
    st.lists(sources, min_size=1, max_size=3, unique=True).map(tuple),
    operations,
    params,
    st.none() | sources,
    scales,
    scales,
    st.dictionaries(st.sampled_from(["mlp", "self_attn", "norm"]), parts).map(lambda d: tuple(d.items())),
)
owners = names | st.builds(
    PartPlan,
    st.lists(names, min_size=1, max_size=3, unique=True).map(tuple),
    operations,
    params,
    st.none() | names,
)
tailorings = st.builds(
    Tailoring,
    st.lists(plans, min_size=1, max_size=4).map(tuple),
    embeddings=owners,
    norm=owners,
    head=owners,
    seed=st.integers(0, 2**63 - 1),
)


@settings(max_examples=100, deadline=None)
@given(tailorings)
def test_a_tailoring_survives_yaml(tailoring: Tailoring) -> None:
    again = Tailoring.from_yaml(tailoring.to_yaml())
    assert again == tailoring
    assert again.digest == tailoring.digest


def test_a_tailoring_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tailoring.yaml"
    path.write_text(TAILORING.to_yaml(), encoding="utf-8")
    assert Tailoring.load(path) == TAILORING


def test_the_digest_is_the_same_on_every_machine_and_in_every_version() -> None:
    # studies and caches are keyed by it: whoever changes it breaks every journal on disk
    assert TAILORING.digest == "70b62badac3fb3b9b1d95fa8e3f8ca003a5551f2126c3651ada4e643bbad7a64"
    assert MERGE.digest == "f25ae050bac6cd827a945979840eb98c5b0343349b17a24147d7d6b6c5afd6c9"


def test_the_digest_tells_what_differs() -> None:
    others = [
        Tailoring(TAILORING.layers, seed=12),
        Tailoring(TAILORING.layers, seed=11, head="math"),
        Tailoring(TAILORING.layers[::-1], seed=11),
        Tailoring(TAILORING.layers[:2], seed=11),
    ]
    assert len({t.digest for t in (TAILORING, *others)}) == 5


def test_the_order_of_hyperparameters_does_not_matter() -> None:
    one = LayerPlan(MERGE.sources, "TIES", (("scale", 1.0), ("density", 0.5)))
    other = LayerPlan(MERGE.sources, "TIES", (("density", 0.5), ("scale", 1.0)))
    assert one == other
    assert one.digest == other.digest


def test_a_whole_model_owns_its_parts() -> None:
    tailoring = Tailoring.whole("math", 4, without=(1, 2))
    assert [str(p.sources[0]) for p in tailoring.layers] == ["math:0", "math:3"]
    assert tailoring.models == ("math",)
    assert all(p.is_selection for p in tailoring.layers)


def test_all_models_are_listed() -> None:
    assert TAILORING.models == ("base", "code:v2", "math")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerPlan(()), "at least one source"),
        (lambda: LayerPlan((LayerSource("a", 0), LayerSource("a", 0)), "TIES"), "each source once"),
        (lambda: LayerPlan((LayerSource("a", 0), LayerSource("b", 0))), "exactly one source"),
        (lambda: Tailoring(()), "at least one layer"),
        (lambda: Tailoring.whole("base", 2, without=(0, 1)), "at least one layer"),
        (lambda: Tailoring.from_yaml("[1, 2]"), "holds a mapping, got list"),
        (lambda: Tailoring.from_yaml("a: ["), "can't be read"),
        (lambda: Tailoring.from_yaml("tailoring: 99"), "another version"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nlayers: 3"), "list of layer plans, got int"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nlayer: []"), "got also 'layer'"),
        (lambda: Tailoring.from_yaml("family: {}\nsearch_space: {}"), "this is a recipe"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nseed: x\nlayers: []"), "whole number"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nlayers: [{sources: [base]}]"), "'model:layer'"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nlayers: [{sources: ['base:-1']}]"), "'model:layer'"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nlayers: [{sources: base:1}]"), "list of sources"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nlayers: [{sources: ['base:1'], op: TIES}]"), "got also 'op'"),
        (lambda: Tailoring.load("no/such/file.yaml"), "can't be read"),
    ],
)
def test_a_fault_is_named(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_a_trial_survives_a_journal_line() -> None:
    trial = Trial(3, {"removed": (1, 4), "layer.0.a": 1, "x": 0.5}, TAILORING, "complete", 0.25, {"acc": 0.5})
    assert Trial.from_dict(trial.to_dict()) == trial
    with pytest.raises(JournalError, match="no trial"):
        Trial.from_dict({"number": 1})


def test_a_part_is_made_by_the_first_plan_whose_filter_matches() -> None:
    attention, projections = LayerPlan((LayerSource("a", 1),)), LayerPlan((LayerSource("b", 2),))
    plan = LayerPlan((LayerSource("base", 1),), parts=(("self_attn", attention), ("_proj", projections)))
    assert plan.plan_of("self_attn.q_proj.weight") is attention
    assert plan.plan_of("mlp.up_proj.weight") is projections
    assert plan.plan_of("input_layernorm.weight") is plan
    assert plan.drawn == (LayerSource("base", 1), LayerSource("a", 1), LayerSource("b", 2))
    assert not plan.is_selection
    assert Tailoring((plan,)).models == ("a", "b", "base")


def test_a_scaled_layer_is_no_plain_selection_and_says_its_scale() -> None:
    plan = LayerPlan((LayerSource("base", 1),), mlp_scale=0.5)
    assert not plan.is_selection
    assert plan.to_dict() == {"sources": ["base:1"], "mlp_scale": 0.5}
    assert LayerPlan((LayerSource("base", 1),), mlp_scale=1).is_selection


def test_the_parts_around_the_layers_can_be_merges() -> None:
    merged = PartPlan(("a", "b"), "TIES", (("density", 0.5),), base="base")
    tailoring = Tailoring((LayerPlan((LayerSource("c", 0),)),), head=merged)
    assert tailoring.models == ("a", "b", "base", "c")
    assert tailoring.to_dict()["head"] == {
        "models": ["a", "b"],
        "operation": "TIES",
        "params": {"density": 0.5},
        "base": "base",
    }


def selection() -> dict[str, Any]:
    return {"sources": ["base:1"]}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({**selection(), "mlp_scale": float("inf")}, "finite"),
        ({**selection(), "mlp_scale": True}, "mlp_scale is a number, got True"),
        ({**selection(), "parts": {"mlp": {**selection(), "parts": {"up": selection()}}}}, "no parts of its own"),
        ({**selection(), "parts": {"mlp": {**selection(), "mlp_scale": 2.0}}}, "layer's own plan"),
        ({**selection(), "parts": {"": selection()}}, "filter"),
        ({**selection(), "parts": {"mlp": 3}}, "plans by filter, got {'mlp': 3}"),
        ({**selection(), "params": {"scale": {"a": 1}}}, "a number, a word or a list"),
    ],
)
def test_a_malformed_plan_is_explained(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        LayerPlan.from_dict(plan)


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ({"models": ["a"]}, "has an operation"),
        ({"models": [], "operation": "TIES"}, "at least one source"),
        ({"models": "a", "operation": "TIES"}, "list of models"),
        ({"models": ["a", "a"], "operation": "TIES"}, "each source once"),
    ],
)
def test_a_malformed_owner_is_explained(owner: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Tailoring.from_dict({**TAILORING.to_dict(), "head": owner})


def test_a_plan_that_contains_itself_is_refused() -> None:
    text = "tailoring: 1\nlayers: [&l {sources: ['base:0'], parts: {mlp: *l}}]\n"
    with pytest.raises(RecipeError, match="an anchor that contains itself"):
        Tailoring.from_yaml(text)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorlib import LayerPlan, LayerSource, Tailoring, Trial
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
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
)
plans = st.builds(
    LayerPlan,
    st.lists(sources, min_size=1, max_size=3, unique=True).map(tuple),
    st.sampled_from(["TIES", "My_Merge"]),
    st.dictionaries(st.sampled_from(["scale", "density", "t"]), values).map(lambda d: tuple(d.items())),
    st.none() | sources,
)
tailorings = st.builds(
    Tailoring,
    st.lists(plans, min_size=1, max_size=4).map(tuple),
    embeddings=names,
    norm=names,
    head=names,
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
        (lambda: Tailoring.from_yaml("tailoring: 1\nlayer: []"), "got also layer"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nseed: x\nlayers: []"), "whole number"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nlayers: [{sources: [base]}]"), "'model:layer'"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nlayers: [{sources: ['base:-1']}]"), "'model:layer'"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nlayers: [{sources: base:1}]"), "list of sources"),
        (lambda: Tailoring.from_yaml("tailoring: 1\nlayers: [{sources: ['base:1'], op: TIES}]"), "got also op"),
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

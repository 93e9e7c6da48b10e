"""What holds for every registered warm start."""

from __future__ import annotations

from typing import Any

import pytest
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.search_spaces import FoldingSpace, PruningSpace
from tailorlib_strategies.warm_starts import BlockInfluence
from warm_start_cases import Given, VaryingRemoval, in_space

from tailorlib import WarmStart, WarmStartContext
from tailorlib.exceptions import DataError, RecipeError
from tailorlib.testing.contracts import global_randomness_unchanged
from tailorlib.warm_start import WARM_STARTS

CALIBRATED = ["AngularDistance", "BlockInfluence", "GapDistance", "LaCo", "LeaveOneOut", "TaylorImportance"]
SETTINGS: dict[str, dict[str, Any]] = {name: {"text": Given()} for name in CALIBRATED} | {
    "DesignedStart": {"removals": [BlockInfluence(Given())]},
    "FullDepthMerge": {"params": {"scale": 0.5}},
    "RandomTailoring": {"count": 5},
    "SingleVariants": {"removal": BlockInfluence(Given())},
    "UniformMix": {"count": 30},
}
OUTSIDE = {"FullDepthMerge"}
"""What never lies in a space that removes layers."""


def made(name: str) -> WarmStart:
    return WARM_STARTS.get(name)(**SETTINGS.get(name, {}))


def test_all_are_registered() -> None:
    assert {*CALIBRATED, *OUTSIDE, "DesignedStart", "MagnitudeImportance", "UniformMix"} <= {*WARM_STARTS.names()}


@pytest.mark.parametrize("name", WARM_STARTS.names())
def test_proposals_are_unique_the_same_every_time_and_in_the_space(three: WarmStartContext, name: str) -> None:
    folds = name == "LaCo"
    removal = LayerRemoval(count=2)
    there = in_space(three, FoldingSpace(removal) if folds else PruningSpace(removal, merges=[TaskArithmetic()]))
    with global_randomness_unchanged(name):
        found = made(name).propose(there)
    assert found
    assert list(made(name).propose(there)) == list(found)
    assert len({t.digest for t in found}) == len(found)
    assert all(t.seed == there.seed for t in found)
    there.family.stitch(found[0])
    if name not in OUTSIDE:
        assert [there.space.decode(there.space.encode(t), seed=there.seed) for t in found] == list(found)
        assert made(name).starts(there) == list(found)
        assert all(len(t.layers) == 4 for t in found)


@pytest.mark.parametrize(
    "name", [n for n in WARM_STARTS.names() if n not in {"FullDepthMerge", "RandomTailoring"}]
)
def test_a_varying_number_of_layers(three: WarmStartContext, name: str) -> None:
    there = in_space(three, PruningSpace(VaryingRemoval(1, 3), merges=[TaskArithmetic()]))
    found = made(name).propose(there)
    numbers = {6 - len(t.layers) for t in found}
    derived = name in {"DesignedStart", "SingleVariants"}  # of another one's first proposal
    assert numbers == ({1} if derived else {1, 2, 3})


@pytest.mark.parametrize("name", CALIBRATED)
def test_calibration_is_checked(three: WarmStartContext, name: str) -> None:
    class Empty(Given):
        def documents(self) -> list[str]:
            return ["", ""]

    cls: Any = WARM_STARTS.get(name)
    with pytest.raises(DataError, match="at least one token"):
        cls(Empty()).propose(three)
    for settings in ({"context_length": 0}, {"max_tokens": 0}):
        with pytest.raises(RecipeError, match=f"{name} takes a positive context_length and max_tokens"):
            cls(Given(), **settings)


def test_labels_tell_them_apart() -> None:
    labels = [made(name).label for name in WARM_STARTS.names()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", ["LaCo", "LeaveOneOut"])
def test_no_hidden_states_stay_in_the_engine(three: WarmStartContext, name: str) -> None:
    before = three.engine.work
    made(name).propose(three)
    assert (three.engine.work - before).reused > 0
    assert three.engine.states.nbytes == 0

"""SMAC's random forest on tailorlib's spaces."""

from __future__ import annotations

import itertools
import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bayes_cases import (
    BEST_REMOVED,
    FRONT_AREA,
    LAYERS,
    additive,
    area,
    make_space,
    make_trial,
    regret,
    search,
    two_objectives,
)
from tailorlib_strategies.operations import TIES, LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import SMAC, RandomSearch
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import FamilyLayout
from tailorlib.exceptions import RecipeError
from tailorlib.testing.contracts import check_optimizer


def small(**settings: float) -> SMAC:
    return SMAC(**{"starts": 8, "challengers": 20, "climbs": 4, "tries": 8, **settings})


@pytest.mark.parametrize(
    "space", [make_space(), make_space(1), make_space(None, ("a", "b"))], ids=["", "sizes", "merges"]
)
def test_it_keeps_the_contract(space) -> None:
    check_optimizer(lambda: small(starts=3), space, trials=6)


def test_it_gets_nearer_to_the_optimum_than_random_search() -> None:
    ours = np.mean([regret(small(), 60, seed) for seed in range(2)])
    assert ours <= np.mean([regret(RandomSearch(), 60, seed) for seed in range(2)]) - 0.3


def test_it_minimises_the_loss_and_nothing_else() -> None:
    """Turned round, the same search goes to the worst, which is 5.2."""
    upside_down = search(small(), make_space(), lambda params: -additive(params), 50)
    assert max(additive(trial.params) for trial in upside_down) > 4.2


def data(optimizer: SMAC) -> tuple[np.ndarray, np.ndarray]:
    """Return what the forest is fitted to, the costs scaled linearly to [0, 1] again."""
    inputs, costs = optimizer._data()
    linear = np.exp(costs[:, 0])
    return inputs, (linear - linear.min()) / (linear.max() - linear.min())


def test_the_forest_sees_flags_choices_and_the_losses() -> None:
    space, optimizer = make_space(), small()
    optimizer.setup(space, 0)
    cases = [((0, 1, 2, 3), "a", 1.0), ((8, 9, 10, 11), "base", 3.0), ((0, 1, 10, 11), "a", 2.0)]
    for number, (removed, source, loss) in enumerate(cases):
        params = space.active({"removed": removed, **{f"layer.{i}.source": source for i in range(LAYERS)}})
        optimizer.tell(make_trial(space, params, number, loss))
    inputs, costs = data(optimizer)
    for row, (removed, _, _) in zip(inputs, cases, strict=True):
        assert np.flatnonzero(row[:LAYERS]).tolist() == list(removed)
    sources = inputs[:, LAYERS:]
    assert len(set(sources[1, :8])) == 1  # all of the base, and unlike those of a
    assert sources[0, 5] == sources[2, 5] != sources[1, 5]
    assert sources[0, 0] == space.distributions()["layer.0.source"].index("a")  # removed: the default
    assert costs == pytest.approx([0, 1, 0.5], abs=1e-6)


def test_a_later_loss_replaces_the_earlier_one_and_a_failure_is_the_worst() -> None:
    space, optimizer = make_space(), small()
    optimizer.setup(space, 0)
    asked = [optimizer.ask() for _ in range(4)]
    for number, (params, loss) in enumerate(zip(asked, (9.0, None, 1.0, 2.0), strict=True)):
        optimizer.tell(make_trial(space, params, number, loss))
    assert data(optimizer)[1] == pytest.approx([1, 1, 0, 0.125], abs=1e-6)
    optimizer.tell(make_trial(space, asked[0], 4, 5.0))
    assert data(optimizer)[1] == pytest.approx([1, 1, 0, 0.25], abs=1e-6)


def test_a_later_loss_changes_what_is_proposed() -> None:
    proposals = []
    for again in (None, 9.0):
        space, optimizer = make_space(), small(starts=4, random=0)
        done = search(optimizer, space, additive, 8)
        if again is not None:
            best = min(done, key=lambda t: t.loss)
            optimizer.tell(make_trial(space, best.params, 8, again))
        proposals.append(optimizer.ask())
    assert proposals[0] != proposals[1]


def test_it_starts_from_a_warm_start() -> None:
    space, optimizer = make_space(), small()
    optimizer.setup(space, 0)
    kept = [i for i in range(LAYERS) if i not in BEST_REMOVED]
    start = {"removed": BEST_REMOVED, **{f"layer.{i}.source": "a" for i in kept}}
    optimizer.tell(make_trial(space, start, 0, additive(start)))
    removed = [set(optimizer.ask()["removed"]) for _ in range(6)]
    assert np.mean([len(r & set(BEST_REMOVED)) for r in removed]) > 2  # of 4; a random draw has 1.3


def test_a_varying_size_is_searched() -> None:
    """Removing costs: a single layer is best."""
    done = search(small(), make_space(1), additive, 40)
    assert {len(trial.params["removed"]) for trial in done} == {1, 2, 3, 4}
    assert len(min(done, key=lambda t: t.loss).params["removed"]) == 1


def test_improvement_is_that_of_the_exponentiated_cost() -> None:
    """Against the mean of max(0, e^least - e^y) over many draws of y."""
    optimizer = small()
    optimizer.setup(make_space(), 0)

    class Forest:
        def predict_marginalized(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.array([[0.2], [-1.0]]), np.array([[0.25], [0.04]])

    optimizer._forest = Forest()
    draws = np.random.default_rng(0).standard_normal((2, 400_000)) * [[0.5], [0.2]] + [[0.2], [-1.0]]
    expected = np.maximum(0, math.exp(0.1) - np.exp(draws)).mean(1)
    assert optimizer._improvement(np.zeros((2, 1)), 0.1) == pytest.approx(expected, rel=0.01)


def test_a_neighbours_vector_follows_from_its_own_changes() -> None:
    """Swaps, choices and numbers, and parameters that come and go with them."""
    space = PruningSpace(LayerRemoval(count=[1, 3]), merges=[TaskArithmetic(scale=(0.1, 1.0)), TIES()])
    space.setup(FamilyLayout(("a", "b"), 6, ("full_attention",) * 6))
    optimizer = small()
    optimizer.setup(space, 0)
    rng, vector = np.random.default_rng(0), optimizer._vector
    places = [space.sample(rng) for _ in range(40)]
    for before, after in itertools.pairwise(places):
        assert vector.moved(vector(before), before, after).tolist() == vector(after).tolist()


def test_pending_candidates_are_not_proposed_again() -> None:
    optimizer = small(starts=4)
    search(optimizer, make_space(), additive, 6)
    asked = [optimizer.ask() for _ in range(8)]
    assert len({frozenset(params.items()) for params in asked}) == 8


def test_a_pareto_front_is_approached_better_than_by_random_search() -> None:
    space, names = make_space(), ("cost", "share")
    ours = [area(search(small(), space, two_objectives, 60, seed, names)) for seed in range(2)]
    theirs = [area(search(RandomSearch(), space, two_objectives, 60, seed, names)) for seed in range(2)]
    assert max(ours + theirs) <= FRONT_AREA + 1e-9
    assert np.mean(ours) >= np.mean(theirs) + 0.3


def test_a_study_is_the_same_in_another_process_and_leaves_no_files(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from bayes_cases import *; from tailorlib_strategies.optimizers import SMAC\n"
        "o = SMAC(starts=3, challengers=10, climbs=2, tries=4)\n"
        "print([t.params for t in search(o, make_space(None, ('a', 'b')), lambda p: -len(p), 8)])"
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={"PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    assert done[0].stdout == done[1].stdout
    assert done[0].stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_logging_is_left_alone() -> None:
    before = list(logging.getLogger().handlers), logging.getLogger().level
    search(small(starts=3), make_space(), additive, 4)
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == before


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smac", None)
    with pytest.raises(RecipeError, match=r"SMAC needs the package smac.*pip install 'tailorlib\[smac\]'"):
        SMAC()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"random": 1.5}, "SMAC.random is a probability, got 1.5"),
        ({"starts": 1}, "SMAC.starts is at least 2, got 1"),
        ({"settings": {"trees": 3}}, "arguments of SMAC's random forest, got .*trees"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SMAC(**settings).setup(make_space(), 0)

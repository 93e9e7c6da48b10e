"""Optuna's samplers: what they are told, and that they find what random search does not."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import numpy as np
import optuna
import pytest
from bayes_cases import (
    BEST_REMOVED,
    FRONT_AREA,
    LAYERS,
    REMOVED,
    additive,
    area,
    make_space,
    make_trial,
    regret,
    search,
    two_objectives,
)
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import Optuna, RandomSearch
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import FamilyLayout
from tailorlib.exceptions import RecipeError
from tailorlib.seeding import numpy_generator
from tailorlib.testing.contracts import check_optimizer

SAMPLERS = ("TPE", "GP", "NSGAII", "NSGAIII", "Random")


def told(optimizer: Optuna) -> dict[str, list[float]]:
    """Return the values of the study's trials by state."""
    found: dict[str, list[float]] = {}
    for trial in optimizer._study.trials:
        found.setdefault(trial.state.name, []).append(trial.value)
    return found


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "GP"])
@pytest.mark.parametrize(
    "space", [make_space(), make_space(1), make_space(None, ("a", "b"))], ids=["exact", "sizes", "merges"]
)
def test_it_keeps_the_contract(sampler: str, space) -> None:
    check_optimizer(lambda: Optuna(sampler, starts=3), space, trials=8)


@pytest.mark.slow  # fits a Gaussian process for each proposal
def test_the_gaussian_process_keeps_the_contract() -> None:
    space = PruningSpace(LayerRemoval(count=[1, 2]), merges=[TaskArithmetic(scale=(0.1, 1.0))])
    space.setup(FamilyLayout(("a", "b"), 4, ("full_attention",) * 4))
    check_optimizer(lambda: Optuna("GP", starts=4), space, trials=6)


def test_tpe_gets_to_the_optimum_of_an_additive_landscape_where_random_search_does_not() -> None:
    assert max(regret(Optuna(), 60, seed) for seed in range(2)) <= 0.25
    assert min(regret(RandomSearch(), 60, seed) for seed in range(2)) >= 0.8


def test_the_gaussian_process_gets_nearer_than_random_search() -> None:
    ours = np.mean([regret(Optuna("GP", starts=6), 16, seed) for seed in range(2)])
    assert ours <= np.mean([regret(RandomSearch(), 16, seed) for seed in range(2)]) - 0.5


def test_it_minimises_the_loss_and_nothing_else() -> None:
    """Turned round, the same search goes to the worst, which is 5.2."""
    upside_down = search(Optuna(), make_space(), lambda params: -additive(params), 60)
    assert max(additive(trial.params) for trial in upside_down) > 4.6


@pytest.mark.parametrize("sampler", ["TPE", "GP", "NSGAII"])
def test_a_warm_start_that_was_never_asked_for_is_learnt(sampler: str) -> None:
    space, optimizer = make_space(), Optuna(sampler)
    optimizer.setup(space, 0)
    kept = [i for i in range(LAYERS) if i not in BEST_REMOVED]
    start = {"removed": BEST_REMOVED, **{f"layer.{i}.source": "a" for i in kept}}
    optimizer.tell(make_trial(space, start, 0, additive(start)))
    assert told(optimizer)["COMPLETE"] == [additive(start)]
    removed = [set(optimizer.ask()["removed"]) for _ in range(6)]
    assert np.mean([len(r & set(BEST_REMOVED)) for r in removed]) > 2  # of 4; a random draw has 1.3


def test_a_failed_trial_counts_as_the_worst_whenever_that_changes() -> None:
    space, optimizer = make_space(), Optuna()
    optimizer.setup(space, 0)
    failed = optimizer.ask()
    optimizer.tell(make_trial(space, failed, 0, None))
    assert "COMPLETE" not in told(optimizer)  # there is no worst yet
    for number, loss in enumerate((1.0, 5.0, 2.0), start=1):
        optimizer.tell(make_trial(space, optimizer.ask(), number, loss))
    optimizer.ask()  # what is stale is mended before a proposal
    assert sorted(told(optimizer)["COMPLETE"]) == [1.0, 2.0, 5.0, 5.0]
    assert len(told(optimizer)["RUNNING"]) == 1


def test_failures_alone_are_not_proposed_again() -> None:
    space, optimizer = make_space(), Optuna()
    optimizer.setup(space, 0)
    seen = []
    for number in range(12):
        seen.append(optimizer.ask())
        optimizer.tell(make_trial(space, seen[-1], number, None))
    assert len({frozenset(params.items()) for params in seen}) == 12


def test_a_candidate_told_again_has_its_later_loss_only() -> None:
    space, optimizer = make_space(), Optuna()
    optimizer.setup(space, 0)
    asked = [optimizer.ask() for _ in range(3)]
    for number, params in enumerate(asked):
        optimizer.tell(make_trial(space, params, number, float(number), samples=10, fidelity=0.1))
    optimizer.tell(make_trial(space, asked[0], 3, 7.0, samples=100))
    optimizer.ask()
    assert sorted(told(optimizer)["COMPLETE"]) == [1.0, 2.0, 7.0]


def test_what_is_pending_is_not_proposed_again() -> None:
    optimizer = Optuna()
    optimizer.setup(make_space(), 0)
    asked = [optimizer.ask() for _ in range(30)]
    assert len({frozenset(params.items()) for params in asked}) == 30
    assert len(told(optimizer)["RUNNING"]) == 30


def test_only_active_parameters_reach_the_groups_of_tpe() -> None:
    space = make_space(None, ("a", "b"))
    optimizer = Optuna()
    done = search(optimizer, space, lambda params: float(len(params)), 6)
    complete = [t for t in optimizer._study.trials if t.state.name == "COMPLETE"]
    for trial, kept in zip(done, complete, strict=True):
        outside = {name for name in kept.params if not name.startswith("removed[")}
        assert outside == set(trial.params) - {"removed"}


@pytest.mark.parametrize(("least", "sizes"), [(None, {REMOVED}), (1, {1, 2, 3, 4})])
def test_subsets_have_the_right_sizes(least: int | None, sizes: set[int]) -> None:
    done = search(Optuna("Random"), make_space(least), additive, 40)
    assert {len(trial.params["removed"]) for trial in done} == sizes


def test_a_varying_size_is_searched() -> None:
    """Removing costs: a single layer is best."""
    done = search(Optuna(), make_space(1), additive, 60)
    assert len(min(done, key=lambda t: t.loss).params["removed"]) == 1


@pytest.mark.parametrize(
    ("sampler", "settings", "trials", "margin"),
    [
        ("TPE", {}, 80, 0.5),
        ("NSGAII", {"population_size": 16}, 320, 0.3),
        ("NSGAIII", {"population_size": 16}, 320, 0.3),
    ],
)
def test_a_pareto_front_is_approached_better_than_by_random_search(
    sampler: str, settings: dict[str, int], trials: int, margin: float
) -> None:
    space, names = make_space(), ("cost", "share")
    optimizer = Optuna(sampler, settings)
    ours = [area(search(optimizer, space, two_objectives, trials, seed, names)) for seed in range(3)]
    theirs = [area(search(RandomSearch(), space, two_objectives, trials, seed, names)) for seed in range(3)]
    assert max(ours + theirs) <= FRONT_AREA + 1e-9
    assert np.mean(ours) >= np.mean(theirs) + margin


def test_a_replayed_study_goes_on_as_it_was_in_another_process() -> None:
    """Sets of names have another order in each process; proposals have not."""
    code = (
        f"import sys; sys.path.insert(0, {str(__file__).rpartition('/')[0]!r})\n"
        "from bayes_cases import *; from tailorlib_strategies.optimizers import Optuna\n"
        "print([t.params for t in search(Optuna(starts=4), make_space(None, ('a', 'b')), lambda p: -len(p), 12)])"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


def test_optuna_is_quiet_and_its_settings_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(Optuna(starts=2), make_space(), additive, 4)
    assert optuna.logging.get_verbosity() == before == logging.INFO
    assert capsys.readouterr() == ("", "")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RecipeError, match=r"Optuna needs the package optuna.*pip install 'tailorlib\[bayes\]'"):
        Optuna()


def test_importing_the_optimizers_does_not_import_optuna_or_smac() -> None:
    code = (
        "import sys, tailorlib_strategies.optimizers; print({'optuna', 'smac', 'ConfigSpace'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "TPEE"}, "Did you mean 'TPE'"),
        ({"settings": {"n_candidates": 3}}, "arguments of optuna.samplers.TPESampler, got .*n_candidates"),
        ({"starts": -1}, "Optuna.starts is at least 0, got -1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Optuna(**settings).setup(make_space(), 0)


def test_every_parameter_comes_back_as_it_was_given() -> None:
    for sampler in ("TPE", "GP"):
        optimizer, space = Optuna(sampler), make_space(1, ("a", "b"))
        optimizer.setup(space, 0)
        rng = numpy_generator("pieces")
        for _ in range(20):
            params = space.sample(rng)
            fixed = optuna.trial.FixedTrial(optimizer._values(params))
            found = {name: optimizer._pieces[name].suggest(fixed) for name in params}
            assert found.pop("removed") == params["removed"]
            assert found == pytest.approx({name: value for name, value in params.items() if name != "removed"})

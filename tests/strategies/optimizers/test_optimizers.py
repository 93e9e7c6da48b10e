"""The built-in optimizers beyond their contract."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailorlib_strategies.operations import SLERP, TIES, LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import Nevergrad, RandomSearch
from tailorlib_strategies.optimizers.encoding import NormalEncoding
from tailorlib_strategies.optimizers.nevergrad import GlobalRandomness
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import Distribution, FamilyLayout, Float, Optimizer, Params, Subset
from tailorlib.exceptions import RecipeError
from tailorlib.seeding import numpy_generator
from tailorlib.testing.contracts import LAYOUT, check_optimizer, fake_trial
from tailorlib.trial import Trial


def small_space(layers: int = 6) -> PruningSpace:
    space = PruningSpace(LayerRemoval(count=2), merges=[TaskArithmetic(), TIES(density=0.5), SLERP()])
    space.setup(FamilyLayout(LAYOUT.candidates, layers, ("full_attention",) * layers))
    return space


SPACE = small_space()


class Resized(PruningSpace):
    """A space with a subset of varying size and a number; nothing that can be built."""

    def __init__(self) -> None:
        pass

    def distributions(self) -> Mapping[str, Distribution]:
        return {"removed": Subset(6, 5, least=1), "x": Float(0.0, 1.0)}

    def active(self, params: Params) -> Params:
        return params


OTHERS = (
    "CMA",
    "DiscreteOnePlusOne",
    "FastGADiscreteOnePlusOne",
    "DiscreteLenglerFourthOnePlusOne",
    "NGOpt",
    "OnePlusOne",
    "PSO",
    "TinyLognormalDiscreteOnePlusOne",
    "TwoPointsDE",
)


@pytest.mark.parametrize("name", OTHERS)
def test_nevergrads_optimizers_keep_the_contract(name: str) -> None:
    check_optimizer(lambda: Nevergrad(name, budget=12), SPACE)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_normal_encoding_is_inverted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    encoding = NormalEncoding(SPACE, rng)
    active = SPACE.sample(rng)
    decoded = SPACE.active(encoding.decode(encoding.encode(active)))
    assert decoded.keys() == active.keys()
    for name, value in active.items():
        assert decoded[name] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_normal_encoding_of_a_subset_of_varying_size_is_inverted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    encoding = NormalEncoding(Resized(), rng)
    assert encoding.dimension == 8  # six keys, the size, and a number
    params = encoding.space.sample(rng)
    decoded = encoding.decode(encoding.encode(params))
    assert decoded["removed"] == params["removed"]
    assert decoded["x"] == pytest.approx(params["x"], abs=1e-5)


def test_a_standard_normal_vector_is_a_uniform_draw() -> None:
    rng = np.random.default_rng(0)
    encoding = NormalEncoding(SPACE, rng)
    drawn = [encoding.decode(rng.standard_normal(encoding.dimension)) for _ in range(600)]
    assert np.mean([p["layer.0.a"] for p in drawn]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([p["layer.0.SLERP.t"] for p in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([0 in p["removed"] for p in drawn]) == pytest.approx(1 / 3, abs=0.08)


def test_a_warm_start_is_where_the_search_goes_on() -> None:
    space = small_space(layers=20)
    optimizer = Nevergrad()
    optimizer.setup(space, 0)
    start = space.sample(numpy_generator("start"))
    optimizer.tell(_trial(space, start, 0, loss=0.0))
    plans = set(space.decode(start).layers)
    shared = []
    for number in range(1, 20):
        child = optimizer.ask()
        shared.append(len(plans & set(space.decode(child).layers)))
        optimizer.tell(_trial(space, child, number, loss=1.0))
    assert min(shared) >= 6, "even a bold child keeps layers of the start"
    assert np.median(shared[10:]) >= 13, "later children differ in few of its 18 layers"


@pytest.mark.parametrize("name", ["DiscreteLenglerFourthOnePlusOne", "OnePlusOne", "TwoPointsDE", "CMA", "NGOpt"])
def test_a_later_score_takes_the_place_of_the_earlier_one(name: str) -> None:
    optimizer = Nevergrad(name, budget=40)
    optimizer.setup(SPACE, 0)
    asked = []
    for number in range(8):
        asked.append(optimizer.ask())
        optimizer.tell(_trial(SPACE, asked[-1], number, loss=float(number)))
    best = optimizer._search.current_bests["pessimistic"]
    assert best is optimizer._search.archive[optimizer._points[frozenset(asked[0].items())].value]
    optimizer.tell(_trial(SPACE, asked[0], 8, loss=5.0))  # it was lucky
    told = optimizer._search.num_tell
    for bound, value in optimizer._search.current_bests.items():
        assert value.mean == 1.0, bound
    optimizer.tell(_trial(SPACE, asked[6], 9, loss=-1.0))
    for bound, value in optimizer._search.current_bests.items():
        assert value.mean == -1.0, bound
        assert value.parameter.loss == -1.0
    assert optimizer._search.num_tell == told
    optimizer.tell(_trial(SPACE, asked[3], 10, loss=50.0))  # told again, worse: not trusted more than others
    assert optimizer._search.current_bests["pessimistic"].mean == -1.0
    SPACE.check(optimizer.ask())


def test_a_failure_that_works_the_second_time_counts() -> None:
    optimizer = Nevergrad()
    optimizer.setup(SPACE, 0)
    first = optimizer.ask()
    optimizer.tell(fake_trial(SPACE, first, number=0, failed=True))
    optimizer.tell(_trial(SPACE, first, 1, loss=2.0))
    optimizer.tell(_trial(SPACE, optimizer.ask(), 2, loss=3.0))
    assert optimizer._search.current_bests["average"].mean == 2.0


def test_known_candidates_are_not_proposed_again() -> None:
    space = PruningSpace(LayerRemoval(count=2))
    space.setup(FamilyLayout((), 6, ("full_attention",) * 6))
    optimizer = Nevergrad(retries=200)
    optimizer.setup(space, 0)
    seen = [_ask_and_tell(optimizer, space, number) for number in range(15)]
    assert len({p["removed"] for p in seen}) == 15 == space.size().discrete
    _ask_and_tell(optimizer, space, 15)  # nothing new is left; it goes on all the same


def test_a_batch_of_asks_has_no_duplicates() -> None:
    optimizer = Nevergrad()
    optimizer.setup(SPACE, 0)
    batch = [frozenset(optimizer.ask().items()) for _ in range(12)]
    assert len(set(batch)) == 12


def test_failures_alone_do_not_stop_the_search() -> None:
    optimizer = Nevergrad("TwoPointsDE")
    optimizer.setup(SPACE, 0)
    for number in range(5):
        optimizer.tell(fake_trial(SPACE, optimizer.ask(), number=number, failed=True))
    assert optimizer.ask()


def test_the_search_leaves_a_failed_candidate() -> None:
    space = small_space(layers=20)
    optimizer = Nevergrad()
    optimizer.setup(space, 0)
    good = space.sample(numpy_generator("good"))
    bad = space.sample(numpy_generator("bad"))
    optimizer.tell(fake_trial(space, bad, number=0, failed=True))
    optimizer.tell(_trial(space, good, 1, loss=100.0))
    child = set(space.decode(optimizer.ask()).layers)
    near = {name: len(child & set(space.decode(p).layers)) for name, p in {"good": good, "bad": bad}.items()}
    assert near["good"] > near["bad"]


def test_replay_continues_as_the_first_run_did() -> None:
    first = Nevergrad()
    first.setup(SPACE, 5)
    trials: list[Trial] = []
    for number in range(8):
        trials.append(_trial(SPACE, first.ask(), number, loss=float(number % 3)))
        first.tell(trials[-1])
    again = Nevergrad()
    again.setup(SPACE, 5)
    for trial in trials:
        assert again.ask() == trial.params
        again.tell(Trial.from_dict(trial.to_dict()))
    assert [again.ask() for _ in range(3)] == [first.ask() for _ in range(3)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Nevergrad("DiscreteOnePlusOn"), "Did you mean 'DiscreteOnePlusOne'"),
        (lambda: Nevergrad(budget=0), "positive number of trials"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_private_randomness_goes_on_where_it_stopped() -> None:
    def draws(inside: GlobalRandomness) -> list[float]:
        with inside.private():
            return [random.random(), np.random.rand()]  # noqa: NPY002

    ours, theirs = GlobalRandomness(1), GlobalRandomness(1)
    first = draws(ours)
    assert draws(ours) != first
    assert draws(theirs) == first


def test_random_search_ignores_what_it_is_told() -> None:
    told, untold = RandomSearch(), RandomSearch()
    told.setup(SPACE, 0)
    untold.setup(SPACE, 0)
    proposals = [_ask_and_tell(told, SPACE, n) for n in range(4)]
    assert proposals == [untold.ask() for _ in range(4)]


def _trial(space: PruningSpace, params: Params, number: int, loss: float) -> Trial:
    return Trial(number, params, space.decode(params), "complete", -loss)


def _ask_and_tell(optimizer: Optimizer, space: PruningSpace, number: int) -> Params:
    params = optimizer.ask()
    optimizer.tell(fake_trial(space, params, number=number))
    return params


def test_an_optimizer_that_plans_says_that_it_wants_a_budget() -> None:
    space = PruningSpace(LayerRemoval(count=2))
    space.setup(FamilyLayout(("a",), 6, ("full_attention",) * 6))
    optimizer = Nevergrad("NGOpt")
    with pytest.raises(RecipeError, match="Set budget to study"):
        optimizer.setup(space, 0)
    planned = Nevergrad("NGOpt", budget=10)
    planned.setup(space, 0)
    space.check(planned.ask())

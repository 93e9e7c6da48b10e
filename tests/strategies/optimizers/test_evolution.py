"""The evolution strategy: its steps, its selection over fidelities, and what it finds."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

import numpy as np
import pytest
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import Evolution
from tailorlib_strategies.optimizers.evolution import MOST_STEPS
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import FamilyLayout, Params, SearchSpace, Subset, Trial
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError
from tailorlib.seeding import numpy_generator
from tailorlib.testing.contracts import check_optimizer

LAYERS = 16


class Resized(PruningSpace):
    """A space in which the number of removed layers varies."""

    def _arrange(self, layout: FamilyLayout) -> None:
        super()._arrange(layout)
        self._removal.subset = Subset(layout.num_layers, self.removal.count or 0, least=1)


def make_space(cls: type[PruningSpace] = PruningSpace, merges: bool = True) -> PruningSpace:
    space = cls(LayerRemoval(count=4), merges=[TaskArithmetic()] if merges else None)
    space.setup(FamilyLayout(("a", "b") if merges else (), LAYERS, ("full_attention",) * LAYERS))
    return space


def trial(space: SearchSpace, params: Params, number: int, loss: float, **more: object) -> Trial:
    failed = not math.isfinite(loss)
    state, fitness = ("failed", None) if failed else ("complete", -loss)
    return Trial(number, params, space.decode(params), state, fitness, **more)  # type: ignore[arg-type]


def started(space: SearchSpace, start: Params, **settings: object) -> Evolution:
    """Return an optimizer that knows one warm start of loss 0."""
    optimizer = Evolution(**settings)  # type: ignore[arg-type]
    optimizer.setup(space, 0)
    optimizer.tell(trial(space, start, 0, 0.0, origin="start"))
    return optimizer


@pytest.mark.parametrize("selection", ["plus", "comma"])
@pytest.mark.parametrize("cls", [PruningSpace, Resized])
def test_it_keeps_the_contract(selection: Literal["plus", "comma"], cls: type[PruningSpace]) -> None:
    check_optimizer(lambda: Evolution(parents=2, children=3, selection=selection, starts=3), make_space(cls))


def test_children_take_after_the_best_candidate() -> None:
    space = make_space()
    start = space.sample(numpy_generator("start"))
    optimizer = started(space, start, parents=1)
    plans, shared = set(space.decode(start).layers), []
    for number in range(1, 40):
        child = optimizer.ask()
        shared.append(len(plans & set(space.decode(child).layers)))
        optimizer.tell(trial(space, child, number, 1.0))
    assert np.mean(shared[-15:]) > np.mean(shared[:15]), "failures shrink the steps"
    assert np.median(shared[-15:]) >= 8, "and leave most of its 12 layers"


def test_success_makes_steps_bolder_up_to_a_bound() -> None:
    space = make_space()
    optimizer = started(space, space.sample(numpy_generator("start")), crossover=0.0)
    first = optimizer._means.copy()
    for number in range(1, 120):
        optimizer.tell(trial(space, optimizer.ask(), number, -float(number)))
    assert (optimizer._means > first).all()
    assert (np.exp(optimizer._means) <= np.array(MOST_STEPS) + 1e-9).all()


def test_a_surer_score_comes_before_a_lucky_one() -> None:
    """A candidate told again on all samples is the parent; one that was lucky on a few is not."""
    space = make_space()
    optimizer = started(space, space.sample(numpy_generator("start")), parents=1, children=2, crossover=0.0)
    lucky, good = optimizer.ask(), optimizer.ask()
    optimizer.tell(trial(space, lucky, 1, -9.0, fidelity=0.1))
    optimizer.tell(trial(space, good, 2, -2.0, fidelity=0.1))
    assert optimizer._population[0].loss == 0.0
    optimizer.tell(trial(space, good, 3, -1.0, fidelity=1.0))
    optimizer.tell(trial(space, optimizer.ask(), 4, 5.0, fidelity=0.1))
    assert [(one.loss, one.fidelity) for one in optimizer._population] == [(-1.0, 1.0)]
    assert len(optimizer._known) == 4, "a candidate that is told again is one candidate"


def test_a_score_that_falls_when_told_again_loses_its_place() -> None:
    space = make_space()
    optimizer = started(space, space.sample(numpy_generator("start")), parents=1, crossover=0.0)
    child = optimizer.ask()
    optimizer.tell(trial(space, child, 1, -1.0))
    assert optimizer._population[0].loss == -1.0
    optimizer.tell(trial(space, child, 1, 3.0))
    optimizer.tell(trial(space, optimizer.ask(), 2, 2.0))
    optimizer.tell(trial(space, optimizer.ask(), 3, 1.0))
    assert optimizer._population[0].loss == 1.0


def test_failures_are_no_parents() -> None:
    space = make_space()
    optimizer = Evolution(starts=2)
    optimizer.setup(space, 0)
    for number in range(6):
        optimizer.tell(trial(space, optimizer.ask(), number, math.inf))
    assert not optimizer._population
    optimizer.tell(trial(space, optimizer.ask(), 6, 1.0))
    optimizer.tell(trial(space, optimizer.ask(), 7, math.inf))
    assert [one.loss for one in optimizer._population] == [1.0]


def test_comma_forgets_the_parents_and_plus_does_not() -> None:
    space = make_space()
    for selection, expected in (("plus", 0.0), ("comma", 1.0)):
        start = space.sample(numpy_generator("start"))
        optimizer = started(space, start, parents=1, children=3, selection=selection, crossover=0.0)
        for number in range(1, 4):
            optimizer.tell(trial(space, optimizer.ask(), number, float(number)))
        assert optimizer._population[0].loss == expected


def test_stagnation_starts_anew_from_the_best() -> None:
    space = make_space()
    optimizer = started(space, space.sample(numpy_generator("start")), parents=3, patience=20)
    for number in range(1, 20):
        optimizer.tell(trial(space, optimizer.ask(), number, float(number)))
    assert len(optimizer._population) == 3
    shrunk = optimizer._means.copy()
    for number in range(20, 22):
        optimizer.tell(trial(space, optimizer.ask(), number, float(number)))
    assert optimizer._population[0].loss == 0.0
    assert (optimizer._means > shrunk).all()
    assert len(optimizer._population) < 3


def test_crossover_takes_whole_layers_and_what_both_remove() -> None:
    space, rng = make_space(), numpy_generator("parents")
    optimizer = Evolution()
    optimizer.setup(space, 0)
    one, other = (dict(optimizer._variation.genome(space.sample(rng))) for _ in range(2))
    origins: Counter[str] = Counter()
    for _ in range(40):
        child = optimizer._crossed(one, other)
        space.check(child)
        assert set(one["removed"]) & set(other["removed"]) <= set(child["removed"])  # type: ignore[arg-type]
        assert set(child["removed"]) <= set(one["removed"]) | set(other["removed"])  # type: ignore[arg-type]
        for i in range(LAYERS):
            names = [n for n in child if n.startswith(f"layer.{i}.")]
            of_one = all(child[n] == one[n] for n in names)
            assert of_one or all(child[n] == other[n] for n in names)
            origins["one" if of_one else "other"] += 1
    assert origins["one"] > 200
    assert origins["other"] > 150


def test_sparsity_stays_exact_or_within_its_range() -> None:
    for cls, sizes in ((PruningSpace, {4}), (Resized, {1, 2, 3, 4})):
        space = make_space(cls)
        optimizer = started(space, space.sample(numpy_generator("start")), swaps=3.0, crossover=0.5)
        seen: set[int] = set()
        for number in range(1, 120):
            params = optimizer.ask()
            seen.add(len(_members(params["removed"])))
            optimizer.tell(trial(space, params, number, float(number % 7)))
        assert seen == sizes


def test_where_only_layers_are_removed_every_step_is_a_swap() -> None:
    """One of swaps' mean number, not of the many other steps: children stay near."""
    space = make_space(merges=False)
    start = space.sample(numpy_generator("start"))
    optimizer = started(space, start, crossover=0.0)
    near = []
    for number in range(1, 60):
        params = optimizer.ask()
        near.append(len(set(_members(start["removed"])) & set(_members(params["removed"]))))
        optimizer.tell(trial(space, params, number, 1.0))
    assert max(near) == 3, "no child is its parent"
    assert np.mean(near) > 2


def test_an_easy_landscape_is_solved() -> None:
    """Removing the four layers of least cost: found in 150 trials of 1820 candidates, by every seed."""
    space = make_space(merges=False)
    for seed in range(3):
        cost = numpy_generator("cost", seed).random(LAYERS)
        optimizer = Evolution()
        optimizer.setup(space, seed)
        best = math.inf
        for number in range(150):
            params = optimizer.ask()
            loss = float(cost[list(map(int, _members(params["removed"])))].sum())
            best = min(best, loss)
            optimizer.tell(trial(space, params, number, loss))
        assert best == pytest.approx(np.sort(cost)[:4].sum())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parents": 0}, "parents is at least 1"),
        ({"crossover": 1.5}, "crossover is a probability"),
        ({"changes": 0.0}, "changes is a positive number"),
        ({"swaps": math.inf}, "swaps is a positive number"),
        ({"selection": "tournament"}, "plus or comma"),
        ({"selection": "comma", "parents": 3}, "children >= parents=3"),
    ],
)
def test_settings_out_of_range_are_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Evolution(**settings)  # type: ignore[arg-type]


def _members(value: ParamValue) -> tuple[float, ...]:
    assert isinstance(value, tuple)
    return value

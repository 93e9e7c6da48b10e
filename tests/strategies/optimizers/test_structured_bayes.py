"""The Bayesian linear model against closed forms, and the search that uses it against random search."""

from __future__ import annotations

import math
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import Evolution, RandomSearch, StructuredBayes
from tailorlib_strategies.optimizers.arms import FAILURES, LEAST, Arms
from tailorlib_strategies.optimizers.features import AWAY, DEPTH, MEMBER, PAIR, SEAM, SHARED, Features, Valuation
from tailorlib_strategies.optimizers.linear_model import LinearModel, clipped, standardised
from tailorlib_strategies.optimizers.neighbourhood import Neighbourhood
from tailorlib_strategies.optimizers.variation import Arm, Variation
from tailorlib_strategies.search_spaces import DepthIntegrationSpace, FoldingSpace, LayerFusionSpace, PruningSpace

from tailorlib import FamilyLayout, Optimizer, Params, SearchSpace, Subset
from tailorlib.distributions import Float
from tailorlib.exceptions import RecipeError
from tailorlib.seeding import numpy_generator
from tailorlib.testing.contracts import LAYOUT, check_optimizer
from tailorlib.trial import Trial

LAYERS, REMOVED = 12, 4


def make_space(layers: int = LAYERS) -> PruningSpace:
    space = PruningSpace(LayerRemoval(count=REMOVED), merges=[TaskArithmetic(scale=(0.1, 1.0))])
    space.setup(FamilyLayout(("a", "b"), layers, ("full_attention",) * layers))
    return space


class Resized(PruningSpace):
    """A space in which the number of removed layers varies."""

    def _arrange(self, layout: FamilyLayout) -> None:
        super()._arrange(layout)
        self._removal.subset = Subset(layout.num_layers, REMOVED, least=1)

    @classmethod
    def make(cls) -> PruningSpace:
        space = cls(LayerRemoval(count=REMOVED), merges=[TaskArithmetic(scale=(0.1, 1.0))])
        space.setup(FamilyLayout(("a", "b"), LAYERS, ("full_attention",) * LAYERS))
        return space


def tell(
    optimizer: Optimizer, space: PruningSpace, params: Params, number: int, loss: float, fidelity: float = 1.0
) -> None:
    optimizer.tell(Trial(number, params, space.decode(params), "complete", -loss, fidelity=fidelity))


@pytest.mark.parametrize("space", [make_space(), Resized.make()], ids=["exact", "resized"])
def test_it_keeps_the_contract(space: PruningSpace) -> None:
    check_optimizer(lambda: StructuredBayes(starts=4, tries=8), space, trials=10)


@pytest.mark.parametrize("cls", [Evolution, StructuredBayes])
@pytest.mark.parametrize(
    "space",
    [
        FoldingSpace(LayerRemoval(count=2), merges=[TaskArithmetic()]),
        DepthIntegrationSpace(),
        LayerFusionSpace(merges=[TaskArithmetic()]),
        PruningSpace(LayerRemoval(count=2), merges=[TaskArithmetic()], outer=["embeddings"]),
    ],
    ids=lambda space: type(space).__name__,
)
def test_every_space_can_be_searched(cls: type[Optimizer], space: SearchSpace) -> None:
    """Also those whose layers depend on other parameters than their own and the subset."""
    space.setup(LAYOUT)
    check_optimizer(lambda: cls(starts=4), space, trials=12)  # type: ignore[call-arg]


def test_features_tell_members_neighbours_choices_and_places() -> None:
    space = make_space()
    features = Features(space)
    params = space.active({**space.complete({}), "removed": (1, 2, 5, 9), "layer.0.a": 1, "layer.0.b": 1})
    found = features(params)
    assert list(np.flatnonzero(found[features.groups == MEMBER])) == [1, 2, 5, 9]
    pairs = found[features.groups == PAIR]
    assert list(np.flatnonzero(pairs[:-1])) == [1]  # layers 1 and 2 are neighbours
    assert pairs[-1] == 1  # how many pairs there are
    waves = np.cos(np.pi * np.outer(np.arange(6), (np.array([1, 2, 5, 9]) + 0.5) / LAYERS)).sum(axis=1)
    assert found[features.groups == DEPTH] == pytest.approx(waves)
    changed = {**params, "layer.0.b": 0}
    assert not np.array_equal(found, features(space.active(changed)))
    inactive = {**params, "layer.1.a": 1}  # of a removed layer
    assert np.array_equal(found, features(space.active(inactive)))


def test_what_layers_share_is_a_feature_of_its_own() -> None:
    """Three of eight kept layers merge a and b, at scale 0.1 of 0.1 .. 1; each kept layer has its a and b."""
    space = make_space()
    features = Features(space)
    merged = {f"layer.{i}.{c}": int(i in (0, 3, 4)) for i in range(LAYERS) for c in "ab"}
    scale = {f"layer.{i}.TaskArithmetic.scale": 0.1 for i in range(LAYERS)}
    params = space.active({**space.complete({}), **merged, **scale, "removed": (1, 2, 5, 9)})
    found = features(params)
    # of a and b: how many take the candidate not, and how many do; of the scale: there, place, square
    assert list(found[features.groups == SHARED]) == [5, 3, 5, 3, 3, -3, 3]
    # of the seams between 0, 3, 4, 6 .. only that of 4 and 6 counts: in a, in b, and in whether there is a scale
    assert list(found[features.groups == SEAM]) == [1, 1, 1]


def test_a_valuation_is_the_weighted_sum_of_the_features() -> None:
    space, rng = make_space(), numpy_generator("valuation")
    features = Features(space)
    weights = rng.standard_normal(len(features.groups))
    valuation = Valuation(features, weights)
    for _ in range(20):
        params = space.sample(rng)
        assert valuation(*features.split(params)) == pytest.approx(float(features(params) @ weights))


@pytest.mark.parametrize("space", [make_space(), Resized.make()], ids=["exact", "resized"])
def test_steps_of_the_neighbourhood_have_the_value_that_the_space_gives_them(space: PruningSpace) -> None:
    """Without asking the space, the best of many steps from anywhere is worth what its parameters are."""
    rng = numpy_generator("steps")
    features, variation = Features(space), Variation(space, 0.5, 0.3, 0.3)
    neighbourhood = Neighbourhood(variation, features, rng)
    assert list(neighbourhood._removes) == ["removed"]
    assert neighbourhood._removes["removed"] == {i: i for i in range(LAYERS)}
    for seed in range(30):
        genome = variation.genome(space.sample(rng))
        place = neighbourhood._place(genome)
        valuation = Valuation(features, numpy_generator("weights", seed).standard_normal(len(features.groups)))
        for name in list(space.active(genome)):
            if name == "removed":
                other = neighbourhood._swapped(place, name, rng)
                value = valuation(other.general, other.layers)
            else:
                changes = variation.changes(genome, name, rng)
                here = valuation(place.general, place.layers)
                other, value = neighbourhood._changed(place, changes, sorted(place.layers), here, valuation)
            active = space.active(other.genome)
            assert value == pytest.approx(float(features(active) @ np.array(valuation._weights)))


def test_the_neighbourhood_finds_the_least_value_of_a_small_space() -> None:
    space = PruningSpace(LayerRemoval(count=2))
    space.setup(FamilyLayout(("a",), 5, ("full_attention",) * 5))
    features = Features(space)
    variation = Variation(space, 0.4, 0.0)
    weights = numpy_generator("weights").standard_normal(len(features.groups))
    values = []
    for gone in combinations(range(5), 2):
        for sources in product(("base", "a"), repeat=5):
            params = {"removed": gone} | {f"layer.{i}.source": s for i, s in enumerate(sources)}
            values.append(float(features(space.active(params)) @ weights))
    neighbourhood = Neighbourhood(variation, features, numpy_generator("learn"))
    found = []
    for seed in range(6):
        rng = numpy_generator("descend", seed)
        start = variation.genome(space.sample(rng))
        end = neighbourhood.descend(start, Valuation(features, weights), 30, 200, rng)
        found.append(float(features(space.active(end)) @ weights))
    assert min(found) == pytest.approx(min(values))
    assert max(found) < np.quantile(values, 0.1)


def example_model(rows: int, rng: np.random.Generator) -> tuple[LinearModel, np.ndarray, np.ndarray, np.ndarray]:
    """Return a model of two groups with some rows, these, the targets, and each row's noise."""
    groups = np.array([0, 0, 1, 1, 1])
    model = LinearModel(groups, (0.5, 2.0, 0.3))
    features = rng.standard_normal((rows, 5))
    for row in features:
        model.add([*enumerate(row[:4]), (4, row[4] - 1.0), (4, 1.0)])
    return model, features, rng.standard_normal(rows), rng.uniform(0.5, 4.0, rows)


def test_draws_have_the_posterior_of_bayesian_linear_regression() -> None:
    """Bishop, Pattern Recognition and Machine Learning, equations 3.50 to 3.51, with a constant feature."""
    rng = numpy_generator("posterior")
    model, features, targets, noise = example_model(70, rng)  # more than fit into the first kernels
    design = np.hstack([features, np.ones((70, 1))])
    prior = np.array([0.5, 0.5, 2.0, 2.0, 2.0, 1.0])
    precision = np.diag(1 / prior) + design.T @ (design / (0.3 * noise)[:, None])
    covariance = np.linalg.inv(precision)
    mean = covariance @ design.T @ (targets / (0.3 * noise))
    for temper in (1.0, 0.5):
        draws = np.stack([model.draw(targets, noise, rng, temper) for _ in range(4000)])
        spread = temper * np.sqrt(np.diag(covariance))[:-1]
        assert np.abs((draws.mean(axis=0) - mean[:-1]) / spread).max() < 5 / np.sqrt(len(draws))
        assert draws.std(axis=0) == pytest.approx(spread, rel=0.06)
    assert model.draw(targets, noise, rng, 0.0) == pytest.approx(mean[:-1], abs=1e-6)
    assert model.predicted(targets, noise) == pytest.approx(design @ mean, abs=1e-6)


def test_the_evidence_is_that_of_a_gaussian() -> None:
    rng = numpy_generator("evidence")
    model, features, targets, noise = example_model(6, rng)
    first, second = features[:, :2], features[:, 2:]
    for variances in (np.array([0.5, 2.0, 0.3]), np.array([1.5, 0.1, 0.9])):
        covariance = variances[0] * first @ first.T + variances[1] * second @ second.T + 1
        covariance = covariance + np.diag(variances[2] * noise)
        expected = -0.5 * targets @ np.linalg.inv(covariance) @ targets - 0.5 * np.log(np.linalg.det(covariance))
        assert model.evidence(targets, noise, variances) == pytest.approx(expected, abs=1e-6)


def test_the_fit_finds_variances_of_more_evidence_and_near_the_truth() -> None:
    rng = numpy_generator("fit")
    groups = np.repeat([0, 1], 20)
    model = LinearModel(groups, (0.1, 0.1, 0.5))
    weights = rng.standard_normal(40) * np.where(groups == 0, 1.0, 0.03)
    rows = rng.standard_normal((150, 40))
    for row in rows:
        model.add(enumerate(row))
    targets, noise = rows @ weights + 0.2 * rng.standard_normal(150), np.ones(150)
    before = model.evidence(targets, noise, model.variances)
    model.fit(targets, noise)
    assert model.evidence(targets, noise, model.variances) > before + 10
    assert 0.3 < model.variances[0] < 3.0
    assert model.variances[1] < 0.02
    assert 0.01 < model.variances[2] < 0.16


def test_failures_and_hopeless_losses_are_clipped() -> None:
    losses = np.array([1.0, 2.0, 3.0, 100.0, math.inf])
    assert clipped(losses, 4.0) == pytest.approx([1, 2, 3, 7, 7])  # the median of the finite ones is 2.5
    assert standardised(np.array([2.0, 2.0])) == pytest.approx([0, 0])


def test_a_candidate_that_is_told_again_is_one_row_with_the_later_loss() -> None:
    space = make_space()
    optimizer = StructuredBayes(starts=3, tries=8)
    optimizer.setup(space, 0)
    asked = []
    for number in range(8):
        asked.append(optimizer.ask())
        tell(optimizer, space, asked[-1], number, float(number), fidelity=0.25)
    tell(optimizer, space, asked[3], 8, -5.0)
    assert len(optimizer._model) == len(optimizer._losses) == 8
    assert optimizer._losses[3] == -5.0
    assert optimizer._fidelities == [0.25] * 3 + [1.0] + [0.25] * 4


def test_a_batch_has_no_candidate_twice() -> None:
    space = make_space()
    optimizer = StructuredBayes(starts=4, tries=16)
    optimizer.setup(space, 0)
    for number in range(6):
        tell(optimizer, space, optimizer.ask(), number, float(number))
    batch = [frozenset(optimizer.ask().items()) for _ in range(12)]
    assert len(set(batch)) == 12


def test_it_goes_on_where_one_kind_of_step_is_used_up() -> None:
    """One layer of six is removed: after six removals only the plans are left to change."""
    space = PruningSpace(LayerRemoval(count=1), merges=[TaskArithmetic(scale=(0.1, 1.0))])
    space.setup(FamilyLayout(("a", "b"), 6, ("full_attention",) * 6))
    optimizer = StructuredBayes(starts=4, tries=16)
    optimizer.setup(space, 0)
    seen = set()
    for number in range(120):
        asked = optimizer.ask()
        seen.add(frozenset(asked.items()))
        worth = [(name.endswith(".a") and value == 1) - 0.1 * (name == "removed") for name, value in asked.items()]
        tell(optimizer, space, asked, number, -float(sum(worth)))
    assert len(seen) == 120


def test_steps_stay_in_the_space_and_are_of_every_kind() -> None:
    space, rng = make_space(), numpy_generator("steps")
    variation = Variation(space, swap=0.35, nudge=0.25)
    genome = variation.genome(space.sample(rng))
    kinds = {"subset": 0, "number": 0, "choice": 0}
    for _ in range(400):
        before = dict(space.active(genome))
        variation.step(genome, rng)
        after = space.active(genome)
        space.check(after)
        changed = [n for n in before if n in after and before[n] != after[n]]
        if "removed" in changed:
            kinds["subset"] += 1
        elif changed:
            kinds["number" if isinstance(variation.distributions[changed[0]], Float) else "choice"] += 1
    assert kinds["subset"] == pytest.approx(140, abs=40)
    assert min(kinds.values()) > 20


def test_a_layer_that_comes_back_takes_the_plan_of_the_nearest_one() -> None:
    space = make_space()
    variation = Variation(space, swap=1.0, nudge=0.0)
    sources = {name: 0 for name in space.distributions() if name.endswith((".a", ".b"))}
    own = {"layer.7.a": 1, "layer.7.b": 0}
    removed = {"removed": (5, 6, 8, 9)}
    genome = variation.genome(space.active({**space.complete({}), **sources, **own, **removed}))
    assert [genome[f"layer.{i}.a"] for i in (4, 5, 6, 7, 8, 9)] == [0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    "fault", [{"starts": 0}, {"radius": 0}, {"swap": 1.5}, {"spread": -0.1}, {"tries": 0}, {"temper": -1.0}]
)
def test_settings_out_of_range_are_told(fault: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=f"StructuredBayes.{next(iter(fault))} is"):
        StructuredBayes(**fault)  # type: ignore[arg-type]


class Landscape:
    """A loss that adds up over layers, with a price for removed neighbours, and noise that a candidate keeps."""

    def __init__(self, seed: int) -> None:
        rng = numpy_generator("landscape", seed)
        self.seed, self.importance = seed, rng.exponential(size=LAYERS)
        self.sources = rng.normal(scale=0.15, size=(LAYERS, 2))

    def loss(self, space: PruningSpace, params: dict[str, object]) -> float:
        tailoring = space.decode(params)  # type: ignore[arg-type]
        kept = {plan.sources[0].layer: plan for plan in tailoring.layers}
        gone = sorted(set(range(LAYERS)) - set(kept))
        total = float(self.importance[gone].sum()) + 0.3 * sum(b == a + 1 for a, b in pairwise(gone))
        for layer, plan in kept.items():
            total += sum(self.sources[layer][("a", "b").index(s.model)] for s in plan.sources if s.model != "base")
        return total + 0.02 * float(numpy_generator("noise", self.seed, tailoring.digest).standard_normal())


def best_loss(optimizer: Optimizer, seed: int, trials: int) -> float:
    space, landscape = make_space(), Landscape(seed)
    optimizer.setup(space, seed)
    losses = []
    for number in range(trials):
        params = dict(optimizer.ask())
        losses.append(landscape.loss(space, params))
        optimizer.tell(Trial(number, params, space.decode(params), "complete", -losses[-1]))
    return min(losses)


def test_it_needs_a_quarter_of_random_searchs_trials_at_most() -> None:
    """With 50 trials it is better by far than random search with 200, on each of three landscapes."""
    for seed in range(3):
        ours = best_loss(StructuredBayes(tries=16), seed, 50)
        random = best_loss(RandomSearch(), seed, 200)
        assert ours < random - 0.3


def test_what_leaving_the_first_warm_start_costs_is_a_feature() -> None:
    own = PruningSpace(LayerRemoval(count=3))
    own.setup(FamilyLayout(("a", "b"), 10, ("full_attention",) * 10))
    features = Features(own)
    home, far = ({"removed": removed} for removed in ((1, 2, 5), (1, 6, 7)))
    assert list(features(far)[features.groups == AWAY]) == [0]  # nothing is known of a cold start
    features.settle(home)
    assert list(features(home)[features.groups == AWAY]) == [0]
    assert list(features(far)[features.groups == AWAY]) == [2]


@pytest.mark.parametrize(("origin", "expected"), [("a start", 2.0), ("optimizer", 0.0)])
def test_only_a_warm_start_is_a_home(origin: str, expected: float) -> None:
    own = PruningSpace(LayerRemoval(count=3))
    own.setup(FamilyLayout(("a", "b"), 10, ("full_attention",) * 10))
    optimizer = StructuredBayes()
    optimizer.setup(own, 0)
    params = own.active(own.complete({"removed": (1, 2, 5)}))
    optimizer.tell(Trial(0, params, own.decode(params), "complete", 0.5, origin=origin))
    assert list(optimizer._features({"removed": (1, 6, 7)})[optimizer._features.groups == AWAY]) == [expected]


def test_the_halves_of_a_candidate_get_trials_by_what_they_brought_per_cost() -> None:
    rng = numpy_generator("arms")

    def shares(gains: dict[Arm, float], costs: dict[Arm, float]) -> float:
        arms, spent = Arms(("layers", "plans"), {"layers": 2, "plans": 4}), {"layers": 0.0, "plans": 0.0}
        for _ in range(400):
            arm = arms.draw(rng)
            assert arm is not None
            arms.pay(arm, costs[arm], new=True)
            arms.judge(arm, gains[arm])
            spent[arm] += costs[arm]
        return spent["layers"] / sum(spent.values())

    even: dict[Arm, float] = {"layers": 1.0, "plans": 1.0}
    assert shares({"layers": 0.0, "plans": 0.0}, even) == pytest.approx(0.5, abs=0.02)
    assert shares({"layers": 0.1, "plans": 0.1}, even) == pytest.approx(0.5, abs=0.02)
    assert shares({"layers": 0.3, "plans": 0.2}, even) == pytest.approx(0.6, abs=0.02)
    assert shares({"layers": 1.0, "plans": 0.0}, even) == pytest.approx(1 - LEAST, abs=0.02)
    assert shares({"layers": 0.0, "plans": 1.0}, even) == pytest.approx(LEAST, abs=0.02)
    # what is cheap and brings as much is worth more: 0.1 per 0.25 against 0.1 per 1
    assert shares({"layers": 0.1, "plans": 0.1}, {"layers": 0.25, "plans": 1.0}) == pytest.approx(0.65, abs=0.03)


def test_steps_go_further_after_a_success_and_stay_nearer_after_failures() -> None:
    arms = Arms(("layers", "plans"), {"layers": 2, "plans": 4})
    arms.judge("layers", 0.1)
    assert (arms.reach("layers"), arms.reach("plans")) == (4, 4)
    for _ in range(3):
        arms.judge("layers", 0.1)
    assert arms.reach("layers") == 8  # four times the first
    for _ in range(FAILURES):
        arms.judge("plans", 0.0)
    assert arms.reach("plans") == 2
    assert Arms((), {}).draw(numpy_generator("none")) is None
    assert Arms(("plans",), {"plans": 4}).draw(numpy_generator("one")) == "plans"


def test_a_proposal_changes_one_half_of_a_candidate() -> None:
    own, optimizer = make_space(), StructuredBayes(starts=4)
    optimizer.setup(own, 0)
    rng, known = numpy_generator("halves"), []
    for number in range(4):
        params = own.sample(rng)
        known.append(own.decode(params))
        optimizer.tell(Trial(number, params, known[-1], "complete", float(rng.random()), origin="a start"))
    for number in range(4, 24):
        params = optimizer.ask()
        found = own.decode(params)
        plans = [{p.sources[0].layer: p for p in other.layers} for other in known]
        new = {p.sources[0].layer: p for p in found.layers}
        same_layers = [set(old) == set(new) for old in plans]
        same_plans = [all(old[i] == new[i] for i in old.keys() & new.keys()) for old in plans]
        assert any(same_layers) or any(same_plans)
        known.append(found)
        optimizer.tell(Trial(number, params, found, "complete", float(rng.random())))


def test_a_lucky_score_on_few_samples_is_no_gain_and_no_bar() -> None:
    optimizer, own = StructuredBayes(), make_space()
    optimizer.setup(own, 0)
    rng = numpy_generator("lucky")

    def gain(score: float, fidelity: float, params: Params | None = None) -> float:
        params = own.sample(rng) if params is None else params
        trial = Trial(0, params, own.decode(params), "complete", score, samples=1, fidelity=fidelity)
        found = optimizer._gain(trial, frozenset(params.items()))
        optimizer.tell(trial)
        return found

    assert gain(9.0, 0.1) == 0.0  # there is nothing to compare it with
    assert gain(1.0, 1.0) == 0.0
    promoted = own.sample(rng)
    assert gain(5.0, 0.1, promoted) == 0.0  # only on few samples
    assert gain(2.0, 1.0, promoted) == 1.0  # better than 1.0, whatever 9.0 was
    assert gain(1.5, 1.0) == 0.0

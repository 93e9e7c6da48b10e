"""Contracts that every plugin keeps, as checks for a plugin's own tests.

Each check raises an ``AssertionError`` that says what is broken::

    def test_my_merge():
        check_merge_operation(MyMerge())
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tailorlib.compensation import Compensation, CompensationContext
from tailorlib.distributions import Params
from tailorlib.fitness import Fitness, Measurement
from tailorlib.operation import MergeOperation, Statistic
from tailorlib.optimizer import Optimizer
from tailorlib.scheduler import Scheduler
from tailorlib.search_space import FamilyLayout, SearchSpace
from tailorlib.seeding import numpy_generator, seed_for, torch_generator
from tailorlib.tailoring import LayerPlan, LayerSource, Tailoring
from tailorlib.trial import Trial, TrialState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import Engine
    from tailorlib.models.family import ModelFamily

LAYOUT = FamilyLayout(("a", "b", "c"), 6, ("full_attention",) * 6)
"""A small family layout for checks of spaces and optimizers."""


@contextmanager
def global_randomness_unchanged(what: str) -> Iterator[None]:
    """Check that the global generators of Python, NumPy and torch are where they were."""
    before = _global_states()
    yield
    changed = [name for name, state in _global_states().items() if state != before[name]]
    assert not changed, (
        f"{what} draws from the global random numbers of {', '.join(changed)}; use those it is given."
    )


def check_merge_operation(op: MergeOperation, *, samples: int = 3) -> None:
    """Check a merge operation: shape, dtype, inputs, determinism, and that its params tell all.

    From the fewest sources that it takes; of a weighted one, without weights and with unequal ones.

    Args:
        op: The operation, with the ranges to be tried.
        samples: Number of hyperparameter draws to try.
    """
    rng = numpy_generator("contract", op.name)
    for sample in range(samples):
        drawn: Params = {name: d.sample(rng) for name, d in op.distributions().items()}
        for case, tensors in _tensor_cases(op.min_sources, op.max_sources):
            for params in _with_weights(op, drawn, len(tensors) - 1):
                what = f"{op.name} with {dict(params)} on {case}"
                with global_randomness_unchanged(op.name):
                    first = _merge(op, tensors, params, sample, what)
                assert torch.equal(first, _merge(op, tensors, params, sample, what)), f"{what}: two runs differ."
                rebuilt = _merge(type(op)(), tensors, params, sample, what)
                assert torch.equal(first, rebuilt), (
                    f"{what}: {op.name}() with the same params gives another result. Declare in distributions() "
                    "whatever the merge depends on."
                )


def check_fitness(fitness: Fitness, model: PreTrainedModel, engine: Engine) -> None:
    """Check a fitness: determinism, results of samples that can be kept, continued and shared out.

    Args:
        fitness: The fitness, before setup, with two samples or more if it is no whole.
        model: A live model; the dense one, where the fitness compares with it.
        engine: An engine for the model.
    """
    name = type(fitness).__name__
    with global_randomness_unchanged(name):
        fitness.check()
        fitness.setup(engine)
        if fitness.needs_dense:
            fitness.observe_dense(model)
        whole = fitness.evaluate(model)
        again = fitness.evaluate(model)
    _check_same(whole, again, f"{name}: two evaluations of one model differ")
    number, least = fitness.num_samples, fitness.min_samples
    assert 1 <= least <= number, f"{name}: 1 <= min_samples <= num_samples, got {least} and {number}."
    everything = range(number)
    backwards = fitness.score_samples(model, everything[::-1])
    assert len(backwards) == number, f"{name}: score_samples gives a result for each sample, got {len(backwards)}."
    try:
        kept = json.loads(json.dumps(backwards[::-1]))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{name}: results of samples are plain data, as JSON holds it: {error}.") from error
    _check_same(whole, fitness.summarise(kept), f"{name}: the order in which samples are scored counts")
    for done in {least, (number + 1) // 2} - {number}:
        first = fitness.score_samples(model, everything[:done])
        continued = [*first, *fitness.score_samples(model, everything[done:])]
        _check_same(whole, fitness.summarise(continued), f"{name}: continued after {done} samples it differs")
    for parts in (1, 2, 3, number + 1):
        shards = fitness.shards(everything, parts)
        assert sorted(i for shard in shards for i in shard) == list(everything), (
            f"{name}: {parts} shards have each sample once, got {shards}."
        )
        assert all(shards) and len(shards) <= parts, (
            f"{name}: at most {parts} shards, none of them empty, got {shards}."
        )


def _check_same(expected: Measurement, found: Measurement, what: str) -> None:
    """Check two measurements but for the last digits, which depend on what runs together."""
    assert set(found.metrics) == set(expected.metrics), f"{what}: the metrics have other names."
    pairs = {"score": (expected.score, found.score)} | {
        metric: (value, found.metrics[metric]) for metric, value in expected.metrics.items()
    }
    for figure, (a, b) in pairs.items():
        assert math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6), f"{what}: {figure} is {b}, not {a}."


def _with_weights(op: MergeOperation, params: Params, sources: int) -> Iterator[Params]:
    yield params
    if op.weights is not None:
        yield {**params, "weights": tuple(1 / (k + 1) for k in range(sources))}


def _merge(op: MergeOperation, tensors: Sequence[Tensor], params: Params, seed: int, what: str) -> Tensor:
    *sources, base = (t.clone() for t in tensors)
    generators = [torch_generator(seed, i) for i in range(len(sources))]
    statistics = [_statistic(op, source, i) for i, source in enumerate(sources)]
    merged = op.apply(sources, base=base, params=params, generators=generators, statistics=statistics, where=what)
    assert merged.shape == base.shape, f"{what}: the shape is {merged.shape}, not {base.shape}."
    assert merged.dtype == base.dtype, f"{what}: the dtype is {merged.dtype}, not {base.dtype}."
    assert bool(torch.isfinite(merged).all()), f"{what}: the result is not finite."
    unmodified = all(torch.equal(a, b) for a, b in zip((*sources, base), tensors, strict=True))
    assert unmodified, f"{what}: an input was modified."
    return merged


def _statistic(op: MergeOperation, tensor: Tensor, source: int) -> Tensor | None:
    """Return the statistic of a source as calibration text could give it: a Gram matrix of matrices only."""
    generator = torch_generator("contract", "statistic", source)
    if op.statistic is Statistic.FISHER:
        return torch.randn(tensor.shape, generator=generator).square()
    if op.statistic is Statistic.GRAM and tensor.dim() == 2:
        inputs = torch.randn(2 * tensor.shape[1], tensor.shape[1], generator=generator)
        return inputs.T @ inputs / len(inputs)
    return None


def _tensor_cases(min_sources: int, max_sources: int | None) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield (name, [*sources, base]) for each number of sources, or the fewest up to 3."""
    shapes = {"a matrix": (5, 7), "a vector": (9,), "one element": (1,), "a rank-1 matrix": (6, 1)}
    for n in range(min_sources, max(min_sources, 3 if max_sources is None else max_sources) + 1):
        generator = torch_generator("contract", n)
        for name, shape in shapes.items():
            yield f"{n} x {name}", [torch.randn(shape, generator=generator) for _ in range(n + 1)]
        yield f"{n} x a transposed matrix", [torch.randn(7, 5, generator=generator).T for _ in range(n + 1)]
        same = torch.randn(4, 4, generator=generator)
        yield f"{n} equal models", [same.clone() for _ in range(n + 1)]
        yield f"{n} models, opposite signs", [same * (-1) ** i for i in range(n + 1)]
        yield f"{n} zeros", [torch.zeros(3, 3) for _ in range(n + 1)]
        yield f"{n} in bfloat16", [torch.randn(8, 8, generator=generator).bfloat16() for _ in range(n + 1)]


def check_search_space(space: SearchSpace, layout: FamilyLayout = LAYOUT, *, samples: int = 50) -> None:
    """Check a search space: that active parameters name a candidate, and encode inverts decode.

    Args:
        space: The space, before or after setup.
        layout: The family that it is set up for.
        samples: Number of assignments to try.
    """
    space.setup(layout)
    rng = numpy_generator("contract", type(space).__name__)
    distributions = space.distributions()
    assert list(distributions) == list(space.distributions()), "The order of distributions() is fixed."
    for _ in range(samples):
        params = {name: d.sample(rng) for name, d in distributions.items()}
        active = space.active(params)
        space.check(active)
        assert space.active(active) == active, f"active(active(p)) is active(p), got another for {active}."
        tailoring = space.decode(params, seed=7)
        assert tailoring.seed == 7, "decode passes the seed on to the tailoring."
        assert set(tailoring.models) <= set(layout.models), (
            f"decode names models of the layout: {tailoring.models}."
        )
        assert space.decode(active, seed=7) == tailoring, (
            f"Inactive parameters change nothing; they did at {params}."
        )
        noise = {name: d.sample(rng) for name, d in distributions.items() if name not in active}
        assert space.active({**params, **noise}) == active, f"Inactive parameters are ignored; not at {noise}."
        assert Tailoring.from_yaml(tailoring.to_yaml()) == tailoring, "A tailoring survives YAML."
        assert space.encode(tailoring) == active, f"encode(decode(p)) is active(p), got another for {active}."
    space.check(space.active(space.complete({})))
    assert space.size().discrete >= 1, "A space has at least one candidate."


def check_optimizer(make: Callable[[], Optimizer], space: SearchSpace, *, trials: int = 12) -> None:
    """Check an optimizer: proposals in the space, and all of them a function of the seed and what it was told.

    Args:
        make: Returns a new optimizer.
        space: A search space, set up.
        trials: Number of trials per run.
    """
    name = type(make()).__name__
    with global_randomness_unchanged(name):
        first = list(_study(make(), space, seed=0, trials=trials))
    assert first == list(_study(make(), space, seed=0, trials=trials)), f"{name}: one seed gives one search."
    others = [list(_study(make(), space, seed=s, trials=trials)) for s in (1, 2)]
    assert any(other != first for other in others), f"{name}: another seed gives another search."
    half = list(islice(_study(make(), space, seed=0, trials=trials), trials // 2))
    assert half == first[: trials // 2], f"{name}: a search that stops early starts as the full one does."
    supported = make().supports
    if "batch" in supported:
        _check_batch(make(), space, name)
    if "fidelity" in supported:
        _check_fidelity(make, space, name)
    if "multi_objective" in supported:
        _check_objectives(make(), space, name)


def _study(optimizer: Optimizer, space: SearchSpace, *, seed: int, trials: int) -> Iterator[Params]:
    """Run a study with a warm start and failures; yield the proposals."""
    optimizer.setup(space, seed)
    optimizer.tell(fake_trial(space, space.sample(numpy_generator("contract")), number=0, origin="warm start"))
    for number in range(1, trials + 1):
        params = optimizer.ask()
        space.check(params)
        assert params == space.active(params), f"{type(optimizer).__name__} proposes active parameters only."
        yield params
        optimizer.tell(fake_trial(space, params, number=number, failed=number % 4 == 1))


def _check_batch(optimizer: Optimizer, space: SearchSpace, name: str) -> None:
    optimizer.setup(space, 0)
    for batch in range(3):
        asked = [optimizer.ask() for _ in range(4)]
        for i, params in reversed(list(enumerate(asked))):  # the slowest may be the first
            optimizer.tell(fake_trial(space, params, number=4 * batch + i))
    assert optimizer.ask(), f"{name} goes on after batches."


def _check_fidelity(make: Callable[[], Optimizer], space: SearchSpace, name: str) -> None:
    """Tell candidates on a part of the samples, and again on all of them, and see that it can be repeated."""
    runs: list[list[Params]] = []
    for _ in range(2):
        optimizer = make()
        optimizer.setup(space, 0)
        asked: list[Params] = []
        for number in range(12):
            asked.append(optimizer.ask())
            trial = fake_trial(space, asked[-1], number=2 * number)
            optimizer.tell(replace(trial, samples=9, fidelity=9 / 27, fitness=(trial.fitness or 0.0) + 0.1))
            if number % 3 == 2:
                optimizer.tell(replace(trial, number=2 * number + 1, samples=27))
        runs.append(asked)
    assert runs[0] == runs[1], f"{name}: told again, the same candidates give the same search."


def _check_objectives(optimizer: Optimizer, space: SearchSpace, name: str) -> None:
    optimizer.setup(space, 0, ("first", "second"))
    for number in range(12):
        params = optimizer.ask()
        trial = fake_trial(space, params, number=number, failed=number == 3)
        score = trial.fitness or 0.0
        scores = {} if trial.state == "failed" else {"first": score, "second": (7 * score) % 1}
        optimizer.tell(replace(trial, objectives=scores))
    assert optimizer.ask(), f"{name} goes on with two objectives."


def check_scheduler(
    make: Callable[[], Scheduler], *, samples: int = 54, least: int = 2, trials: int = 120
) -> None:
    """Check a scheduler: rungs within the samples, candidates that only climb, and decisions that can be repeated.

    Args:
        make: Returns a new scheduler.
        samples: Number of samples of a study.
        least: The least number of them that a measurement can be made of.
        trials: Number of scorings.
    """
    name = type(make()).__name__
    with global_randomness_unchanged(name):
        first = _schedule(make(), samples, least, trials)
    assert first == _schedule(make(), samples, least, trials), f"{name}: the same results give the same decisions."
    known: dict[int, int] = {}
    for number, rung in first:
        assert known.get(number, 0) < rung, f"{name} promotes a candidate from {known[number]} to {rung} samples."
        assert least <= rung <= samples, f"{name} scores on {least} to {samples} samples, got {rung}."
        known[number] = rung
    assert samples in known.values(), f"{name} scores nobody on all samples in {trials} trials."


def check_compensation(compensation: Compensation, family: ModelFamily) -> None:
    """Check a compensation: what it completes stays what it was, the same each time, and can be built.

    Args:
        compensation: The compensation; it is prepared here.
        family: A loaded family.
    """
    name, layout = type(compensation).__name__, family.layout
    device = family.device or torch.device("cpu")
    context = CompensationContext(family, device, layout.num_layers, lambda tailoring: 0.5)
    compensation.check()
    compensation.check_family(family)
    with global_randomness_unchanged(name):
        compensation.prepare(context)
        for tailoring in _cuts(layout):
            before = tailoring.digest
            completed = compensation.complete(tailoring)
            assert tailoring.digest == before, f"{name} leaves what it is given as it is."
            assert completed == compensation.complete(tailoring), f"{name} completes equal plans alike."
            pairs = list(zip(completed.layers, tailoring.layers, strict=True))
            assert all(
                (c.sources, c.operation, c.params) == (t.sources, t.operation, t.params) for c, t in pairs
            ), f"{name} adds to layers, and takes none away nor makes them of others."
            assert completed.parts == tailoring.parts, f"{name} leaves embeddings, norm and head as they are."
            family.stitch(completed)
    assert json.dumps(dict(compensation.facts())), f"{name} tells plain data."


def _cuts(layout: FamilyLayout) -> Iterator[Tailoring]:
    """Yield tailorings with gaps of several lengths and at both ends, and one of all layers."""
    number = layout.num_layers
    model = layout.models[-1]
    for removed in ((), (1,), (0,), (number - 1,), range(1, number - 1)):
        if len(removed) < number:
            yield Tailoring.whole(model, number, without=removed)


def _schedule(scheduler: Scheduler, samples: int, least: int, trials: int) -> list[tuple[int, int]]:
    """Lead a scheduler through a study; return (candidate, samples) of each trial."""
    scheduler.setup(samples, least, float(trials))
    known: dict[str, Tailoring] = {}
    done: list[tuple[int, int]] = []
    numbers: dict[str, int] = {}
    while len(done) < trials:
        jobs = [(known[p.digest], p.samples) for p in scheduler.promote(2)]
        while len(jobs) < 2:
            tailoring = Tailoring((LayerPlan((LayerSource("base", len(known)),)),))
            numbers[tailoring.digest] = len(known)
            known[tailoring.digest] = tailoring
            jobs.append((tailoring, scheduler.start()))
        for tailoring, rung in jobs:
            score = float(numpy_generator("scheduler", tailoring.digest, rung).random())
            failed = numbers[tailoring.digest] % 5 == 4
            state: TrialState = "failed" if failed else "complete"
            trial = Trial(len(done), {}, tailoring, state, None if failed else score, samples=rung)
            scheduler.tell(replace(trial, fidelity=rung / samples))
            done.append((numbers[tailoring.digest], rung))
    return done


def fake_trial(
    space: SearchSpace, params: Params, *, number: int, failed: bool = False, origin: str = "optimizer"
) -> Trial:
    """Return a trial with an arbitrary fitness that depends on the params alone."""
    score = seed_for(sorted(params.items())) / 2**63
    return Trial(
        number=number,
        params=params,
        tailoring=space.decode(params),
        state="failed" if failed else "complete",
        fitness=None if failed else score,
        origin=origin,
        reason="a contract test" if failed else None,
    )


def _global_states() -> dict[str, object]:
    twister = np.random.get_state(legacy=False)  # noqa: NPY002
    inner, others = twister["state"], (twister["has_gauss"], twister["gauss"])
    return {
        "Python": random.getstate(),
        "numpy": (inner["key"].tobytes(), inner["pos"], *others),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }

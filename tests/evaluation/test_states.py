"""Layers whose output is known don't run, and nothing changes by that."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_cases import CASES, CPU, LAYERS, case_family, make_family, one_thread, plan  # noqa: F401 - fixtures

from tailorlib.evaluation.engine import Engine, Request, Scores
from tailorlib.evaluation.states import StateCache, stride_for
from tailorlib.exceptions import DataError, EvaluationError
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import PartPlan, Tailoring

MIB = 2**20


def requests(count: int = 12) -> list[Request]:
    rng = random.Random(0)
    contexts = [tuple(rng.randrange(300) for _ in range(rng.randrange(2, 25))) for _ in range(count // 3)]
    return [Request(c, tuple(rng.randrange(300) for _ in range(n))) for c in contexts for n in (1, 3, 5)]


def relatives(family: ModelFamily) -> list[Tailoring]:
    """Candidates that share 0 to all of their layers with the ones before them."""
    layers = tuple(plan(f"base:{i}") for i in range(LAYERS))
    last = LAYERS - 1
    merged = plan(f"a:{last}", f"b:{last}", operation="Linear")
    return [
        Tailoring(layers),
        Tailoring((*layers[:-1], plan(f"a:{last}"))),
        Tailoring((*layers[:-1], merged)),
        Tailoring((plan("b:0"), *layers[1:])),
        Tailoring(layers[:-1]),
        Tailoring(layers, norm="a", head="a"),
        Tailoring(layers, embeddings="b"),
        Tailoring((*layers[:-1], merged), seed=3),
    ]


def count_layers(model: Any, seen: list[int]) -> Any:
    """Count the layers that compute: their attention is called."""
    stack = next(m for m in model.get_decoder().children() if isinstance(m, torch.nn.ModuleList))
    return [next(layer.children()).register_forward_hook(lambda *_: seen.append(1)) for layer in stack]


def score(engine: Engine, family: ModelFamily, tailoring: Tailoring, compiled: Any) -> tuple[Scores, int]:
    """Return the scores with reuse, and how many layers computed."""
    model, seen = family.stitch(tailoring), []
    handles = count_layers(model, seen)
    with engine.reusing(model, tailoring.prefixes):
        found = engine.score(model, compiled)
    for handle in handles:
        handle.remove()
    return found, len(seen)


@pytest.fixture(scope="module", params=CASES)
def any_family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    return make_family(tmp_path_factory.mktemp("states"), request.param, "float32", "float32")


@pytest.mark.parametrize("layout", ["single", "rows", "plain"])
def test_every_architecture_gives_the_same_bits_with_fewer_layers(any_family: ModelFamily, layout: Any) -> None:
    plain = Engine(any_family.tokenizer, CPU, 256, 64, row_tokens=32, layout=layout)
    reusing = Engine(any_family.tokenizer, CPU, 256, 64, row_tokens=32, layout=layout, state_bytes=64 * MIB)
    alone, shared = plain.compile(requests()), reusing.compile(requests())
    known: set[str] = set()
    for tailoring in relatives(any_family):
        expected = plain.score(any_family.stitch(tailoring), alone)
        found, computed = score(reusing, any_family, tailoring, shared)
        assert torch.equal(found.log_likelihood, expected.log_likelihood)
        assert torch.equal(found.greedy, expected.greedy)
        depth = max((k for k, name in enumerate(tailoring.prefixes) if name in known), default=0)
        assert computed == len(shared.plan.batches) * (len(tailoring.layers) - depth)
        known |= set(tailoring.prefixes[1:-1])  # nobody is known to share all layers: their states are not kept
    assert reusing.work.reused > 0


def test_only_what_changes_hidden_states_is_in_a_prefix() -> None:
    layers = tuple(plan(f"base:{i}") for i in range(3))
    merged = (*layers[:2], plan("a:2", "b:2", operation="Linear"))
    whole = Tailoring(layers)
    assert Tailoring(layers, norm="a", head="a", seed=9).prefixes == whole.prefixes
    assert Tailoring(layers, embeddings="a").prefixes[0] != whole.prefixes[0]
    assert len({Tailoring(merged, seed=s).prefixes[3] for s in range(3)}) == 3
    assert len({Tailoring(merged, seed=s).prefixes[2] for s in range(3)}) == 1
    mixed = PartPlan(("a", "b"), "Linear", {})
    assert len({Tailoring(layers, embeddings=mixed, seed=s).prefixes[0] for s in range(3)}) == 3
    swapped = replace(whole, layers=(layers[1], layers[0], layers[2]))
    assert swapped.prefixes[2] != whole.prefixes[2]


def tensors(count: int, size: int = 256) -> Sequence[torch.Tensor]:
    return [torch.full((size,), float(i)) for i in range(count)]


def test_the_least_recently_used_states_go_first_and_protected_ones_last() -> None:
    states = tensors(5)
    cache = StateCache(CPU, 3 * states[0].nbytes)
    for i in range(3):
        cache.put((i, f"p{i}"), states[i])
    assert cache.get((0, "p0")) is states[0]  # used again: the next one goes
    cache.put((3, "p3"), states[3])
    assert (1, "p1") not in cache
    cache.protect(["p2"])
    cache.put((4, "p4"), states[4])
    assert (2, "p2") in cache and (0, "p0") not in cache
    cache.protect([])
    for i in range(5, 8):
        cache.put((i, "q"), states[0].clone())
    assert (2, "p2") not in cache
    assert cache.nbytes == 3 * states[0].nbytes


def test_a_budget_without_room_for_one_batch_is_refused_with_what_it_takes() -> None:
    small, large = torch.zeros(2**18), torch.zeros(2**19)
    cache = StateCache(CPU, small.nbytes)
    cache.put((0, "p"), small)
    with pytest.raises(DataError, match=r"the largest batch, 2\.00 MiB; it has 1\.00 MiB\. Raise"):
        cache.put((1, "p"), large)
    assert (0, "p") in cache
    StateCache(CPU, 0).check(large.nbytes)  # nothing is to be kept


def test_a_budget_without_room_is_found_when_batches_are_laid_out(
    case_family: Callable[..., ModelFamily],  # noqa: F811
) -> None:
    settings: dict[str, Any] = {"row_tokens": 32, "bytes_per_token": 100}
    tokenizer = case_family("llama").tokenizer
    largest = max(
        b.input_ids.numel() for b in Engine(tokenizer, CPU, 256, 64, **settings).compile(requests()).plan.batches
    )
    Engine(tokenizer, CPU, 256, 64, state_bytes=100 * largest, **settings).compile(requests())
    with pytest.raises(DataError, match="room for the largest batch"):
        Engine(tokenizer, CPU, 256, 64, state_bytes=100 * largest - 1, **settings).compile(requests())


def test_what_leaves_the_device_goes_to_the_host() -> None:
    states = tensors(4)
    cache = StateCache(torch.device("meta"), 2 * states[0].nbytes, states[0].nbytes)  # any device but the CPU
    assert (cache.device_bytes, cache.host_bytes) == (2 * states[0].nbytes, states[0].nbytes)
    for i in range(4):
        cache.put((i, "p"), states[i])
    assert [(i, "p") in cache for i in range(4)] == [False, True, True, True]
    assert cache.near.nbytes == 2 * states[0].nbytes
    assert cache.far.nbytes == states[0].nbytes
    cache.clear()
    assert cache.nbytes == 0


def test_a_cache_that_gave_up_keeps_nothing_and_refuses_nothing() -> None:
    states = tensors(2)
    cache = StateCache(CPU, 10 * states[0].nbytes)
    cache.put((0, "p"), states[0])
    cache.give_up()
    cache.put((1, "p"), states[1])
    assert (cache.nbytes, cache.budget, (0, "p") in cache, (1, "p") in cache) == (0, 0, False, False)


def test_on_a_cpu_device_and_host_are_one_budget() -> None:
    assert StateCache(CPU, 10, 20).device_bytes == 30


@pytest.mark.parametrize(
    ("layers", "footprint", "budget", "stride"),
    [(30, 10, 600, 1), (30, 10, 300, 2), (30, 10, 599, 2), (30, 10, 1, 600), (30, 0, 100, 1), (30, 10, 0, 31)],
)
def test_two_candidates_fit_into_the_budget(layers: int, footprint: int, budget: int, stride: int) -> None:
    assert stride_for(layers, footprint, budget) == stride


def test_the_budget_holds_and_the_bits_with_it(case_family: Callable[..., ModelFamily]) -> None:  # noqa: F811
    family = case_family("llama")
    plain = Engine(family.tokenizer, CPU, 256, 64, row_tokens=32)
    alone = plain.compile(requests(48))
    one = alone.plan.batches[0].input_ids.numel() * family.config.hidden_size * 4
    small = Engine(family.tokenizer, CPU, 256, 64, row_tokens=32, state_bytes=3 * one)
    compiled = small.compile(requests(48))
    for tailoring in relatives(family) * 2:
        expected = plain.score(family.stitch(tailoring), alone)
        found, _ = score(small, family, tailoring, compiled)
        assert torch.equal(found.log_likelihood, expected.log_likelihood)
        assert 0 < small.states.nbytes <= 3 * one


def test_what_a_later_candidate_needs_is_kept_whatever_the_stride(
    case_family: Callable[..., ModelFamily],  # noqa: F811
) -> None:
    family = case_family("llama")
    engine = Engine(family.tokenizer, CPU, 256, 64, row_tokens=32, state_bytes=64 * MIB)
    compiled = engine.compile(requests())
    first, second = relatives(family)[:2]
    model = family.stitch(first)
    engine._footprint = 10**12  # as if two candidates could never fit
    with engine.reusing(model, first.prefixes, needed=[first.prefixes[2]]):
        engine.score(model, compiled)
    _, computed = score(engine, family, second, compiled)
    assert computed == len(compiled.plan.batches) * (LAYERS - 2)


def test_the_layer_where_nan_begins_is_named_though_it_did_not_run(
    case_family: Callable[..., ModelFamily],  # noqa: F811
) -> None:
    family = case_family("llama")
    engine = Engine(family.tokenizer, CPU, 256, 64, row_tokens=32, state_bytes=64 * MIB)
    compiled = engine.compile(requests())
    first, second = relatives(family)[:2]
    model = family.stitch(first)
    weight = model.model.layers[1].mlp.down_proj.weight
    kept = weight.data.clone()
    try:
        weight.data.fill_(float("nan"))
        for tailoring in (first, second):
            model = family.stitch(tailoring)
            with (
                engine.reusing(model, tailoring.prefixes),
                pytest.raises(EvaluationError, match="decoder layer 1 "),
            ):
                engine.score(model, compiled)
    finally:
        weight.data.copy_(kept)

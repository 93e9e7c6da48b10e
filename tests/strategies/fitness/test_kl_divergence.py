"""KL divergence from the dense model, held against the plain models' logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tailorlib_strategies.fitness import Acceptance, KLDivergence, Perplexity
from torch.nn.functional import kl_div

from tailorlib import TextSource
from tailorlib.evaluation.divergence import Reference, reference_bytes
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import EvaluationError, PluginError, RecipeError
from tailorlib.seeding import numpy_generator
from tailorlib.testing.contracts import check_fitness

TEXTS = ["The quick brown fox jumps over the lazy dog. " * 6, "Anna has 3 apples and buys 4 more. " * 4, "A + b."]
SHAPE = {"context_length": 24, "max_tokens": 90}
CPU = torch.device("cpu")


class Given(TextSource):
    def documents(self) -> Sequence[str]:
        return TEXTS


@pytest.fixture(scope="module")
def candidate(live: tuple[Any, Engine]) -> Any:
    model = copy.deepcopy(live[0])
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    return model


def observed(dense: Any, engine: Engine, **settings: Any) -> KLDivergence:
    fitness = KLDivergence(Given(), **{**SHAPE, **settings})
    fitness.setup(engine)
    fitness.observe_dense(dense)
    return fitness


@torch.no_grad()
def by_hand(dense: Any, candidate: Any, fitness: KLDivergence) -> dict[str, float]:
    """Run each window alone through both models, as a whole."""
    kl, same, text, accepted, tokens = 0.0, 0, 0.0, 0.0, 0
    for window in fitness._windows:
        ids = torch.tensor([window.request.context + window.request.continuation])
        p, q = (m(ids[:, :-1]).logits[0].double().log_softmax(-1) for m in (dense, candidate))
        kl += kl_div(q, p, log_target=True, reduction="sum").item()
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        accepted += torch.minimum(p.exp(), q.exp()).sum().item()
        text -= q.gather(1, ids[0, 1:, None]).sum().item()
        tokens += len(q)
    return {
        "kl": kl / tokens,
        "acceptance": accepted / tokens,
        "top1_agreement": same / tokens,
        "nats_per_token": text / tokens,
        "perplexity": math.exp(text / tokens),
    }


@pytest.mark.parametrize("packing", [True, False])
def test_divergence_is_that_of_the_plain_models(live: tuple[Any, Engine], candidate: Any, packing: bool) -> None:
    dense, engine = live
    fitness = observed(dense, Engine(engine.tokenizer, CPU, 256, packing=packing))
    found, expected = fitness.evaluate(candidate), by_hand(dense, candidate, fitness)
    assert found.metrics == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert expected["kl"] > 0.01
    assert 0 < expected["top1_agreement"] < 1
    assert found.score == math.exp(-found.metrics["kl"])
    assert found.metrics["top1_agreement"] == expected["top1_agreement"]


def test_perplexity_is_that_of_the_other_fitness(live: tuple[Any, Engine], candidate: Any) -> None:
    dense, engine = live
    text = Perplexity(Given(), **SHAPE)
    text.setup(engine)
    expected = text.evaluate(candidate).metrics
    found = observed(dense, engine).evaluate(candidate).metrics
    for name in ("perplexity", "nats_per_token"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)


@pytest.mark.parametrize("top_k", [None, 512])
def test_the_dense_model_scores_one(live: tuple[Any, Engine], top_k: int | None) -> None:
    dense, engine = live
    found = observed(dense, engine, top_k=top_k).evaluate(dense)
    assert found.metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert found.score == pytest.approx(1, abs=1e-6)
    assert found.metrics["top1_agreement"] == 1


def test_most_probable_tokens_give_a_bound_that_grows_to_all(live: tuple[Any, Engine], candidate: Any) -> None:
    dense, engine = live
    fitness = observed(dense, engine)
    vocabulary = dense.config.vocab_size
    samples = range(fitness.num_samples)

    def per_window(top_k: int | None) -> list[float]:
        reference = Reference(dense, fitness._requests, top_k)
        return [kl for kl, *_ in reference.compare(candidate, samples)]

    full = per_window(None)
    assert per_window(vocabulary) == pytest.approx(full, abs=1e-5)
    assert per_window(vocabulary + 100) == pytest.approx(full, abs=1e-5)
    before = [0.0] * len(full)
    for top_k in (1, 4, 16, 64, 256):
        found = per_window(top_k)
        assert all(a < b < c for a, b, c in zip(before, found, full, strict=True))
        before = found
    assert before == pytest.approx(full, rel=0.2)


def test_top_k_is_the_sum_over_tokens_and_a_bucket(live: tuple[Any, Engine], candidate: Any) -> None:
    dense, engine = live
    fitness = observed(dense, engine)
    found, *_, accepted = Reference(dense, fitness._requests, 5).compare(candidate, [1])[0]
    request = fitness._windows[1].request
    ids = torch.tensor([request.context + request.continuation])
    with torch.no_grad():
        p, q = (m(ids[:, :-1]).logits[0].double().softmax(-1) for m in (dense, candidate))
    expected = taken = 0.0
    for at, of in zip(p, q, strict=True):
        best = at.argsort(descending=True)[:5].tolist()
        pairs = [(at[i].item(), of[i].item()) for i in best]
        pairs.append((1 - sum(a for a, _ in pairs), 1 - sum(b for _, b in pairs)))
        expected += sum(a * math.log(a / b) for a, b in pairs)
        taken += sum(min(a, b) for a, b in pairs)
    assert found == pytest.approx(expected, abs=1e-5)
    assert accepted == pytest.approx(taken, abs=1e-5)


@pytest.mark.parametrize("top_k", [None, 512])
def test_acceptance_is_what_both_distributions_share(
    live: tuple[Any, Engine], candidate: Any, top_k: int | None
) -> None:
    dense, engine = live
    fitness = Acceptance(Given(), **SHAPE, top_k=top_k)
    fitness.setup(engine)
    fitness.observe_dense(dense)
    found = fitness.evaluate(candidate)
    expected = by_hand(dense, candidate, fitness)["acceptance"]
    assert found.score == found.metrics["acceptance"] == pytest.approx(expected, abs=1e-5)
    assert 0.3 < found.score < 0.99
    assert fitness.evaluate(dense).score == pytest.approx(1, abs=1e-5)
    check_fitness(fitness, candidate, engine)


def test_half_precision_loses_nothing_of_the_reference(live: tuple[Any, Engine], candidate: Any) -> None:
    dense, other = (copy.deepcopy(model).to(torch.bfloat16) for model in (live[0], candidate))
    fitness = observed(dense, live[1])
    assert fitness._reference is not None
    assert fitness._reference._logits.dtype == torch.bfloat16
    found, expected = fitness.evaluate(other), by_hand(dense, other, fitness)
    assert found.metrics["kl"] == pytest.approx(expected["kl"], rel=0.02)  # layers round otherwise when packed
    assert fitness.evaluate(dense).metrics["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("top_k", [None, 512])
def test_windows_are_samples(live: tuple[Any, Engine], top_k: int | None) -> None:
    dense, engine = live
    check_fitness(KLDivergence(Given(), **SHAPE, top_k=top_k), dense, engine)
    check_fitness(Perplexity(Given(), **SHAPE), dense, engine)


def test_some_windows_give_what_they_give_among_all(live: tuple[Any, Engine], candidate: Any) -> None:
    dense, engine = live
    fitness = observed(dense, engine)
    whole = fitness.score_samples(candidate, range(fitness.num_samples))
    some = [3, 0, 2]
    for (kl, same, text, _), i in zip(fitness.score_samples(candidate, some), some, strict=True):
        assert kl == pytest.approx(whole[i][0], rel=1e-5)
        assert (same, text) == (whole[i][1], pytest.approx(whole[i][2], rel=1e-5))
    assert fitness.score_samples(candidate, []) == []


def test_an_architecture_that_is_not_packed_is_compared_too(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tailorlib.testing.tiny import write_tiny_model

    folders = [write_tiny_model(tmp_path / str(i), model_type="olmo", num_layers=2, seed=i) for i in range(2)]
    dense, other = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders)
    fitness = observed(dense, Engine(AutoTokenizer.from_pretrained(folders[0]), CPU, 256))
    assert fitness.evaluate(other).metrics == pytest.approx(by_hand(dense, other, fitness), rel=1e-5)
    assert not fitness._requests.compiled(range(fitness.num_samples)).packed


def test_what_does_not_fit_is_refused(live: tuple[Any, Engine]) -> None:
    dense, engine = live
    long = KLDivergence(Given(), context_length=24, max_tokens=None, max_memory_mib=1)
    long.setup(engine)
    positions = long._requests.compiled(range(long.num_samples)).plan.scored_rows
    full = reference_bytes(positions, 320, None, 4)
    assert reference_bytes(positions, 320, 8, 4) == positions * (8 * 8 + 4 + 8)
    assert full == positions * (320 * 4 + 8) < 2**20
    long.observe_dense(dense)

    class Huge:
        """The base of a family with a large vocabulary."""

        config = copy.copy(dense.config)
        dtype = torch.float32

    Huge.config.vocab_size = 2**18
    with pytest.raises(
        RecipeError, match=rf"max_memory_mib: 1; at {positions} positions and all 262144 tokens"
    ) as e:
        long.observe_dense(Huge())
    small = reference_bytes(positions, 2**18, 512, 4) / 2**20
    assert f"Set top_k: 512, which takes {small:.0f} MiB" in str(e.value)
    assert f"at least {positions * (2**20 + 8) / 2**20:.0f} MiB" in str(e.value)


def test_the_size_is_checked_before_a_model_is_there(live: tuple[Any, Engine]) -> None:
    class Long(TextSource):
        def documents(self) -> Sequence[str]:
            return ["".join(map(chr, numpy_generator("long").integers(97, 123, 4000)))]

    for top_k, cure in ((None, r"Set top_k: 512"), (512, r"Lower max_tokens")):
        with pytest.raises(RecipeError, match=rf"within max_memory_mib: 1; .* {cure}"):
            KLDivergence(Long(), max_tokens=None, max_memory_mib=1, top_k=top_k).setup(live[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 100}, "top_k is at least 512, or null for all, got 100"),
        ({"max_memory_mib": 0}, "max_memory_mib is at least 1, got 0"),
        ({"context_length": 0}, "KLDivergence takes a positive context_length"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        KLDivergence(Given(), **settings)


def test_the_dense_model_is_seen_first(live: tuple[Any, Engine]) -> None:
    fitness = KLDivergence(Given(), **SHAPE)
    assert fitness.needs_dense
    fitness.setup(live[1])
    with pytest.raises(PluginError, match=r"call observe_dense\(model\) first"):
        fitness.evaluate(live[0])


@pytest.mark.parametrize("top_k", [None, 512])
def test_nan_is_told_with_its_layer(live: tuple[Any, Engine], candidate: Any, top_k: int | None) -> None:
    dense, engine = live
    fitness = observed(dense, engine, top_k=top_k)
    broken = copy.deepcopy(candidate)
    broken.model.layers[1].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(EvaluationError, match=r"gives NaN\. .* that of decoder layer 1 \(of 0 to 1\)"):
        fitness.evaluate(broken)
    with pytest.raises(EvaluationError, match=r"gives NaN\. .* that of decoder layer 1 \(of 0 to 1\)"):
        observed(broken, engine, top_k=top_k)


def test_batches_are_halved_when_memory_runs_out(live: tuple[Any, Engine], candidate: Any) -> None:
    dense, fresh = live[0], Engine(live[1].tokenizer, CPU, live[1].max_length)
    fitness = observed(dense, fresh)
    expected, decoder = fitness.evaluate(candidate), candidate.get_decoder()
    forward, largest = decoder.forward, []

    def limited(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        largest.append(input_ids.numel())
        if input_ids.numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(input_ids=input_ids, **kwargs)

    decoder.forward = limited
    try:
        room = 60
        found = fitness.evaluate(candidate)
        assert max(largest) > 60 >= largest[-1]
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-5)
        room = 0
        with pytest.raises(EvaluationError, match=r"CUDA out of memory\. .* halved once"):
            fitness.evaluate(candidate)
    finally:
        del decoder.forward

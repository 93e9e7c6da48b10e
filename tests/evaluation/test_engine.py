from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tailorlib.evaluation.engine import Engine, Request, Scores
from tailorlib.testing.tiny import tiny_tokenizer

CPU = torch.device("cpu")
ARCHITECTURES: list[tuple[str, dict[str, Any], bool]] = [
    ("llama", {}, True),
    ("mistral", {"sliding_window": None}, True),
    ("qwen2", {}, True),
    ("qwen3", {}, True),
    ("gpt_neox", {}, True),
    ("mistral", {"sliding_window": 8}, False),
    ("gemma3_text", {"sliding_window": 8}, False),
    ("gemma2", {"final_logit_softcapping": 5.0}, False),
    ("granite", {"logits_scaling": 3.0}, False),
]


def questions(seed: int = 0, count: int = 12) -> list[Request]:
    """Contexts of several lengths with four continuations each, some of which begin with another one."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(300) for _ in range(rng.randint(low, high)))

    found = []
    for _ in range(count):
        context, answer = tokens(1, 30), tokens(1, 4)
        found += [
            Request(context, answer),
            Request(context, answer + tokens(1, 3)),
            Request(context, tokens(1, 1)),
        ]
        found.append(Request(context, tokens(2, 6)))
    rng.shuffle(found)
    return found


def one_by_one(model: Any, requests: list[Request], max_length: int = 256) -> list[tuple[float, bool]]:
    """The oracle: each request alone, as a whole, through the model's own forward."""
    found = []
    for request in requests:
        ids = torch.tensor([(request.context + request.continuation)[-(max_length + 1) :]])
        target = ids[0, -len(request.continuation) :]
        with torch.no_grad():
            log_probs = model(ids[:, :-1]).logits[0, -len(target) :].log_softmax(-1)
        found.append(
            (
                log_probs.gather(1, target[:, None]).double().sum().item(),
                bool((log_probs.argmax(-1) == target).all()),
            )
        )
    return found


def assert_equal(scores: Scores, expected: list[tuple[float, bool]]) -> None:
    torch.testing.assert_close(
        scores.log_likelihood, torch.tensor([e[0] for e in expected]).double(), atol=1e-4, rtol=0
    )
    assert scores.greedy.tolist() == [e[1] for e in expected]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("model_type", "config", "packs"), ARCHITECTURES)
def test_scores_are_those_of_each_request_alone(
    tiny: Callable[..., Any], model_type: str, config: dict[str, Any], packs: bool, attention: str, packing: bool
) -> None:
    if model_type == "gemma2" and attention == "sdpa":
        pytest.skip("transformers has no sdpa for gemma2")
    model, tokenizer = tiny(model_type, attention, **config)
    requests = questions()
    engine = Engine(tokenizer, CPU, 256, 512, row_tokens=64, packing=packing)
    compiled = engine.compile(requests)
    scores = engine.score(model, compiled)
    assert compiled.packed == (packing and packs)
    assert_equal(scores, one_by_one(model, requests))


@pytest.mark.parametrize("packing", [True, False])
def test_greedy_continuations_are_recognised(tiny: Callable[..., Any], packing: bool) -> None:
    model, tokenizer = tiny()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        for _ in range(4):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    greedy = tuple(ids[0, 3:].tolist())
    other = (*greedy[:-1], (greedy[-1] + 1) % 300)
    requests = [Request((5, 6, 7), greedy), Request((5, 6, 7), other), Request((5, 6, 7), greedy[:2])]
    engine = Engine(tokenizer, CPU, 256, packing=packing)
    scores = engine.score(model, engine.compile(requests))
    assert scores.greedy.tolist() == [True, False, True]
    assert_equal(scores, one_by_one(model, requests))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("tokens_per_batch", "row_tokens"), [(1, 1), (40, 20), (4096, 4096)])
def test_layout_does_not_change_scores(
    tiny: Callable[..., Any], packing: bool, tokens_per_batch: int, row_tokens: int
) -> None:
    model, tokenizer = tiny()
    requests = questions(seed=1, count=6)
    engine = Engine(tokenizer, CPU, 256, tokens_per_batch, row_tokens=row_tokens, packing=packing)
    assert_equal(engine.score(model, engine.compile(requests)), one_by_one(model, requests))


@pytest.mark.parametrize("packing", [True, False])
def test_long_requests_lose_tokens_from_the_left(tiny: Callable[..., Any], packing: bool) -> None:
    model, tokenizer = tiny()
    requests = [Request(tuple(range(40)), (1, 2, 3)), Request(tuple(range(5)), tuple(range(16)))]
    engine = Engine(tokenizer, CPU, max_length=16, packing=packing)
    assert_equal(engine.score(model, engine.compile(requests)), one_by_one(model, requests, max_length=16))


def test_logits_in_chunks_change_nothing(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny()
    requests = questions(seed=2, count=4)
    engine = Engine(tokenizer, CPU, 256)
    compiled = engine.compile(requests)
    whole = engine.score(model, compiled)
    monkeypatch.setattr("tailorlib.evaluation.scoring.LOGITS_PER_CHUNK", 3 * model.config.vocab_size)
    torch.testing.assert_close(
        engine.score(model, compiled).log_likelihood, whole.log_likelihood, atol=1e-5, rtol=0
    )


def test_shared_prefixes_count_once() -> None:
    engine = Engine(tiny_tokenizer(), CPU, 256)
    context = tuple(range(10))
    compiled = engine.compile(
        [
            Request(context, (1,)),
            Request(context, (2,)),
            Request(context, (3, 4, 5)),
            Request(context, (3, 4, 6, 7)),
        ]
    )
    # single tokens are predicted by the context's end; (3, 4) is shared, 6 is an input, the last token never is
    assert compiled.raw_tokens == 10 + 10 + 12 + 13
    assert compiled.tokens == 10 + 2 + 1
    assert compiled.plan.scored_rows == 4


def test_equal_requests_run_once() -> None:
    engine = Engine(tiny_tokenizer(), CPU, 256, packing=False)
    assert engine.compile([Request((1, 2), (3,))] * 5).tokens == 2


def test_few_shot_examples_are_shared_between_questions() -> None:
    rng = random.Random(0)
    examples, *asked = (tuple(rng.randrange(300) for _ in range(n)) for n in (400, *[20] * 50))
    requests = [Request((*examples, *question), (choice,)) for question in asked for choice in (1, 2, 3)]
    compiled = Engine(tiny_tokenizer(), CPU, 1024).compile(requests)
    assert compiled.raw_tokens == 150 * 420
    assert 400 + 50 * 19 < compiled.tokens <= 400 + 50 * 20  # some questions begin alike


def test_a_batch_exceeds_its_size_only_for_a_single_row() -> None:
    plan = Engine(tiny_tokenizer(), CPU, 256, 128, row_tokens=64).compile(questions(count=40)).plan
    assert all(b.input_ids.numel() <= 128 or len(b.input_ids) == 1 for b in plan.batches)
    assert plan.padded_tokens < 1.3 * plan.tokens


def test_fallback_says_so_once(tiny: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny("gemma3_text", "sdpa", sliding_window=8)
    engine = Engine(tokenizer, CPU, 256)
    compiled = engine.compile(questions(count=2))
    engine.score(model, compiled)
    engine.score(model, compiled)
    assert sum("gemma3_text runs as plain rows" in r.message for r in caplog.records) == 1


def test_the_model_is_left_as_it_was(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 256)
    engine.score(model, engine.compile(questions(count=2)))
    assert "forward" not in model.get_decoder().__dict__


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), (1,)), "at least one context token"),
        (Request((1,), ()), "at least one context token"),
        (Request((1,), tuple(range(20))), "at most max_length=16"),
    ],
)
def test_impossible_requests_are_refused(request_: Request, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(tiny_tokenizer(), CPU, max_length=16).compile([request_])


def test_nothing_to_score(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 256)
    assert engine.score(model, engine.compile([])).log_likelihood.tolist() == []

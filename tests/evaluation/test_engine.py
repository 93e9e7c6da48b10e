from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluation_oracles import one_by_one

from tailorlib.evaluation.engine import Engine, Request, Scores, supports_packing
from tailorlib.testing.tiny import tiny_tokenizer

CPU = torch.device("cpu")
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
}


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


def assert_equal(scores: Scores, expected: Scores) -> None:
    torch.testing.assert_close(scores.log_likelihood, expected.log_likelihood, atol=1e-4, rtol=0)
    assert torch.equal(scores.greedy, expected.greedy)


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


def test_between_equal_logits_the_first_token_is_the_greedy_one(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny(seed=1)
    model = copy.deepcopy(model)
    model.lm_head.weight.data[:5] = 2 * model.lm_head.weight.data[5:].abs().max()
    requests = [Request((5, 6, last), (token,)) for last in range(40) for token in (0, 3)]
    engine = Engine(tokenizer, CPU, 256)
    scores = engine.score(model, engine.compile(requests))
    assert_equal(scores, one_by_one(model, requests))
    first, other = scores.greedy.view(-1, 2).T
    assert first.any()
    assert not other.any()


@pytest.mark.parametrize("layout", ["single", "rows", "plain"])
@pytest.mark.parametrize(("tokens_per_batch", "row_tokens"), [(1, 1), (40, 20), (4096, 4096)])
def test_layout_does_not_change_scores(
    tiny: Callable[..., Any], layout: Any, tokens_per_batch: int, row_tokens: int
) -> None:
    model, tokenizer = tiny()
    requests = questions(seed=1, count=6)
    engine = Engine(tokenizer, CPU, 256, tokens_per_batch, row_tokens=row_tokens, layout=layout)
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
    monkeypatch.setattr("tailorlib.evaluation.engine.LOGITS_PER_CHUNK", 3 * model.config.vocab_size)
    in_chunks = Engine(tokenizer, CPU, 256).score(model, compiled)
    torch.testing.assert_close(in_chunks.log_likelihood, whole.log_likelihood, atol=1e-5, rtol=0)


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
    plan = Engine(tiny_tokenizer(), CPU, 256, 128, row_tokens=64, layout="rows").compile(questions(count=40)).plan
    assert all(b.input_ids.numel() <= 128 or len(b.input_ids) == 1 for b in plan.batches)
    assert plan.padded_tokens < 1.3 * plan.tokens


def test_single_rows_need_no_padding() -> None:
    plan = Engine(tiny_tokenizer(), CPU, 256, 128, row_tokens=64).compile(questions(count=40)).plan
    assert plan.layout == "single"
    assert plan.padded_tokens == plan.tokens
    assert all(len(b.input_ids) == 1 and b.input_ids.numel() <= 128 for b in plan.batches)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False}),  # position is in the mask
        ("olmo", {}),  # nobody proved it
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    ],
)
def test_what_is_not_proven_runs_as_plain_rows_and_says_so_once(
    tiny: Callable[..., Any], caplog: pytest.LogCaptureFixture, model_type: str, config: dict[str, Any]
) -> None:
    model, tokenizer = tiny(model_type, None, max_position_embeddings=16, **config)
    requests = [r for r in questions(count=6) if len(r.context + r.continuation) <= 16]
    if "rope_parameters" in config:  # frequencies change with the longest row of a batch: here there is one length
        requests = [Request(tuple(range(5, 36)), (i,)) for i in range(4)]
    engine = Engine(tokenizer, CPU, 32)
    compiled = [engine.compile(requests) for _ in range(2)]
    for one in compiled:
        for _ in range(2):
            scores = engine.score(model, one)
            assert not one.packed
            assert_equal(scores, one_by_one(model, requests))
    assert sum(f"{model_type} runs as plain rows" in r.message for r in caplog.records) == 1


def test_positions_that_scale_with_length_pack_within_the_length_they_were_trained_for(
    tiny: Callable[..., Any],
) -> None:
    lengths = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    model, tokenizer = tiny("phi3", None, rope_parameters=LONG_ROPE, **lengths)
    assert supports_packing(model, longest=16)
    assert not supports_packing(model, longest=17)
    requests = [r for r in questions() if len(r.context + r.continuation) <= 16]
    engine = Engine(tokenizer, CPU, 64)
    compiled = engine.compile(requests)
    assert_equal(engine.score(model, compiled), one_by_one(model, requests))
    assert compiled.packed


def test_the_model_is_left_as_it_was(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 256)
    engine.score(model, engine.compile(questions(count=2)))
    assert "forward" not in model.get_decoder().__dict__
    assert model.config._attn_implementation == "eager"


def test_a_layer_that_attends_in_another_way_is_noticed(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny(seed=1)
    layer = model.get_decoder().layers[1].self_attn
    layer.config = copy.deepcopy(layer.config)  # not the model's: it doesn't see what replaces attention
    engine = Engine(tokenizer, CPU, 256)
    with pytest.raises(RuntimeError, match=r"own function; of 'llama', 3 of 4 did"):
        engine.score(model, engine.compile(questions(count=2)))


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

"""What goes wrong while a model is scored: NaN, and memory that runs out."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluation_oracles import one_by_one
from scarce_memory import OUT_OF_MEMORY, memory_for

from tailorlib.evaluation.engine import Engine, Request
from tailorlib.exceptions import EvaluationError

CPU = torch.device("cpu")


def requests(count: int = 30) -> list[Request]:
    rng = random.Random(0)
    return [
        Request(tuple(rng.randrange(5, 300) for _ in range(20)), (rng.randrange(5, 300),)) for _ in range(count)
    ]


PARTS: dict[str, tuple[Callable[[Any], torch.nn.Parameter], str]] = {
    "embeddings": (lambda m: m.get_input_embeddings().weight, r"that of the embeddings\."),
    "layer 0": (lambda m: m.model.layers[0].mlp.down_proj.weight, r"that of decoder layer 0 \(of 0 to 3\)\."),
    "layer 2": (lambda m: m.model.layers[2].self_attn.q_proj.weight, r"that of decoder layer 2 \(of 0 to 3\)\."),
    "norm": (lambda m: m.model.norm.weight, r"that of the final norm\."),
    "head": (lambda m: m.lm_head.weight, r"that of the head\."),
}


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_nan_is_told_with_the_place_where_it_begins(tiny: Callable[..., Any], part: str, packing: bool) -> None:
    model, tokenizer = tiny(seed=2)
    model = copy.deepcopy(model)
    engine = Engine(tokenizer, CPU, 256, packing=packing)
    compiled = engine.compile(requests())
    engine.score(model, compiled)
    parameter, message = PARTS[part]
    parameter(model).data.fill_(float("nan"))
    with pytest.raises(EvaluationError, match=message):
        engine.score(model, compiled)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_overflow_in_float16_is_told_with_a_remedy(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny(seed=2)
    model = copy.deepcopy(model).half()
    model.model.layers[1].mlp.down_proj.weight.data.fill_(60000.0)
    engine = Engine(tokenizer, CPU, 256)
    with pytest.raises(EvaluationError, match=r"decoder layer 1 .*float16 ends at 65504: take bfloat16"):
        engine.score(model, engine.compile(requests()))


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
@pytest.mark.parametrize("layout", ["single", "rows", "plain"])
def test_the_batch_is_halved_once_and_stays_so(
    tiny: Callable[..., Any], caplog: pytest.LogCaptureFixture, layout: Any, kind: str
) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 256, 400, row_tokens=400, layout=layout)
    first, second = engine.compile(requests()), engine.compile(requests(25))
    with memory_for(model, 250, OUT_OF_MEMORY[kind]) as failed:
        scores = engine.score(model, first)
        assert len(failed) == 1
        assert engine.tokens_per_batch == 200
        engine.score(model, second)  # laid out before, and no larger than what is known to fit
        engine.score(model, first)
        assert len(failed) == 1
    expected = one_by_one(model, requests())
    torch.testing.assert_close(scores.log_likelihood, expected.log_likelihood, atol=1e-4, rtol=0)
    assert sum("Batches have at most 200 tokens from now on" in r.message for r in caplog.records) == 1


def test_a_batch_that_is_smaller_than_it_might_be_is_halved_too(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 256, row_tokens=200)
    compiled = engine.compile(requests())
    with memory_for(model, 150, OUT_OF_MEMORY["device"]) as failed:
        engine.score(model, compiled)
    assert failed == [200]
    assert engine.tokens_per_batch == 100


def test_memory_that_runs_out_twice_fails_with_the_figures(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 256, 400, row_tokens=400)
    compiled = engine.compile(requests())
    for _ in range(2):  # the next trial fails as clearly
        message = (
            r"batch of \d+ tokens: CUDA out of memory\. Tried to allocate 2\.00 GiB\. .* halved once, to 200 tok"
        )
        with memory_for(model, 50, OUT_OF_MEMORY["device"]), pytest.raises(EvaluationError, match=message):
            engine.score(model, compiled)
    assert engine.tokens_per_batch == 200
    assert len(engine.score(model, compiled).greedy) == 30


def test_other_errors_pass(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 256)
    with memory_for(model, 0, RuntimeError("something else")), pytest.raises(RuntimeError, match="something else"):
        engine.score(model, engine.compile(requests()))
    assert engine.tokens_per_batch == Engine.TOKENS_PER_BATCH

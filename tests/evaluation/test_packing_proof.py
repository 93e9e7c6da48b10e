"""Packed rows change nothing: every architecture that packs, against plain rows and each request on its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluation_oracles import FULL, SLIDING, choices_of, one_by_one

from tailorlib.evaluation.engine import PACKED_ARCHITECTURES, Engine, Request

CPU = torch.device("cpu")
WINDOW = 8
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-linear-rope": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "mistral": {"sliding_window": None},
    "mistral-window": {"sliding_window": WINDOW},
    "qwen2": {},
    "qwen2-window": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "qwen3": {},
    "qwen3-window": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": [SLIDING, FULL, SLIDING, SLIDING],
    },
    "gemma": {},
    "gemma2": {"sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL, SLIDING, FULL]},
    "phi3": {"sliding_window": WINDOW},
    "olmo2": {},
    "smollm3": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "no_rope_layers": [1, 0, 1, 0],
        "layer_types": [SLIDING, FULL, FULL, SLIDING],
    },
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "cohere": {"use_qk_norm": True, "logit_scale": 0.5},
    "glm4": {},
    "starcoder2": {"sliding_window": WINDOW},
    "gpt_neox": {},
    "gpt_neox-sequential": {"use_parallel_residual": False},
    "gpt2": {},
    "falcon": {},
    "falcon-new": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "mixtral": {"sliding_window": WINDOW},
    "qwen3_moe": {"decoder_sparse_step": 2},
}
"""What is proven: config values by model type, or by model type and variant; windows are shorter than contexts."""


def questions(choices: int = 4) -> list[Request]:
    """Return questions of all kinds, four requests each.

    Shared examples, long and short contexts, one token to score and many, the same twice, choices that begin with
    another one.
    """
    rng = random.Random(0)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, 300) for _ in range(rng.randint(low, high)))

    found = []
    examples = tokens(5 * WINDOW, 6 * WINDOW)
    for i in range(14):
        context = (examples if i % 2 else ()) + tokens(1, 3 * WINDOW)
        answer = tokens(1, 4)
        kinds = [
            [answer, answer + tokens(1, 3), tokens(1, 1), tokens(2, 6)],  # one begins with another
            [tokens(1, 1), tokens(1, 1), tokens(1, 1), tokens(1, 1)],  # letters
            [answer, answer, tokens(1, 2), tokens(3, 9)],  # twice the same
            [tokens(9, 12), tokens(9, 12), tokens(1, 1), tokens(12, 2 * WINDOW)],  # longer than the window
        ]
        found += [Request(context, choice) for choice in kinds[i % len(kinds)]]
    # a context that goes on where another question ends
    end = found[0].context + found[0].continuation
    found += [
        Request(end, tokens(1, 3)),
        Request(end, tokens(2, 2)),
        Request(end[:1], end[1:]),
        Request(end, (7,)),
    ]
    assert len(found) % choices == 0
    return found


@pytest.mark.parametrize("layout", ["single", "rows"])
@pytest.mark.parametrize("case", CASES)
def test_packed_plain_and_single_requests_score_alike(tiny: Callable[..., Any], case: str, layout: Any) -> None:
    model, tokenizer = tiny(case.partition("-")[0], None, **CASES[case])
    requests = questions()
    expected = one_by_one(model, requests)
    found = {}
    for name in (layout, "plain"):
        engine = Engine(tokenizer, CPU, 256, 512, row_tokens=120, layout=name)
        compiled = engine.compile(requests)
        found[name] = engine.score(model, compiled)
        assert compiled.plan.layout == name
        assert name == "plain" or compiled.tokens < 0.7 * compiled.raw_tokens
    for scores in found.values():
        torch.testing.assert_close(scores.log_likelihood, expected.log_likelihood, atol=1e-4, rtol=0)
        assert torch.equal(scores.greedy, expected.greedy)
        assert choices_of(scores) == choices_of(expected)


def test_the_cases_are_all_that_is_called_proven() -> None:
    assert {case.partition("-")[0] for case in CASES} == PACKED_ARCHITECTURES

"""The engine on every covered architecture: the head's scalings and caps, tuples, experts and windows included."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from model_cases import CASES, CPU, LAYERS
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailorlib.evaluation.engine import Engine, Request
from tailorlib.evaluation.hidden_states import block_influence
from tailorlib.testing.tiny import write_tiny_model


@pytest.fixture(scope="module", params=CASES)
def tiny(request, tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp(request.param), num_layers=LAYERS, **CASES[request.param])
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def requests():
    """Contexts with three continuations each; most are longer than the windows."""
    rng = random.Random(0)
    contexts = [tuple(rng.randrange(300) for _ in range(length)) for length in (2, 9, 25, 14)]
    return [Request(c, tuple(rng.randrange(300) for _ in range(n))) for c in contexts for n in (1, 3, 5)]


def log_likelihood(model, request):
    ids = torch.tensor([request.context + request.continuation])
    with torch.no_grad():
        log_probs = model(ids).logits[0, :-1].log_softmax(-1)
    asked = log_probs[-len(request.continuation) :]
    return asked.gather(1, ids[0, -len(request.continuation) :, None]).double().sum().item()


def test_log_likelihoods_are_those_of_the_plain_forward_pass(tiny):
    model, tokenizer = tiny
    engine = Engine(tokenizer, CPU, 256, 64, row_tokens=32)
    scores = engine.score(model, engine.compile(requests())).log_likelihood
    expected = torch.tensor([log_likelihood(model, request) for request in requests()]).double()
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=0)
    assert expected.std() > 1  # nats: what is compared is no constant


def test_block_influence_is_that_of_the_hidden_states(tiny):
    model, tokenizer = tiny
    compiled = Engine(tokenizer, CPU, 256, 64, row_tokens=32).compile(requests())
    name = next(n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == LAYERS)
    found = block_influence(model, list(model.get_submodule(name)), compiled)
    totals, count = torch.zeros(LAYERS - 1, dtype=torch.float64), 0
    for request in requests():
        ids = torch.tensor([request.context + request.continuation])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[:LAYERS]  # the last one is normed
        where = slice(-1 - len(request.continuation), -1)
        pairs = pairwise(states)
        totals += torch.stack([torch.cosine_similarity(a[0, where], b[0, where], dim=-1).sum() for a, b in pairs])
        count += len(request.continuation)
    torch.testing.assert_close(found[:-1], 1 - totals / count, atol=1e-5, rtol=0)

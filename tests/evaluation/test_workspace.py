"""Workspace: large tensors of a scoring lie where those of the one before lay, and hold the same numbers."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from tailorlib.evaluation import forward
from tailorlib.evaluation.divergence import Reference
from tailorlib.evaluation.engine import Engine, Request
from tailorlib.evaluation.samples import SampledRequests
from tailorlib.evaluation.workspace import Workspace

CPU = torch.device("cpu")
VOCABULARY, POSITIONS = 2**16, 192
PAGES = POSITIONS * VOCABULARY * 4 // resource.getpagesize()
"""Pages of one candidate's logits: 48 MiB in float32, which the C library never keeps by itself."""
SHAPE = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SHAPE))
    return made.requires_grad_(False).eval()


def engine_and_texts() -> tuple[Engine, list[Request]]:
    numbers = torch.Generator().manual_seed(0)
    rows = torch.randint(0, VOCABULARY, (POSITIONS // 64, 65), generator=numbers).tolist()
    return Engine(None, CPU, 2048), [Request((row[0],), tuple(row[1:])) for row in rows]  # type: ignore[arg-type]


def faults_of(trial: Any) -> int:
    """Return the page faults of one trial, after two that find their memory."""
    trial()
    trial()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    trial()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scoring_touches_no_new_memory_for_its_logits(model, dtype):
    engine, texts = engine_and_texts()
    compiled, live = engine.compile(texts), model.to(dtype)
    assert faults_of(lambda: engine.score(live, compiled)) < PAGES / 20
    model.to(torch.float32)


@pytest.mark.parametrize("top_k", [None, 16])
def test_a_comparison_touches_no_new_memory_for_its_distributions(model, top_k):
    engine, texts = engine_and_texts()
    reference = Reference(model, SampledRequests(engine, [[text] for text in texts]), top_k)
    assert faults_of(lambda: reference.compare(model, range(len(texts)))) < PAGES / 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "bias", "soft caps"])
def test_logits_have_the_bits_of_the_head(kind, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind == "soft caps":
            model: Any = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=999, final_logit_softcapping=3.0, **SHAPE))
        else:
            model = LlamaForCausalLM(LlamaConfig(vocab_size=999, **SHAPE))
        if kind == "bias":
            model.lm_head.bias = torch.nn.Parameter(torch.randn(999))
        hidden = torch.randn(37, SHAPE["hidden_size"]).to(dtype)
    model = model.to(dtype).requires_grad_(False).eval()
    workspace = Workspace()
    with torch.inference_mode():
        with forward._decoder_answers(model, hidden[None]):
            expected = model(inputs_embeds=hidden[None], use_cache=False).logits[0]
        found = [forward.logits_of(model, hidden, workspace) for _ in range(2)]
    assert torch.equal(found[0], expected)
    assert found[0].dtype == dtype
    if kind != "soft caps":  # which writes what it caps elsewhere
        assert found[0].data_ptr() == found[1].data_ptr()
    assert "forward" not in model.lm_head.__dict__


def test_a_head_that_somebody_wrapped_is_asked_itself():
    with torch.random.fork_rng(devices=[]):
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=99, **SHAPE)).requires_grad_(False).eval()
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: plain(hidden) + 1
    hidden = torch.randn(3, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = forward.logits_of(model, hidden, Workspace())
    assert torch.equal(found, plain(hidden) + 1)
    assert model.lm_head.forward(hidden).equal(found)


def test_each_use_has_its_own_memory_which_grows_and_goes():
    workspace = Workspace()
    one, other = (workspace.empty(use, (4, 3), torch.float32, CPU) for use in ("one", "other"))
    assert one.data_ptr() != other.data_ptr()
    one.fill_(1.0)
    smaller = workspace.empty("one", (2, 5), torch.bfloat16, CPU)
    assert smaller.data_ptr() == one.data_ptr()
    assert smaller.shape == (2, 5)
    assert workspace.empty("one", (100,), torch.float32, CPU).shape == (100,)
    assert (one == 1).all()  # whoever still has a tensor keeps its memory
    workspace.clear()
    assert not workspace._held


def test_memory_of_other_devices_is_pytorchs():
    workspace = Workspace()
    assert workspace.empty("logits", (2, 3), torch.float32, torch.device("meta")).device.type == "meta"
    assert not workspace._held

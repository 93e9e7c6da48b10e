"""Tiny families of every covered architecture, random tailorings, and fixtures that give them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorlib.models.architecture import layer_kinds
from tailorlib.models.family import ModelFamily
from tailorlib.operation import OPERATIONS
from tailorlib.tailoring import LayerPlan, LayerSource, Tailoring
from tailorlib.testing.tiny import write_tiny_family

CPU = torch.device("cpu")
LAYERS = 6
MERGES = ("Linear", "TIES", "DARELinear")
FULL, SLIDING = "full_attention", "sliding_attention"
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": 8},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
    "qwen2.5": {
        "model_type": "qwen2",
        "use_sliding_window": False,
        "sliding_window": 8,
        "max_window_layers": 5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
    },
    "qwen3": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 8,
        "layer_types": [FULL, SLIDING, SLIDING] * 2,
    },
    "gemma": {"model_type": "gemma"},
    "gemma2": {
        "model_type": "gemma2",
        "sliding_window": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        "sliding_window": 8,
        "layer_types": [SLIDING, SLIDING, FULL] * 2,
    },
    "phi3": {"model_type": "phi3", "sliding_window": 8},
    "olmo2": {"model_type": "olmo2"},
    "smollm3": {
        "model_type": "smollm3",
        "use_sliding_window": True,
        "sliding_window": 8,
        "no_rope_layers": [0, 0, 1, 1, 1, 1],
        "layer_types": [FULL, FULL, FULL, FULL, SLIDING, SLIDING],
    },
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "cohere": {"model_type": "cohere", "use_qk_norm": True, "logit_scale": 0.5},
    "glm4": {"model_type": "glm4"},
    "starcoder2": {"model_type": "starcoder2", "sliding_window": 8},
    "gpt_neox": {"model_type": "gpt_neox"},
    "gpt_neox-sequential": {"model_type": "gpt_neox", "use_parallel_residual": False},
    "gpt2": {"model_type": "gpt2"},
    "falcon": {"model_type": "falcon"},
    "falcon-new": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-alibi": {
        "model_type": "falcon",
        "alibi": True,
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
    },
    "mixtral": {"model_type": "mixtral", "sliding_window": 8},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 2,  # layers 1, 3 and 5 would have experts
        "mlp_only_layers": [3],
        "norm_topk_prob": True,
    },
}
"""Config values of each covered architecture; windows are shorter than :func:`tokens`."""
COMMON = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt_neox")
"""The cases that tests run over which concern no architecture in particular."""


def plan(*sources: str, operation: str = "LayerSelection", base: str | None = None) -> LayerPlan:
    """Return a plan of sources written ``model:layer``, with the operation's default hyperparameters."""
    data: dict[str, Any] = {"sources": list(sources), "operation": operation, "base": base}
    if operation != "LayerSelection":
        drawn = OPERATIONS.get(operation)().distributions()
        data["params"] = {name: distribution.default for name, distribution in drawn.items()}
    return LayerPlan.from_dict(data)


def random_tailoring(family: ModelFamily, seed: int) -> Tailoring:
    """Return a tailoring that removes, selects (also layers of other depths) and merges."""
    rng = random.Random(seed)
    models, number = family.layout.models, family.layout.num_layers
    plans = []
    for i in sorted(rng.sample(range(number), number - 2)):
        same = [j for j in range(number) if layer_kinds(family.config)[j] == layer_kinds(family.config)[i]]
        if rng.random() < 0.5:
            plans.append(plan(f"{rng.choice(models)}:{rng.choice(same)}"))
        else:
            base = LayerSource("base", i)
            plans.append(plan(f"a:{i}", f"b:{i}", operation=rng.choice(MERGES), base=str(base)))
    return Tailoring(
        tuple(plans),
        embeddings=rng.choice(models),
        norm=rng.choice(models),
        head=rng.choice(models),
        seed=seed,
    )


def make_family(root: Path, case: str, storage: str, compute: str, **settings: Any) -> ModelFamily:
    """Return a loaded family of a case, with the candidates ``a`` and ``b``."""
    folder = root / f"{case}-{storage}"
    if not folder.exists():
        write_tiny_family(folder, num_layers=LAYERS, dtype=getattr(torch, storage), **CASES[case])
    candidates = {name: str(folder / name) for name in "ab"}
    family = ModelFamily(str(folder / "base"), candidates, dtype=compute, **settings)
    family.load(CPU)
    return family


def tokens(batch: int = 2, length: int = 20) -> torch.Tensor:
    """Return random token ids, longer than the sliding windows of the cases."""
    return torch.randint(5, 250, (batch, length), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    """Return a model's logits on :func:`tokens`."""
    with torch.inference_mode():
        return model(tokens()).logits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower with more threads, by far on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def case_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelFamily]:
    """Return a function ``(case, storage, compute) -> loaded family``; its folders are written once."""
    root = tmp_path_factory.mktemp("families")
    return lambda case, storage="float32", compute="float32", **settings: make_family(
        root, case, storage, compute, **settings
    )


@pytest.fixture(params=COMMON)
def case(request: pytest.FixtureRequest) -> str:
    """Return the common cases in turn."""
    return str(request.param)


@pytest.fixture
def llama(case_family: Callable[..., ModelFamily]) -> ModelFamily:
    """Return a loaded Llama family."""
    return case_family("llama")


@pytest.fixture
def folders(llama: ModelFamily) -> dict[str, Path]:
    """Return the folders of the Llama family, not to be modified."""
    return {name: Path(where) for name, where in llama.references.items()}

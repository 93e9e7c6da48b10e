"""What a space decodes can be built, and is what the params say: weights against a second, plain computation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tailorlib_strategies.operations import LayerFolding, LayerRemoval, ResidualScale, TaskArithmetic
from tailorlib_strategies.search_spaces import (
    DepthIntegrationSpace,
    FoldingSpace,
    LayerFusionSpace,
    PruningSpace,
)
from torch import Tensor

from tailorlib import LayerPlan, SearchSpace
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import PartPlan
from tailorlib.testing.tiny import write_tiny_family

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    },
}
SCALE = ResidualScale(attention=(0.5, 1.5), mlp=0.75)
WEIGHTED = TaskArithmetic(weights=(0.5, 1.5))
SPACES = {
    "PruningSpace": lambda: PruningSpace(
        LayerRemoval(count=2), merges=[WEIGHTED], residual_scale=SCALE, outer=["embeddings", "norm"]
    ),
    "FoldingSpace": lambda: FoldingSpace(
        LayerRemoval(count=2), LayerFolding((0.0, 1.0)), merges=[TaskArithmetic()], residual_scale=SCALE
    ),
    "DepthIntegrationSpace": lambda: DepthIntegrationSpace(2, (0, 2), max_layers=7, residual_scale=SCALE),
    "LayerFusionSpace": lambda: LayerFusionSpace(
        granularity=2,
        merges=[TaskArithmetic()],
        removal=LayerRemoval(count=1),
        residual_scale=SCALE,
        outer=["norm"],
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFamily]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folders = write_tiny_family(
        tmp_path_factory.mktemp("family"), model_type=request.param, **KINDS[request.param]
    )
    candidates = {name: str(path) for name, path in folders.items() if name != "base"}
    made = ModelFamily(str(folders["base"]), candidates, dtype="float32")
    made.load(torch.device("cpu"))
    yield made
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SPACES)
def test_decoded_tailorings_are_stitched_as_the_params_say(family: ModelFamily, name: str) -> None:
    space: SearchSpace = SPACES[name]()
    space.setup(family.layout)
    weights = {m: load_file(Path(p) / "model.safetensors") for m, p in family.references.items()}
    rng = np.random.default_rng(1)
    for _ in range(6):
        tailoring = space.decode(space.sample(rng), seed=5)
        family.check(tailoring)
        live = family.stitch(tailoring)
        layers = live.get_submodule(family.architecture.layers)
        assert len(layers) == live.config.num_hidden_layers == len(tailoring.layers)
        for module, plan in zip(layers, tailoring.layers, strict=True):
            for suffix, tensor in module.state_dict().items():
                torch.testing.assert_close(tensor, expected(weights, plan, suffix, family), rtol=1e-6, atol=1e-6)
        for part, weight in (("embeddings", "model.embed_tokens.weight"), ("norm", "model.norm.weight")):
            owner = tailoring.parts[part]
            if isinstance(owner, PartPlan):
                sources = [weights[m][weight] for m in owner.models]
                wanted = task_arithmetic(sources, weights["base"][weight], **dict(owner.params))
            else:
                wanted = weights[owner][weight]
            torch.testing.assert_close(live.state_dict()[weight], wanted, rtol=1e-6, atol=1e-6)


def expected(weights: dict[str, dict[str, Tensor]], plan: LayerPlan, suffix: str, family: ModelFamily) -> Tensor:
    """Compute one tensor of a layer by the definitions."""
    part = next((p for name, p in plan.parts if name in suffix), plan)
    sources = [weights[s.model][f"model.layers.{s.layer}.{suffix}"] for s in part.sources]
    made = sources[0]
    if part.operation == "TaskArithmetic":
        assert part.base is not None
        base = weights[part.base.model][f"model.layers.{part.base.layer}.{suffix}"]
        made = task_arithmetic(sources, base, **dict(part.params))
    elif part.operation == "LayerFolding":
        made = sources[0] + dict(part.params)["scale"] * sum(s - sources[0] for s in sources[1:])
    if family.config.model_type == "gemma3_text":  # its norms multiply by 1 + weight
        outputs = {
            "post_attention_layernorm.weight": plan.attention_scale,
            "post_feedforward_layernorm.weight": plan.mlp_scale,
        }
        return (1 + made) * outputs[suffix] - 1 if suffix in outputs else made
    outputs = {"self_attn.o_proj.weight": plan.attention_scale, "mlp.down_proj.weight": plan.mlp_scale}
    return made * outputs.get(suffix, 1.0)


def task_arithmetic(sources: list[Tensor], base: Tensor, scale: Any, weights: Any = (1.0, 1.0)) -> Tensor:
    return base + scale * sum(w * (source - base) for w, source in zip(weights, sources, strict=True))

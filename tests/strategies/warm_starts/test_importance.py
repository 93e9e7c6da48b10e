from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tailorlib_strategies.warm_starts import BlockInfluence, MagnitudeImportance, TaylorImportance
from transformers import PreTrainedModel
from warm_start_cases import Given, loss, removed, token_ids

from tailorlib import Tailoring, WarmStartContext
from tailorlib.exceptions import RecipeError
from tailorlib.models.family import ModelFamily

WHOLE = Tailoring.whole("base", 6)


def first_order(plain: PreTrainedModel, context: WarmStartContext, start: TaylorImportance) -> list[float]:
    loss(plain.requires_grad_(True), token_ids(start, context)).backward()
    return [
        sum(
            float((w.detach() * w.grad).abs().sum())
            for w in layer.parameters()
            if w.grad is not None and w.dim() == 2
        )
        for layer in plain.model.layers
    ]


def test_magnitude_is_the_sum_of_what_the_file_holds(context: WarmStartContext, folders: dict[str, Path]) -> None:
    tensors = load_file(folders["base"] / "model.safetensors")
    expected = [
        sum(float(w.double().abs().sum()) for n, w in tensors.items() if f"layers.{i}." in n and w.dim() == 2)
        for i in range(6)
    ]
    assert MagnitudeImportance().importance(context) == pytest.approx(expected)
    (found,) = MagnitudeImportance().propose(context)
    assert removed(found) == tuple(sorted(sorted(range(1, 6), key=expected.__getitem__)[:2]))


def test_taylor_is_the_gradient_of_the_plain_model(context: WarmStartContext, plain: PreTrainedModel) -> None:
    start = TaylorImportance(Given(), context_length=16)
    expected = first_order(plain, context, start)
    assert start.importance(context) == pytest.approx(expected, rel=1e-4)
    (found,) = start.propose(context)
    assert removed(found) == tuple(sorted(sorted(range(1, 6), key=expected.__getitem__)[:2]))


def test_weights_stay_as_they_were(context: WarmStartContext, folders: dict[str, Path]) -> None:
    stored = (folders["base"] / "model.safetensors").read_bytes()
    model = context.family.stitch(WHOLE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    TaylorImportance(Given()).propose(context)
    after = context.family.stitch(WHOLE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.state_dict().items())
    assert not any(w.requires_grad or w.grad is not None for w in after.parameters())
    assert (folders["base"] / "model.safetensors").read_bytes() == stored


def test_a_final_table_without_gradients_gets_them(
    context: WarmStartContext, plain: PreTrainedModel, folders: dict[str, Path]
) -> None:
    start = TaylorImportance(Given(), context_length=16)
    with torch.inference_mode():  # as Lightning's test loop runs, the family loaded within
        family = ModelFamily(str(folders["base"]), {"a": str(folders["a"])}, dtype="bfloat16")
        family.load(context.engine.device)
        family.stitch(WHOLE)
        found = start.importance(replace(context, family=family))
    assert found == pytest.approx(first_order(plain, context, start), rel=1e-4)  # in float32 all the same


def test_taylor_refuses_a_quantised_family(context: WarmStartContext, folders: dict[str, Path]) -> None:
    family = ModelFamily(str(folders["base"]), quantization="nf4")
    family.prepare()
    with pytest.raises(RecipeError, match=r"quantization='nf4'.*MagnitudeImportance or BlockInfluence"):
        TaylorImportance(Given()).propose(replace(context, family=family))
    expected = MagnitudeImportance().importance(context)  # which looks at what is stored
    assert MagnitudeImportance().importance(replace(context, family=family)) == expected


def test_the_criteria_differ(context: WarmStartContext) -> None:
    """A test of rankings means little where all rank alike."""
    ranks = {
        tuple(sorted(range(6), key=values.__getitem__))
        for values in (
            MagnitudeImportance().importance(context),
            TaylorImportance(Given()).importance(context),
            BlockInfluence(Given()).influence(context),
        )
    }
    assert len(ranks) == 3

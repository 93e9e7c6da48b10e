"""Refitting: each correction is a regression on the candidate's own stream, and the export has its bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_cases import CUT, calibration, rows_of, streams
from model_cases import CASES, CPU, LAYERS, logits, plan
from tailorlib_strategies.compensations import MagnitudeScale, OutputMap, Refit
from transformers import AutoModelForCausalLM

from tailorlib import Tailoring
from tailorlib.calibration.refit import RefitJob, Refitting
from tailorlib.compensation import Compensation, CompensationContext
from tailorlib.exceptions import ModelError
from tailorlib.export import export_model
from tailorlib.models.family import ModelFamily
from tailorlib.models.terms import keep_terms


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    """Return every covered architecture."""
    return str(request.param)


def family_of(case_family: Any, case: str, folder: Path) -> ModelFamily:
    found: ModelFamily = case_family(case)
    keep_terms(found, folder, cached=True)
    return found


def prepared(compensation: Compensation, family: ModelFamily) -> Compensation:
    compensation.prepare(CompensationContext(family, CPU, LAYERS, lambda tailoring: 0.0))
    return compensation


def distance(family: ModelFamily, tailoring: Tailoring) -> float:
    """Return how far the stream that the final norm reads is from the dense base's, relative to its size."""
    names, rows = (family.architecture.layers, family.architecture.norm), rows_of(family).fit
    (there,) = streams(family.stitch(Tailoring.whole("base", LAYERS)), rows, *names, which=(LAYERS,))
    (here,) = streams(family.stitch(tailoring), rows, *names, which=(len(tailoring.layers),))
    return float(((there - here) / there.norm(dim=1, keepdim=True)).square().sum(1).mean())


def test_every_architecture_comes_nearer_and_exports_its_bits(case_family: Any, case: str, tmp_path: Path) -> None:
    family = family_of(case_family, case, tmp_path)
    merge = plan("a:1", "b:1", operation="TIES", base="base:1")
    cut = replace(CUT, layers=tuple(merge if p.sources[0].layer == 1 else p for p in CUT.layers))
    refitted = prepared(Refit(calibration(), "base"), family).complete(cut)
    assert all(plan.terms for plan in refitted.layers)
    assert distance(family, refitted) < 0.97 * distance(family, cut)
    live = logits(family.stitch(refitted))
    loaded = AutoModelForCausalLM.from_pretrained(
        export_model(family, refitted, tmp_path / "out"), dtype=torch.float32
    )
    assert torch.equal(logits(loaded.eval()), live)


def test_the_first_correction_is_the_bridge_where_nothing_was_corrected_before(
    case_family: Any, tmp_path: Path
) -> None:
    """With the layers below the gap the teacher's own, the candidate's stream there is the teacher's."""
    family = family_of(case_family, "llama", tmp_path)
    teacher = Tailoring.whole("base", LAYERS)
    job = RefitJob(family, CUT, teacher, rows_of(family), CPU, everything=False, attention=False, ridges=(0.1,))
    (found,) = Refitting(job)().values()
    rows = rows_of(family)
    names = (family.architecture.layers, family.architecture.norm)
    model = AutoModelForCausalLM.from_pretrained(family.source.folder, dtype=torch.float32).eval()
    read: list[torch.Tensor] = []
    module = model.get_submodule("model.layers.1.mlp.down_proj")
    module.register_forward_pre_hook(lambda _, args: read.append(args[0][0, 1:]))
    below, there = streams(model, rows.fit, *names, which=(2, 4))
    root = 1 / there.double().norm(dim=1, keepdim=True)
    z, y = torch.cat(read).double() * root, (there - below).double() * root
    gram = z.T @ z
    ridge = 0.1 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    expected = torch.linalg.solve(gram + ridge, z.T @ y).T
    assert torch.allclose(found["mlp.down_proj.weight"].double(), expected, rtol=1e-3, atol=1e-5)


def test_a_whole_model_is_left_as_it_is(case_family: Any, tmp_path: Path) -> None:
    family = family_of(case_family, "llama", tmp_path)
    whole = Tailoring.whole("base", LAYERS)
    refitted = prepared(Refit(calibration(), "base"), family).complete(whole)
    assert distance(family, refitted) < 1e-6


def test_it_is_made_once_and_found_again(
    case_family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = family_of(case_family, "llama", tmp_path)
    first = prepared(Refit(calibration(), "base"), family).complete(CUT)
    monkeypatch.setattr(Refitting, "__call__", lambda self: pytest.fail("computed again"))
    assert prepared(Refit(calibration(), "base"), family).complete(CUT) == first


def test_layers_out_of_order_are_refused(case_family: Any, tmp_path: Path) -> None:
    family = family_of(case_family, "llama", tmp_path)
    turned = replace(CUT, layers=CUT.layers[::-1])
    with pytest.raises(ModelError, match=r"each is of one depth .* Got the depths \[5, 4, 1, 0\]"):
        prepared(Refit(calibration(), "base"), family).complete(turned)


@pytest.mark.parametrize("case", ["llama", "llama-biased", "gpt2", "gpt_neox", "granite"])
def test_a_map_of_outputs_is_no_nearer_than_a_bridge(case_family: Any, case: str, tmp_path: Path) -> None:
    """Its corrections are among those that a bridge can make; without a ridge the fit can't be better."""
    family = family_of(case_family, case, tmp_path)
    names = (family.architecture.layers, family.architecture.norm)
    rows = rows_of(family).fit
    below, there = streams(family.stitch(Tailoring.whole("base", LAYERS)), rows, *names, which=(2, 4))
    mapped = prepared(OutputMap(calibration(), "base"), family).complete(CUT)
    (here,) = streams(family.stitch(mapped), rows, *names, which=(2,))
    root = below.norm(dim=1, keepdim=True)
    before, after = (float(((there - h) / root).square().sum()) for h in (below, here))
    assert after < before
    plain, changed = (dict(family.assembly.layer_tensors(t.layers[1], 0)) for t in (CUT, mapped))
    (name,) = {s for s, _ in mapped.layers[1].terms if s.endswith("weight")}
    delta = (changed[name] - plain[name]).double()
    weight = plain[name].double()
    if case == "gpt2":
        delta, weight = delta.T, weight.T
    # delta = M W has its rows in the row space of W
    solved = torch.linalg.lstsq(weight.T, delta.T).solution
    assert torch.allclose(weight.T @ solved, delta.T, atol=1e-4 * float(delta.abs().max()) + 1e-6)


def test_a_scaled_stream_has_the_size_that_it_had(case_family: Any, tmp_path: Path) -> None:
    """Layers above a gap add less by the factor: the model computes what one computes whose stream is scaled."""
    family = family_of(case_family, "llama", tmp_path)
    compensation = prepared(MagnitudeScale(calibration(), "base"), family)
    scaled = compensation.complete(CUT)
    factor = 1 / scaled.layers[2].mlp_scale
    assert scaled.layers[1].mlp_scale == 1 and factor != 1
    model = family.stitch(CUT)
    handle = model.get_submodule("model.layers.2").register_forward_pre_hook(
        lambda _, args, kwargs: ((args[0] * factor, *args[1:]), kwargs), with_kwargs=True
    )
    expected = logits(model)
    handle.remove()
    assert torch.allclose(logits(family.stitch(scaled)), expected, atol=1e-4)

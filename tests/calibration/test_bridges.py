"""Bridges: what a solver of least squares finds, on every architecture, live and exported alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_cases import CUT, rows_of, streams
from model_cases import CASES, CPU, LAYERS, logits, plan
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tailorlib import LayerPlan, Tailoring
from tailorlib.calibration.gather import BridgeTable, Job, bridge_table, footprint
from tailorlib.calibration.taps import tap_of
from tailorlib.exceptions import ModelError
from tailorlib.export import export_model
from tailorlib.models.cache import cache_root
from tailorlib.models.family import ModelFamily
from tailorlib.models.terms import keep_terms

RIDGE = 0.1
LAYER, ABOVE = 1, 4


def job(family: ModelFamily, **settings: Any) -> Job:
    teacher = Tailoring.whole("base", LAYERS)
    made = Job(family, teacher, rows_of(family), longest=LAYERS, device=CPU, ridges=(RIDGE,))
    return replace(made, **settings)


def bridged(tailoring: Tailoring, table: BridgeTable, layer: int = LAYER, above: int = ABOVE) -> Tailoring:
    plans = [
        replace(p, terms=table.terms(layer, above)) if p.sources[0].layer == layer else p for p in tailoring.layers
    ]
    return replace(tailoring, layers=tuple(plans))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    """Return every covered architecture."""
    return str(request.param)


@pytest.fixture
def family(case_family: Any, case: str, tmp_path: Path) -> ModelFamily:
    found: ModelFamily = case_family(case)
    keep_terms(found, tmp_path, cached=True)
    return found


@pytest.fixture
def llama_family(case_family: Any, tmp_path: Path) -> ModelFamily:
    found: ModelFamily = case_family("llama")
    keep_terms(found, tmp_path, cached=True)
    return found


def test_the_stream_comes_nearer_by_what_least_squares_allows(family: ModelFamily) -> None:
    """Below the gap all is the teacher's: the regression's own guarantee shows in the live model's stream."""
    table, rows = bridge_table(job(family)), rows_of(family)
    names = (family.architecture.layers, family.architecture.norm)
    below, there = streams(
        family.stitch(Tailoring.whole("base", LAYERS)), rows.fit, *names, which=(LAYER + 1, ABOVE)
    )
    root = 1 / below.norm(dim=1, keepdim=True)

    def error(tailoring: Tailoring) -> float:
        (reached,) = streams(family.stitch(tailoring), rows.fit, *names, which=(LAYER + 1,))
        return float(((there - reached) * root).square().sum())

    before, after = error(CUT), error(bridged(CUT, table))
    assert after < 0.98 * before
    moved = table.facts["pairs"][f"{LAYER}-{ABOVE}"]["moved"] * rows.tokens
    assert moved == pytest.approx(before, rel=1e-3)


def test_a_bridge_is_the_ridge_regression_that_a_solver_finds(family: ModelFamily) -> None:
    """The solver gets the rows of Z and sqrt(lambda) I stacked, in float64, from transformers' own model."""
    table, rows = bridge_table(job(family)), rows_of(family)
    live = family.stitch(Tailoring.whole("base", LAYERS))
    tap = tap_of(family.architecture, live.get_submodule(family.architecture.layers)[LAYER], live.config)
    model = AutoModelForCausalLM.from_pretrained(family.source.folder, dtype=torch.float32).eval()
    layer = model.get_submodule(family.architecture.layers)[LAYER]
    read: list[Tensor] = []
    module = layer.get_submodule(tap.module)
    if tap.kind == "experts":
        pytest.skip("the experts' form has a test of its own")
    if tap.kind == "norm":
        weight = module.weight + 1 if family.architecture.unit_offset else module.weight
        module.register_forward_hook(lambda _, __, out: read.append((out / weight)[0, 1:].detach()))
    else:
        module.register_forward_pre_hook(lambda _, args: read.append(args[0].reshape(-1, args[0].shape[-1])[1:]))
    names = (family.architecture.layers, family.architecture.norm)
    below, there = streams(model, rows.fit, *names, which=(LAYER + 1, ABOVE))
    root = 1 / below.double().norm(dim=1, keepdim=True)
    z, y = torch.cat(read).double() * root, (there - below).double() * root
    if tap.kind == "norm":
        found = (z * y).sum(0) / ((z * z).sum(0) + RIDGE * (z * z).sum(0).mean())
        expected = {tap.weight: found}
    else:
        z = torch.cat([z, root], dim=1) if tap.bias else z
        ridge = (RIDGE * z.square().sum(0).mean()).sqrt()
        eye = ridge * torch.eye(z.shape[1], dtype=torch.float64)
        solved = torch.linalg.lstsq(
            torch.cat([z, eye]), torch.cat([y, y.new_zeros(len(eye), y.shape[1])])
        ).solution
        matrix = solved[: module.weight.numel() // y.shape[1]]
        expected = {tap.weight: matrix if tap.transposed else matrix.T}
        if tap.bias:
            expected[tap.bias] = solved[-1]
    (term,) = {name for _, name in table.terms(LAYER, ABOVE)}
    for suffix, value in expected.items():
        assert family.assembly.terms is not None
        ours = family.assembly.terms(term, suffix).double() * tap.factor
        assert torch.allclose(ours, value, rtol=2e-3, atol=2e-3 * float(value.abs().max())), suffix


def test_the_exported_model_has_the_bits_of_the_bridged_live_one(family: ModelFamily, tmp_path: Path) -> None:
    table = bridge_table(job(family))
    same = family.layout.layer_types[LAYER]
    merge = plan(f"a:{LAYER}", f"b:{LAYER}", operation="TIES", base=f"base:{LAYER}")
    layers = [merge if p.sources[0].layer == LAYER else p for p in CUT.layers]
    tailoring = bridged(replace(CUT, layers=tuple(layers)), table)
    live = logits(family.stitch(tailoring))
    assert not torch.equal(live, logits(family.stitch(tailoring.bare))), same
    folder = export_model(family, tailoring, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(logits(loaded), live)


def test_all_experts_get_one_matrix(case_family: Any, tmp_path: Path) -> None:
    family = case_family("mixtral")
    keep_terms(family, tmp_path, cached=True)
    table = bridge_table(job(family))
    plans = bridged(CUT, table).layers[LAYER], CUT.layers[LAYER]
    changed, plain = (dict(family.assembly.layer_tensors(p, 0)) for p in plans)
    deltas = [changed[s] - plain[s] for s in plain if ".w2." in s]
    assert len(deltas) == 4 and float(deltas[0].abs().max()) > 0
    assert all(torch.allclose(delta, deltas[0], atol=1e-6) for delta in deltas)
    assert all(torch.equal(changed[s], plain[s]) for s in plain if ".w2." not in s)


def test_the_last_gap_is_bridged_to_what_the_final_norm_reads(llama_family: ModelFamily) -> None:
    table = bridge_table(job(llama_family))
    cut = Tailoring.whole("base", LAYERS, without=[4, 5])
    names = (llama_family.architecture.layers, llama_family.architecture.norm)
    whole = llama_family.stitch(Tailoring.whole("base", LAYERS))
    rows = rows_of(llama_family).fit
    (there,) = streams(whole, rows, *names, which=(LAYERS,))

    def error(tailoring: Tailoring) -> float:
        (reached,) = streams(llama_family.stitch(tailoring), rows, *names, which=(4,))
        return float((there - reached).square().sum())

    assert error(bridged(cut, table, 3, LAYERS)) < error(cut)


def test_several_passes_give_what_one_gives(llama_family: ModelFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    one = bridge_table(job(llama_family))
    monkeypatch.setattr("tailorlib.calibration.gather.FORMAT", 99)  # another entry of the cache
    several = bridge_table(job(llama_family, memory_bytes=1))
    assert several.name != one.name
    pairs = one.facts["pairs"], several.facts["pairs"]
    assert pairs[0].keys() == pairs[1].keys() and len(pairs[0]) == 15
    terms = llama_family.assembly.terms
    assert terms is not None
    for layer, above in ((0, 2), (1, 4), (4, 6)):
        values = [terms(f"{table.name}/{layer}-{above}", "mlp.down_proj.weight") for table in (one, several)]
        assert torch.allclose(values[0], values[1], rtol=1e-4, atol=1e-5)


def test_a_name_says_all_that_decides_a_bridge(llama_family: ModelFamily, case_family: Any) -> None:
    first = job(llama_family).name
    other = replace(rows_of(llama_family), fit=rows_of(llama_family).fit[1:])
    changed = [
        job(llama_family, rows=other),
        job(llama_family, teacher=Tailoring.whole("a", LAYERS)),
        job(llama_family, ridges=(0.2,)),
        job(llama_family, longest=2),
        job(case_family("llama-tied")),
    ]
    assert len({first, *(each.name for each in changed)}) == 1 + len(changed)
    assert job(llama_family).name == first


def test_the_plan_says_what_lies_on_disk_then(family: ModelFamily) -> None:
    found = footprint(family, 1000, LAYERS)
    table = bridge_table(job(family))
    folder = cache_root() / "terms" / table.name
    weights = {s for taps in table.facts["taps"].values() for s in taps if s.endswith("weight")}
    stored = [load_file(file) for file in folder.glob("*.safetensors")]
    assert found.disk_bytes == sum(t.nbytes for tensors in stored for n, t in tensors.items() if n in weights)
    assert found.operations > 0 and found.memory_bytes > 0


def test_a_teacher_has_all_layers(llama_family: ModelFamily) -> None:
    with pytest.raises(ModelError, match=r"A teacher has all 6 layers .* got one of 4 layers"):
        bridge_table(job(llama_family, teacher=CUT))


def test_a_plan_with_a_term_is_another_plan() -> None:
    plain = CUT.layers[LAYER]
    term = LayerPlan(plain.sources, terms=(("mlp.down_proj.weight", "Bridge-0123456789abcdef/1-4"),))
    assert LayerPlan.from_dict(term.to_dict()) == term
    assert term.digest != plain.digest and not term.is_selection
    whole = replace(CUT, layers=(CUT.layers[0], term, *CUT.layers[2:]))
    assert Tailoring.from_yaml(whole.to_yaml()) == whole
    assert whole.bare == CUT and whole.terms == ("Bridge-0123456789abcdef/1-4",)
    same = [a == b for a, b in zip(whole.prefixes, CUT.prefixes, strict=True)]
    assert same == [True, True, False, False, False]

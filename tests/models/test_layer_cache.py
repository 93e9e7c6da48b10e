"""Layers in memory: within their budgets, counted once, and the same bits however often they are made."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch
from model_cases import CPU, LAYERS, logits, plan
from test_adapter import write_adapter
from torch.multiprocessing.reductions import StorageWeakRef

from tailorlib.exceptions import RecipeError
from tailorlib.models.family import ModelFamily
from tailorlib.models.layer_cache import StitchingCounts
from tailorlib.models.stitching import Stitcher
from tailorlib.tailoring import LayerPlan, PartPlan, Tailoring

MODELS = ("base", "a", "b")
MAPS = Path("/proc/self/maps")


def mixed(seed: int) -> Tailoring:
    """Return a tailoring that selects, merges, takes the attention as it is, scales, and merges its embeddings."""
    rng = random.Random(seed)
    plans = []
    for i in sorted(rng.sample(range(LAYERS), LAYERS - 2)):
        one, other = rng.sample(MODELS, 2)
        merged = plan(f"{one}:{i}", f"{other}:{i}", operation="Linear").to_dict()
        part = {"self_attn": {"sources": [f"{rng.choice(MODELS)}:{rng.randrange(LAYERS)}"]}}
        kinds = [
            {"sources": [f"{one}:{i}"]},
            merged,
            {**merged, "parts": part},
            {"sources": [f"{one}:{i}"], "mlp_scale": rng.choice([0.5, 2.0])},
        ]
        plans.append(LayerPlan.from_dict(rng.choice(kinds)))
    params = plan("a:0", "b:0", operation="Linear").params
    outer = PartPlan(("a", "b"), "Linear", params) if rng.random() < 0.3 else rng.choice(MODELS)
    return Tailoring(tuple(plans), embeddings=outer, norm=rng.choice(MODELS), head=rng.choice(MODELS), seed=seed)


def budgets(family: ModelFamily, selected: float | None, merged: float | None) -> None:
    """Set budgets in layers; families of the tests are smaller than a MiB."""
    probe = Stitcher(family.assembly, family.config, device=CPU, dtype=family.compute_dtype, merge_cache_bytes=0)
    probe.stitch(Tailoring((plan("a:0"),)))
    one = probe.selected.nbytes
    family.stitcher.selected.budget = None if selected is None else int(selected * one)
    family.stitcher.merged.budget = None if merged is None else int(merged * one)


class Storages:
    """The memory that layers really hold: of tensors whose storage is alive, whoever refers to it."""

    def __init__(self, stitcher: Stitcher) -> None:
        self.selected: dict[StorageWeakRef, int] = {}
        self.merged: dict[StorageWeakRef, int] = {}
        self.before: list[tuple[int, int]] = []
        made, placed = stitcher._made, stitcher._placed

        def note_layer(layer_plan, suffixes, seed):
            self.before.append(self.alive())
            layer = made(layer_plan, suffixes, seed)
            self.note(self.selected if layer_plan.is_selection else self.merged, layer.tensors)
            return layer

        def note_part(owner, name, seed):
            tensors = placed(owner, name, seed)
            if not isinstance(owner, str):
                self.note(self.merged, tensors)
            return tensors

        stitcher._made, stitcher._placed = note_layer, note_part

    def note(self, kind, tensors):
        kind.update({StorageWeakRef(t.untyped_storage()): t.nbytes for t in tensors.values()})

    def alive(self) -> tuple[int, int]:
        return tuple(
            sum(size for ref, size in kind.items() if not ref.expired()) for kind in (self.selected, self.merged)
        )


@pytest.mark.parametrize(("selected", "merged"), [(0, 0), (5, 3), (None, 3), (5, None), (5, 0)])
def test_budgets_hold_at_every_moment_and_change_no_bit(case_family, selected, merged):
    family, free = (case_family("llama", "bfloat16", "float32") for _ in range(2))
    budgets(family, selected, merged)
    storages, stitcher = Storages(family.stitcher), family.stitcher
    limits = [float("inf") if b is None else b for b in (stitcher.selected.budget, stitcher.merged.budget)]
    exceeded = [False, False]
    free.stitcher.merged.budget = None
    for seed in range(50):
        tailoring = mixed(seed)
        expected = logits(free.stitch(tailoring))
        alone = case_family("llama", "bfloat16", "float32") if seed % 10 == 0 else None
        storages.before.clear()
        assert torch.equal(logits(family.stitch(tailoring)), expected)
        caches = (stitcher.selected, stitcher.merged)
        kept = [sum(layer.nbytes for key, layer in c.items() if key in c._expected) for c in caches]
        for alive in (*storages.before, storages.alive()):
            assert all(a <= max(limit, k) for a, limit, k in zip(alive, limits, kept, strict=True))
        assert storages.alive() == tuple(c.nbytes for c in caches)
        exceeded = [e or k > limit for e, k, limit in zip(exceeded, kept, limits, strict=True)]
        if alone is not None:  # what the tailoring uses is no more than what it needs
            alone.stitch(tailoring)
            assert [alone.stitcher.selected.nbytes, alone.stitcher.merged.nbytes] == kept
    if merged == 0:
        assert exceeded[1]  # else the test of a tailoring over the budget would be none


def test_a_merged_layer_that_was_dropped_is_made_anew_with_the_same_bits(case_family):
    family = case_family("llama", "bfloat16", "float32", merge_cache_mib=0)
    merged = plan("a:3", "b:3", operation="DARETIES", base="base:3")
    tailoring = Tailoring((merged,), seed=5)
    first = {n: t.clone() for n, t in family.stitch(tailoring).model.layers[0].state_dict().items()}
    family.stitch(Tailoring((plan("a:0"),)))
    assert len(family.stitcher.merged) == 0
    again = family.stitch(tailoring).model.layers[0].state_dict()
    assert family.stitcher.merged.misses == 2
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_least_recently_used_layer_goes_first(case_family):
    family = case_family("llama", "bfloat16", "float32")
    budgets(family, 2, 0)
    for source in ("a:0", "b:1", "a:0", "base:2"):
        family.stitch(Tailoring((plan(source),)))
    assert [key for key, _ in family.stitcher.selected.items()] == [("a", 0), ("base", 2)]
    assert family.stitcher.counts == StitchingCounts(selected_hits=1, selected_misses=3)


def test_what_two_tailorings_share_stays_without_any_budget(case_family):
    family = case_family("llama", "bfloat16", "float32", layer_cache_mib=0)
    family.stitch(Tailoring.whole("a", LAYERS))
    before = family.stitcher.counts
    family.stitch(Tailoring((*Tailoring.whole("a", LAYERS, without=[1]).layers, plan("b:1"))))
    assert family.stitcher.counts - before == StitchingCounts(selected_hits=LAYERS - 1, selected_misses=1)
    assert len(family.stitcher.selected) == LAYERS


def test_a_layer_that_goes_takes_those_along_that_borrow_from_it(case_family):
    family = case_family("llama", "bfloat16", "float32")
    budgets(family, 1, None)
    data = plan("a:1", "b:1", operation="Linear").to_dict()
    lender = {"self_attn": {"sources": ["base:2"]}}
    fused = LayerPlan.from_dict({**data, "parts": lender})
    family.stitch(Tailoring((fused, plan("a:3", "b:3", operation="Linear"))))
    stitcher = family.stitcher
    assert [key for key, _ in stitcher.selected.items()] == [("base", 2)]
    borrower = stitcher.merged.get((fused, 0))
    lender_layer = stitcher.selected.get(("base", 2))
    shared = [n for n, t in borrower.tensors.items() if t is lender_layer.tensors[n]]
    assert set(shared) == {n for n in borrower.tensors if "self_attn" in n}
    assert borrower.nbytes == sum(t.nbytes for n, t in borrower.tensors.items() if n not in shared)
    family.stitch(Tailoring((plan("a:0"),)))
    assert [key for key, _ in stitcher.selected.items()] == [("a", 0)]
    assert [key[0].sources[0].layer for key, _ in stitcher.merged.items()] == [3]


def test_layers_count_once_per_tailoring(case_family):
    family = case_family("llama")
    merged = plan("a:1", "b:1", operation="Linear")
    family.stitch(Tailoring((plan("a:0"), plan("a:0"), merged, merged)))
    assert family.stitcher.counts == StitchingCounts(selected_misses=1, merged_misses=1)
    assert family.stitcher.counts - family.stitcher.counts == StitchingCounts()


def test_a_negative_budget_is_a_fault_and_zero_is_none(folders):
    family = ModelFamily(str(folders["base"]), layer_cache_mib=-1, merge_cache_mib=-2)
    with pytest.raises(RecipeError) as caught:
        family.prepare()
    assert caught.value.faults == (
        "family.merge_cache_mib is a whole number from 0 to 16,777,216, got -2.",
        "family.layer_cache_mib is a whole number from 0 to 16,777,216, got -1.",
    )
    allowed = ModelFamily(str(folders["base"]), layer_cache_mib=0)
    allowed.load(CPU)
    assert allowed.stitcher.selected.budget == 0
    assert ModelFamily(str(folders["base"])).layer_cache_mib is None


def test_a_budget_is_given_in_mebibytes(folders):
    family = ModelFamily(str(folders["base"]), layer_cache_mib=3)
    family.load(CPU)
    assert family.stitcher.selected.budget == 3 * 2**20


def in_files() -> list[tuple[int, int]]:
    """Return where checkpoint files are mapped, as the system tells."""
    found = []
    for line in MAPS.read_text().splitlines():
        match = re.match(r"(\w+)-(\w+) .*\.safetensors$", line)
        if match:
            found.append((int(match[1], 16), int(match[2], 16)))
    return found


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped")
@pytest.mark.parametrize(
    ("case", "storage", "compute", "quantization"),
    [
        ("llama", "bfloat16", "bfloat16", "none"),
        ("llama-tied", "bfloat16", "float32", "none"),
        ("mixtral", "float32", "float32", "none"),
        ("gpt_neox", "float32", "float32", "nf4"),
    ],
)
def test_what_is_mapped_is_what_the_system_says(case_family, case, storage, compute, quantization):
    family = case_family(case, storage, compute, quantization=quantization)
    family.stitch(Tailoring.whole("a", LAYERS))
    family.stitch(Tailoring.whole("b", LAYERS))
    check_mapped(family)
    mapped = family.stitcher.memory()["mapped"]
    if storage != compute:
        assert mapped == 0
    elif case == "llama":
        assert mapped == sum(family.stitcher.memory().values()) - mapped
        assert family.stitcher.selected.nbytes == 0
    else:
        assert 0 < mapped < sum(family.stitcher.memory().values()) - mapped


def check_mapped(family: ModelFamily) -> None:
    """Compare every tensor of the models' layers and outer parts with the system's list of mapped files."""
    stitcher = family.stitcher
    places, mapped, total = in_files(), 0, 0
    for layer in [*(layer for _, layer in stitcher.selected.items()), *(p for _, p in stitcher._outer.values())]:
        for name, tensor in layer.tensors.items():
            inside = any(first <= tensor.data_ptr() < last for first, last in places)
            assert (name in layer.mapped) == inside, name
            mapped += inside * tensor.nbytes
            total += 1
    assert total > 50
    assert stitcher.memory()["mapped"] == mapped


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped")
def test_an_adapter_is_mapped_where_it_changes_nothing(folders, tmp_path):
    adapter = write_adapter(folders["base"], tmp_path / "adapter", target_modules=["q_proj", "up_proj"])
    family = ModelFamily(str(folders["base"]), {"tuned": str(adapter)}, dtype="float32")
    family.load(CPU)
    family.stitch(Tailoring.whole("tuned", LAYERS))
    check_mapped(family)
    layer = family.stitcher.selected.get(("tuned", 0))
    assert set(layer.tensors) - layer.mapped == {"self_attn.q_proj.weight", "mlp.up_proj.weight"}
    assert layer.nbytes == sum(layer.tensors[name].nbytes for name in set(layer.tensors) - layer.mapped)

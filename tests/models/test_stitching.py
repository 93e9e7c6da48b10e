"""Live models: stitched by reference, equal to what transformers loads."""

from __future__ import annotations

import pytest
import torch
from model_cases import CPU, LAYERS, logits, plan, random_tailoring, tokens
from transformers import AutoModelForCausalLM

from tailorlib.tailoring import Tailoring


@pytest.mark.parametrize("name", ["base", "a"])
@pytest.mark.parametrize(("storage", "compute"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_a_whole_model_gives_the_same_bits_as_from_pretrained(case_family, case, name, storage, compute):
    family = case_family(case, storage, compute)
    live = family.stitch(Tailoring.whole(name, LAYERS))
    loaded = AutoModelForCausalLM.from_pretrained(family.references[name], dtype=getattr(torch, compute)).eval()
    assert torch.equal(logits(live), logits(loaded))


def test_stitching_anew_leaves_nothing_behind(case_family, case):
    family = case_family(case)
    first, second = random_tailoring(family, 1), random_tailoring(family, 2)
    before = logits(family.stitch(first))
    assert not torch.equal(logits(family.stitch(second)), before)
    assert torch.equal(logits(family.stitch(first)), before)


@pytest.mark.parametrize("seed", range(3))
def test_generation_with_a_cache_equals_generation_without(case_family, case, seed):
    model = (family := case_family(case)).stitch(random_tailoring(family, seed))
    settings = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "output_logits": True}
    settings["return_dict_in_generate"] = True
    ids = tokens(1, 12)
    cached = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **settings)
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **settings)
    assert torch.equal(cached.sequences, plain.sequences)
    assert torch.allclose(torch.stack(cached.logits), torch.stack(plain.logits), atol=1e-4)


def test_layers_are_numbered_from_the_bottom(case_family, case):
    model = (family := case_family(case)).stitch(random_tailoring(family, 0))
    layers = model.get_submodule(family.architecture.layers)
    for i, layer in enumerate(layers):
        numbers = {m.layer_idx for m in layer.modules() if hasattr(m, "layer_idx")}
        assert numbers == {i}
    assert model.config.num_hidden_layers == len(layers) == LAYERS - 2


def test_nothing_stays_on_the_meta_device(case_family, case):
    model = (family := case_family(case)).stitch(random_tailoring(family, 0))
    assert {t.device for t in (*model.parameters(), *model.buffers())} == {CPU}
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_the_config_of_the_live_model_follows_the_kept_layers(case_family):
    family = case_family("gemma3_text")
    model = family.stitch(Tailoring.whole("base", LAYERS, without=[0, 5]))
    kept = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    assert model.config.layer_types == kept
    assert [layer.self_attn.layer_type for layer in model.model.layers] == kept
    assert model.config is model.model.layers[0].self_attn.config
    assert family.config.num_hidden_layers == LAYERS


def test_a_layer_in_two_places_is_two_modules_over_the_same_weights(llama):
    merged = plan("a:2", "b:2", operation="Linear")
    plans = (plan("base:0"), plan("base:1"), plan("base:1"), merged, merged, plan("base:1"))
    layers = llama.stitch(Tailoring(plans)).model.layers
    assert len(set(map(id, layers))) == 6
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(6))
    pointers = [layer.mlp.up_proj.weight.data_ptr() for layer in layers]
    assert pointers[1] == pointers[2] == pointers[5] != pointers[0]
    assert pointers[3] == pointers[4]


def test_selection_copies_no_weight(case_family):
    family = case_family("llama", "bfloat16", "bfloat16")
    model = family.stitch(Tailoring.whole("a", LAYERS, without=[3]))
    stored = family.checkpoints["a"].tensor("model.layers.4.mlp.up_proj.weight")
    assert model.model.layers[3].mlp.up_proj.weight.data_ptr() == stored.data_ptr()
    embeddings = family.checkpoints["a"].tensor("model.embed_tokens.weight")
    assert model.get_input_embeddings().weight.data_ptr() == embeddings.data_ptr()


def test_a_merge_is_rounded_to_the_stored_type_before_it_is_computed_with(case_family):
    family = case_family("llama", "bfloat16", "float32")
    model = family.stitch(Tailoring((plan("a:1", "b:1", operation="TIES", base="base:1"),)))
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, weight.bfloat16().float())


def test_tied_head_follows_the_embeddings(case_family):
    family = case_family("llama-tied")
    whole = Tailoring.whole("base", LAYERS)
    model = family.stitch(Tailoring(whole.layers, embeddings="a", head="b"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, family.checkpoints["a"].tensor("model.embed_tokens.weight"))


def test_the_outer_parts_come_from_their_owners(llama):
    whole = Tailoring.whole("base", LAYERS)
    model = llama.stitch(Tailoring(whole.layers, embeddings="a", norm="b", head="base"))
    stored = {n: c.tensor for n, c in llama.checkpoints.items()}
    assert torch.equal(model.model.embed_tokens.weight, stored["a"]("model.embed_tokens.weight"))
    assert torch.equal(model.model.norm.weight, stored["b"]("model.norm.weight"))
    assert torch.equal(model.lm_head.weight, stored["base"]("lm_head.weight"))


def test_merged_layers_are_computed_once(case_family):
    family = case_family("llama")
    plans = [plan(f"a:{i}", f"b:{i}", operation="Linear") for i in range(3)]
    family.stitch(Tailoring((*plans, plans[0])))
    cache = family.stitcher.merged
    assert (cache.hits, cache.misses, len(cache)) == (0, 3, 3)
    family.stitch(Tailoring((plans[2], plan("base:4"), plans[1])))
    assert (cache.hits, cache.misses) == (2, 3)
    family.stitch(Tailoring((plans[2],), seed=1))  # another seed is another mask
    assert (cache.hits, cache.misses) == (2, 4)


@pytest.mark.parametrize("layers_kept", [0, 2])
def test_the_merge_cache_keeps_to_its_budget(case_family, layers_kept):
    family = case_family("llama", merge_cache_mib=0)
    plans = [plan(f"a:{i}", f"b:{i}", operation="Linear") for i in range(4)]
    probe = case_family("llama")
    probe.stitch(Tailoring((plans[0],)))
    cache = family.stitcher.merged
    one = probe.stitcher.merged.nbytes
    cache.budget = layers_kept * one
    expected = logits(probe.stitch(Tailoring(tuple(plans))))
    assert torch.equal(logits(family.stitch(Tailoring(tuple(plans)))), expected)
    assert cache.nbytes == 4 * one  # the live model holds them all
    family.stitch(Tailoring((plans[3],)))
    assert (cache.hits, cache.misses) == (1, 4)
    assert cache.nbytes == max(layers_kept, 1) * one
    family.stitch(Tailoring((plans[2],)))
    assert (cache.hits, cache.misses) == ((2, 4) if layers_kept else (1, 5))
    assert cache.nbytes == max(layers_kept, 1) * one


def test_random_masks_depend_on_the_source_and_not_on_the_slot(case_family):
    merged = plan("a:3", "b:3", operation="DARELinear", base="base:3")

    def weight(tailoring):  # by a family of its own, so that nothing is remembered
        return case_family("llama").stitch(tailoring).model.layers[-1].mlp.up_proj.weight

    alone = weight(Tailoring((merged,)))
    assert torch.equal(weight(Tailoring((plan("base:0"), merged))), alone)
    assert not torch.equal(weight(Tailoring((merged,), seed=7)), alone)

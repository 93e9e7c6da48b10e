from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tailorlib_strategies.operations import LayerRemoval
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.warm_starts import BlockInfluence, FullDepthMerge, SingleVariants, UniformMix
from warm_start_cases import CPU, Given, VaryingRemoval, in_space, removed

from tailorlib import LayerPlan, LayerSource, WarmStart, WarmStartContext
from tailorlib.exceptions import RecipeError
from tailorlib.models.family import ModelFamily


def test_mixes_take_every_model_equally_often(three: WarmStartContext) -> None:
    found = UniformMix(300).propose(three)
    assert len({t.digest for t in found}) == 300
    drawn = Counter(plan.sources[0].model for t in found for plan in t.layers)
    # 1200 draws of 4 models: 300 each, with a standard deviation of 15
    assert set(drawn) == {"base", "a", "b", "c"}
    assert all(abs(number - 300) < 60 for number in drawn.values())
    gone = Counter(removed(t) for t in found)
    assert len(gone) == 10  # all pairs of the 5 layers that may go
    assert all(plan.is_selection for t in found for plan in t.layers)


def test_mixes_follow_the_seed_and_another_removal(context: WarmStartContext) -> None:
    influence = BlockInfluence(Given())
    gone = removed(influence.propose(context)[0])
    first, again = (UniformMix(5, influence).propose(context) for _ in range(2))
    assert list(first) == list(again)
    assert {removed(t) for t in first} == {gone}
    other = UniformMix(5, influence).propose(replace(context, seed=8))
    assert [t.layers for t in first] != [t.layers for t in other]


def test_mixes_of_a_varying_number_of_layers(context: WarmStartContext) -> None:
    there = in_space(context, PruningSpace(VaryingRemoval(1, 3)))
    assert {len(removed(t)) for t in UniformMix(40).propose(there)} == {1, 2, 3}


def test_no_more_mixes_than_there_are(context: WarmStartContext, caplog: pytest.LogCaptureFixture) -> None:
    there = in_space(context, PruningSpace(LayerRemoval(count=5, protect=[3])))
    found = UniformMix(10).propose(there)
    assert {t.layers for t in found} == {(LayerPlan((LayerSource(model, 3),)),) for model in ("base", "a", "b")}
    assert len(found) == 3
    assert "draws 10 different mixes, and found 3" in caplog.text


def test_single_variants_are_one_candidate_each(three: WarmStartContext) -> None:
    influence = BlockInfluence(Given())
    gone = removed(influence.propose(three)[0])
    found = SingleVariants(influence).propose(three)
    assert [set(t.models) for t in found] == [{"base", name} for name in "abc"]  # embeddings are the base's
    for name, tailoring in zip("abc", found, strict=True):
        kept = (i for i in range(6) if i not in gone)
        assert tailoring.layers == tuple(LayerPlan((LayerSource(name, i),)) for i in kept)
    assert SingleVariants(influence, variant="b").propose(three) == [found[1]]
    with pytest.raises(RecipeError, match=r"variant names a candidate, got 'd'\. Known: a, b, c"):
        SingleVariants(influence, variant="d").propose(three)


def test_a_full_depth_merge_is_the_merge_of_every_tensor(
    three: WarmStartContext, folders: dict[str, Path]
) -> None:
    (found,) = FullDepthMerge("TaskArithmetic", {"scale": 0.4}).propose(three)
    base, *others = (load_file(folders[name] / "model.safetensors") for name in ("base", "a", "b", "c"))
    live = three.family.stitch(found).state_dict()
    for name, tensor in base.items():
        expected = tensor + 0.4 * sum(other[name] - tensor for other in others)
        assert torch.allclose(live[name], expected, atol=1e-5), name
    assert len(live) == len(base)


def test_a_full_depth_merge_with_weights(context: WarmStartContext, folders: dict[str, Path]) -> None:
    (found,) = FullDepthMerge("Linear", {"weights": [3.0, 1.0], "normalize": True}).propose(context)
    a, b = (load_file(folders[name] / "model.safetensors") for name in "ab")
    live = context.family.stitch(found).state_dict()
    assert all(torch.allclose(live[name], 0.75 * a[name] + 0.25 * b[name], atol=1e-5) for name in a)


def test_a_full_depth_merge_is_no_first_trial(context: WarmStartContext) -> None:
    with pytest.raises(
        RecipeError, match=r"full-depth merge \(Linear\) proposes nothing that lies in this Pruning"
    ):
        FullDepthMerge("Linear").starts(context)


@pytest.mark.parametrize(
    ("operation", "params", "message"),
    [
        ("Lineal", {}, "operation names a merge operation: .*Did you mean 'Linear'"),
        ("LayerRemoval", {}, "operation names a merge operation"),
        ("LayerSelection", {}, "which merges nothing"),
        ("TaskArithmetic", {}, "got none for scale"),
        ("TaskArithmetic", {"scale": 0.5, "density": 0.5}, "has no 'density'; TaskArithmetic has scale"),
        ("Linear", {"weights": [1.0]}, r"one number per candidate.*got \[1\.0\]"),
        ("ModelStock", {"weights": [1.0, 1.0, 1.0]}, "for operations that weigh"),
        ("SLERP", {"t": 0.5}, "got 3 for SLERP, which takes 2 to 2"),
    ],
)
def test_a_full_depth_merge_is_checked(
    three: WarmStartContext, operation: str, params: dict[str, bool | float | str | list[float]], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        FullDepthMerge(operation, params).propose(three)


@pytest.mark.parametrize(
    "start", [UniformMix(), SingleVariants(BlockInfluence(Given())), FullDepthMerge("Linear")]
)
def test_a_base_alone_has_nothing_to_mix(
    context: WarmStartContext, folders: dict[str, Path], start: WarmStart
) -> None:
    family = ModelFamily(str(folders["base"]), dtype="float32")
    family.load(CPU)
    alone = in_space(replace(context, family=family), PruningSpace(LayerRemoval(count=2)))
    with pytest.raises(RecipeError, match=f"{type(start).__name__} needs candidate models"):
        start.propose(alone)


def test_settings_are_checked() -> None:
    with pytest.raises(RecipeError, match="at least one mix"):
        UniformMix(0)

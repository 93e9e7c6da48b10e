"""What is written down here about mergekit 0.1.5 is what mergekit 0.1.5 says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit import merge_methods
from mergekit.architecture.json_definitions import JSON_ARCHITECTURES
from mergekit.config import InputModelDefinition, evaluate_setting
from mergekit.merge_methods.base import BasePolicy, ParameterScope
from mergekit.merge_methods.slerp import slerp

from tailorlib.interchange.from_methods import METHODS
from tailorlib.interchange.listed import LISTED
from tailorlib.interchange.methods import BASELESS, RANDOM
from tailorlib.interchange.names import apply_filters, filters_for
from tailorlib.interchange.settings import Scope, decimal
from tailorlib.models.architecture import ARCHITECTURES

PEERS = {method.spec.name: method for method in merge_methods.registered_methods()}


def test_all_its_methods_are_read() -> None:
    assert set(METHODS) == set(PEERS)
    assert {n for n, m in PEERS.items() if m.spec.contract.base == BasePolicy.OPTIONAL} == BASELESS
    assert {n for n in PEERS if n.startswith(("dare", "della"))} == RANDOM


@pytest.mark.parametrize("name", METHODS)
def test_parameters_and_their_defaults(name: str) -> None:
    ours, spec = METHODS[name], PEERS[name].spec
    theirs = {p.name: None if p.required else p.default for p in spec.shared_parameters}
    assert {n: default for n, (_, default) in ours.shared.items()} == theirs
    theirs = {p.name: None if p.required else p.default for p in spec.input_parameters}
    if name == "passthrough":
        theirs["scale"] = 1.0  # None: not scaled
    assert {n: default for n, (_, default) in ours.own.items()} == theirs
    assert not [p for p in spec.input_parameters if p.scope == ParameterScope.INPUT and ours.base is not False]


@pytest.mark.parametrize("name", METHODS)
def test_numbers_of_sources(name: str) -> None:
    ours, contract = METHODS[name], PEERS[name].spec.contract
    policies = {True: BasePolicy.REQUIRED, None: BasePolicy.OPTIONAL, False: BasePolicy.IGNORED}
    assert contract.base == policies[ours.base]
    base = 1 if ours.base else 0
    least = contract.min_inputs - base if contract.min_non_base is None else contract.min_non_base
    most = contract.max_inputs and contract.max_inputs - base
    assert (ours.least, ours.most) == (least, most if contract.max_non_base is None else contract.max_non_base)


def test_tensors_of_each_architecture() -> None:
    listed = {a.expected_model_type: a for a in JSON_ARCHITECTURES if "default" in a.modules}
    causal = {
        n: a for n, a in listed.items() if any(k.endswith(("ForCausalLM", "LMHeadModel")) for k in a.architectures)
    }
    assert set(ARCHITECTURES) & set(causal) == set(LISTED)
    for name, ours in LISTED.items():
        definition = causal[name].modules["default"].architecture.definition
        weights = {w.name.partition("${layer_index}.")[2]: w.optional for w in definition.layer_templates.weights}
        assert set(weights) == ours.known, name
        assert {n for n, optional in weights.items() if not optional} == ours.required, name
        row = ARCHITECTURES[name]
        before = {w.name.removesuffix(".weight") for w in definition.pre_weights}
        assert before == set(row.embeddings), name
        behind = {w.name.rpartition(".")[0]: w.optional for w in definition.post_weights}
        assert behind.pop(row.norm) is False
        assert behind in ({}, {row.stored_head: not ours.needs_head}), name


NAMES = ("model.layers.3.mlp.up_proj.weight", "model.layers.3.self_attn.q_proj.weight", "lm_head.weight")
NUMBERS = st.one_of(st.integers(-2, 2), st.floats(-2, 2), st.sampled_from(["0.5", "1e-3"]))
GRADIENTS = st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=5))
FILTERS = st.sampled_from(["mlp", "3.mlp", "q_proj", "*", "", None])
RULES = st.lists(st.fixed_dictionaries({"value": GRADIENTS}, optional={"filter": FILTERS}), max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.one_of(GRADIENTS, RULES), st.sampled_from(NAMES), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0]))
def test_settings_are_evaluated_alike(data: object, name: str, t: float) -> None:
    (setting,) = InputModelDefinition.model_validate({"model": "a", "parameters": {"p": data}}).parameters.values()
    theirs = evaluate_setting(name, setting, t, validate=float)
    found = Scope("parameters", {"p": data}).find("p", name, t, decimal)
    assert (None if found is None else found.value) == theirs


WORDS = st.text(alphabet="ab.", min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(WORDS, st.integers(0, 2), min_size=1, max_size=6), st.lists(WORDS, max_size=3))
def test_filters_give_every_name_its_value(values: dict[str, int], hints: list[str]) -> None:
    default, rules = filters_for(values, hints)
    assert {name: apply_filters(name, default, rules) for name in values} == values


def test_filters_prefer_hints_and_leave_out_what_is_not_needed() -> None:
    names = [f"self_attn.{p}.weight" for p in "qkvo"] + ["mlp.up.weight", "mlp.down.weight", "norm.weight"]
    values = {name: int(name.startswith("mlp")) for name in names}
    assert filters_for(values, ["lm_head", "attn", "mlp"]) == (0, (("mlp", 1),))
    assert filters_for(dict.fromkeys(names, 2), ["mlp"]) == (2, ())


def test_slerp_at_its_ends_is_a_selection_to_the_bit() -> None:
    a, b = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(slerp(torch.tensor([0.0]), a[None], b[None])[0], a)
    assert torch.equal(slerp(torch.tensor([1.0]), a[None], b[None])[0], b)

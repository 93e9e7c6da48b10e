"""Damaged and lying files, and plans that make no sense: refused with what is wrong and where, never a crash."""

from __future__ import annotations

import json
import shutil
import struct
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_cases import CPU, LAYERS, logits, plan
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import ModelError, RecipeError, TailorError
from tailorlib.export import export_model
from tailorlib.models.checkpoint import INDEX, SINGLE, SafetensorsCheckpoint, read_header
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import LayerPlan, LayerSource, PartPlan, Tailoring

UP = "model.layers.3.mlp.up_proj.weight"
EMBEDDINGS = "model.embed_tokens.weight"
HALF = {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}
NEXT = {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]}

many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def damaged(folder, header, data=16, length=None):
    """Write a safetensors file with any header (an object, or bytes as they are) in front of zeros."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / SINGLE
    file.unlink(missing_ok=True)  # a new file: an old one may be mapped
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * data)
    return file


def entry(**fields):
    return {"a": {**HALF, **fields}, "b": NEXT}


def twice(text):
    return json.dumps(entry()).replace('"b"', text).encode()


# safetensors headers


def test_a_sound_header_is_read(tmp_path):
    found = read_header(damaged(tmp_path, {"__metadata__": {"format": "pt"}, **entry(note=1)}))
    assert found["a"].shape == (2, 2)


HEADERS = [
    ([], "begins with"),
    (b"", "begins with"),
    (b" " + json.dumps(entry()).encode(), "begins with"),
    (json.dumps(entry()).encode("utf-16"), "begins with"),
    (b'{"a":', "Expecting value"),
    (b"{\xff}", "can't decode byte"),
    (b'{"a": NaN}', "NaN is no JSON"),
    (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    (b'{"a": ' + b'{"a":' * 100_000, "nested too deeply"),
    (b'{"\\ud800": 3}', "surrogates not allowed"),
    (twice('"a"'), "'a' twice"),
    (json.dumps(entry()).replace('"shape"', '"dtype": "F16", "shape"', 1).encode(), "'dtype' twice"),
    ({"__metadata__": [], **entry()}, "__metadata__ maps names to texts, and is []"),
    ({"__metadata__": {"n": 3}, **entry()}, "__metadata__ maps names to texts, and is {'n': 3}"),
    ({"__metadata__": None, **entry()}, "__metadata__ maps names to texts, and is None"),
    ({"a": [1, 2]}, "tensor 'a' is described by [1, 2]"),
    (entry(dtype=16), "dtype of tensor 'a' is 16"),
    (entry(dtype="F4"), "tensor 'a' has the data type 'F4', which is one of quantised weights or unknown"),
    (entry(shape=4), "shape of tensor 'a' is 4"),
    (entry(shape=[2.0, 2]), "shape of tensor 'a' is [2.0, 2]"),
    (entry(shape=[True, 4]), "shape of tensor 'a' is [True, 4]"),
    (entry(shape=[-2, -2]), "shape of tensor 'a' is [-2, -2]"),
    (entry(shape=[2, 3]), "tensor 'a' takes 12 bytes as F16 [2, 3], and its place, 0 to 8, has 8"),
    (entry(shape=[2**40, 2**40]), "takes 24178516392292583 ... bytes"),
    (entry(shape=[2**62, 4, 0], data_offsets=[0, 0]), "which PyTorch can't hold"),
    (entry(shape=[1] * 60 + [2, 2] + [1] * 60), "which PyTorch can't hold"),
    (entry(shape=[10**4000] * 30), "takes a whole number of 398"),
    (entry(data_offsets=None), "data_offsets of tensor 'a' are None"),
    (entry(data_offsets=[0]), "data_offsets of tensor 'a' are [0]"),
    (entry(data_offsets=[0, 4, 8]), "data_offsets of tensor 'a' are [0, 4, 8]"),
    (entry(data_offsets=["0", "8"]), "data_offsets of tensor 'a' are ['0', '8']"),
    (entry(data_offsets=[-8, 0]), "data_offsets of tensor 'a' are [-8, 0]"),
    (entry(data_offsets=[8, 0]), "data_offsets of tensor 'a' are [8, 0]"),
    (entry(data_offsets=[4, 12]), "tensor 'a' begins at byte 4, and there is nothing from byte 0 on"),
    (entry(data_offsets=[8, 16]), "begins at byte 8"),
    (entry(data_offsets=[0, 10**30]), "takes 8 bytes"),
    ({"a": HALF, "b": {**NEXT, "data_offsets": [4, 12]}}, "tensor 'b' begins at byte 4, inside 'a'"),
    (
        {"a": HALF, "b": {**NEXT, "data_offsets": [12, 20]}},
        "'b' begins at byte 12, and there is nothing from byte 8 on",
    ),
    ({"a": HALF}, "take 8 bytes (the last tensor is 'a'), and the file has 16 for them"),
    ({"a": HALF, "b": {**NEXT, "data_offsets": [8, 24], "shape": [16]}}, "take 24 bytes (the last tensor is 'b')"),
    ({}, "take 0 bytes, and the file has 16"),
    ({"a\n\u202e": {**HALF, "shape": [3]}}, r"tensor 'a\n\u202e' takes 6 bytes"),
    ({"a" * 5000: {**HALF, "shape": [3]}}, "aaa' takes 6 bytes"),
]


@pytest.mark.parametrize(("header", "message"), HEADERS, ids=range(len(HEADERS)))
def test_a_lying_header_is_refused_with_the_file_the_tensor_and_the_lie(tmp_path, header, message):
    file = damaged(tmp_path, header)
    with pytest.raises(ModelError) as caught:
        read_header(file)
    told = str(caught.value)
    assert told.startswith(f"The checkpoint file {str(file)!r} is damaged or unsuitable: ")
    for part in message.split(" ... "):
        assert part in told
    assert len(told) < 1000 + len(str(file))
    assert told.isprintable()


@pytest.mark.parametrize("length", [10**8, 10**8 + 1, 2**32, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_not_even_read(tmp_path, length):
    file = damaged(tmp_path, entry(), length=length)
    with pytest.raises(ModelError, match=f"its header claims {length} bytes; the file has"):
        read_header(file)


def test_a_header_over_the_format_s_limit_is_refused_though_the_file_has_it(tmp_path):
    file = damaged(tmp_path, entry(), length=10**8 + 1)
    with file.open("r+b") as stream:
        stream.truncate(2 * 10**8)  # a sparse file
    with pytest.raises(ModelError, match="a header at most 100000000"):
        read_header(file)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file of several types and shapes, an empty tensor and a scalar among them."""
    folder = tmp_path_factory.mktemp("small")
    tensors = {"model.w": torch.arange(6.0).reshape(2, 3), "model.b": torch.ones(3, dtype=torch.bfloat16)}
    tensors |= {"empty": torch.zeros(0, 4), "one": torch.tensor(3), "mask": torch.tensor([True, False])}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


STRICTER = ("twice", "the data type", "__metadata__", "begins with", "is described by", "PyTorch can't hold")
"""Why a file is refused that the safetensors package reads."""


def compare_with_safetensors(folder):
    """Check that a file is refused or read as the safetensors package reads it."""
    try:
        with safe_open(folder / SINGLE, framework="pt") as file:
            expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        expected = None
    try:
        checkpoint = SafetensorsCheckpoint(folder)
        found = {name: checkpoint.tensor(name) for name in checkpoint.keys()}  # noqa: SIM118
    except ModelError as error:
        assert expected is None or any(reason in str(error) for reason in STRICTER), str(error)
        return
    assert expected is not None
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == checkpoint.dtype(name)
        assert found[name].shape == tensor.shape == checkpoint.shape(name)
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)


positions = st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4)


@many
@given(changes=positions, cut=st.none() | st.floats(0, 1), more=st.binary(max_size=9))
def test_changed_bytes_are_refused_or_read_as_safetensors_reads_them(small, tmp_path, changes, cut, more):
    content = bytearray((small / SINGLE).read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for where, byte in changes:
        content[int(where * header)] = byte
    content = content[: len(content) if cut is None else int(cut * len(content))] + more
    (tmp_path / SINGLE).unlink(missing_ok=True)
    (tmp_path / SINGLE).write_bytes(content)
    compare_with_safetensors(tmp_path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
sizes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12, 2**31, 2**63, 2**64]) | st.integers(-2, 40), max_size=4)


@many
@given(
    name=st.sampled_from(["model.w", "model.b", "empty", "one", "mask", "__metadata__", "new"]),
    field=st.sampled_from([None, "dtype", "shape", "data_offsets", "more"]),
    value=anything | sizes | st.sampled_from(["F32", "I64", "BOOL", "U8", "F8_E5M2", "f32"]),
)
def test_changed_fields_are_refused_or_read_as_safetensors_reads_them(small, tmp_path, name, field, value):
    content = (small / SINGLE).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    if field is None or not isinstance(header.get(name), dict):
        header[name] = value
    else:
        header[name][field] = value
    text = json.dumps(header).encode()
    (tmp_path / SINGLE).unlink(missing_ok=True)
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + content[end:])
    compare_with_safetensors(tmp_path)


def test_a_header_of_ten_thousand_tensors_is_read_at_once(tmp_path):
    names = [f"model.layers.{i // 384}.mlp.experts.{i % 128}.{i % 3}_proj.weight.{i}" for i in range(10_000)]
    header = {
        n: {"dtype": "BF16", "shape": [2, 4], "data_offsets": [16 * i, 16 * i + 16]} for i, n in enumerate(names)
    }
    file = damaged(tmp_path, header, 160_000)
    seconds = []
    for _ in range(3):  # a collection of garbage may fall into one
        started = time.process_time()
        assert set(read_header(file)) == set(names)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.5  # 0.04 s by itself


# shards and their index


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for i in (1, 2):
        save_file({f"t{i}": torch.full((i, 2), float(i)), f"u{i}": torch.ones(i)}, folder / f"{i}.safetensors")
    where = {f"{name}{i}": f"{i}.safetensors" for i in (1, 2) for name in "tu"}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": where}))
    return folder


@pytest.fixture
def indexed(shards, tmp_path):
    """Return a function that puts another index over the same shards."""
    for file in shards.glob("*.safetensors"):
        shutil.copy(file, tmp_path)

    def write(content):
        (tmp_path / INDEX).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return tmp_path

    return write


def test_shards_without_metadata_are_read(indexed):
    checkpoint = SafetensorsCheckpoint(indexed({"weight_map": {"t2": "2.safetensors", "u1": "1.safetensors"}}))
    assert checkpoint.keys() == ("t2", "u1")
    assert checkpoint.tensor("t2").tolist() == [[2, 2], [2, 2]]


INDICES = [
    ([], "it is a JSON object, got []"),
    ({}, "weight_map maps tensors to files, and is None"),
    ({"weight_map": {}}, "weight_map maps tensors to files, and is {}"),
    ({"weight_map": ["1.safetensors"]}, "and is ['1.safetensors']"),
    ({"weight_map": {"t1": 1}}, "and is {'t1': 1}"),
    (
        {"weight_map": {"t1": "../1.safetensors"}},
        "'t1' in '../1.safetensors', and a shard lies in the index's own",
    ),
    ({"weight_map": {"t1": "/etc/passwd"}}, "'t1' in '/etc/passwd', and a shard lies in the index's own folder"),
    ({"weight_map": {"t1": "x/../../1.safetensors"}}, "a shard lies in"),
    ({"weight_map": {"t1": "..\\1.safetensors"}}, "a shard lies in"),
    ({"weight_map": {"t1": "C:\\1.safetensors"}}, "a shard lies in"),
    ({"weight_map": {"t1": "c:1.safetensors"}}, "a shard lies in"),
    ({"weight_map": {"t1": ""}}, "a shard lies in"),
    ({"weight_map": {"t1": "."}}, "a shard lies in"),
    ({"weight_map": {"t1": ".."}}, "a shard lies in"),
    ({"weight_map": {"t1": "1.safe\0tensors"}}, "is no name of a file"),
    ({"weight_map": {"t1": "x" * 300}}, "is no name of a file"),
    (b'{"weight_map": {"t1": "1.safetensors", "t1": "2.safetensors"}}', "'t1' twice"),
    (b'{"weight_map": {"\\udc00": "1.safetensors"}}', "surrogates not allowed"),
    (b'{"weight_map": {"t1": "\\udc00"}}', "surrogates not allowed"),
    (b'{"weight_map": ' + b"[" * 100_000, "nested too deeply"),
    (b"\xff\xfe", "can't decode"),
    (b"", "Expecting value"),
]


@pytest.mark.parametrize(("content", "message"), INDICES, ids=range(len(INDICES)))
def test_an_index_that_is_none_or_leads_outside_is_refused(indexed, content, message):
    folder = indexed(content)
    with pytest.raises(ModelError) as caught:
        SafetensorsCheckpoint(folder)
    assert str(caught.value).startswith(f"The index {str(folder / INDEX)!r} can't be read: ")
    assert message in str(caught.value)


def test_a_shard_that_is_missing_or_a_folder_is_named(indexed):
    folder = indexed({"weight_map": {"t1": "1.safetensors", "t9": "gone.safetensors"}})
    with pytest.raises(ModelError, match=r"shard '.*gone\.safetensors' is missing; it holds 't9'"):
        SafetensorsCheckpoint(folder)
    (folder / "gone.safetensors").mkdir()
    with pytest.raises(ModelError, match=r"gone\.safetensors' is missing"):
        SafetensorsCheckpoint(folder)


def test_a_tensor_that_is_in_another_shard_is_named(indexed):
    folder = indexed({"weight_map": {"t1": "1.safetensors", "u1": "2.safetensors"}})
    with pytest.raises(ModelError, match=r"places the tensor 'u1' in '.*2\.safetensors', which lacks it"):
        SafetensorsCheckpoint(folder)


def test_shards_without_an_index_are_refused_by_its_name(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(
        ModelError, match=r"1 shards such as model-00001-of-00002\.safetensors and no model\.safe.*index"
    ):
        SafetensorsCheckpoint(tmp_path)


def test_of_a_whole_file_and_an_index_transformers_file_is_read(folders, tmp_path):
    shutil.copytree(folders["base"], tmp_path / "both")
    AutoModelForCausalLM.from_pretrained(folders["a"]).save_pretrained(tmp_path / "x", max_shard_size="60KB")
    for file in (tmp_path / "x").glob("model*"):
        shutil.copy(file, tmp_path / "both")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "both").state_dict()
    assert torch.equal(SafetensorsCheckpoint(tmp_path / "both").tensor(UP), read[UP])


def read_or_refused(folder):
    try:
        checkpoint = SafetensorsCheckpoint(folder)
        for name in checkpoint.keys():  # noqa: SIM118
            assert tuple(checkpoint.tensor(name).shape) == checkpoint.shape(name)
    except ModelError:
        pass


@many
@given(changes=positions)
def test_changed_bytes_of_an_index_are_refused_or_read(shards, indexed, changes):
    content = bytearray((shards / INDEX).read_bytes())
    for where, byte in changes:
        content[int(where * len(content))] = byte
    read_or_refused(indexed(bytes(content)))


@many
@given(
    st.dictionaries(st.just("weight_map"), anything | st.dictionaries(st.text(max_size=4), st.text(), max_size=3))
)
def test_any_index_is_refused_or_read(indexed, data):
    read_or_refused(indexed(data))


# models of a family


def with_tensor(folder, source, name, change):
    shutil.copytree(source, folder)
    tensors = load_file(source / SINGLE)
    changed = change(tensors[name].clone())
    save_file(
        {**tensors, name: changed} if changed is not None else {n: t for n, t in tensors.items() if n != name},
        folder / SINGLE,
        metadata={"format": "pt"},
    )
    return folder


def poisoned(value):
    def change(tensor):
        tensor[1, 2] = value
        return tensor

    return change


def family_of(base, **candidates):
    return ModelFamily(str(base), {n: str(f) for n, f in candidates.items()}, dtype="float32")


TAILORINGS = {
    "selected": Tailoring((plan("base:0"), plan("a:3"), plan("base:5"))),
    "merged": Tailoring((plan("base:0"), plan("a:3", "b:3", operation="TIES", base="base:3"))),
    "scaled": Tailoring((plan("base:0"), LayerPlan((LayerSource("a", 3),), mlp_scale=0.5))),
    "part": Tailoring((LayerPlan((LayerSource("base", 3),), parts=(("mlp", plan("a:3")),)),)),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("use", TAILORINGS)
def test_nan_or_inf_stops_stitching_and_export_and_leaves_nothing_behind(folders, tmp_path, use, value):
    bad = with_tensor(tmp_path / "bad", folders["a"], UP, poisoned(value))
    family = family_of(folders["base"], a=bad, b=folders["b"])
    family.load(CPU)
    whole = logits(family.stitch(Tailoring.whole("base", LAYERS)))
    for attempt in (family.stitch, lambda tailoring: export_model(family, tailoring, tmp_path / "out" / "model")):
        with pytest.raises(ModelError) as caught:
            attempt(TAILORINGS[use])
        assert f"tensor {UP!r} of the model 'a' ({bad / SINGLE}) holds NaN or Inf at 1 of" in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
    assert torch.equal(logits(family.stitch(Tailoring.whole("base", LAYERS))), whole)


def test_nan_in_the_parts_around_the_layers_is_found_too(folders, tmp_path):
    bad = with_tensor(tmp_path / "bad", folders["a"], EMBEDDINGS, poisoned(float("nan")))
    family = family_of(folders["base"], a=bad)
    family.load(CPU)
    merged = PartPlan(("base", "a"), "Linear")
    for owner in ("a", merged):
        with pytest.raises(
            ModelError, match=rf"tensor '{EMBEDDINGS}' of the model 'a' .* holds NaN or Inf at 1 of"
        ):
            family.stitch(Tailoring((plan("a:0"),), embeddings=owner))
        with pytest.raises(ModelError, match=rf"tensor '{EMBEDDINGS}' of the model 'a'"):
            export_model(family, Tailoring((plan("a:0"),), embeddings=owner), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    family.stitch(Tailoring((plan("a:0"),)))  # what isn't used doesn't matter


def test_an_export_that_fails_keeps_the_folder_that_was_there(folders, tmp_path):
    bad = with_tensor(tmp_path / "bad", folders["a"], UP, poisoned(float("nan")))
    family = family_of(folders["base"], a=bad)
    family.prepare()
    target = export_model(family, Tailoring((plan("base:0"),)), tmp_path / "out")
    before = {p.name: p.read_bytes() for p in target.iterdir()}
    with pytest.raises(ModelError, match="holds NaN"):
        export_model(family, TAILORINGS["selected"], target, overwrite=True)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    assert {p.name for p in tmp_path.iterdir()} == {"bad", "out"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-1].clone(), rf"'{UP}' has the shape \[47, 32\] instead of \[48, 32\]"),
        (lambda t: t.reshape(-1), rf"'{UP}' has the shape \[1536\] instead of"),
        (lambda t: None, rf"'{UP}' is missing"),
    ],
)
def test_a_tensor_of_another_shape_or_none_is_named_with_its_model(folders, tmp_path, change, message):
    bad = with_tensor(tmp_path / "bad", folders["a"], UP, change)
    with pytest.raises(RecipeError, match=rf"candidate 'a': .*bad', {message}"):
        family_of(folders["base"], a=bad).prepare()
    with pytest.raises(RecipeError, match=rf"base: .*bad' doesn't fit its config: {message}"):
        family_of(bad).prepare()


@pytest.mark.parametrize("change", [lambda t: t[0].clone(), lambda t: t[0, 0].clone(), lambda t: None])
def test_embeddings_of_another_rank_or_none_are_refused(folders, tmp_path, change):
    bad = with_tensor(tmp_path / "bad", folders["a"], EMBEDDINGS, change)
    with pytest.raises(RecipeError, match="candidate 'a': A candidate"):
        family_of(folders["base"], a=bad).prepare()


def test_a_truncated_shard_or_file_stops_the_family_with_every_fault(folders, tmp_path):
    for name in "ab":
        shutil.copytree(folders[name], tmp_path / name)
    (tmp_path / "a" / SINGLE).write_bytes((folders["a"] / SINGLE).read_bytes()[:-5])
    (tmp_path / "b" / SINGLE).unlink()
    with pytest.raises(RecipeError) as caught:
        family_of(folders["base"], a=tmp_path / "a", b=tmp_path / "b").prepare()
    assert "candidate 'a': The checkpoint file" in caught.value.faults[0]
    assert "(the last tensor is '" in caught.value.faults[0]
    assert "candidate 'b'" in caught.value.faults[1]


def test_a_layer_below_the_first_is_refused(llama):
    with pytest.raises(
        ModelError, match=r"Layer 0 of the tailoring takes a:-1; the models have the layers 0 to 5"
    ):
        llama.stitch(Tailoring((LayerPlan((LayerSource("a", -1),)),)))


def test_pickled_weights_are_refused_as_base_and_as_candidate(folders, tmp_path):
    shutil.copytree(folders["a"], tmp_path / "a")
    (tmp_path / "a" / SINGLE).rename(tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(RecipeError, match=r"candidate 'a': tailorlib reads safetensors.*save_pretrained"):
        family_of(folders["base"], a=tmp_path / "a").prepare()
    with pytest.raises(RecipeError, match=r"base: tailorlib reads safetensors.*save_pretrained"):
        family_of(tmp_path / "a").prepare()


# plans

GOOD = {
    "tailoring": 1,
    "embeddings": {"models": ["a", "b"], "operation": "TIES", "params": {"density": 0.5}, "base": "base"},
    "norm": "a",
    "head": "base",
    "seed": 3,
    "layers": [
        {"sources": ["base:0"]},
        {"sources": ["a:1", "b:1"], "operation": "TIES", "params": {"weights": [1, 0.5]}, "base": "base:1"},
        {"sources": ["a:2"], "mlp_scale": 0.5, "parts": {"self_attn": {"sources": ["b:2"]}}},
    ],
}
HUGE = 10**5000


def changed(*path, to):
    data = json.loads(json.dumps(GOOD))
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = to
    return data


def nested(depth):
    data = []
    for _ in range(depth):
        data = [data]
    return data


def cyclic():
    data = {"sources": ["a:0"]}
    data["parts"] = {"mlp": data}
    return data


def endless():
    data = []
    data.append(data)
    return data


def laughs(levels=30):
    data = ["lol"] * 10
    for _ in range(levels):
        data = [data] * 10
    return data


PLANS = [
    (None, "is a mapping, got None"),
    ([GOOD], "is a mapping, got \\["),
    (changed("tailoring", to=True), "got True"),
    (changed("tailoring", to=HUGE), "got a whole number of 16610 bits"),
    (changed("tailoring", to="1"), "got '1'"),
    (changed(3, to=3), "got also 3"),
    (changed(("layers",), to=3), r"got also \('layers',\)"),
    (changed("layers", to=[]), "at least one layer, got none"),
    (changed("layers", to={}), "list of layer plans, got dict"),
    (changed("layers", to=[[]]), r"layer plan is a mapping, got \[\]"),
    (changed("layers", to=endless()), "an anchor that contains itself"),
    (changed("layers", to=[cyclic()]), "an anchor that contains itself"),
    (changed("layers", to=laughs()), "at most 16 levels|at most 200,000 entries"),
    (changed("layers", to=nested(5000)), "at most 16 levels"),
    (changed("layers", to=[{"sources": ["a:0"]}] * 200_001), "at most 200,000 entries"),
    (changed("seed", to=1.0), "whole number"),
    (changed("seed", to=2**63), "at most 63 bits, got 9223372036854775808"),
    (changed("seed", to=HUGE), "at most 63 bits, got a whole number of"),
    (changed("head", to=None), "given by its name in the family, got None"),
    (changed("head", to=""), "given by its name in the family, got ''"),
    (changed("head", to=["a"]), "given by its name in the family"),
    (changed("head", to=laughs(5)), "at most 200,000 entries"),
    (changed("embeddings", "models", to=["a", 1]), "given by its name in the family, got 1"),
    (changed("embeddings", "models", 0, to=["a"]), "given by its name in the family, got \\['a'\\]"),
    (changed("embeddings", "base", to=3), "given by its name in the family, got 3"),
    (changed("embeddings", "params", "density", to=float("nan")), "got 'density': nan"),
    (changed("layers", 0, "sources", to=[3]), "written 'model:layer', such as 'base:3', got 3"),
    (changed("layers", 0, "sources", to=["a:٣"]), "written 'model:layer'"),
    (changed("layers", 0, "sources", to=["a:1_0"]), "written 'model:layer'"),
    (changed("layers", 0, "sources", to=["a:1\n"]), "written 'model:layer'"),
    (changed("layers", 0, "sources", to=["a:" + "9" * 5000]), "written 'model:layer'"),
    (changed("layers", 0, "sources", to="a:1"), "a list of sources"),
    (changed("layers", 0, "sources", to=[]), "at least one source"),
    (changed("layers", 0, "operation", to=None), "given by its name, got None"),
    (changed("layers", 0, "operation", to=["TIES"]), "given by its name, got"),
    (changed("layers", 0, "base", to=True), "written 'model:layer'"),
    (changed("layers", 1, "params", to=[1]), r"params by name, got \[1\]"),
    (changed("layers", 1, "params", to={1: 2}), r"params by name, got \{1: 2\}"),
    (changed("layers", 1, "params", "weights", to=[1, float("nan")]), r"got 'weights': \[1, nan\]"),
    (changed("layers", 1, "params", "weights", to=[1, True]), r"got 'weights': \[1, True\]"),
    (changed("layers", 1, "params", "weights", to=[1, [2]]), r"got 'weights': \[1, \[2\]\]"),
    (changed("layers", 1, "params", "t", to=float("-inf")), "got 't': -inf"),
    (changed("layers", 1, "params", "t", to=HUGE), "got 't': a whole number of"),
    (changed("layers", 1, "params", "t", to=None), "got 't': None"),
    (changed("layers", 2, "mlp_scale", to=float("nan")), "mlp_scale is a number, got nan. Give a finite one"),
    (changed("layers", 2, "mlp_scale", to="0.5"), "mlp_scale is a number, got '0.5'"),
    (changed("layers", 2, "mlp_scale", to=HUGE), "mlp_scale is a number, got a whole number of"),
    (changed("layers", 2, "parts", to={1: {"sources": ["a:0"]}}), "plans by filter, got {1:"),
    (changed("layers", 2, "parts", to=[]), r"plans by filter, got \[\]"),
    (changed("layers", 2, "parts", "self_attn", "mlp_scale", to=2), "layer's own plan"),
]


@pytest.mark.parametrize(("data", "message"), PLANS, ids=range(len(PLANS)))
def test_a_plan_that_makes_no_sense_is_refused_briefly(data, message):
    assert Tailoring.from_dict(GOOD).to_dict()["layers"][2]["mlp_scale"] == 0.5
    started = time.process_time()
    with pytest.raises(RecipeError, match=message) as caught:
        Tailoring.from_dict(data)
    assert time.process_time() - started < 2
    assert len(str(caught.value)) < 1000


def test_plans_that_are_made_in_code_are_checked_too():
    for value in (float("nan"), (1.0, float("inf"))):
        with pytest.raises(RecipeError, match="hyperparameters are finite, got t: "):
            LayerPlan((LayerSource("a", 0),), "TIES", (("t", value),))
        with pytest.raises(RecipeError, match="hyperparameters are finite, got t: "):
            PartPlan(("a", "b"), "TIES", (("t", value),))


LAUGHS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))
MERGES = "".join(f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 10)}]}}\n" for i in range(1, 12))
PLAN = "&p {sources: [" + ", ".join(f"'m{i}:0'" for i in range(1000)) + "], operation: TIES}"

TEXTS = [
    ("tailoring: 1\nlayers: &l [*l]", "an anchor that contains itself"),
    ("tailoring: 1\nlayers: [&p {sources: ['a:0'], parts: {mlp: *p}}]", "an anchor that contains itself"),
    ("&t {tailoring: 1, <<: *t}", "an anchor that contains itself"),
    ("l0: &l0 [lol]\n" + LAUGHS + "tailoring: 1\nlayers: *l11", "at most 16 levels|at most 200,000 entries"),
    ("l0: &l0 {a: 1}\n" + MERGES + "tailoring: 1\nhead: *l11", "at most 16 levels|at most 200,000 entries"),
    (
        f"tailoring: 1\nlayers: [{PLAN}, {', '.join(['*p'] * 1000)}]",
        "at most 200,000 entries, its anchors written out",
    ),
    ("tailoring: 1\nlayers: " + "[" * 100_000, "more than 16 levels"),
    ("tailoring: 1\nlayers: " + "[" * 50 + "]" * 50, "more than 16 levels"),
    ("tailoring: 1\nseed: 1" + ":1" * 200_000, "at most 10,000 characters, got 400,001"),
    ("tailoring: 1\nseed: " + "9" * 5000, "can't be read"),
    ("tailoring: 1\nlayers: []\nseed: 0x" + "f" * 5000, "at most 63 bits, got a whole number of 20000 bits"),
    ("tailoring: 1\nhead: a\nhead: b\nlayers: [{sources: ['a:0']}]", "each key once, got 'head' twice"),
    ("tailoring: 1\nlayers: [{sources: ['a:0'], mlp_scale: .nan}]", "Give a finite one"),
    ("tailoring: 1\nlayers: [{sources: [12:30]}]", "written 'model:layer', such as 'base:3', got 750"),
    ("tailoring: 1\nhead: 2024-13-45", "can't be read: month must be in"),
    ("tailoring: !!bool x", "can't be read"),
    ("tailoring: !!int ''", "can't be read"),
    ("tailoring: !!timestamp x", "can't be read"),
    ("tailoring: !!python/object/apply:os.getcwd []", "can't be read"),
    ("? [a, b]\n: 1", "A key is a text, got a list"),
    ("? {a: b}\n: 1", "A key is a text, got a mapping"),
    ("tailoring: 1\n---\ntailoring: 1", "can't be read"),
    ("tailoring: \x01", "can't be read"),
    ("", "holds a mapping, got NoneType"),
]


@pytest.mark.parametrize(("text", "message"), TEXTS, ids=range(len(TEXTS)))
def test_a_tailoring_file_that_makes_no_sense_is_refused_in_no_time(text, message):
    started = time.process_time()
    with pytest.raises(RecipeError, match=message):
        Tailoring.from_yaml(text)
    assert time.process_time() - started < 5


def test_anchors_and_merge_keys_of_a_sensible_size_are_followed():
    text = "tailoring: 1\nlayers: [&p {sources: ['a:0']}, *p, {<<: *p, mlp_scale: 0.5}]"
    tailoring = Tailoring.from_yaml(text)
    assert [str(p.sources[0]) for p in tailoring.layers] == ["a:0"] * 3
    assert tailoring.layers[2].mlp_scale == 0.5


def understood_or_refused(make):
    try:
        tailoring = make()
    except RecipeError as error:
        assert len(str(error)) < 5000
        return
    assert Tailoring.from_yaml(tailoring.to_yaml()) == tailoring
    assert Tailoring.from_dict(json.loads(json.dumps(tailoring.to_dict()))).digest == tailoring.digest
    hash(tailoring)


numbers = st.integers() | st.floats() | st.booleans() | st.none().map(lambda _: HUGE)
words = st.sampled_from(["a", "base", "a:1", "base:0", "b:٣", ":", "TIES", "LayerSelection", "mlp"]) | st.text(
    max_size=5
)
keys = st.sampled_from(list(GOOD) + list(GOOD["layers"][2]) + ["operation", "params", "base", "models"]) | words
scalars = st.none() | numbers | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | scalars, inner, max_size=4),
    max_leaves=15,
)
params = st.dictionaries(words, numbers | words | st.lists(numbers, max_size=3), max_size=3)
plans = st.fixed_dictionaries(
    {"sources": st.lists(words, max_size=3) | values},
    optional={"operation": words, "params": params | values, "base": words, "mlp_scale": numbers | values}
    | {"parts": st.dictionaries(words, st.fixed_dictionaries({"sources": st.lists(words)}) | values, max_size=2)},
)
owners = words | st.fixed_dictionaries(
    {"models": st.lists(words, max_size=3), "operation": words, "params": params}
)
tailorings = st.fixed_dictionaries(
    {"tailoring": st.just(1) | scalars, "layers": st.lists(plans | values, max_size=3) | values},
    optional={
        "embeddings": owners | values,
        "norm": owners | values,
        "head": owners | values,
        "seed": numbers | values,
    },
)


@settings(max_examples=400, deadline=None)
@given(tailorings | values)
def test_any_data_is_a_tailoring_or_refused(data):
    understood_or_refused(lambda: Tailoring.from_dict(data))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_of_a_plan_is_understood_or_refused(data):
    copied = json.loads(json.dumps(GOOD))
    inner, step = copied, data.draw(st.sampled_from(list(copied)))
    while isinstance(inner[step], list | dict) and inner[step] and data.draw(st.booleans()):
        inner = inner[step]
        step = data.draw(st.sampled_from(list(inner) if isinstance(inner, dict) else list(range(len(inner)))))
    inner[step] = data.draw(values)
    understood_or_refused(lambda: Tailoring.from_dict(copied))


YAML = Tailoring.from_dict(GOOD).to_yaml()
alphabet = st.sampled_from([*"{}[]:,&*!?|>-#%@`'\"\n\t 0.e~<=\\\x85", "&a ", "*a", "<<: *a", "!!int ", "!!bool "])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), alphabet | st.text(max_size=3)), max_size=5))
def test_any_change_of_a_tailoring_file_is_understood_or_refused(changes):
    text = YAML
    for where, removed, new in changes:
        at = int(where * len(text))
        text = text[:at] + new + text[at + removed :]
    understood_or_refused(lambda: Tailoring.from_yaml(text))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.lists(alphabet, max_size=30).map("".join))
def test_any_text_is_a_tailoring_or_refused(text):
    understood_or_refused(lambda: Tailoring.from_yaml(text))


def test_what_is_refused_is_a_fault_of_the_project_s_own_kind():
    assert issubclass(ModelError, TailorError)
    assert issubclass(RecipeError, TailorError)

"""Vocabularies: whatever order, number or padding a candidate's tokens have, its rows meet the base's tokens."""

from __future__ import annotations

import json
import logging
import shutil
import weakref

import pytest
import torch
from model_cases import CPU, LAYERS, plan
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tailorlib.exceptions import ModelError, RecipeError
from tailorlib.export import export_model
from tailorlib.models.checkpoint import Checkpoint
from tailorlib.models.family import ModelFamily
from tailorlib.models.source import ModelSource
from tailorlib.models.vocabulary import AlignedCheckpoint, read_vocabulary
from tailorlib.tailoring import PartPlan, Tailoring
from tailorlib.testing.tiny import tiny_tokenizer, write_tiny_model

TOKENS = 320
PADDED = 384
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NEOX = ("gpt_neox.embed_in.weight", "embed_out.weight")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def permutation(number=TOKENS):
    return torch.randperm(number, generator=generator(1)).tolist()


def with_ids(folder, ids):
    """Write a tokenizer that gives each token of the tiny one the id in ``ids``; it has no token without an id."""
    data = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    vocabulary = {t: ids[i] for t, i in data["model"]["vocab"].items() if ids.get(i) is not None}
    data["model"]["vocab"] = vocabulary
    data["model"]["merges"] = [m for m in data["model"]["merges"] if {*m, "".join(m)} <= set(vocabulary)]
    data["added_tokens"] = [{**t, "id": ids[t["id"]]} for t in data["added_tokens"] if t["content"] in vocabulary]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)))
    tokenizer.save_pretrained(folder)
    return tokenizer


def with_rows(folder, source, rows, *, dtype=None, names=(EMBEDDINGS, HEAD), **config):
    """Write the model in ``source`` with other rows in its vocabulary; ``None`` is a row of its own."""
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    for name in set(names) & set(tensors):
        own = torch.randn(len(rows), tensors[name].shape[1], generator=generator(len(name)))
        tensors[name] = torch.stack([own[i] if r is None else tensors[name][r] for i, r in enumerate(rows)])
    save_file(
        {n: t.to(dtype) for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "vocab_size": len(rows), **config}))
    return folder


def as_it_is(target, source):
    return with_rows(target, source, range(TOKENS))


def added(target, source):
    """Two special tokens more, padded to a multiple of 64."""
    with_rows(target, source, [*range(TOKENS), *[None] * (PADDED - TOKENS)])
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|pad|>", "<|call|>\n"], special_tokens=True)
    tokenizer.save_pretrained(target)
    return target


def padded(target, source):
    """The base's tokenizer, and rows behind its last token."""
    return with_rows(target, source, [*range(TOKENS), *[None] * (PADDED - TOKENS)])


def permuted(target, source):
    """The base's tokens under other ids."""
    new = permutation()
    with_rows(target, source, [new.index(i) for i in range(TOKENS)])
    with_ids(target, dict(enumerate(new)))
    return target


def smaller(target, source):
    """Without the base's last ten tokens, the others in another order."""
    new = permutation(TOKENS - 10)
    with_rows(target, source, [new.index(i) for i in range(TOKENS - 10)])
    with_ids(target, dict(enumerate(new)))
    return target


VARIANTS = {"added": added, "padded": padded, "permuted": permuted, "smaller": smaller}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def family_of(base, candidates, **settings):
    family = ModelFamily(str(base), {n: str(f) for n, f in candidates.items()}, dtype="float32", **settings)
    family.load(CPU)
    return family


@pytest.fixture
def aligned(folders, tmp_path, variant):
    """A family whose candidate has another vocabulary, and the candidate's folder."""
    folder = variant(tmp_path / "other", folders["a"])
    return family_of(folders["base"], {"a": folder, "b": folders["b"]}), folder


def ids_of(folder, base):
    """Return the candidate's id of each of the base's tokens, by transformers' own account; -1 for none."""
    theirs = AutoTokenizer.from_pretrained(folder).get_vocab()
    ours = AutoTokenizer.from_pretrained(base).get_vocab()
    ids = torch.full((len(ours),), -1)
    for token, i in ours.items():
        ids[i] = theirs.get(token, -1)
    return ids


def expected_rows(folder, base, name):
    """Put the rows of a candidate together, one by one."""
    theirs, ours = (load_file(f / "model.safetensors")[name].float() for f in (folder, base))
    rows = [ours[i] if j < 0 else theirs[j] for i, j in enumerate(ids_of(folder, base).tolist())]
    return torch.stack([*rows, *ours[len(rows) :]])


def test_a_whole_candidate_computes_what_the_original_computes_on_its_own_ids(folders, aligned):
    family, folder = aligned
    ids = ids_of(folder, folders["base"])
    known = (ids >= 0).nonzero().flatten()
    batch = known[torch.randint(len(known), (3, 24), generator=generator(5))]
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = original(ids[batch]).logits[..., ids[known]]
        logits = family.stitch(Tailoring.whole("a", LAYERS))(batch).logits
    assert logits.shape == (3, 24, TOKENS)
    assert torch.equal(logits[..., known], expected)


def test_tokens_that_the_candidate_lacks_have_the_base_s_rows(folders, aligned):
    family, folder = aligned
    for name in (EMBEDDINGS, HEAD):
        rows = family.checkpoints["a"].tensor(name)
        assert torch.equal(rows, expected_rows(folder, folders["base"], name))
        assert family.checkpoints["a"].shape(name) == tuple(rows.shape)
        assert family.checkpoints["a"].dtype(name) == rows.dtype


def test_an_export_reloads_equal_with_the_base_s_vocabulary(folders, aligned, tmp_path):
    family, _ = aligned
    tailoring = Tailoring((plan("a:0"), plan("base:1"), plan("a:3")), embeddings="a", norm="a", head="a")
    batch = torch.randint(TOKENS, (2, 16), generator=generator(2))
    with torch.inference_mode():
        expected = family.stitch(tailoring)(batch).logits
    exported = export_model(family, tailoring, tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert model.config.vocab_size == TOKENS
    assert AutoTokenizer.from_pretrained(exported).get_vocab() == tiny_tokenizer().get_vocab()
    with torch.inference_mode():
        assert torch.equal(model(batch).logits, expected)


def test_layers_are_the_candidate_s_own_and_not_copied(folders, aligned):
    family, folder = aligned
    stored = load_file(folder / "model.safetensors")
    for suffix, tensor in family.assembly.layer_tensors(plan("a:2"), 0):
        assert torch.equal(tensor, stored[f"model.layers.2.{suffix}"])
    checkpoint = family.checkpoints["a"]
    name = "model.layers.2.mlp.up_proj.weight"
    origin, stored_name = checkpoint.origin(name)
    assert origin is checkpoint.candidate
    assert stored_name == name
    assert checkpoint.tensor(name).data_ptr() == checkpoint.tensor(name).data_ptr()
    assert checkpoint.where(name) == str(folder / "model.safetensors")


def test_embeddings_are_merged_by_token(folders, aligned):
    family, folder = aligned
    ours = load_file(folders["base"] / "model.safetensors")[HEAD]
    others = load_file(folders["b"] / "model.safetensors")[HEAD]
    theirs = expected_rows(folder, folders["base"], HEAD)
    weighted = PartPlan(("base", "a"), "Linear", (("weights", (1.0, 3.0)),))
    tailoring = Tailoring((plan("a:0"),), head=weighted)
    merged = dict(family.assembly.outer_tensors(tailoring))[HEAD]
    torch.testing.assert_close(merged, (ours + 3 * theirs) / 4, rtol=1e-6, atol=1e-7)
    arithmetic = PartPlan(("a", "b"), "TaskArithmetic", (("scale", 0.5),), base="base")
    head = family.stitch(Tailoring((plan("a:0"),), head=arithmetic)).get_output_embeddings().weight
    expected = ours + 0.5 * (theirs - ours) + 0.5 * (others - ours)
    torch.testing.assert_close(head, expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_read_before_it_is_asked_for_and_nothing_is_kept(aligned):
    family, _ = aligned
    checkpoint = family.checkpoints["a"]
    assert isinstance(checkpoint, AlignedCheckpoint)
    assert not checkpoint.candidate._open
    tensor = checkpoint.tensor(EMBEDDINGS)
    gone = weakref.ref(tensor)
    assert checkpoint.tensor(EMBEDDINGS).data_ptr() != tensor.data_ptr()
    del tensor
    assert gone() is None


def test_the_warning_counts_in_one_line(folders, tmp_path, caplog):
    variants = {name: make(tmp_path / name, folders["a"]) for name, make in VARIANTS.items()}
    with caplog.at_level(logging.WARNING, logger="tailorlib"):
        family_of(folders["base"], variants)
    lines = {record.args[0]: record.getMessage() for record in caplog.records}
    assert len(caplog.records) == len(lines) == 4
    assert not any("\n" in line for line in lines.values())
    assert lines["added"] == (
        "Candidate 'added' has a vocabulary of 384 rows (base: 320), aligned by token: 320 of the base's 320 "
        "tokens are mapped, 2 of its own are dropped ('<|pad|>', '<|call|>\\n')."
    )
    assert "384 rows (base: 320), aligned by token: 320 of the base's 320 tokens are mapped." in lines["padded"]
    assert "320 rows (base: 320), aligned by token: 320 of the base's 320 tokens are mapped." in lines["permuted"]
    assert "310 of the base's 320 tokens are mapped, 10 that it lacks keep the base's rows ('" in lines["smaller"]
    assert lines["smaller"].endswith("', ...).")


def test_the_same_vocabulary_is_left_alone_whatever_else_the_tokenizers_differ_in(folders, tmp_path, caplog):
    candidate = as_it_is(tmp_path / "same", folders["a"])
    tokenizer = json.loads((candidate / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    (candidate / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1))
    without = as_it_is(tmp_path / "without", folders["a"])
    (without / "tokenizer.json").unlink()
    family = family_of(folders["base"], {"same": candidate, "without": without})
    assert not any(isinstance(c, AlignedCheckpoint) for c in family.checkpoints.values())
    assert not caplog.records


def test_padding_of_the_base_stays_the_base_s(folders, tmp_path):
    base = with_rows(tmp_path / "base", folders["base"], [*range(TOKENS), *[None] * (PADDED - TOKENS)])
    family = family_of(base, {"a": folders["a"], "added": added(tmp_path / "added", folders["a"])})
    stored = load_file(base / "model.safetensors")
    for name in "a", "added":
        for part in EMBEDDINGS, HEAD:
            rows = family.checkpoints[name].tensor(part)
            assert torch.equal(rows[:TOKENS], load_file(folders["a"] / "model.safetensors")[part])
            assert torch.equal(rows[TOKENS:], stored[part][TOKENS:])
    exported = export_model(family, Tailoring.whole("a", LAYERS), tmp_path / "exported")
    assert AutoModelForCausalLM.from_pretrained(exported).config.vocab_size == PADDED


def test_rows_of_the_base_are_not_rounded_to_the_candidate_s_type(folders, tmp_path):
    new = permutation(TOKENS - 10)
    candidate = with_rows(
        tmp_path / "a", folders["a"], [new.index(i) for i in range(TOKENS - 10)], dtype=torch.bfloat16
    )
    with_ids(candidate, dict(enumerate(new)))
    family = family_of(folders["base"], {"a": candidate})
    rows = dict(family.assembly.outer_tensors(Tailoring((plan("a:0"),), embeddings="a")))[EMBEDDINGS]
    assert torch.equal(rows, expected_rows(candidate, folders["base"], EMBEDDINGS))


def test_nan_counts_in_the_rows_that_are_taken(folders, tmp_path):
    candidate = smaller(tmp_path / "a", folders["a"])
    stored = load_file(candidate / "model.safetensors")
    dropped = with_rows(tmp_path / "dropped", candidate, [*range(TOKENS - 10), *[None] * 10])
    tokenizer = AutoTokenizer.from_pretrained(candidate)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(dropped)
    for folder, row in ((dropped, TOKENS - 10), (candidate, 3)):
        tensors = load_file(folder / "model.safetensors")
        tensors[HEAD][row, 0] = float("nan")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    family = family_of(folders["base"], {"dropped": dropped, "a": candidate})
    head = family.stitch(Tailoring((plan("a:0"),), head="dropped")).get_output_embeddings().weight
    known = ids_of(candidate, folders["base"])
    assert torch.equal(head[known >= 0], stored[HEAD][known[known >= 0]])
    where = f"{candidate / 'model.safetensors'} and {folders['base'] / 'model.safetensors'}, aligned by token"
    with pytest.raises(ModelError, match=f"{HEAD}' of the model 'a' .*{where}.* NaN or Inf at 1 of"):
        family.stitch(Tailoring((plan("a:0"),), head="a"))


def test_a_tied_family_is_aligned_in_its_one_matrix(case_family, tmp_path):
    folders = {n: f.folder for n, f in case_family("llama-tied")._sources_found.items()}
    candidate = permuted(tmp_path / "a", folders["a"])
    family = family_of(folders["base"], {"a": candidate})
    ids = ids_of(candidate, folders["base"])
    batch = torch.randint(TOKENS, (2, 20), generator=generator(3))
    original = AutoModelForCausalLM.from_pretrained(candidate).eval()
    with torch.inference_mode():
        logits = family.stitch(Tailoring.whole("a", LAYERS))(batch).logits
        assert torch.equal(logits, original(ids[batch]).logits[..., ids])


def test_position_embeddings_are_no_vocabulary(tmp_path):
    base = write_tiny_model(tmp_path / "base", model_type="gpt2", num_layers=2, n_positions=64)
    names = ("transformer.wte.weight",)
    source = write_tiny_model(tmp_path / "source", model_type="gpt2", num_layers=2, n_positions=64, seed=1)
    new = permutation()
    candidate = with_rows(tmp_path / "a", source, [new.index(i) for i in range(TOKENS)], names=names)
    with_ids(candidate, dict(enumerate(new)))
    checkpoint = family_of(base, {"a": candidate}).checkpoints["a"]
    assert set(checkpoint.names) == set(names)
    assert torch.equal(checkpoint.tensor(names[0]), load_file(source / "model.safetensors")[names[0]])
    positions = "transformer.wpe.weight"
    assert torch.equal(checkpoint.tensor(positions), load_file(source / "model.safetensors")[positions])


def test_a_head_under_another_name_is_aligned(case_family, tmp_path):
    folders = {n: f.folder for n, f in case_family("gpt_neox")._sources_found.items()}
    new = permutation()
    candidate = with_rows(tmp_path / "a", folders["a"], [new.index(i) for i in range(TOKENS)], names=NEOX)
    with_ids(candidate, dict(enumerate(new)))
    checkpoint = family_of(folders["base"], {"a": candidate}).checkpoints["a"]
    stored = load_file(folders["a"] / "model.safetensors")
    assert all(torch.equal(checkpoint.tensor(name), stored[name]) for name in NEOX)


class InMemory(Checkpoint):
    def __init__(self, **tensors):
        self.tensors = tensors

    def keys(self):
        return tuple(sorted(self.tensors))

    def shape(self, name):
        return tuple(self.tensors[name].shape)

    def dtype(self, name):
        return self.tensors[name].dtype

    def tensor(self, name):
        return self.tensors[name]


def test_a_bias_of_the_head_is_aligned_like_its_rows():
    base, candidate = (
        InMemory(bias=torch.tensor([1.0, 2.0, 3.0])),
        InMemory(bias=torch.tensor([7.0, 8.0]), x=torch.ones(1)),
    )
    view = AlignedCheckpoint(candidate, base, {"bias": "bias"}, torch.tensor([1, -1, 0]))
    assert view.tensor("bias").tolist() == [8.0, 2.0, 7.0]
    assert view.shape("bias") == (3,)
    assert view.keys() == ("bias", "x")
    assert "x" in view
    assert view.origin("bias") == (view, "bias")
    assert view.origin("x") == (candidate, "x")
    assert view.where("bias") == "InMemory and InMemory, aligned by token"


# heads of their own, or none


def test_a_tied_candidate_s_embeddings_are_its_head(case_family, folders, tmp_path, caplog):
    tied = case_family("llama-tied")._sources_found["a"].folder
    for name, make in {"same": as_it_is, "other": permuted}.items():
        candidate = make(tmp_path / name, tied)
        with caplog.at_level(logging.WARNING, logger="tailorlib"):
            family = family_of(folders["base"], {"a": candidate})
        assert "no 'lm_head.weight': its embeddings are its head" in caplog.text
        ids = ids_of(candidate, folders["base"])
        batch = torch.randint(TOKENS, (2, 20), generator=generator(3))
        original = AutoModelForCausalLM.from_pretrained(candidate).eval()
        assert original.config.tie_word_embeddings
        with torch.inference_mode():
            logits = family.stitch(Tailoring.whole("a", LAYERS))(batch).logits
            assert torch.equal(logits, original(ids[batch]).logits[..., ids])


def test_a_head_that_a_tied_candidate_stores_counts_as_it_does_for_transformers(folders, tmp_path):
    candidate = with_rows(tmp_path / "a", folders["a"], range(TOKENS), tie_word_embeddings=True)
    family = family_of(folders["base"], {"a": candidate})
    batch = torch.randint(TOKENS, (2, 20), generator=generator(3))
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(candidate).eval()(batch).logits
        assert torch.equal(family.stitch(Tailoring.whole("a", LAYERS))(batch).logits, expected)


def refusal(base, candidate):
    family = ModelFamily(str(base), {"a": str(candidate)})
    with pytest.raises(RecipeError) as caught:
        family.prepare()
    assert "candidate 'a'" in str(caught.value)
    return str(caught.value)


def test_a_head_of_a_candidate_s_own_is_kept_where_the_base_has_none(case_family, folders, caplog):
    tied = case_family("llama-tied")._sources_found["base"].folder
    with caplog.at_level(logging.WARNING, logger="tailorlib"):
        family = family_of(tied, {"a": folders["a"]})
    assert "every tailored model gets a head of its own" in caplog.text
    batch = torch.randint(TOKENS, (2, 20), generator=generator(3))
    with torch.inference_mode():
        for name, folder in (("a", folders["a"]), ("base", tied)):
            expected = AutoModelForCausalLM.from_pretrained(folder).eval()(batch).logits
            assert torch.equal(family.stitch(Tailoring.whole(name, LAYERS))(batch).logits, expected)


# what can't be matched


@pytest.mark.parametrize("lacking", ["other", "base"])
def test_another_size_without_a_tokenizer_is_refused_with_the_sizes(folders, tmp_path, lacking):
    base = as_it_is(tmp_path / "base", folders["base"])
    candidate = padded(tmp_path / "other", folders["a"])
    (tmp_path / lacking / "tokenizer.json").unlink()
    message = refusal(base, candidate)
    assert "Its vocabulary has 384 rows, the base's 320." in message
    assert f"{str(tmp_path / lacking)!r} has no tokenizer: neither tokenizer.json nor tokenizer.model" in message


def test_a_tokenizer_of_another_family_is_refused_with_examples(folders, tmp_path):
    candidate = with_rows(tmp_path / "other", folders["a"], range(200))
    words = Tokenizer(
        models.WordLevel({**{f"word{i}": i for i in range(198)}, "<|end|>": 198, "a": 199}, "<|end|>")
    )
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(candidate)
    message = refusal(folders["base"], candidate)
    assert "it has 2 of the base's 320 tokens, and at least half are needed" in message
    assert "It lacks '<|start|>'" in message
    assert "has 'word0', 'word1', 'word2', 'word3', 'word4', ... of its own" in message


def test_sizes_that_contradict_each_other_are_refused(folders, tmp_path):
    candidate = as_it_is(tmp_path / "a", folders["a"])
    tensors = load_file(candidate / "model.safetensors")
    save_file({**tensors, HEAD: tensors[HEAD][:100].clone()}, candidate / "model.safetensors")
    assert "lm_head.weight: 100, vocab_size in its config: 320" in refusal(folders["base"], candidate)
    candidate = with_rows(tmp_path / "b", folders["a"], range(TOKENS), vocab_size=999)
    assert "vocab_size is 999, and the largest dimension of a tensor is 320" in refusal(folders["base"], candidate)


NO_TOKENIZERS = [
    *("", "[]", "{", "{}", "[" * 100_000, '{"model": {"vocab": 3}}', '{"model": {"vocab": [3]}}'),
    *('{"model": {"vocab": {"a": -1}}}', '{"model": {"vocab": {"a": true}}}'),
    '{"model": {"vocab": {}}, "added_tokens": [{}]}',
]


@pytest.mark.parametrize("text", NO_TOKENIZERS)
def test_a_tokenizer_that_is_none_is_refused_by_its_folder(folders, tmp_path, text):
    candidate = as_it_is(tmp_path / "a", folders["a"])
    (candidate / "tokenizer.json").write_text(text)
    assert f"The tokenizer in {str(candidate)!r} can't be read" in refusal(folders["base"], candidate)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=40, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(["a few words and a few letters more"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_vocabulary_is_read_as_transformers_reads_it(folders, tmp_path):
    candidates = [added(tmp_path / "added", folders["a"]), permuted(tmp_path / "permuted", folders["a"])]
    unigram().save_pretrained(tmp_path / "unigram")
    legacy = as_it_is(tmp_path / "legacy", folders["a"])
    (legacy / "added_tokens.json").write_text(json.dumps({"<|pad|>": TOKENS}))
    slow = as_it_is(tmp_path / "slow", folders["a"])
    data = json.loads((slow / "tokenizer.json").read_text())
    (slow / "tokenizer.json").unlink()
    (slow / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    (slow / "merges.txt").write_text("\n".join(" ".join(m) for m in data["model"]["merges"]))
    (slow / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    for folder in [*candidates, tmp_path / "unigram", legacy, slow]:
        vocabulary = read_vocabulary(ModelSource(folder, is_adapter=False))
        assert len(vocabulary) > 10
        assert vocabulary == AutoTokenizer.from_pretrained(folder).get_vocab(), folder.name
    assert read_vocabulary(ModelSource(tmp_path, is_adapter=False)) == {}


def test_added_tokens_beside_an_unchanged_tokenizer_are_seen(folders, tmp_path, caplog):
    base = padded(tmp_path / "base", folders["base"])
    candidate = padded(tmp_path / "a", folders["a"])
    entry = {"content": "<|new|>", "special": True}
    settings = json.loads((candidate / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {str(TOKENS): entry}
    (candidate / "tokenizer_config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING, logger="tailorlib"):
        family_of(base, {"a": candidate})
    assert "1 of its own are dropped ('<|new|>')" in caplog.text


def test_an_aligned_checkpoint_says_what_it_lacks(aligned):
    family, _ = aligned
    with pytest.raises(ModelError, match=r"no tensor 'model\.x'"):
        family.checkpoints["a"].tensor("model.x")

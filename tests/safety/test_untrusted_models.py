"""Models from elsewhere: no pickle is read, no code of theirs is run, no file outside their folder is taken."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tailorlib.exceptions import ModelError, RecipeError
from tailorlib.export import export_model
from tailorlib.models.checkpoint import INDEX, SINGLE, SafetensorsCheckpoint
from tailorlib.models.family import ModelFamily
from tailorlib.models.source import resolve
from tailorlib.tailoring import Tailoring
from tailorlib.testing.tiny import write_tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "base", num_layers=2)


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def trap(file: Path) -> Path:
    """Write a pickle that springs a trap, and return what would then be there."""
    torch.save({"a": Trap(file.parent / "sprung")}, file)
    return file.parent / "sprung"


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "consolidated.00.pth", "last.ckpt"],
)
def test_a_pickled_checkpoint_is_refused_with_how_to_convert_it(copied: Path, name: str) -> None:
    (copied / SINGLE).unlink()
    sprung = trap(copied / name)
    with pytest.raises(RecipeError, match=rf"never pickles.* has only {name}.*convert it: Auto.*save_pretrained"):
        ModelFamily(str(copied), {}).prepare()
    with pytest.raises(ModelError, match=rf"{name}' is a file.*convert it"):
        resolve(str(copied / name))
    assert not sprung.exists()


@pytest.mark.parametrize("protocol", [2, 4, "zip"])
def test_a_pickle_that_is_called_safetensors_is_told_apart(copied: Path, protocol: int | str) -> None:
    (copied / SINGLE).unlink()
    zipped = protocol == "zip"
    more = {} if zipped else {"pickle_protocol": protocol}
    torch.save({"a": Trap(copied / "sprung")}, copied / SINGLE, _use_new_zipfile_serialization=zipped, **more)
    with pytest.raises(ModelError, match="is a pickle under another name"):
        SafetensorsCheckpoint(copied)
    assert not (copied / "sprung").exists()


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_looks_like_a_pickle_is_read(length: int, tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).encode().ljust(length)
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", length) + header + b"ab")
    assert SafetensorsCheckpoint(tmp_path).tensor("a").tolist() == [97, 98]


def test_the_conversion_that_is_advised_gives_the_same_tensors(copied: Path, tmp_path: Path) -> None:
    tensors = load_file(copied / SINGLE)
    (copied / SINGLE).unlink()
    torch.save(tensors, copied / "pytorch_model.bin")
    AutoModelForCausalLM.from_pretrained(copied, dtype="auto").save_pretrained(tmp_path / "new")
    checkpoint = SafetensorsCheckpoint(tmp_path / "new")
    assert all(torch.equal(checkpoint.tensor(name), tensors[name]) for name in checkpoint.keys())  # noqa: SIM118


def test_a_pickled_adapter_is_refused_with_how_to_convert_it(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    sprung = trap(adapter / "adapter_model.bin")
    with pytest.raises(RecipeError, match=r"no adapter_model\.safetensors.*load it with PEFT and save it again"):
        ModelFamily(str(model), {"a": str(adapter)}).prepare()
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model-00001-of-00001.bin", "never pickles"),
        ("../model/model.safetensors", "lies in the index's own folder"),
        ("../../../../etc/passwd", "lies in the index's own folder"),
        ("/etc/passwd", "lies in the index's own folder"),
        ("sub/../../x.safetensors", "lies in the index's own folder"),
        ("\\\\host\\share\\x.safetensors", "lies in the index's own folder"),
    ],
)
def test_an_index_that_names_a_pickle_or_leads_outside_is_refused(copied: Path, file: str, message: str) -> None:
    (copied / SINGLE).unlink()
    (copied / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(ModelError, match=message):
        SafetensorsCheckpoint(copied)


def test_a_shard_that_is_a_link_is_read_as_the_hub_s_cache_needs_it(copied: Path, tmp_path: Path) -> None:
    (copied / SINGLE).rename(tmp_path / "blob")
    (copied / SINGLE).symlink_to(tmp_path / "blob")
    assert SafetensorsCheckpoint(copied).keys()


_CODE = """
from pathlib import Path
(Path(__file__).parent / "ran").mkdir(exist_ok=True)
Path({mark!r}).mkdir(exist_ok=True)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): pass
class Tokenizer(PreTrainedTokenizerFast): pass
"""


@pytest.fixture
def with_code(copied: Path, tmp_path: Path) -> Path:
    """A model whose config and tokenizer ask for classes of a file beside them."""
    (copied / "own.py").write_text(_CODE.format(mark=str(tmp_path / "ran")))
    mapped = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    for name, changes in (
        ("config.json", {"auto_map": mapped}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}}),
    ):
        data = json.loads((copied / name).read_text())
        (copied / name).write_text(json.dumps({**data, **changes}))
    return copied


def test_code_beside_a_model_is_not_run_where_transformers_knows_the_model(
    with_code: Path, tmp_path: Path
) -> None:
    family = ModelFamily(str(with_code), {"a": str(with_code)}, dtype="float32")
    family.load(CPU)
    tailoring = Tailoring.whole("a", 2, without=[1])
    family.stitch(tailoring)
    assert family.tokenizer("x")["input_ids"]
    out = export_model(family, tailoring, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not list(out.rglob("*.py"))
    assert "auto_map" not in json.loads((out / "config.json").read_text())


def test_a_model_that_only_its_own_code_describes_is_refused(
    with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("nobody is asked: the library decides")

    monkeypatch.setattr("builtins.input", asked)
    data = json.loads((with_code / "config.json").read_text())
    (with_code / "config.json").write_text(json.dumps({**data, "model_type": "unheard_of"}))
    with pytest.raises(RecipeError, match=r"config of .* can't be read"):
        ModelFamily(str(with_code), {}).prepare()
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_only_its_own_code_describes_is_not_run(
    with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("nobody is asked: the library decides")

    monkeypatch.setattr("builtins.input", asked)
    data = json.loads((with_code / "tokenizer_config.json").read_text())
    changes = {"tokenizer_class": "Unheard", "auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
    (with_code / "tokenizer_config.json").write_text(json.dumps({**data, **changes}))
    family = ModelFamily(str(with_code), {}, dtype="float32")
    family.prepare()
    try:
        family.tokenizer("x")
    except ModelError as error:
        assert "no tokenizer that transformers can load" in str(error)
    assert not (tmp_path / "ran").exists()

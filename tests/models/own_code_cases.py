"""A tiny model that comes with its own Python code, and fixtures that keep such code out of other tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, dynamic_module_utils

from tailorlib.models.architecture import ARCHITECTURES, Architecture, register_architecture
from tailorlib.testing.tiny import write_tiny_model

LAYERS = 4
_EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own_row.py"
PLUGIN = _EXAMPLE.read_text(encoding="utf-8").replace("my_model", "tinycustom")
"""A plugin file that adds the row: the one that the documentation shows."""
FACTOR = 3.0
CODE = {
    "configuration_tiny.py": """
from pathlib import Path

from transformers import LlamaConfig

Path({mark!r}).mkdir(parents=True, exist_ok=True)


class TinyConfig(LlamaConfig):
    model_type = "tinycustom"

    def __init__(self, logits_factor=1.0, **kwargs):
        self.logits_factor = logits_factor
        super().__init__(**kwargs)
""",
    "scaling_tiny.py": """
def scaled(logits, factor):
    return factor * logits
""",
    "modeling_tiny.py": """
from transformers import LlamaForCausalLM

from .configuration_tiny import TinyConfig
from .scaling_tiny import scaled


class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = scaled(output.logits, self.config.logits_factor)
        return output
""",
}
"""Logits are those of a Llama times :data:`FACTOR`; the config's file leaves a mark when it is run."""
AUTO_MAP = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM"}


def edit(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def add_code(folder: Path, mark: Path, **entries: Any) -> Path:
    """Make a tiny Llama on the disk a model with its own code, which makes the folder ``mark`` when it runs."""
    for name, text in CODE.items():
        (folder / name).write_text(text.replace("{mark!r}", repr(str(mark))))
    custom = {"model_type": "tinycustom", "architectures": ["TinyForCausalLM"], "logits_factor": FACTOR}
    edit(folder / "config.json", auto_map=AUTO_MAP, **{**custom, **entries})
    return folder


@pytest.fixture
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where transformers copies trusted code to; nothing of it outlives the test."""

    def forget() -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] == "transformers_modules"]:
            del sys.modules[name]

    cache = tmp_path / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(
        MODEL_FOR_CAUSAL_LM_MAPPING, "_extra_content", dict(MODEL_FOR_CAUSAL_LM_MAPPING._extra_content)
    )
    forget()
    yield cache
    forget()


@pytest.fixture
def row() -> Iterator[Architecture]:
    """The row of ``tinycustom``, as a plugin file adds it."""
    architecture = Architecture("tinycustom")
    register_architecture(architecture)
    yield architecture
    del ARCHITECTURES["tinycustom"]


@pytest.fixture
def custom(tmp_path: Path, modules_cache: Path) -> dict[str, Path]:
    """A base with its own code and a fine-tune with a copy of it: their folders, and the marks of their code."""
    base = write_tiny_model(tmp_path / "custom-base", seed=0, num_layers=LAYERS)
    candidate = write_tiny_model(tmp_path / "custom-a", seed=1, num_layers=LAYERS, noise_from=base)
    marks = {f"{name} ran": tmp_path / f"{name} ran" for name in ("base", "a")}
    add_code(base, marks["base ran"])
    add_code(candidate, marks["a ran"])
    return {"base": base, "a": candidate, **marks}


TOKENIZER = """
from pathlib import Path

from transformers import PreTrainedTokenizer

Path({mark!r}).mkdir(exist_ok=True)


class TinyTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "own.tokens"}

    def __init__(self, vocab_file, **kwargs):
        self.characters = Path(vocab_file).read_text()
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self.characters)

    def get_vocab(self):
        return {character: i for i, character in enumerate(self.characters)}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.characters.find(token)

    def _convert_id_to_token(self, index):
        return self.characters[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)
"""


@pytest.fixture
def own_tokenizer(tmp_path: Path, modules_cache: Path) -> Path:
    """A tiny Llama with a tokenizer of its own code, which reads a file of its own and leaves a mark."""
    folder = write_tiny_model(tmp_path / "tokenized", num_layers=LAYERS)
    code = TOKENIZER.replace("{mark!r}", repr(str(tmp_path / "tokenizer ran")))
    (folder / "tokenization_tiny.py").write_text(code)
    (folder / "own.tokens").write_text("abcdefghijklmnopqrstuvwxyzANTGö東 +.,?0123")
    (folder / "tokenizer.json").unlink()
    mapped = {"AutoTokenizer": ["tokenization_tiny.TinyTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "TinyTokenizer", "auto_map": mapped})
    )
    return folder

"""Tiny models, and tiny lm-eval tasks, one of each kind, with their data beside them."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailorlib.testing.tiny import write_tiny_model

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "models"))  # for its cases

CHOICE: list[dict[str, Any]] = [
    {"q": "The quick brown fox", "c": ["jumps", "jumps over", "sleeps over the dog"], "gold": 1},
    {"q": "Anna has 3 apples and buys 4 more; now she has", "c": ["7", "7 apples", "nothing"], "gold": 0},
    {"q": "The opposite of hot is", "c": ["cold", "dog", "a very lazy dog"], "gold": 0},
    {"q": "def add(a, b): return", "c": ["a + b", "a", "jumps", "b + a + b"], "gold": 0},
    {"q": "The lazy dog", "c": ["é", "sleeps", "sleeps."], "gold": 2},
    {"q": "Question: who jumps?", "c": ["the fox", "the dog"], "gold": 1},
]
WINOGRANDE: list[dict[str, Any]] = [
    {"label": 0, "ctx": ["The fox chased the dog because the fox", "The fox chased the dog because the dog"]},
    {"label": 1, "ctx": ["Anna fed Bea since Anna", "Anna fed Bea since Bea"]},
    {"label": 0, "ctx": ["The cup fell off the table as the cup", "The cup fell off the table as the table"]},
]
TEXT: list[dict[str, Any]] = [
    {"text": "The quick brown fox jumps over the lazy dog. " * 8},
    {"text": "Anna has 3 apples. Ärger über Öl."},
    {"text": "def add(a, b): return a + b\n" * 4},
]
LAST_WORD: list[dict[str, Any]] = [
    {"text": "The quick brown fox jumps over the lazy", "word": "dog"},
    {"text": "Question: what is the opposite of hot? Answer:", "word": "cold"},
    {"text": "Anna has 3 apples and buys 4 more; now she has", "word": "7"},
]
MEAN: dict[str, Any] = {"aggregation": "mean", "higher_is_better": True}
TASKS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "tiny_choice": (
        CHOICE,
        {
            "output_type": "multiple_choice",
            "training_split": "validation",
            "fewshot_split": "validation",
            "doc_to_text": "{{q}}",
            "doc_to_choice": "c",
            "doc_to_target": "gold",
            "metric_list": [{"metric": m, **MEAN} for m in ("acc", "acc_norm", "acc_bytes", "exact_match")],
        },
    ),
    "tiny_mutual": (
        CHOICE,
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_choice": "c",
            "doc_to_target": "gold",
            "metric_list": [{"metric": m, **MEAN} for m in ("acc", "acc_mutual_info")],
        },
    ),
    "tiny_schema": (
        [{**doc, "end": "was quick."} for doc in WINOGRANDE],
        {
            "output_type": "multiple_choice",
            "doc_to_text": "label",
            "doc_to_choice": "ctx",
            "doc_to_target": "end",
            "metric_list": [{"metric": "acc", **MEAN}],
        },
    ),
    "tiny_last_word": (
        LAST_WORD,
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}}",
            "doc_to_target": " {{word}}",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", **MEAN},
            ],
        },
    ),
    "tiny_text": (
        TEXT,
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        },
    ),
    "tiny_generation": (
        LAST_WORD,
        {
            "output_type": "generate_until",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{word}}",
            "generation_kwargs": {"until": ["."]},
            "metric_list": [{"metric": "exact_match", **MEAN}],
        },
    ),
}


def _write_tasks(folder: Path) -> Path:
    """Write all tasks and a group of two; the data files' paths are relative to the task files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (documents, config) in TASKS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": f"{name}.jsonl"}}}
        full = {"task": name, **data, "validation_split": "validation", **config, "metadata": {"version": 1.0}}
        (folder / f"{name}.yaml").write_text(json.dumps(full))  # JSON is YAML
    group = {
        "group": "tiny_group",
        "task": ["tiny_choice", "tiny_schema"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1.0},
    }
    (folder / "tiny_group.yaml").write_text(json.dumps(group))
    return folder


Loaded = tuple[Any, Any]
"""A live tiny model and its tokenizer."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Loaded]:
    """Return a function that loads a tiny model of some type, and remembers it."""
    known: dict[tuple[Any, ...], Loaded] = {}

    def load(model_type: str = "llama", attention: str | None = "eager", **config: Any) -> Loaded:
        key = (model_type, attention, repr(sorted(config.items())))
        if key not in known:
            folder = write_tiny_model(
                tmp_path_factory.mktemp(model_type), model_type=model_type, num_layers=4, **config
            )
            model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
            known[key] = (model.eval(), AutoTokenizer.from_pretrained(folder))
        return known[key]

    return load


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@contextmanager
def global_randomness_kept() -> Iterator[None]:
    """For oracles that seed the global generators."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


@pytest.fixture
def kept_randomness() -> Any:
    return global_randomness_kept


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    return str(_write_tasks(tmp_path / "tasks"))


@pytest.fixture
def choice_documents() -> list[dict[str, Any]]:
    return CHOICE

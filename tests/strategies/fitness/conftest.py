"""A tiny live model and its engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailorlib.evaluation.engine import Engine
from tailorlib.testing.tiny import write_tiny_model


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Engine]:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), num_layers=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), Engine(tokenizer, torch.device("cpu"), 256)

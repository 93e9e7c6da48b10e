"""FineTunedFamily: variants that are better than their base, made once, whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from tailorlib_strategies.families import FineTunedFamily, FineTuning, FineTuningReport, training
from tailorlib_strategies.families.fine_tuning import REPORT
from transformers import AutoModelForCausalLM, AutoTokenizer

from tailorlib.exceptions import DataError, ModelError, RecipeError
from tailorlib.models.cache import sha256_of
from tailorlib.models.family import ModelFamily
from tailorlib.testing.tiny import write_tiny_model
from tailorlib.text import TextSource

SMALL: dict[str, Any] = {
    "tokens": 1200,
    "held_out_tokens": 300,
    "rank": 4,
    "learning_rate": 1e-2,
    "context_length": 32,
}


class Words(TextSource):
    """Lines that differ in their numbers only: soon learnt."""

    def __init__(self, start: int = 0, count: int = 60) -> None:
        self.numbers = range(start, start + count)

    def documents(self) -> Sequence[str]:
        return [f"def add_{i}(a, b): return a + b + {i}" for i in self.numbers]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "base", num_layers=2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _family(base: Path, **settings: Any) -> FineTunedFamily:
    fine_tuning = FineTuning(**{"text": Words(), "held_out": Words(1000, 20), **SMALL, **settings})
    return FineTunedFamily(str(base), {"code": fine_tuning}, dtype="float32")


def test_a_variant_is_better_than_its_base_and_joins_the_family(base: Path, capsys: Any) -> None:
    family = _family(base)
    family.prepare()
    report = family.reports["code"]
    assert report.perplexity < 0.8 * report.base_perplexity
    assert family.layout.candidates == ("code",)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(family.checkpoints["code"].tensor(name), family.checkpoints["base"].tensor(name))
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("code", f"{report.perplexity:.2f}", f"{report.base_perplexity:.2f}"))


def test_the_second_time_nothing_is_trained(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _family(base)
    first.prepare()
    monkeypatch.setattr(training, "fine_tune", _never)
    second = _family(base)
    second.prepare()
    assert second.references == first.references
    assert second.reports == first.reports


@pytest.mark.parametrize("change", [{"tokens": 1000}, {"seed": 1}, {"held_out": Words(2000, 20)}])
def test_other_settings_or_texts_are_another_variant(base: Path, change: dict[str, Any]) -> None:
    settings = {"held_out": Words(1000, 20), **SMALL}
    assert FineTuning(Words(), **settings).digest("x") != FineTuning(Words(), **{**settings, **change}).digest("x")
    assert FineTuning(Words(), **settings).digest("x") != FineTuning(Words(), **settings).digest("y")
    assert FineTuning(Words(), **settings).digest("x") == FineTuning(Words(), **settings).digest("x")


def test_an_interrupted_training_leaves_nothing(base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FineTuningReport, "write", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        _family(base).prepare()
    assert [p for p in (cache / "adapters").iterdir() if not p.name.endswith(".lock")] == []


def test_a_damaged_cache_entry_is_made_again(base: Path) -> None:
    family = _family(base)
    family.prepare()
    (Path(family.references["code"]) / REPORT).unlink()
    again = _family(base)
    again.prepare()
    assert again.reports["code"].perplexity == pytest.approx(family.reports["code"].perplexity, rel=1e-3)


def test_peft_loads_the_adapter_and_agrees_with_the_report(base: Path) -> None:
    from peft import PeftModel

    family = _family(base)
    family.prepare()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):  # PEFT draws matrices before it reads the saved ones
        model = PeftModel.from_pretrained(model, family.references["code"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    batches = training.held_out_batches(tokenizer, Words(1000, 20).documents(), family.variants["code"])
    nats = tokens = 0.0
    with torch.inference_mode():
        for batch in batches:
            scored = int((batch["labels"][:, 1:] != -100).sum())
            nats, tokens = nats + float(model(**batch).loss) * scored, tokens + scored
    assert tokens == family.variants["code"].held_out_tokens
    assert torch.tensor(nats / tokens).exp().item() == pytest.approx(family.reports["code"].perplexity, rel=1e-4)


def test_training_is_repeatable_and_leaves_no_trace(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    state, level = torch.get_rng_state(), logging.getLogger("lightning.pytorch.utilities.rank_zero").level
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        training.fine_tune(base, FineTuning(Words(), **SMALL), tmp_path / name, name)
        digests.append(sha256_of(tmp_path / name / "adapter_model.safetensors"))
    assert digests[0] == digests[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert logging.getLogger("lightning.pytorch.utilities.rank_zero").level == level
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]  # noqa: PTH208


def test_bfloat16_learns_too(base: Path, tmp_path: Path) -> None:
    report = training.fine_tune(base, FineTuning(Words(), **SMALL), tmp_path, "code", torch.bfloat16)
    assert report.perplexity < 0.8 * report.base_perplexity
    assert report.dtype == "bfloat16"


def test_a_variant_that_got_worse_is_refused_and_not_kept(
    base: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([20.0, 21.0])  # whether so small a model gets worse depends on the processor
    monkeypatch.setattr(training, "_perplexity", lambda *args: next(found))
    with pytest.raises(
        ModelError, match=r"'code' has a perplexity of 21.00 .* the base .*20.00.* Train on more tokens"
    ):
        _family(base).prepare()
    assert [p for p in (cache / "adapters").iterdir() if p.is_dir()] == []


def test_a_training_document_must_not_be_held_out(base: Path) -> None:
    with pytest.raises(DataError, match="5 of its 10 documents are"):
        _family(base, held_out=Words(55, 10)).prepare()


def test_without_a_held_out_text_every_tenth_document_is_kept_for_it() -> None:
    trained, held_out = FineTuning(Words()).documents()
    assert len(trained) == 54
    assert len(held_out) == 6
    assert not set(trained) & set(held_out)


def test_all_faults_of_the_settings_are_named_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        FineTuning(Words(), tokens=0, rank=-1, context_length=1)
    assert [name in str(caught.value) for name in ("tokens", "rank", "context_length")] == [True] * 3


def test_too_little_text_is_refused(base: Path) -> None:
    with pytest.raises(DataError, match="needs a row of 200 tokens"):
        _family(base, held_out=Words(5, 2), text=Words(0, 3), context_length=200).prepare()


def test_a_recipe_describes_it_in_plain_yaml() -> None:
    parser = ArgumentParser()
    parser.add_argument("--family", type=ModelFamily)
    text = {"class_path": "tailorlib_strategies.texts.PydocTopics", "init_args": {"split": "train"}}
    settings = {"base": "somewhere", "variants": {"prose": {"text": text, "tokens": 5000}}}
    family = parser.instantiate(
        parser.parse_object(
            {"family": {"class_path": "tailorlib_strategies.families.FineTunedFamily", "init_args": settings}}
        )
    ).family
    assert isinstance(family.variants["prose"], FineTuning)
    assert family.variants["prose"].tokens == 5000
    assert family.variants["prose"].text.split == "train"


def test_a_base_with_own_code_is_trained_where_it_is_trusted(custom: dict[str, Path], row: Any) -> None:
    settings = {"variants": {"code": FineTuning(Words(), Words(1000, 20), **SMALL)}, "dtype": "float32"}
    with pytest.raises(RecipeError, match=r"Read that code, then list the model"):
        FineTunedFamily(str(custom["base"]), {}).prepare()
    assert not custom["base ran"].exists()
    references = []
    for code in ("return factor * logits", "return 2 * factor * logits"):
        (custom["base"] / "scaling_tiny.py").write_text(f"def scaled(logits, factor):\n    {code}\n")
        family = FineTunedFamily(str(custom["base"]), trust_remote_code=["base"], **settings)
        family.prepare()
        assert family.reports["code"].perplexity < family.reports["code"].base_perplexity
        references.append(family.references["code"])
    assert references[0] != references[1]  # another code trains another variant


def _never(*_: Any) -> None:
    raise AssertionError("trained again")


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt

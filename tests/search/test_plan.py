"""A plan makes nothing, and tells the memory that the models then take."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tailorlib_strategies.families import FineTunedFamily, FineTuning, FineTuningReport, training
from tailorlib_strategies.fitness import Perplexity
from tailorlib_strategies.operations import LayerRemoval, TaskArithmetic
from tailorlib_strategies.optimizers import RandomSearch
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib import TextSource
from tailorlib.models.family import ModelFamily
from tailorlib.search import plan
from tailorlib.search.footprint import Memory, memory
from tailorlib.search.plan import plan_table
from tailorlib.search.study import Study, StudySettings
from tailorlib.tailoring import Tailoring
from tailorlib.testing.tiny import write_tiny_family, write_tiny_model

CPU = torch.device("cpu")


class Words(TextSource):
    def __init__(self, start: int = 0) -> None:
        self.start = start

    def documents(self) -> Sequence[str]:
        return [f"def add_{i}(a, b): return a + b + {i}" for i in range(self.start, self.start + 30)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def study_of(family: ModelFamily, **settings: Any) -> Study:
    return Study(
        family=family,
        space=PruningSpace(LayerRemoval(count=1), merges=[TaskArithmetic()]),
        optimizer=RandomSearch(),
        fitness=Perplexity(Words(500), context_length=16, max_tokens=64),
        settings=StudySettings(**{"trials": 4, **settings}),
    )


def write_adapter(base: Path, folder: Path, rank: int, ends: tuple[str, ...] = ("_proj",)) -> Path:
    """Write a LoRA on matrices of a tiny model, as PEFT names them."""
    folder.mkdir(parents=True)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.endswith(ends):
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.ones(rank, weight.shape[1])
            tensors[f"base_model.model.{module}.lora_B.weight"] = 0.01 * torch.ones(weight.shape[0], rank)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def held(family: ModelFamily) -> tuple[int, int]:
    """Return what is held once every layer of every model was used, with the base's outer parts."""
    family.load(CPU)
    for name in family.layout.models:
        family.stitch(Tailoring(Tailoring.whole(name, family.layout.num_layers).layers))
    memory = family.stitcher.memory()
    return sum(memory[name] for name in family.layout.models), memory["mapped"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("computes", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_memory_is_what_the_models_take(tmp_path, stored, computes, tied):
    shape: dict[str, Any] = {"num_layers": 2, "dtype": stored, "tie_word_embeddings": tied}
    folders = write_tiny_family(tmp_path, candidates=1, **shape)
    adapters = {
        "lora": write_adapter(folders["base"], tmp_path / "lora", 2),
        "attention": write_adapter(folders["base"], tmp_path / "attention", 3, ("q_proj", "v_proj")),
    }
    candidates = {name: str(folder) for name, folder in {"a": folders["a"], **adapters}.items()}
    family = ModelFamily(str(folders["base"]), candidates, dtype=computes)
    study = study_of(family)
    study.prepare(CPU)
    found = memory(study, CPU)
    assert (found.device_bytes, found.mapped_bytes) == held(family)
    # what was said before counted four embeddings, and each adapter's file as another model's
    size = {name: (folder / "adapter_model.safetensors").stat().st_size for name, folder in adapters.items()}
    assert found.adapter_bytes == pytest.approx(sum(size.values()), rel=0.5)
    whole = sum((folders[name] / "model.safetensors").stat().st_size for name in ("base", "a"))
    assert found.disk_bytes - found.adapter_bytes == pytest.approx(whole, rel=0.1)


def test_a_budget_of_layers_bounds_the_memory(tmp_path):
    folders = write_tiny_family(tmp_path, candidates=2, num_layers=2)
    candidates = {name: str(folders[name]) for name in "ab"}
    family = ModelFamily(str(folders["base"]), candidates, dtype="bfloat16", layer_cache_mib=0)
    study = study_of(family)
    study.prepare(CPU)
    family.load(CPU)
    for name in family.layout.models:
        family.stitch(Tailoring(Tailoring.whole(name, 2).layers))
    assert memory(study, CPU).device_bytes == sum(family.stitcher.memory().values())


def fine_tuned(base: Path, **settings: Any) -> FineTunedFamily:
    shape = {"tokens": 1000, "held_out_tokens": 100, "rank": 4, "context_length": 32, **settings}
    variants = {name: FineTuning(Words(), Words(100 + i), **shape) for i, name in enumerate(("code", "[b]prose"))}
    return FineTunedFamily(str(base), variants, dtype="float32")


def shown(study: Study, **settings: Any) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_table(study, CPU, **settings))
    return console.export_text()


def forbidden(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a plan makes nothing")


def test_variants_are_planned_before_they_are_trained(tmp_path, monkeypatch, cache):
    base = write_tiny_model(tmp_path / "base", num_layers=2, dtype=torch.bfloat16)
    planned: list[Memory] = []

    def trained(folder: Path, settings: FineTuning, target: Path, name: str, *args: Any, **kwargs: Any) -> None:
        write_adapter(base, target / "made", settings.rank)
        for file in (target / "made").iterdir():
            file.rename(target / file.name)
        (target / "made").rmdir()
        FineTuningReport(1000, 1.0, "float32", 9.0, 8.0).write(target)

    for make in (forbidden, trained):
        monkeypatch.setattr(training, "fine_tune", make)
        study = study_of(fine_tuned(base))
        study.prepare(CPU, build=make is trained)
        planned.append(memory(study, CPU))
        text = shown(study, calibrate=make is forbidden)
        # 1000 tokens in rows of 32, two rows a step
        assert ("code, [b]prose are trained first, once: about 32 steps" in text) == (make is forbidden)
    before, after = planned
    assert before == after
    assert after.device_bytes == held(study.family)[0]
    monkeypatch.setattr(training, "fine_tune", forbidden)
    again = study_of(fine_tuned(base))
    again.prepare(CPU, build=False)
    assert not again.family.first  # they are in the cache
    assert memory(again, CPU) == after


def test_a_family_that_was_planned_can_be_searched(tmp_path, monkeypatch):
    base = write_tiny_model(tmp_path / "base", num_layers=2)
    family = fine_tuned(base, tokens=2000, learning_rate=1e-2)
    study = study_of(family)
    study.prepare(CPU, build=False)
    family.variants = {}
    family.load(CPU)  # which makes what was only planned
    assert family.layout.candidates == ()
    assert family.stitch(study.dense).dtype == torch.float32


def test_a_calibration_shows_how_far_it_is_and_what_it_leaves_out(make: Callable[..., Any], monkeypatch):
    seen: list[tuple[str, int]] = []
    real = plan.bar

    def bar(description: str, total: int) -> Any:
        seen.append((description, total))
        return real(description, total)

    monkeypatch.setattr(plan, "bar", bar)
    text = shown(make(trials=4).study)
    assert seen == [("Calibrating on cpu", 8)]
    assert "loading the models; scoring the dense model; writing the model" in text

"""Tasks that let the model write: the same texts and metrics as simple_evaluate, on live tailorings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_tasks import metrics_of, simple_evaluate, write_harness_tasks
from model_cases import random_tailoring
from scarce_memory import OUT_OF_MEMORY, memory_for
from tailorlib_strategies.fitness import LMEval

from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.requests import TaskRequests
from tailorlib.evaluation.tasks import TaskSettings
from tailorlib.exceptions import DataError, EvaluationError
from tailorlib.models.family import ModelFamily
from tailorlib.testing.tiny import write_tiny_family

CPU = torch.device("cpu")
Keep = Callable[[], AbstractContextManager[None]]
SHORT = {"max_gen_toks": 12}
SAMPLED = {"max_gen_toks": 6, "do_sample": True, "temperature": 1.5}


@pytest.fixture
def harness(tmp_path: Path) -> str:
    return str(write_harness_tasks(tmp_path / "harness"))


def texts_of(results: Any, task: str) -> list[list[str]]:
    """Return the texts of each document; one with several filters is listed once."""
    return [s["resps"][0] for s in {s["doc_id"]: s for s in results["samples"][task]}.values()]


@pytest.mark.parametrize(("model_type", "config"), [("llama", {}), ("gemma3_text", {"sliding_window": 16})])
def test_texts_and_metrics_of_a_tailoring_are_those_of_simple_evaluate(
    model_type: str, config: dict[str, Any], tmp_path: Path, harness: str, kept_randomness: Keep
) -> None:
    folders = write_tiny_family(tmp_path / "family", model_type=model_type, max_position_embeddings=1024, **config)
    family = ModelFamily(str(folders["base"]), {n: str(folders[n]) for n in "ab"}, dtype="float32")
    family.load(CPU)
    model = family.stitch(random_tailoring(family, 3))
    engine = Engine(family.tokenizer, CPU, 1000)
    settings = TaskSettings(include_path=harness, gen_kwargs=SHORT, generation_batch_size=4)
    ours = TaskRequests(["gsm8k", "piqa"], engine, settings)
    texts = ours.generate(model)
    found = ours.evaluate(engine.score(model, engine.compile(ours.requests)), texts)
    expected = simple_evaluate(
        model, family.tokenizer, ["gsm8k", "piqa"], harness, 1000, kept_randomness(), gen_kwargs=SHORT
    )
    assert [texts[id(i)] for i in ours.tasks["gsm8k"].instances] == texts_of(expected, "gsm8k")
    assert any(text for (text,) in texts_of(expected, "gsm8k"))
    assert found.metrics == pytest.approx(metrics_of(expected))
    assert {"gsm8k/exact_match,strict-match", "gsm8k/exact_match,flexible-extract"} <= set(found.metrics)
    assert set(found.probability) == {"piqa"}


def test_sampled_texts_depend_on_the_seed_as_in_simple_evaluate(
    tiny: Callable[..., Any], tasks: str, kept_randomness: Keep
) -> None:
    model, tokenizer = tiny()
    found = {}
    for seed in (1234, 5):
        settings = TaskSettings(include_path=tasks, gen_kwargs=SAMPLED, torch_random_seed=seed)
        ours = TaskRequests([{"task": "tiny_generation", "repeats": 2}], Engine(tokenizer, CPU, 256), settings)
        texts = ours.generate(model)
        assert texts == ours.generate(model)
        found[seed] = [texts[id(i)] for i in ours.tasks["tiny_generation"].instances]
        assert all(len(two) == 2 for two in found[seed])
    assert found[1234] != found[5]
    config = Path(tasks) / "tiny_generation.yaml"
    config.write_text(config.read_text().replace('"metric_list"', '"repeats": 2, "metric_list"'))
    expected = simple_evaluate(
        *(model, tokenizer, ["tiny_generation"], tasks, 256, kept_randomness()),
        batch_size=16,
        gen_kwargs=SAMPLED,
        torch_random_seed=5,
    )
    assert found[5] == texts_of(expected, "tiny_generation")


def test_a_task_that_writes_counts_by_its_metric_beside_others(tiny: Callable[..., Any], tasks: str) -> None:
    model, tokenizer = tiny()
    fitness = LMEval(["tiny_choice", {"task": "tiny_generation", "gen_kwargs": SHORT}], include_path=tasks)
    engine = Engine(tokenizer, CPU, 256)
    fitness.setup(engine)
    found = fitness.evaluate(model)
    mean = (found.metrics["tiny_choice/probability"] + found.metrics["tiny_generation/exact_match"]) / 2
    assert found.score == pytest.approx(mean)
    assert "tiny_generation/probability" not in found.metrics
    prompts = [len(tokenizer(i.args[0])["input_ids"]) for i in fitness._tasks.tasks["tiny_generation"].instances]
    scored = engine.compile(fitness._tasks.requests).tokens
    assert fitness.tokens == scored + sum(prompts) + len(prompts) * SHORT["max_gen_toks"]


def test_generation_leaves_tokenizer_and_model_alone(tiny: Callable[..., Any], tasks: str) -> None:
    model, tokenizer = tiny()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    settings = TaskSettings(include_path=tasks, gen_kwargs=SHORT)
    TaskRequests(["tiny_generation"], Engine(tokenizer, CPU, 256), settings).generate(model)
    assert tokenizer.pad_token is None
    assert not any(m._forward_hooks for m in model.modules())


def test_prompts_that_do_not_fit_lose_tokens_and_are_counted(
    tiny: Callable[..., Any], tasks: str, kept_randomness: Keep, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = tiny()
    settings = TaskSettings(include_path=tasks, gen_kwargs=SHORT)
    ours = TaskRequests(["tiny_generation"], Engine(tokenizer, CPU, 30), settings)
    lengths = [len(tokenizer(i.args[0])["input_ids"]) for i in ours.tasks["tiny_generation"].instances]
    assert ours.truncated == {"tiny_generation": sum(length > 18 for length in lengths)}
    assert 0 < ours.truncated["tiny_generation"] < len(lengths)
    assert sum("lose tokens from the left" in r.message for r in caplog.records) == 1
    texts = ours.generate(model)
    expected = simple_evaluate(
        *(model, tokenizer, ["tiny_generation"], tasks, 30, kept_randomness()), batch_size=16, gen_kwargs=SHORT
    )
    assert [texts[id(i)] for i in ours.tasks["tiny_generation"].instances] == texts_of(expected, "tiny_generation")


def test_texts_longer_than_the_context_are_refused(tiny: Callable[..., Any], tasks: str) -> None:
    with pytest.raises(DataError, match=r"context of 256 tokens; 'tiny_generation' lets the model write 256"):
        TaskRequests(["tiny_generation"], Engine(tiny()[1], CPU, 256), TaskSettings(include_path=tasks))


def test_code_runs_only_if_that_is_confirmed(tiny: Callable[..., Any], tasks: str) -> None:
    model, tokenizer = tiny()
    engine = Engine(tokenizer, CPU, 256)
    unsafe = {"task": "tiny_generation", "unsafe_code": True, "gen_kwargs": SHORT}
    with pytest.raises(
        DataError, match=r"executes code that the model writes\. Set confirm_run_unsafe_code: true"
    ):
        LMEval([unsafe], include_path=tasks).setup(engine)
    allowed = LMEval([unsafe], include_path=tasks, confirm_run_unsafe_code=True)
    allowed.setup(engine)
    assert allowed.evaluate(model).score == 0


def test_nan_in_a_generated_text_is_told(tiny: Callable[..., Any], tasks: str) -> None:
    model, tokenizer = tiny(seed=2)
    model = copy.deepcopy(model)
    model.model.layers[1].mlp.down_proj.weight.data.fill_(float("nan"))
    settings = TaskSettings(include_path=tasks, gen_kwargs=SHORT)
    ours = TaskRequests(["tiny_generation"], Engine(tokenizer, CPU, 256), settings)
    with pytest.raises(EvaluationError, match=r"that of decoder layer 1 \(of 0 to 3\)"):
        ours.generate(model)


def test_memory_that_runs_out_halves_the_batch_once(
    tiny: Callable[..., Any], tasks: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = tiny()
    settings = TaskSettings(include_path=tasks, gen_kwargs=SHORT, generation_batch_size=3)
    ours = TaskRequests(["tiny_generation"], Engine(tokenizer, CPU, 256), settings)
    free = ours.generate(model)
    longest = max(len(tokenizer(i.args[0])["input_ids"]) for i in ours.tasks["tiny_generation"].instances)
    with memory_for(model, 2 * longest, OUT_OF_MEMORY["device"]) as failed:
        assert ours.generate(model) == free
        assert ours.generate(model) == free
        assert len(failed) == 1
    with (
        memory_for(model, 1, OUT_OF_MEMORY["device"]),
        pytest.raises(EvaluationError, match=r"while 1 texts were generated at once: CUDA out of memory\. Tried"),
    ):
        ours.generate(model)
    assert sum("At most 1 at once from now on" in r.message for r in caplog.records) == 1

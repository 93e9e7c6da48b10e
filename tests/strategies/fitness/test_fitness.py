from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from tailorlib_strategies.fitness import LMEval, Perplexity, WeightedMean
from tailorlib_strategies.texts.files import PlainText

from tailorlib import Fitness, Measurement, TextSource
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import DataError, EvaluationError, RecipeError
from tailorlib.testing.contracts import check_fitness

TEXT = "The quick brown fox jumps over the lazy dog. " * 6
DOCUMENTS = [
    {"q": "The quick brown fox", "c": [" jumps", " sleeps"], "gold": 0},
    {"q": "The opposite of hot is", "c": [" dog", " cold"], "gold": 1},
    {"q": "Anna has 3 apples; she has", "c": [" 7", " 3"], "gold": 1},
]


class Given(TextSource):
    def documents(self) -> Sequence[str]:
        return [TEXT]


class Fixed(Fitness):
    """Gives the scores that it is told, one after another."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def _evaluate(self, model: Any) -> Measurement:
        score = self.scores.pop(0)
        return Measurement(score, metrics={"figure": score}, chance={"figure": 0.5})


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    for name in ("first", "second"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": f"{name}.jsonl"}},
            "validation_split": "validation",
            "output_type": "multiple_choice",
            "doc_to_text": "q",
            "doc_to_choice": "c",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "metric_list": [
                {"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")
            ],
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))
    return str(tmp_path)


def test_perplexity_scores_its_inverse(live: tuple[Any, Engine]) -> None:
    model, engine = live
    fitness = Perplexity(Given(), context_length=32, max_tokens=50)
    assert fitness.tokens == 0
    fitness.setup(engine)
    assert fitness.tokens == 49  # of two windows; the prefix token is shared, the last ones only scored
    found = fitness.evaluate(model)
    assert found.score == pytest.approx(1 / found.metrics["perplexity"])
    assert math.log(found.metrics["perplexity"]) == pytest.approx(found.metrics["nats_per_token"])
    assert fitness.evaluate(model) == found


def test_perplexity_refuses_windows_beyond_the_context(live: tuple[Any, Engine]) -> None:
    with pytest.raises(RecipeError, match="at most the models' context of 256 tokens, got 512"):
        Perplexity(Given(), context_length=512).setup(live[1])
    with pytest.raises(RecipeError, match="positive context_length and max_tokens, got 0"):
        Perplexity(Given(), context_length=0)


def test_a_model_that_gives_nan_fails_the_evaluation(live: tuple[Any, Engine]) -> None:
    model, engine = live
    fitness = Perplexity(Given(), context_length=32, max_tokens=50)
    fitness.setup(engine)
    norm = model.get_decoder().norm.weight
    kept = norm.detach().clone()
    try:
        norm.data.fill_(float("nan"))
        with pytest.raises(EvaluationError, match=r"gives NaN\. .* that of the final norm"):
            fitness.evaluate(model)
    finally:
        norm.data.copy_(kept)
    with pytest.raises(EvaluationError, match=r"Fixed gives a finite score, got nan \(not finite: figure\)"):
        Fixed(math.nan).evaluate(model)


def test_lm_eval_reports_metrics_probability_and_chance(live: tuple[Any, Engine], tasks: str) -> None:
    model, engine = live
    fitness = LMEval(["first", "second"], include_path=tasks)
    fitness.check()
    fitness.setup(engine)
    found = fitness.evaluate(model)
    names = {f"{task}/{metric}" for task in ("first", "second") for metric in ("acc", "acc_norm", "probability")}
    assert set(found.metrics) == names | {"first/margin", "second/margin"}
    assert set(found.chance) == names
    assert set(found.chance.values()) == {0.5}
    assert found.score == pytest.approx(
        (found.metrics["first/probability"] + found.metrics["second/probability"]) / 2
    )
    assert 0 < fitness.tokens < sum(len(r.context) + len(r.continuation) for r in fitness._tasks.requests)


@pytest.mark.parametrize(("metric", "expected"), [(None, "acc"), ("acc_norm", "acc_norm")])
def test_lm_eval_can_maximise_a_metric(
    live: tuple[Any, Engine], tasks: str, metric: str | None, expected: str
) -> None:
    model, engine = live
    fitness = LMEval(["first"], include_path=tasks, signal="metric", metric=metric, limit=2)
    fitness.setup(engine)
    found = fitness.evaluate(model)
    assert found.score == found.metrics[f"first/{expected}"]


def test_lm_eval_refuses_what_makes_no_sense(live: tuple[Any, Engine], tasks: str) -> None:
    with pytest.raises(RecipeError, match="The recipe has 4 faults"):
        LMEval([], limit=0, num_fewshot=-1, metric="acc")
    with pytest.raises(DataError, match=r"no metric 'acc_nrom'\. Did you mean 'acc_norm'"):
        LMEval(["first"], include_path=tasks, signal="metric", metric="acc_nrom").setup(live[1])
    with pytest.raises(DataError, match="there is no folder"):
        LMEval(["first"], include_path="nowhere").check()


def test_weighted_mean_is_plain_before_there_is_a_reference(live: tuple[Any, Engine]) -> None:
    fitness = WeightedMean({"a": Fixed(0.2), "b": Fixed(0.6)}, weights={"b": 3})
    fitness.setup(live[1])
    found = fitness.evaluate(live[0])
    assert found.score == pytest.approx((0.2 + 3 * 0.6) / 4)
    assert found.parts == {"a": 0.2, "b": 0.6}
    assert found.metrics == {"a/figure": 0.2, "b/figure": 0.6}
    assert found.chance == {"a/figure": 0.5, "b/figure": 0.5}


def test_weighted_mean_is_relative_to_the_dense_model(live: tuple[Any, Engine]) -> None:
    fitness = WeightedMean({"a": Fixed(0.2, 0.1), "b": Fixed(0.6, 0.9)})
    fitness.setup(live[1])
    dense = fitness.evaluate(live[0])
    again = fitness.set_reference(dense)
    assert again.score == pytest.approx(1.0)
    assert again.parts == dense.parts
    found = fitness.evaluate(live[0])
    assert found.score == pytest.approx((0.1 / 0.2 + 0.9 / 0.6) / 2)
    assert found.parts == {"a": 0.1, "b": 0.9}


def test_weighted_means_can_be_nested(live: tuple[Any, Engine]) -> None:
    inner = WeightedMean({"x": Fixed(0.2, 0.1), "y": Fixed(0.4, 0.4)})
    fitness = WeightedMean({"inner": inner, "z": Fixed(0.5, 1.0)})
    fitness.setup(live[1])
    assert fitness.set_reference(fitness.evaluate(live[0])).score == pytest.approx(1.0)
    assert fitness.evaluate(live[0]).score == pytest.approx(((0.5 + 1.0) / 2 + 2.0) / 2)


def test_weighted_mean_can_stay_absolute(live: tuple[Any, Engine]) -> None:
    fitness = WeightedMean({"a": Fixed(0.2, 0.1)}, relative_to_dense=False)
    fitness.setup(live[1])
    dense = fitness.evaluate(live[0])
    assert fitness.set_reference(dense) == dense
    assert fitness.evaluate(live[0]).score == pytest.approx(0.1)


def test_nothing_is_relative_to_zero(live: tuple[Any, Engine]) -> None:
    fitness = WeightedMean({"a": Fixed(0.0)})
    fitness.setup(live[1])
    with pytest.raises(EvaluationError, match=r"positive dense scores, got a=0\.0\. Set relative_to_dense: false"):
        fitness.set_reference(fitness.evaluate(live[0]))


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({}, None, "at least one part"),
        ({"a": Fixed()}, {"b": 1.0}, r"weights name its parts \(a\), got 'b'"),
        ({"a": Fixed()}, {"a": 0.0}, "a part of positive weight"),
        ({"a": Fixed()}, {"a": -1.0}, "finite and not negative, got a=-1"),
        ({"a/b": Fixed()}, None, "names without '/'"),
    ],
)
def test_senseless_weights_are_refused(
    parts: dict[str, Fitness], weights: dict[str, float] | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        WeightedMean(parts, weights)


def test_a_recipe_builds_a_combined_fitness(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("""
fitness:
  class_path: tailorlib_strategies.fitness.WeightedMean
  init_args:
    parts:
      text:
        class_path: tailorlib_strategies.fitness.Perplexity
        init_args:
          text: {class_path: tailorlib_strategies.texts.files.PlainText, init_args: {path: some.txt}}
          max_tokens: 64
      questions:
        class_path: tailorlib_strategies.fitness.LMEval
        init_args: {tasks: [first, second], limit: 0.5, signal: metric}
    weights: {text: 2}
""")
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--fitness", type=Fitness)
    fitness = parser.instantiate_classes(parser.parse_args(["--config", str(recipe)])).fitness
    assert isinstance(fitness, WeightedMean)
    assert fitness.weights == {"text": 2.0, "questions": 1.0}
    text, questions = fitness.parts["text"], fitness.parts["questions"]
    assert isinstance(text, Perplexity)
    assert isinstance(text.text, PlainText)
    assert text.max_tokens == 64
    assert isinstance(questions, LMEval)
    assert (questions.names, questions.limit, questions.signal) == (["first", "second"], 0.5, "metric")


def test_the_fitness_of_the_tutorial_keeps_the_contract(live: tuple[Any, Engine]) -> None:
    page = Path(__file__).parents[3] / "docs" / "plugins" / "first_choice.py"
    names: dict[str, Any] = {"__name__": "tutorial"}
    exec(compile(page.read_text(), str(page), "exec", dont_inherit=True), names)
    fitness = names["FirstChoice"](["The quick brown fox", "The lazy dog. " * 3, "Anna has 3 apples"])
    check_fitness(fitness, *live)
    found = fitness.evaluate(live[0], 2)
    assert found.score == found.metrics["first_choice"]
    assert 0 <= found.score <= 1

"""lm-eval's own task definitions over a few shipped questions in each data set's format."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lm_eval.tasks

DATA = Path(__file__).parent / "data"
DEFINITIONS = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "sciq": "sciq/sciq.yaml",
    "winogrande": "winogrande/default.yaml",
    "blimp": "blimp/anaphor_number_agreement.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "wikitext": "wikitext/wikitext.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "mmlu_astronomy": "mmlu/default/mmlu_astronomy.yaml",
    "mmlu_virology": "mmlu/default/mmlu_virology.yaml",
}
SCORED = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "sciq", "winogrande", "blimp", "lambada", "wikitext")
"""Tasks that score given answers, beside the group ``tiny_mmlu``."""


def write_harness_tasks(folder: Path) -> Path:
    """Write task files that take lm-eval's definitions and our data, and a group of the MMLU subjects."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, definition in DEFINITIONS.items():
        own = str(DATA / f"{name}.jsonl")
        examples = DATA / f"{name}_dev.jsonl"
        files = dict.fromkeys(("train", "validation", "test"), own)
        if examples.exists():
            files["dev"] = str(examples)
        task = {
            "include": str(Path(lm_eval.tasks.__file__).parent / definition),
            "task": name,
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    group = {
        "group": "tiny_mmlu",
        "task": ["mmlu_astronomy", "mmlu_virology"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1.0},
    }
    (folder / "tiny_mmlu.yaml").write_text(json.dumps(group))
    return folder


def simple_evaluate(
    model: Any,
    tokenizer: Any,
    tasks: list[Any],
    folder: str,
    max_length: int,
    keep: AbstractContextManager[None],
    batch_size: int = 4,
    **settings: Any,
) -> Any:
    """Return what ``lm_eval.simple_evaluate`` finds with its Hugging Face class around a live model."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from tailorlib.evaluation.surroundings import quiet_lm_eval

    for file in Path(folder).glob("*.yaml"):  # lm-eval itself looks for data files from the working directory
        text = file.read_text()
        for data in Path(folder).glob("*.jsonl"):
            text = text.replace(f'"{data.name}"', f'"{data}"')
        file.write_text(text)
    with keep, quiet_lm_eval():
        return lm_eval.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length),
            tasks=tasks,
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            bootstrap_iters=0,
            **settings,
        )


def answers_of(results: Any, task: str) -> list[tuple[float, bool | None]]:
    """Return log-likelihood and greedy flag of each request of a task, in lm-eval's order."""
    found: list[tuple[float, bool | None]] = []
    for sample in results["samples"][task]:
        for (answer,) in sample["resps"]:
            found.append(tuple(answer) if isinstance(answer, list | tuple) else (answer, None))
    return found


def metrics_of(results: Any) -> dict[str, float]:
    """Return every metric as tailorlib names it."""
    found = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, _, name = key.partition(",")
            if name and not metric.endswith("_stderr"):
                found[f"{task}/{metric}" if name == "none" else f"{task}/{key}"] = value
    return found

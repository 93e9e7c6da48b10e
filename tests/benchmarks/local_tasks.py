"""lm-eval task files for a folder of JSON Lines files, one folder per data set: what the benchmarks run over.

Multiple choice: rows with ``query``, ``choices`` (with their leading space) and ``gold``. WinoGrande has
``contexts`` and a ``continuation``, LAMBADA a ``context`` and a ``continuation``, Wikitext ``text``; MMLU rows
have a ``subject``, and the few-shot examples are in a file of their own.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

CHOICE = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "sciq", "blimp")
MEAN: dict[str, Any] = {"aggregation": "mean", "higher_is_better": True}
ACCURACY = [{"metric": "acc", **MEAN}]
BOTH = [*ACCURACY, {"metric": "acc_norm", **MEAN}]
TASKS = tuple(f"local_{name}" for name in (*CHOICE, "winogrande", "lambada", "wikitext2"))
"""Names of the tasks outside MMLU."""
MMLU = "local_mmlu"
"""Name of the group."""
MMLU_HEADER = "The following are multiple choice questions (with answers) about {}.\n\n"


def write_tasks(data: Path, folder: Path, subjects: int = 10) -> None:
    """Write task files ``local_hellaswag``, ..., and the group ``local_mmlu`` with its ``subjects`` largest ones.

    Args:
        data: Folder with the data sets.
        folder: Where the task files go.
        subjects: Number of subjects of the group.
    """
    for name in CHOICE:
        _write(folder, name, data / name, output_type="multiple_choice", metric_list=BOTH, **_choice("{{query}}"))
    _write(
        folder,
        "winogrande",
        data / "winogrande",
        output_type="multiple_choice",
        doc_to_text="gold",
        doc_to_choice="contexts",
        doc_to_target="continuation",
        target_delimiter="",
        metric_list=ACCURACY,
    )
    _write(
        folder,
        "lambada",
        data / "lambada",
        output_type="loglikelihood",
        doc_to_text="{{context}}",
        doc_to_target="{{continuation}}",
        target_delimiter="",
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}, *ACCURACY],
    )
    _write(
        folder,
        "wikitext2",
        data / "wikitext2",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    )
    _write_mmlu(data / "mmlu", folder, subjects)


def _choice(text: str) -> dict[str, Any]:
    return {"doc_to_text": text, "doc_to_choice": "choices", "doc_to_target": "gold", "target_delimiter": ""}


def _write(folder: Path, name: str, data: Path, **config: Any) -> None:
    files = {"validation": str((data / "validation.jsonl").resolve()), **config.pop("files", {})}
    full = {
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "validation_split": "validation",
        **config,
        "metadata": {"version": 1.0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"local_{name}.yaml").write_text(json.dumps(full))  # JSON is YAML


def _write_mmlu(data: Path, folder: Path, subjects: int) -> None:
    rows = {split: _rows(data / f"{split}.jsonl") for split in ("validation", "fewshot")}
    count = Counter(row["subject"] for row in rows["validation"])
    largest = sorted(count, key=lambda subject: (-count[subject], subject))[:subjects]
    for subject in largest:
        here = folder / f"mmlu_{subject}"
        here.mkdir(parents=True, exist_ok=True)
        for split, found in rows.items():
            own = [{k: row[k] for k in ("query", "choices", "gold")} for row in found if row["subject"] == subject]
            (here / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
        header = MMLU_HEADER.format(subject.replace("_", " "))
        _write(
            folder,
            f"mmlu_{subject}",
            here,
            files={"fewshot": str((here / "fewshot.jsonl").resolve())},
            fewshot_split="fewshot",
            fewshot_config={"sampler": "first_n"},
            output_type="multiple_choice",
            description=header,
            metric_list=ACCURACY,
            **_choice(f"{{{{query[{len(header)}:]}}}}"),  # the examples stand between the header and the question
        )
    group = {
        "group": "local_mmlu",
        "task": [f"local_mmlu_{subject}" for subject in largest],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1.0},
    }
    (folder / "local_mmlu.yaml").write_text(json.dumps(group))


def _rows(path: Path) -> list[dict[str, Any]]:
    # not splitlines(): JSON strings may hold U+2028
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]

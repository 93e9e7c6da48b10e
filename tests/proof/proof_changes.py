"""What changes between a search and what follows it: refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from proof_bench import LAYERS, TEXT, tell, tree, trials_of
from proof_cases import Case, FaultClass
from safetensors.torch import load_file, save_file

from tailorlib.testing.tiny import write_tiny_family

PLUGIN = """
from tailorlib import Fitness, Measurement

class Steepness(Fitness):
    def _evaluate(self, model):
        return Measurement(1.0 * sum(float(p.float().abs().mean()) for p in model.parameters()))
"""
TASK = """
task: animals
dataset_path: json
dataset_kwargs: {data_files: {test: animals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
"""
VERBS = {
    "resume": ["search", "--resume", "run", "--study.trials", "4"],
    "resume of all": ["search", "--resume", "run"],
    "export": ["export", "run", "--output", "out"],
    "evaluate": ["evaluate", "run"],
}
Change = Callable[[Path], None]


def _bytes(name: str, where: float) -> Change:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(where * (len(content) - 1))] ^= 1
        (folder / name).write_bytes(content)

    return change


def _text(name: str, old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        content = (folder / name).read_text()
        assert old in content, f"{name} has no {old!r}"
        (folder / name).write_text(content.replace(old, new, 1))

    return change


def _swapped(one: str, other: str) -> Change:
    def change(folder: Path) -> None:
        (folder / one).rename(folder / "between")
        (folder / other).rename(folder / one)
        (folder / "between").rename(folder / other)

    return change


def _weights(name: str, seed: int) -> Change:
    """Change one number of the model, as little as its type can."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        tensor = tensors[sorted(tensors)[seed * 5 % len(tensors)]].view(-1)
        tensor[0] = torch.nextafter(tensor[0], torch.tensor(9.0))
        (folder / name).unlink()
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return change


def _gone(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


CHANGES: dict[str, tuple[Change, tuple[str, ...]]] = {
    **{f"text, byte at {w}": (_bytes("text.txt", w), ("text.txt", "data of")) for w in (0.0, 0.3, 0.7)},
    "text, shorter": (_text("text.txt", TEXT[:40], ""), ("text.txt", "data of")),
    "text, gone": (_gone("text.txt"), ("text.txt", "data of")),
    **{f"weights of base, {i}": (_weights("models/base/model.safetensors", i), ("base",)) for i in range(3)},
    **{f"weights of a, {i}": (_weights("models/a/model.safetensors", i), ("a",)) for i in range(3)},
    **{f"adapter, {i}": (_weights("models/c/adapter_model.safetensors", i), ("c",)) for i in range(2)},
    "adapter's alpha": (_text("models/c/adapter_config.json", '"lora_alpha": 4', '"lora_alpha": 5'), ("c",)),
    "config of base": (
        _text("models/base/config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'),
        ("base",),
    ),
    "config of a": (_text("models/a/config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'), ("a",)),
    "tokenizer": (_text("models/base/tokenizer.json", '"type": "BPE"', '"type":  "BPE"'), ("base", "tokenizer")),
    "a and b swapped": (_swapped("models/a", "models/b"), ("a", "b")),
    "base and a swapped": (_swapped("models/base", "models/a"), ("base", "a")),
    "task's data": (_text("tasks/animals.jsonl", '"label": 0', '"label": 1'), ("animals", "data of")),
    "task's definition": (_text("tasks/animals.yaml", "{{q}}", "{{q}} "), ("animals", "data of")),
}
"""Each change, and words of which the message has one."""
UNCHANGED: dict[str, Change] = {
    "nothing": lambda folder: None,
    "times": lambda folder: [os.utime(p, (1e9, 1e9)) for p in folder.rglob("*") if p.is_file()] and None,
    "plugin": _text("own.py", "1.0 *", "2.0 *"),
    "plugin gone": _gone("own.py"),
}
"""What must change nothing: a run loads the plugins that it began with."""


class Changes(FaultClass):
    """Texts, models, tasks and plugins that change after a search."""

    name = "changes"
    checked = "refused by name before anything is scored or written; without a change the same digits"

    def cases(self) -> Sequence[Case]:
        """Return the cases."""
        found = [Case(f"{what}: {verb}", partial(self._refused, what, verb)) for what in CHANGES for verb in VERBS]
        found += [
            Case(f"{what} unchanged: {verb}", partial(self._same, what, verb))
            for what in UNCHANGED
            for verb in VERBS
        ]
        return [*found, *(Case(f"plugin's copy: {verb}", partial(self._copy, verb)) for verb in VERBS)]

    @cached_property
    def study(self) -> Path:
        """A folder with a finished run and all that it read, by relative paths."""
        return self.bench._once("changes", self._make)

    def _make(self, folder: Path) -> None:
        write_tiny_family(folder / "models", candidates=2, num_layers=LAYERS)
        self._adapter(folder / "models")
        (folder / "text.txt").write_text(TEXT)
        (folder / "own.py").write_text(PLUGIN)
        (folder / "tasks").mkdir()
        (folder / "tasks/animals.yaml").write_text(TASK)
        questions = [
            {"q": f"The {q}", "choices": ["fox", "dog"], "label": i} for i, q in enumerate(["quick", "lazy"])
        ]
        (folder / "tasks/animals.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
        recipe = self.bench.recipe("run", trials=2, export=False)
        recipe["family"]["init_args"] |= {"base": "models/base"}
        recipe["family"]["init_args"]["candidates"] = {name: f"models/{name}" for name in "abc"}
        perplexity = recipe["fitness"]
        perplexity["init_args"]["text"]["init_args"]["path"] = "text.txt"
        tasks = {"class_path": "LMEval", "init_args": {"tasks": ["animals"], "include_path": "tasks"}}
        parts = {"text": perplexity, "own": {"class_path": "Steepness"}, "animals": tasks}
        recipe["fitness"] = {"class_path": "WeightedMean", "init_args": {"parts": parts}}
        recipe["plugins"] = ["own.py"]
        recipe["benchmark"] = {"fitness": perplexity}
        for section in ("scheduler", "validation"):
            del recipe[section]
        self.bench.write(folder, recipe)
        tell(["search", "--config", "recipe.yaml", "--quiet"], folder).check_message(0)

    def _adapter(self, models: Path) -> None:
        target = "model.layers.0.self_attn.q_proj"
        out, inside = load_file(models / "a" / "model.safetensors")[f"{target}.weight"].shape
        (models / "c").mkdir()
        about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        (models / "c" / "adapter_config.json").write_text(json.dumps(about))
        low = {"lora_A": torch.full((2, inside), 0.01), "lora_B": torch.full((out, 2), 0.01)}
        named = {f"base_model.model.{target}.{name}.weight": tensor for name, tensor in low.items()}
        save_file(named, models / "c" / "adapter_model.safetensors")

    def _copied(self, folder: Path) -> Path:
        shutil.copytree(self.study, folder / "study")
        return folder / "study"

    def _refused(self, what: str, verb: str, folder: Path) -> None:
        place = self._copied(folder)
        change, words = CHANGES[what]
        change(place)
        before = tree(place / "run")
        told = tell(VERBS[verb], place)
        if verb == "export" and what.startswith(("text", "task")):  # a model that is made of none of it
            told.check_message(0, 2)
            return
        told.check_message(2)
        assert any(word in told.text for word in words), f"none of {words} is named: {told.text[-2000:]}"
        after = tree(place / "run")
        changed = [name for name in before if after.get(name) != before[name] and not name.startswith(".")]
        assert not changed and not (place / "out").exists(), f"written: {changed}"

    def _same(self, what: str, verb: str, folder: Path) -> None:
        place = self._copied(folder)
        UNCHANGED[what](place)
        told = tell(VERBS[verb], place)
        told.check_message(0)
        recorded = trials_of(self.study / "run")
        found = trials_of(place / "run")
        assert found[: len(recorded)] == recorded
        if verb == "resume":
            assert len(found) == 4
            assert found == self._continued

    @cached_property
    def _continued(self) -> list[dict[str, Any]]:
        """The trials of a run that went on without any change."""

        def go_on(folder: Path) -> None:
            tell(VERBS["resume"], self._copied(folder)).check_message(0)

        return trials_of(self.bench._once("continued", go_on) / "study" / "run")

    def _copy(self, verb: str, folder: Path) -> None:
        place = self._copied(folder)
        copies = [p for p in (place / "run").rglob("*.py") if "Steepness" in p.read_text()]
        assert copies, "the run folder has no copy of the plugin"
        for copy in copies:
            copy.write_text(copy.read_text().replace("1.0 *", "2.0 *"))
        told = tell(VERBS[verb], place)
        told.check_message(2)
        assert "own" in told.text or copies[0].name in told.text, told.text[-2000:]

"""A study is its content: what changes between a search and what follows is refused by name, or scored anew."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tailorlib import registry
from tailorlib.cli import main
from tailorlib.contents import used_models
from tailorlib.journal import FILE_NAME, read_trials
from tailorlib.models import cache
from tailorlib.plugin_sources import plugin_copies, source_of

Write = Callable[[dict[str, Any]], str]

FITNESS = """
import torch
from tailorlib import Fitness, Measurement

class Steepness(Fitness):
    def __init__(self, table: str) -> None:
        self.table = table

    def _evaluate(self, model):
        total = sum(float(p.float().abs().mean()) for p in model.parameters())
        return Measurement(1.0 * total / float(open(self.table).read()))
"""

NUMBERS = itertools.count()
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


@pytest.fixture(autouse=True)
def plugins_of_one_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_named_modules", set())
    yield
    for name in [name for name in sys.modules if name.startswith(registry.LOCAL)]:
        del sys.modules[name]


def write_own(folder: Path, family: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Make a recipe small, with copies of the family that a test may damage, and with data of every kind."""
    shutil.copytree(family, folder / "family")
    models = {"base": str(folder / "family/base"), "candidates": {n: str(folder / "family" / n) for n in "ab"}}
    recipe["family"]["init_args"] |= models
    (folder / "tasks").mkdir()
    (folder / "tasks/animals.yaml").write_text(TASK)
    questions = [{"q": f"The {a}", "choices": ["fox", "dog"], "label": i} for i, a in enumerate(["quick", "lazy"])]
    (folder / "tasks/animals.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (folder / "table.txt").write_text("2.0")
    steep = f"Steepness{next(NUMBERS)}"  # a process knows one class of a name
    (folder / "steep.py").write_text(FITNESS.replace("Steepness", steep))
    parts = recipe["fitness"]["init_args"]["parts"]
    parts["text"]["init_args"] |= {"max_tokens": 64}
    parts["steep"] = {"class_path": steep, "init_args": {"table": str(folder / "table.txt")}}
    tasks = {"tasks": ["animals"], "include_path": str(folder / "tasks")}
    parts["animals"] = {"class_path": "LMEval", "init_args": tasks}
    plugins = [str(folder / "steep.py")]
    recipe |= {"optimizer": "RandomSearch", "plugins": plugins, "benchmark": {}, "warm_starts": []}
    recipe["study"] |= {"trials": 4, "export": False}
    return recipe


@pytest.fixture
def own(recipe: dict[str, Any], family_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return write_own(tmp_path, family_folder, recipe)


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, family_folder: Path, recipe_in: Callable[[Path], dict[str, Any]]
) -> Path:
    """A folder with a study of two trials in ``run``, and all that it read."""
    folder = tmp_path_factory.mktemp("done")
    own = write_own(folder, family_folder, recipe_in(folder))
    own["study"]["trials"] = 2
    (folder / "recipe.yaml").write_text(yaml.safe_dump(own))
    assert main(["search", "--config", str(folder / "recipe.yaml")]) == 0
    return folder


def shift(file: Path) -> None:
    state = {name: tensor + 0.25 for name, tensor in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def swap(folder: Path) -> None:
    (folder / "a").rename(folder / "c")
    (folder / "b").rename(folder / "a")
    (folder / "c").rename(folder / "b")


def files_of(run: Path) -> dict[str, bytes]:
    """Return all that a run has on record; a lock file is none of it."""
    found = (p for p in run.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {str(p.relative_to(run)): p.read_bytes() for p in found}


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda d: replace(d / "text.txt", "lazy", "slow"), "the data of fitness.parts.text.text changed"),
    "weights of a variant": (
        lambda d: shift(d / "family/a/model.safetensors"),
        "the weights of the variant 'a' changed",
    ),
    "weights of the base": (
        lambda d: shift(d / "family/base/model.safetensors"),
        "the weights of the base changed",
    ),
    "tokenizer": (
        lambda d: replace(d / "family/base/tokenizer_config.json", "{", '{"note": 1, '),
        "the tokenizer of the base changed",
    ),
    "config": (
        lambda d: replace(d / "family/base/config.json", '"initializer_range": 0.02', '"initializer_range": 0.03'),
        "the config of the base changed",
    ),
    "variants swapped": (
        lambda d: swap(d / "family"),
        "the weights of the variant 'a'; the weights of the variant 'b' changed",
    ),
    "answers of a task": (
        lambda d: replace(d / "tasks/animals.jsonl", '"label": 0', '"label": 1'),
        "the data of fitness.parts.animals: animals changed",
    ),
    "definition of a task": (
        lambda d: replace(d / "tasks/animals.yaml", "{{q}}", "{{q}}:"),
        "the data of fitness.parts.animals: animals changed",
    ),
    "file that a plugin reads": (
        lambda d: (d / "table.txt").write_text("4.0"),
        "the data of fitness.parts.steep.table changed",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_content_is_refused_by_name(
    what: str, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = CHANGES[what]
    shutil.copytree(done, tmp_path / "kept")
    written = files_of(done / "run")
    try:
        change(done)
        assert main(["search", "--resume", str(done / "run"), "--study.trials", "3"]) == 2
        assert message in capsys.readouterr().err
        assert files_of(done / "run") == written
        if what == "text":
            assert main(["evaluate", str(done / "run")]) == 2
            assert message in capsys.readouterr().err
        if what in ("weights of the base", "tokenizer", "config"):
            assert main(["export", str(done / "run"), "--output", str(tmp_path / "out"), "--verify", "true"]) == 2
            assert message in capsys.readouterr().err
            assert not (tmp_path / "out").exists()
    finally:
        shutil.rmtree(done)
        shutil.copytree(tmp_path / "kept", done)


def test_what_decides_no_score_may_change(own: dict[str, Any], write: Write, tmp_path: Path) -> None:
    assert main(["search", "--config", write(own)]) == 0
    (tmp_path / "family/base/README.md").write_text("Other words.")
    shutil.move(tmp_path / "family", tmp_path / "moved")
    own["family"]["init_args"] |= {
        "base": str(tmp_path / "moved/base"),
        "candidates": {n: str(tmp_path / "moved" / n) for n in "ab"},
        "merge_cache_mib": 7,
    }
    own["study"]["trials"] = 5
    assert main(["search", "--config", write(own), "--resume", str(tmp_path / "run")]) == 0
    assert len(read_trials(tmp_path / "run")[1]) == 5


def test_a_change_of_tokens_per_batch_is_refused(
    own: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--config", write(own)]) == 0
    assert main(["search", "--resume", str(tmp_path / "run"), "--study.tokens_per_batch", "128"]) == 2
    assert "study.tokens_per_batch: was 4096, is 128" in capsys.readouterr().err


def test_a_plugin_is_loaded_from_the_run_folder_from_anywhere(
    own: dict[str, Any],
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    own["plugins"] = ["steep.py"]
    assert main(["search", "--config", write(own)]) == 0
    run = tmp_path / "run"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "steep.py").unlink()
    assert main(["search", "--resume", str(run), "--study.trials", "5"]) == 0
    assert main(["evaluate", str(run)]) == 2  # no benchmark in the recipe: it got as far as that
    assert "benchmark" in capsys.readouterr().err
    assert main(["export", str(run), "--output", str(tmp_path / "out")]) == 0
    # one that was edited since is not what was scored: the copy is taken, and that is said
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steep.py").write_text(FITNESS.replace("1.0 *", "-1.0 *"))
    assert main(["search", "--resume", str(run), "--study.trials", "6"]) == 0
    assert "steep.py has changed since the study began" in capsys.readouterr().out.replace("\n", " ")
    assert all(t.metrics["steep/score"] > 0 for t in read_trials(run)[1])
    # nor is another copy: an operation of it would make another model
    replace(run / "plugins/steep.py", "1.0 *", "2.0 *")
    assert main(["export", str(run), "--output", str(tmp_path / "out2")]) == 2
    assert "the plugin steep.py changed" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.slow
def test_another_version_of_a_plugin_is_refused(own: dict[str, Any], write: Write, tmp_path: Path) -> None:
    recipe, run = write(own), str(tmp_path / "run")
    assert main(["search", "--config", recipe]) == 0
    replace(tmp_path / "steep.py", "1.0 *", "3.0 *")
    for args in (["--config", recipe, "--resume", run], ["--resume", run]):
        command = [sys.executable, "-m", "tailorlib.cli", "search", *args]  # a process knows one class of a name
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "the plugin steep.py changed" in done.stderr
        replace(tmp_path / "run/plugins/steep.py", "1.0 *", "3.0 *") if "--config" in args else None


def test_a_plugin_is_known_by_its_source_and_by_what_it_imports_from_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "beside_it.py").write_text("FACTOR = 1.0\n")
    plugin = tmp_path / "one_plugin.py"
    found = []
    for line in ("", "# another version\n"):
        plugin.write_text("import beside_it\n" + line)
        registry.load_plugin(str(plugin))
        (source,) = registry.plugin_sources()
        found.append(source_of(source.module))
    (tmp_path / "beside_it.py").write_text("FACTOR = 2.0\n")
    found.append(source_of(source.module))
    assert [label for label, _ in filter(None, found)] == ["one_plugin.py"] * 3
    assert len({digest for _, digest in filter(None, found)}) == 3
    copies = plugin_copies()
    assert copies["plugins/one_plugin.py"].endswith("# another version\n")
    assert copies["plugins/beside_it.py"] == "FACTOR = 2.0\n"
    assert json.loads(copies["plugins/index.json"]) == {str(plugin): "one_plugin.py"}


def test_accepted_changes_score_anew_what_they_touch_and_nothing_else(
    own: dict[str, Any],
    write: Write,
    tmp_path: Path,
    recipe_in: Callable[[Path], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    own["study"]["trials"] = 8
    own["warm_starts"] = recipe_in(tmp_path)["warm_starts"]  # of the base alone
    run = tmp_path / "run"
    assert main(["search", "--config", write(own)]) == 0
    before = read_trials(run)[1]
    touched = ["a" in used_models(t.tailoring) for t in before]
    assert any(touched)
    assert not all(touched)
    shift(tmp_path / "family/a/model.safetensors")
    assert main(["search", "--resume", str(run), "--accept-changes", "--study.trials", "9"]) == 0
    assert f"Starts over from 8 candidates; {sum(touched)} of them are scored anew" in capsys.readouterr().out
    after = read_trials(run)[1]
    assert [t.tailoring for t in after[:8]] == [t.tailoring for t in before]
    assert [t.fitness != old.fitness for t, old in zip(after, before, strict=False)] == touched
    assert len(after) == 9
    # a study that was never changed finds the same for these candidates
    own["study"] |= {"directory": str(tmp_path / "fresh"), "trials": 8}
    assert main(["search", "--config", write(own)]) == 0
    fresh = read_trials(tmp_path / "fresh")[1]
    assert [t.fitness for t in after[:8]] == [t.fitness for t in fresh]
    # and it resumes like any other
    assert main(["search", "--resume", str(run), "--study.trials", "10"]) == 0
    assert [t.to_dict() for t in read_trials(run)[1][:9]] == [t.to_dict() for t in after]


def test_a_study_that_starts_over_and_is_interrupted_goes_on_where_it_was(
    own: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    own["study"]["trials"] = 6
    run = tmp_path / "run"
    assert main(["search", "--config", write(own)]) == 0
    before = read_trials(run)[1]
    replace(tmp_path / "text.txt", "lazy", "slow")
    assert main(["search", "--resume", str(run), "--accept-changes"]) == 0
    whole = read_trials(run)[1]
    lines = (run / FILE_NAME).read_bytes().split(b"\n")
    cut = next(i for i, line in enumerate(lines) if b'"kind":"trial"' in line and b'"number":3' in line)
    (run / FILE_NAME).write_bytes(b"\n".join(lines[:cut]) + b"\n")
    assert main(["search", "--resume", str(run)]) == 0
    again = read_trials(run)[1]
    assert [t.tailoring for t in again] == [t.tailoring for t in before]
    assert [t.fitness for t in again] == [t.fitness for t in whole]
    assert [t.fitness for t in again] != [t.fitness for t in before]
    assert (run / "journal.1.jsonl").exists()


def test_the_digest_of_a_file_is_read_again_only_when_the_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_SETTLED", -1.0)
    read: list[Path] = []
    checksum = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda file: read.append(file) or checksum(file))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = cache.file_digest(file)
    assert cache.file_digest(file) == first
    assert len(read) == 1
    state = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # same path, inode, size and time of change
    assert cache.file_digest(file) != first
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / ("0" * 64)).write_bytes(b"large")
    (tmp_path / "snapshot").symlink_to(blobs / ("0" * 64))
    assert cache.file_digest(tmp_path / "snapshot") == "0" * 64

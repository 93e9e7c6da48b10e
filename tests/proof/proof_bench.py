"""What the campaigns break: a tiny family, a small study over it, and commands run with what they say."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from tailorlib import registry
from tailorlib.cli import main
from tailorlib.journal import FILE_NAME, read_trials
from tailorlib.testing.tiny import write_tiny_family

TEXT = "The quick brown fox jumps over the lazy dog. Anna has 3 apples and buys 4 more. " * 8
LAYERS = 4


@dataclass(frozen=True)
class Told:
    """What came of a command.

    Args:
        code: Its exit status.
        text: All that it printed.
    """

    code: int
    text: str

    def check_message(self, *codes: int) -> None:
        """Check that it ended with one of some exit statuses, and with one message and no traceback."""
        assert self.code in codes, f"exit status {self.code}, expected {codes}:\n{self.text[-3000:]}"
        assert "Traceback (most recent call last)" not in self.text, self.text[-3000:]
        if self.code:
            assert self.text.count("tailor: error:") <= 1, f"several messages:\n{self.text[-3000:]}"
            assert self.text.strip(), "nothing was said"


def tell(argv: Sequence[str], folder: Path) -> Told:
    """Run a command in this process, in a folder."""
    shown = io.StringIO()
    with chdir(folder), redirect_stdout(shown), redirect_stderr(shown):
        try:
            code = main(list(argv))
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except Exception:
            traceback.print_exc()
            code = 70
    _forget_plugins()
    return Told(code, shown.getvalue())


def _forget_plugins() -> None:
    """Forget files that a command named as plugins, as the end of its process would."""
    registry._named_modules.clear()
    for name in [name for name in sys.modules if name.startswith("tailorlib_local_")]:
        del sys.modules[name]


def tree(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def trials_of(run: Path) -> list[dict[str, Any]]:
    """Return a run's trials, without what depends on the machine and on what a resumed study has to do again."""
    plain = [trial.to_dict() for trial in read_trials(run)[1]]
    for trial in plain:
        del trial["seconds"], trial["costs"]
    return plain


def leftovers(folder: Path) -> list[str]:
    """Return what is there half done or put aside: nothing, after a command that ended well."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*"))
    return [
        name
        for name in found
        if name.endswith((".tmp", ".partial"))
        or ".old." in name
        or (name.rpartition("/")[2].startswith(".model."))
    ]


class Bench:
    """Files that all cases share. Nothing in it may be changed.

    Args:
        folder: Where they are; made by the first who needs them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def family(self) -> Path:
        """A base and the candidates ``a`` and ``b``."""
        return self._once("family", lambda folder: write_tiny_family(folder, candidates=2, num_layers=LAYERS))

    @cached_property
    def text(self) -> Path:
        """A text."""
        return self._once("text", lambda folder: self._write(folder / "text.txt", TEXT)) / "text.txt"

    @cached_property
    def other_text(self) -> Path:
        """Another text."""
        name = "other.txt"
        return self._once("other", lambda folder: self._write(folder / name, TEXT.replace("a", "o"))) / name

    @cached_property
    def run(self) -> Path:
        """A finished run of four trials."""
        return self._once("run", self._search) / "run"

    def recipe(self, directory: Path | str = "run", **study: Any) -> dict[str, Any]:
        """Return a recipe over the family: batches, a scheduler's samples, a validation, an export."""
        text = {"class_path": "PlainText", "init_args": {"path": str(self.text)}}
        settings = {"text": text, "context_length": 32, "max_tokens": None}
        base = {name: str(self.family / name) for name in ("base", "a", "b")}
        return {
            "family": {
                "class_path": "ModelFamily",
                "init_args": {
                    "base": base.pop("base"),
                    "candidates": base,
                    "dtype": "float32",
                },
            },
            "search_space": {
                "class_path": "PruningSpace",
                "init_args": {
                    "removal": {"class_path": "LayerRemoval", "init_args": {"count": 1}},
                    "merges": ["TaskArithmetic", "DARETIES"],
                },
            },
            "optimizer": "RandomSearch",
            "fitness": {"class_path": "Perplexity", "init_args": settings},
            "scheduler": {"class_path": "SuccessiveHalving", "init_args": {"eta": 2.0, "min_samples": 2}},
            "validation": {
                "fitness": {"class_path": "Perplexity", "init_args": {**settings, "context_length": 16}}
            },
            "study": {
                "directory": str(directory),
                "trials": 6,
                "batch_size": 2,
                "existing": "resume",
                "max_deaths": 10_000,  # no kill is a candidate's doing
                **study,
            },
            "trainer": {"accelerator": "cpu"},
        }

    def write(self, folder: Path, recipe: dict[str, Any], name: str = "recipe.yaml") -> Path:
        """Write a recipe, and return the file."""
        return self._write(folder / name, yaml.safe_dump(copy.deepcopy(recipe), sort_keys=False))

    def _search(self, folder: Path) -> None:
        recipe = self.recipe(folder / "run", trials=4)
        tell(["search", "--config", str(self.write(folder, recipe)), "--quiet"], folder).check_message(0)
        assert (folder / "run" / FILE_NAME).is_file()

    def _write(self, file: Path, text: str) -> Path:
        file.write_text(text, encoding="utf-8")
        return file

    def _once(self, name: str, make: Any) -> Path:
        folder = self.folder / name
        with FileLock(self.folder / f".{name}.lock"):
            if not (folder / ".done").exists():
                shutil.rmtree(folder, ignore_errors=True)  # somebody began it and was stopped
                folder.mkdir()
                make(folder)
                (folder / ".done").touch()
        return folder


def environment(folder: Path) -> dict[str, str]:
    """Return the variables that keep the campaigns offline, in one thread, and out of the user's caches."""
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "huggingface"),
        "MPLCONFIGDIR": str(folder / "matplotlib"),
        "OMP_NUM_THREADS": "1",
        "TAILORLIB_CACHE": str(folder / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(_roots()),
    }


def _roots() -> list[str]:
    root = Path(__file__).parents[2]
    return [str(root), str(root / "strategies"), str(root / "tests" / "proof")]


def as_json(data: Any) -> bytes:
    """Write plain data as a line of a journal."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()

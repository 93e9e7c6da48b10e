"""The readers of files that come from elsewhere, each with valid files to begin from."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from fuzz_inputs import BOMB, MERGE_BOMB, Repair, as_json, as_safetensors, as_yaml, inputs, with_length
from hypothesis import strategies as st

from tailorlib.exceptions import RecipeError, TailorError
from tailorlib.export.licenses import licenses_of
from tailorlib.fitness import Measurement
from tailorlib.interchange import read_foreign
from tailorlib.journal import FILE_NAME, Journal
from tailorlib.journal_header import JournalHeader
from tailorlib.models.checkpoint import INDEX, SINGLE, SafetensorsCheckpoint
from tailorlib.plugins import REGISTRIES
from tailorlib.recipe import check_recipe, read_recipe
from tailorlib.records import encode
from tailorlib.search_space import FamilyLayout
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, PartPlan, Tailoring
from tailorlib.trial import Trial

TAILORING = Tailoring(
    (
        LayerPlan((LayerSource(BASE, 0),)),
        LayerPlan(
            (LayerSource("a", 1), LayerSource("b", 1)),
            "TIES",
            (("density", 0.5), ("weights", (1.0, 0.25))),
            LayerSource(BASE, 1),
            attention_scale=0.5,
            parts=(("mlp", LayerPlan((LayerSource("b", 2),))),),
        ),
    ),
    embeddings=PartPlan(("a", "b"), "TaskArithmetic", (("scale", 0.5),), BASE),
)
_RECIPES = (
    {
        "search_space": {
            "class_path": "PruningSpace",
            "init_args": {"merges": ["TIES"], "removal": "LayerRemoval"},
        },
        "study": {"directory": "runs/x", "trials": 3, "seed": 1},
    },
    {
        "fitness": {
            "class_path": "WeightedMean",
            "init_args": {
                "parts": {"t": {"class_path": "Perplexity", "init_args": {"text": {"class_path": "PydocTopics"}}}}
            },
        },
        "optimizer": "RandomSearch",
    },
    {
        "family": {"class_path": "ModelFamily", "init_args": {"base": "b", "candidates": {"a": "c"}}},
        "trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {}}]},
        "objectives": ["Quality"],
        "warm_starts": [{"class_path": "BlockInfluence", "init_args": {"text": "PydocTopics"}}],
        "plugins": ["x.py"],
    },
)
_MERGEKIT = (
    {
        "merge_method": "ties",
        "base_model": "org/base",
        "dtype": "float32",
        "parameters": {"density": [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 0.5}], "weight": 1.0},
        "slices": [
            {
                "sources": [
                    {"model": "org/a", "layer_range": [0, 2], "parameters": {"weight": 0.5}},
                    {"model": "org/base", "layer_range": [0, 2]},
                    {"model": {"model": {"path": "org/b", "revision": "x"}}, "layer_range": [1, 3]},
                ]
            }
        ],
    },
    {
        "merge_method": "slerp",
        "base_model": "a",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": 0.5},
    },
    {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [0, 3]}]}]},
)
_GENOTYPE = {
    "remove_idx_0": 1,
    **{f"layer_{i}_candidate_{j}": (i + j) % 2 for i in range(3) for j in range(2)},
    **{f"layer_{i}_merge_scale_factor": 0.5 for i in range(3)},
    "layer_0_output_scale": 1.0,
}
_HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]},
    "b": {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]},
    "c": {"dtype": "F64", "shape": [], "data_offsets": [16, 24]},
}


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Args:
        documents: Valid files as plain data.
        dump: Writes data as a file.
        read: Reads a file's bytes, in a folder of its own; returns a word for what came out.
        more: Other files to begin from.
        repair: Mends what no reader gets past.
    """

    documents: Callable[[], tuple[Any, ...]]
    dump: Callable[[Any], bytes]
    read: Callable[[bytes, Path], str]
    more: tuple[bytes, ...] = ()
    repair: Repair = bytes

    @cached_property
    def valid(self) -> list[bytes]:
        """Valid files."""
        return [self.dump(document) for document in self.documents()]

    @cached_property
    def inputs(self) -> st.SearchStrategy[bytes]:
        """What it is given."""
        return inputs(self.documents(), self.dump, self.more)

    def outcome(self, content: bytes, folder: Path) -> str:
        """Return what came of an input: a word, or the kind of error that a user is told."""
        try:
            return self.read(content, folder)
        except TailorError as error:
            text = str(error)
            assert text
            text.encode("utf-8", "backslashreplace")
            return type(error).__name__


def _write(content: bytes, file: Path) -> Path:
    file.unlink(missing_ok=True)  # a new file: an old one may be mapped
    file.write_bytes(content)
    return file


def _recipe(content: bytes, folder: Path) -> str:
    data = read_recipe(_write(content, folder / "recipe.yaml"))
    faults = check_recipe(data)
    return "faults" if faults and str(RecipeError(faults)) else "read"


def _tailoring(content: bytes, folder: Path) -> str:
    found = Tailoring.load(_write(content, folder / "tailoring.yaml"))
    assert Tailoring.from_yaml(found.to_yaml()) == found
    assert len(found.digest) == 64 and len(found.prefixes) == len(found.layers) + 1
    return "read"


def _mergekit(content: bytes, folder: Path) -> str:
    # every tenth is looked up, as a configuration of models without slices must be
    found = read_foreign(_write(content, folder / "config.yaml"), num_layers=4 if len(content) % 10 else None)
    assert Tailoring.from_dict(found.tailoring.to_dict()) == found.tailoring and found.recipe()
    return "read"


def _genotype(content: bytes, folder: Path) -> str:
    file = _write(content, folder / "genotype.json")
    found = read_foreign(file, base="org/base", candidates=["org/a", "org/b"], num_layers=3)
    assert Tailoring.from_dict(found.tailoring.to_dict()) == found.tailoring
    return "read"


def _header(content: bytes, folder: Path) -> str:
    checkpoint = SafetensorsCheckpoint.of_file(_write(content, folder / SINGLE))
    for name in checkpoint.keys():  # noqa: SIM118
        assert tuple(checkpoint.tensor(name).shape) == checkpoint.shape(name)
    return "read"


def _index(content: bytes, folder: Path) -> str:
    for name in ("1.safetensors", "2.safetensors"):
        if not (folder / name).exists():
            (folder / name).write_bytes(as_safetensors(_HEADER))
    _write(content, folder / INDEX)
    checkpoint = SafetensorsCheckpoint(folder)
    assert all(info.file.parent == folder for info in checkpoint._info.values())
    return "read"


def _journal(content: bytes, folder: Path) -> str:
    _write(content, folder / FILE_NAME)
    found = Journal.read(folder)
    journal = Journal.open(folder)
    try:
        assert len(journal.trials) == len(found.trials)
    finally:
        journal.close()
    return "read"


def _licences(content: bytes, folder: Path) -> str:
    _write(content, folder / "README.md")
    _write(content, folder / "config.json")
    return "stated" if licenses_of(folder) else "none"


def _journal_lines() -> tuple[Any, ...]:
    layout = FamilyLayout(("a", "b"), 3, ("full_attention",) * 3, ("attention", "mlp"))
    header = JournalHeader({"family": {"base": "b"}}, {"tailorlib": "1"}, layout, 1234, (10, 10, 10), study="s")
    measured = {"score": 0.5, "metrics": {"m": 1.0}, "chance": {"m": 0.0}, "parts": {}}
    assert Measurement(**measured)
    trials = [
        Trial(0, {"x": 0.5, "y": (1, 2)}, TAILORING, "complete", 0.5).to_dict(),
        Trial(1, {"x": 0.5, "y": (1, 2)}, TAILORING, "failed", None, reason="r").to_dict(),
    ]
    lines = [
        {"kind": "header", **header.to_dict()},
        {"kind": "session", "trials": 0, "versions": {"torch": "2"}, "host": "h"},
        {"kind": "dense", **measured},
        *({"kind": "trial", **trial} for trial in trials),
        {"kind": "validation", "trial": 0, **measured},
        {"kind": "session_end", "how": "done", "time": "2026-01-01T00:00:00", "trials": 2},
    ]
    return ([{**line, "study": "s"} for line in json.loads(json.dumps(lines))],)


def _as_journal(data: Any) -> bytes:
    lines = enumerate(data if isinstance(data, list) else [data], start=1)
    return b"".join((encode(line, i) if isinstance(line, dict) else as_json(line)) + b"\n" for i, line in lines)


def _with_sums(content: bytes) -> bytes:
    """Return a journal whose lines have the checksums that they should have."""
    bodies = (line.rpartition(b',"sum":"')[0] + b"}" for line in content.split(b"\n"))
    sums = ((body, hashlib.blake2b(body, digest_size=8).hexdigest().encode()) for body in bodies)
    return b"\n".join(b'%s,"sum":"%s"}' % (body[:-1], found) if body != b"}" else b"" for body, found in sums)


def _front_matter(data: Any) -> bytes:
    return b"---\n" + as_yaml(data) + b"---\n# x\n"


def load_plugins() -> None:
    """Import every installed plugin, as the command line does before it reads a recipe."""
    for registry in REGISTRIES:
        registry.load_all()
    importlib.import_module("lightning.pytorch.callbacks")  # what a trainer's section names
    importlib.import_module("matplotlib.pyplot")  # it comes with that, and makes folders of its own


_BOMBS = (
    BOMB.encode(),
    MERGE_BOMB.encode(),
    b"[" * 3000,
    b"{a: " * 3000,
    b"- " * 3000,
    b"&a [*a]",
    b"x: &a {x: *a}",
)
READERS = {
    "recipe": Reader(lambda: _RECIPES, as_yaml, _recipe, _BOMBS),
    "tailoring": Reader(lambda: (TAILORING.to_dict(),), as_yaml, _tailoring, _BOMBS),
    "mergekit": Reader(lambda: _MERGEKIT, as_yaml, _mergekit, _BOMBS),
    "genotype": Reader(lambda: (_GENOTYPE,), as_json, _genotype),
    "header": Reader(lambda: (_HEADER,), as_safetensors, _header, repair=with_length),
    "index": Reader(lambda: ({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}},), as_json, _index),
    "journal": Reader(_journal_lines, _as_journal, _journal, repair=_with_sums),
    "licences": Reader(
        lambda: ({"license": "mit", "license_name": ["x"], "tags": ["a"]},), _front_matter, _licences, _BOMBS
    ),
}
"""Every reader, by name."""
assert yaml.safe_load(as_yaml(_GENOTYPE)) == _GENOTYPE

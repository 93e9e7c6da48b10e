"""LayerStatistics: the statistics of a family's models, gathered when they are first needed and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.markup import escape
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tailorlib.console import bar, say
from tailorlib.evaluation.text import first_tokens, prefix_token
from tailorlib.exceptions import DataError, ModelError
from tailorlib.models.cache import build_once, cache_root, file_digest
from tailorlib.models.checkpoint import INDEX, SafetensorsCheckpoint
from tailorlib.models.own_code import code_files
from tailorlib.models.statistics.collect import Collected, calibration_rows, collect
from tailorlib.models.stitching import Stitcher
from tailorlib.operation import Statistic
from tailorlib.tailoring import BASE, Tailoring

if TYPE_CHECKING:
    from tailorlib.models.family import ModelFamily

FORMAT = 1
"""Version of how statistics are computed and stored; a new one makes all be gathered again."""
CONTEXT_LENGTH = 512
"""Length in tokens of the rows that calibration text is laid out in, where the models allow it."""
_MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt")
_MANIFEST = "tailorlib.json"


class LayerStatistics:
    """Finds the statistics of a family's tensors; what the cache lacks is gathered first.

    The cache knows models and text by their content, and neither the device nor the data type of a search.

    Args:
        family: A prepared family with a calibration text.
    """

    def __init__(self, family: ModelFamily) -> None:
        self.family = family
        self._rows: list[list[int]] | None = None
        self._digests: dict[str, str] = {}
        self._opened: dict[tuple[Statistic, str], _Stored] = {}

    def __call__(self, kind: Statistic, model: str, name: str) -> Tensor | None:
        """Return a statistic of a model's tensor, on the CPU, not to be modified.

        Args:
            kind: Which statistic.
            model: The model's name in the family.
            name: The tensor's name in checkpoint files.

        Returns:
            A view of the mapped file; ``None`` for a tensor that has no such statistic.

        Raises:
            DataError: If there is no calibration text.
            ModelError: If the models have none of that kind, or the cache can't be written.
        """
        return self._find(kind, model).find(name)

    def gather(self, kinds: Iterable[Statistic]) -> None:
        """Make sure that the cache has some statistics of every model."""
        for kind in kinds:
            for model in self.family.checkpoints:
                self._find(kind, model)

    def _find(self, kind: Statistic, model: str) -> _Stored:
        if (kind, model) not in self._opened:
            target = cache_root() / "statistics" / f"{kind}-{self._key(kind, model)[:32]}"
            build_once(target, lambda folder: self._build(kind, model, folder), valid=_is_whole)
            self._opened[kind, model] = _Stored(target)
        return self._opened[kind, model]

    def _key(self, kind: Statistic, model: str) -> str:
        """Return a digest of all that decides a statistic."""
        content = {"format": FORMAT, "kind": kind, "weights": self._digest(model), "rows": self.rows}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def rows(self) -> list[list[int]]:
        """The calibration text as token ids, read and tokenised once."""
        if self._rows is None:
            self._rows = self._read_rows()
        return self._rows

    def _read_rows(self) -> list[list[int]]:
        family, tokenizer = self.family, self.family.tokenizer
        assert family.calibration is not None
        longest = getattr(family.config, "max_position_embeddings", None) or CONTEXT_LENGTH
        documents = (
            first_tokens(tokenizer, document, family.calibration_tokens)
            for document in family.calibration.documents()
        )
        rows = calibration_rows(
            documents, prefix_token(tokenizer), family.calibration_tokens, min(CONTEXT_LENGTH, longest)
        )
        if not rows:
            raise DataError("A calibration text has at least one token, got none. Give another text.")
        return rows

    def _digest(self, model: str) -> str:
        """Return a digest of all files that a model is read from; a candidate's covers the base, too.

        Every model runs with the base's config, an adapter adds to the base, and a vocabulary is aligned to it.
        """
        if model not in self._digests:
            folder = self.family.sources[model].folder
            files = sorted(file for pattern in _MODEL_FILES for file in folder.glob(pattern))
            if self.family.sources[model].trust_remote_code:  # else the files would count without being run
                files += code_files(folder)
            lines = [f"{file.name} {file_digest(file)}" for file in files]
            if model != BASE:
                lines.append(self._digest(BASE))
            self._digests[model] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return self._digests[model]

    def _build(self, kind: Statistic, model: str, folder: Path) -> None:
        family, tokens = self.family, sum(token != row[0] for row in self.rows for token in row)
        what = f"{kind} statistics of {escape(model)} over {tokens:,} tokens"
        say(f"Gathering {what}, once: they are kept in the cache")
        # a live model of its own: the family's may be half stitched, and computes in another data type
        stitcher = Stitcher(
            family.assembly,
            family.config,
            device=family.device or torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            dtype=torch.float32,
            merge_cache_bytes=0,
            trust_remote_code=family.source.trust_remote_code,
        )
        with torch.inference_mode(False), bar(f"{kind} of {model}", len(self.rows)) as advance:
            whole = stitcher.stitch(Tailoring.whole(model, family.layout.num_layers))
            collected = collect(kind, whole, family.architecture, self.rows, advance)
        if not collected.tensors:
            raise ModelError(
                f"The {kind} statistics are of torch.nn.Linear modules, and the layers of models of type "
                f"{family.architecture.model_type!r} have none. Use a merge that needs no statistics, or Fisher."
            )
        try:
            _save(collected, folder, prefix=f"{family.architecture.layers}.")
        except (OSError, SafetensorError) as error:
            size = sum(tensor.nbytes for tensor in collected.tensors.values())
            raise ModelError(
                f"The {kind} statistics of {model!r} take {size / 1e6:,.0f} MB, and can't be written to "
                f"{str(folder.parent)!r}: {error}. Make room, or set TAILORLIB_CACHE to another folder."
            ) from error


class _Stored:
    """A statistic of one model on disk.

    Raises:
        ModelError: If a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._tensors = SafetensorsCheckpoint(folder)
        self._names = frozenset(self._tensors.keys())
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            self._aliases: Mapping[str, str] = dict(manifest["aliases"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"The layer statistics in {str(folder)!r} can't be read: {error!r}.") from error

    def find(self, name: str) -> Tensor | None:
        name = self._aliases.get(name, name)
        return self._tensors.tensor(name) if name in self._names else None


def _save(collected: Collected, folder: Path, prefix: str) -> None:
    """Write a file per layer, so that no second copy of everything is in memory."""
    shards: dict[str, dict[str, Tensor]] = {}
    for name, tensor in collected.tensors.items():
        layer = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else "outer"
        shards.setdefault(f"{layer}.safetensors", {})[name] = tensor
    for file, tensors in shards.items():
        # a format of contiguous tensors that share no memory: experts are parts of a stack
        save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / file)
    places = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    (folder / _MANIFEST).write_text(json.dumps({"aliases": collected.aliases}), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    try:
        _Stored(folder)
    except ModelError:
        return False
    return True

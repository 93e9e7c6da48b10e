"""FineTuning: how a variant of the base model is made, and what came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tailorlib.exceptions import DataError, ModelError, RecipeError
from tailorlib.text import TextSource

REPORT = "fine_tuning.json"
"""File beside an adapter that says how it was trained and how good it is."""
_EVERY = 10


@dataclass(frozen=True)
class FineTuning:
    """How a variant is made of the base: a short LoRA training on a text.

    Args:
        text: What it learns.
        held_out: Text to compare it with the base on; ``None`` keeps every tenth document of ``text`` out of the
            training for that.
        tokens: Number of tokens to train on, once.
        held_out_tokens: Number of tokens to compare on.
        rank: Rank of the LoRA matrices, which all linear layers get.
        learning_rate: Peak of the learning rate, after a warm-up and before a linear decay to zero.
        context_length: Tokens in a row.
        batch_size: Rows in a step.
        seed: Seed of the LoRA matrices and of the order of the text.
    """

    text: TextSource
    held_out: TextSource | None = None
    tokens: int = 20_000
    held_out_tokens: int = 4_096
    rank: int = 16
    learning_rate: float = 1e-3
    context_length: int = 256
    batch_size: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        faults = [
            f"FineTuning takes a positive {name}, got {getattr(self, name)}."
            for name in ("tokens", "held_out_tokens", "rank", "learning_rate", "batch_size")
            if not getattr(self, name) > 0
        ]
        if self.context_length < 2:
            faults.append(f"FineTuning takes a context_length of 2 or more, got {self.context_length}.")
        if faults:
            raise RecipeError(faults)

    @property
    def steps(self) -> int:
        """Number of steps of the training, if the text has as many tokens."""
        return math.ceil(max(1, self.tokens // self.context_length) / self.batch_size)

    def documents(self) -> tuple[Sequence[str], Sequence[str]]:
        """Return the documents to train on and those to compare on; none is in both.

        Raises:
            DataError: If there are none, or a held-out document is trained on.
        """
        documents = self.text.documents()
        if self.held_out is None:
            if len(documents) < 2:
                raise DataError(
                    f"A fine-tuning without held_out needs two documents, got {len(documents)}. Give a "
                    "held_out text."
                )
            kept = [d for i, d in enumerate(documents) if i % _EVERY]
            return kept, documents[::_EVERY]
        held_out = self.held_out.documents()
        shared = len(set(documents) & set(held_out))
        if shared:
            raise DataError(
                f"A held-out text is not trained on; {shared} of its {len(held_out)} documents are. Give another "
                "split."
            )
        return documents, held_out

    def digest(self, base: str) -> str:
        """Return a name for what this fine-tuning gives, from its settings, the words of its texts and its base.

        Args:
            base: Digest of the base model's weights.
        """
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("text", "held_out"):
            del settings[name]
        content = {
            "version": 1,
            "base": base,
            "settings": settings,
            "documents": [list(d) for d in self.documents()],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class FineTuningReport:
    """What came of a fine-tuning.

    Args:
        tokens: Number of tokens that it was trained on.
        seconds: Wall time of the training, the two comparisons not counted.
        dtype: Data type of the computation.
        base_perplexity: Perplexity of the base on the held-out text.
        perplexity: Perplexity of the variant on the same text.
    """

    tokens: int
    seconds: float
    dtype: str
    base_perplexity: float
    perplexity: float

    def check(self, name: str) -> None:
        """Check that the variant became better than its base.

        Raises:
            ModelError: Otherwise: a search could not gain anything from such a variant.
        """
        if not self.perplexity < self.base_perplexity:
            raise ModelError(
                f"A variant is better than the base on its own text; {name!r} has a perplexity of "
                f"{self.perplexity:.2f} on held-out text, the base {self.base_perplexity:.2f}. Train on more "
                "tokens, or lower the learning rate."
            )

    def write(self, folder: Path) -> None:
        """Write the report beside the adapter."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> FineTuningReport:
        """Read the report beside an adapter.

        Raises:
            ModelError: If it is missing or damaged.
        """
        try:
            return cls(**json.loads((folder / REPORT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"The report {str(folder / REPORT)!r} can't be read: {error}. Delete its folder to train again."
            ) from error

"""What compensations share that imitate a teacher on calibration text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tailorlib import Tailoring
from tailorlib.calibration.mixture import Calibration, CalibrationRows, fingerprints, lay_out
from tailorlib.calibration.written import written_rows
from tailorlib.compensation import Compensation, CompensationContext
from tailorlib.evaluation.overlap import Fingerprint
from tailorlib.exceptions import RecipeError, did_you_mean, shown
from tailorlib.models.family import ModelFamily
from tailorlib_strategies.compensations.teachers import AUTO, check_teacher, choose_teacher

__all__ = ["AUTO", "Lesson", "Taught"]


@dataclass(frozen=True)
class Lesson:
    """What a teacher teaches.

    Args:
        teacher: A tailoring of all layers.
        rows: The calibration text.
        dtype: Data type that the models compute in.
    """

    teacher: Tailoring
    rows: CalibrationRows
    dtype: torch.dtype


class Taught(Compensation):
    """A compensation that imitates a teacher on calibration text.

    Args:
        calibration: The text, in domains.
        teacher: ``auto`` for the fittest of base, variants and merges of all variants; ``merge`` for the fittest
            merge; or a model's name.
    """

    def __init__(self, calibration: Calibration, teacher: str = AUTO) -> None:
        self._calibration, self.teacher = calibration, teacher
        self._rows: CalibrationRows | None = None
        self._fingerprints: Sequence[Fingerprint] = ()
        self._facts: dict[str, Any] = {}

    @property
    def calibration(self) -> Calibration:
        """The text that it is fitted on."""
        return self._calibration

    def check(self) -> None:
        """Read the text."""
        for source in self._calibration.sources.values():
            source.documents()

    def check_family(self, family: ModelFamily) -> None:
        """Find out whether the family has the teacher, and lay the text out in its tokens."""
        check_teacher(self.teacher, family)
        for name in self._calibration.written_by:
            if name not in family.layout.models:
                hint = did_you_mean(name, family.layout.models)
                raise RecipeError(f"calibration.written_by names models of the family, got {shown(name)}.{hint}")
        self._rows = lay_out(self._calibration, family.tokenizer, _longest(family))
        self._fingerprints = fingerprints(self._rows, family.tokenizer)

    @property
    def fingerprints(self) -> Sequence[Fingerprint]:
        """Those of the text that was laid out."""
        return self._fingerprints

    @abstractmethod
    def prepare(self, context: CompensationContext) -> None:
        """Gather what is needed."""

    def lesson(self, context: CompensationContext) -> Lesson:
        """Choose the teacher; the text is laid out."""
        family = context.family
        name, teacher, scores = self.choose(context)
        if self._rows is None:
            self.check_family(family)
        rows = self._rows
        assert rows is not None
        if self._calibration.written_by:
            write = partial(_written, family, context.seed)
            rows = lay_out(self._calibration, family.tokenizer, _longest(family), write)
        self._facts = {"teacher": name, "teachers": scores, "tokens": rows.tokens}
        # on a CPU sums and models are in float32, whatever a search computes in: every data type bridges alike
        dtype = torch.float32 if context.device.type == "cpu" else family.compute_dtype
        return Lesson(teacher, rows, dtype)

    def choose(self, context: CompensationContext) -> tuple[str, Tailoring, dict[str, float]]:
        """Return the teacher: its name, its tailoring, and the fitness of those that were compared."""
        return choose_teacher(self.teacher, context)

    def facts(self) -> Mapping[str, Any]:
        """Return the teacher, the fitness of those that were compared, and the number of tokens."""
        return self._facts


def _longest(family: ModelFamily) -> int | None:
    longest: int | None = getattr(family.config, "max_position_embeddings", None)
    return longest


def _written(family: ModelFamily, seed: int, model: str, tokens: int, length: int) -> list[tuple[int, ...]]:
    return written_rows(family, model, tokens, length, seed)

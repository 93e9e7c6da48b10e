"""Quality: the fitness's score, or that of one of its parts."""

from __future__ import annotations

from tailorlib.exceptions import EvaluationError, did_you_mean
from tailorlib.objective import Candidate, Objective


class Quality(Objective):
    """The fitness's score, or the score of one of its parts, such as a task.

    Args:
        part: Name of a part of the fitness; the whole by default.
    """

    def __init__(self, part: str | None = None) -> None:
        self.part = part

    @property
    def name(self) -> str:
        """The part's name, or ``"quality"``."""
        return self.part or "quality"

    def score(self, candidate: Candidate) -> float:
        """Return the score.

        Raises:
            EvaluationError: If the fitness has no such part.
        """
        if self.part is None:
            return candidate.measurement.score
        parts = candidate.measurement.parts
        if self.part not in parts:
            known = f"{did_you_mean(self.part, parts)}" if parts else " It has no parts."
            raise EvaluationError(f"Quality.part names a part of the fitness, got {self.part!r}.{known}")
        return parts[self.part]

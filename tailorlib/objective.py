"""Objective: one of several things that a search weighs against each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tailorlib.fitness import Measurement
from tailorlib.guards import Check, Guarded
from tailorlib.plain_data import number
from tailorlib.registry import Registry
from tailorlib.tailoring import Tailoring

if TYPE_CHECKING:
    from tailorlib.evaluation.engine import Engine
    from tailorlib.models.family import ModelFamily


@dataclass(frozen=True)
class Candidate:
    """What an objective may look at.

    Args:
        tailoring: The candidate.
        measurement: What the fitness found.
        family: The model family, loaded; ``family.stitch(tailoring)`` gives the live model.
        engine: The evaluation engine.
    """

    tailoring: Tailoring
    measurement: Measurement
    family: ModelFamily
    engine: Engine


class Objective(Guarded, ABC):
    """Gives a candidate a score, higher is better.

    A study with objectives looks for the candidates that no other one beats in all of them. The first process
    scores, and tells the others; an objective may take times.
    """

    _guards: ClassVar[Mapping[str, Check]] = {
        "score": lambda objective, found: number(found, f"{type(objective).__name__}.{{method}}")
    }

    @property
    def name(self) -> str:
        """What trials, tables and pictures call it; the class name by default."""
        return type(self).__name__

    @abstractmethod
    def score(self, candidate: Candidate) -> float:
        """Return the score of a candidate.

        Raises:
            EvaluationError: If there is none; the trial fails with that reason.
        """


OBJECTIVES: Registry[Objective] = Registry(Objective, "tailorlib.objectives")

"""Fitness: how good a tailored model is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tailorlib.exceptions import EvaluationError, PluginError
from tailorlib.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import Engine


@dataclass(frozen=True)
class Measurement:
    """What a fitness found.

    Args:
        score: The figure that the search maximises, higher is better.
        metrics: Every figure worth keeping, by name; accuracies and perplexities with their usual names.
        chance: Expected value of some of the ``metrics`` for a model that guesses, where that is known.
        parts: Score of each part of a combined fitness, by the part's name.
    """

    score: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)


class Fitness(ABC):
    """Scores a live model. Higher is better.

    Subclasses write :meth:`_setup` (tokenise once, check the data) and :meth:`_evaluate`.
    """

    _engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The evaluation engine (tokenizer, device, batching), after :meth:`setup`."""
        if self._engine is None:
            raise PluginError(f"{type(self).__name__} is used before setup(engine).")
        return self._engine

    def check(self) -> None:
        """Check the data before any model is loaded, so that a recipe's faults come at once; nothing by default.

        Raises:
            DataError: If data is missing, empty or malformed.
        """

    def setup(self, engine: Engine) -> None:
        """Compile the data for a tokenizer and a device, once per study.

        Raises:
            DataError: If data is missing, empty or malformed.
        """
        self._engine = engine
        self._setup(engine)

    def evaluate(self, model: PreTrainedModel) -> Measurement:
        """Score a live model.

        Args:
            model: A causal language model in evaluation mode, on the engine's device.

        Raises:
            EvaluationError: If the score is NaN or infinite.
        """
        measurement = self._evaluate(model)
        if not math.isfinite(measurement.score):
            bad = [k for k, v in measurement.metrics.items() if not math.isfinite(v)]
            raise EvaluationError(
                f"{type(self).__name__} gives a finite score, got {measurement.score}"
                + (f" (not finite: {', '.join(bad)})." if bad else ".")
            )
        return measurement

    def set_reference(self, dense: Measurement) -> Measurement:
        """Take note of the dense base model's measurement.

        Returns:
            The same measurement as this fitness scores it from now on: a fitness that scores relative to the
            dense model gives it another score (1.0) than it had before there was a reference.
        """
        return dense

    @property
    def tokens(self) -> int:
        """Number of tokens that one evaluation runs through the model, after :meth:`setup`; 0 if unknown."""
        return 0

    def _setup(self, engine: Engine) -> None:
        """Compile the data; nothing by default."""

    @abstractmethod
    def _evaluate(self, model: PreTrainedModel) -> Measurement:
        """Score the model."""


FITNESS: Registry[Fitness] = Registry(Fitness, "tailorlib.fitness")

"""WeightedMean: several fitnesses as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tailorlib.exceptions import EvaluationError, RecipeError, TailorError
from tailorlib.fitness import Fitness, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import Engine


class WeightedMean(Fitness):
    """Scores a model by the weighted mean of several fitnesses' scores.

    Args:
        parts: The fitnesses by name.
        weights: Weight of each part, at least 0; parts that are not named weigh 1. They need not sum to 1.
        relative_to_dense: Divide each part's score by the dense base model's: parts of different size then
            count alike, and 1.0 means "as good as the dense model".

    Raises:
        RecipeError: If there is no part, a weight is negative or names no part, or no weight is positive.
    """

    def __init__(
        self,
        parts: dict[str, Fitness],
        weights: dict[str, float] | None = None,
        relative_to_dense: bool = True,
    ) -> None:
        given = weights or {}
        faults = [] if parts else ["WeightedMean needs at least one part, got none."]
        faults += [
            f"WeightedMean's weights name its parts ({', '.join(parts)}), got {name!r}."
            for name in given
            if name not in parts
        ]
        faults += [
            f"WeightedMean's weights are finite and not negative, got {name}={weight}."
            for name, weight in given.items()
            if not (math.isfinite(weight) and weight >= 0)
        ]
        faults += [
            f"The parts of WeightedMean have names without '/', got {name!r}." for name in parts if "/" in name
        ]
        self.parts, self.relative_to_dense = dict(parts), relative_to_dense
        self.weights = {name: float(given.get(name, 1.0)) for name in parts}
        if parts and not faults and not any(self.weights.values()):
            faults.append("WeightedMean needs a part of positive weight, got only zeros.")
        if faults:
            raise RecipeError(faults)
        self._dense: Mapping[str, float] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens that one evaluation runs through the model."""
        return sum(part.tokens for part in self.parts.values())

    def check(self) -> None:
        """Check every part's data.

        Raises:
            RecipeError: With the faults of all parts.
        """
        faults: list[str] = []
        for name, part in self.parts.items():
            try:
                part.check()
            except RecipeError as error:
                faults += [f"{name}: {fault}" for fault in error.faults]
            except TailorError as error:
                faults.append(f"{name}: {error}")
        if faults:
            raise RecipeError(faults)

    def set_reference(self, dense: Measurement) -> Measurement:
        """Take the dense base model's part scores as the unit of each part.

        Returns:
            The dense measurement with its score in that unit: 1.0.

        Raises:
            EvaluationError: If a part's score is not positive, so that nothing can be relative to it.
        """
        if not self.relative_to_dense:
            return dense
        bad = {name: dense.parts.get(name) for name in self.parts if not dense.parts.get(name, 0.0) > 0}
        if bad:
            raise EvaluationError(
                "Scores relative to the dense model need positive dense scores, got "
                f"{', '.join(f'{name}={score}' for name, score in bad.items())}. Set relative_to_dense: false."
            )
        self._dense = {name: dense.parts[name] for name in self.parts}
        for name, part in self.parts.items():
            prefix = name + "/"
            part.set_reference(
                Measurement(
                    score=dense.parts[name],
                    metrics={k.removeprefix(prefix): v for k, v in dense.metrics.items() if k.startswith(prefix)},
                )
            )
        return replace(dense, score=self._score(dense.parts))

    def _setup(self, engine: Engine) -> None:
        for part in self.parts.values():
            part.setup(engine)

    def _evaluate(self, model: PreTrainedModel) -> Measurement:
        found = {name: part.evaluate(model) for name, part in self.parts.items()}
        scores = {name: measurement.score for name, measurement in found.items()}
        return Measurement(
            score=self._score(scores),
            metrics={f"{name}/{k}": v for name, part in found.items() for k, v in part.metrics.items()},
            chance={f"{name}/{k}": v for name, part in found.items() for k, v in part.chance.items()},
            parts=scores,
        )

    def _score(self, scores: Mapping[str, float]) -> float:
        unit = self._dense or dict.fromkeys(scores, 1.0)
        total = math.fsum(self.weights[name] * scores[name] / unit[name] for name in self.parts)
        return total / math.fsum(self.weights.values())

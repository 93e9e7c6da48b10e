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
        self._unit: Mapping[str, float] = dict.fromkeys(parts, 1.0)

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

        Raises:
            EvaluationError: If a part's score is not positive, so that nothing can be relative to it.
        """
        if not self.relative_to_dense:
            return dense
        # a part may itself be relative to the dense model: its unit is the score that it has from now on
        unit = {name: part.set_reference(_of_part(dense, name)).score for name, part in self.parts.items()}
        bad = [f"{name}={score}" for name, score in unit.items() if not score > 0]
        if bad:
            raise EvaluationError(
                "Scores relative to the dense model need positive dense scores, got "
                f"{', '.join(bad)}. Set relative_to_dense: false."
            )
        self._unit = unit
        return replace(dense, score=self._mean(unit), parts={**dense.parts, **unit})

    def _setup(self, engine: Engine) -> None:
        for part in self.parts.values():
            part.setup(engine)

    def _evaluate(self, model: PreTrainedModel) -> Measurement:
        found = {name: part.evaluate(model) for name, part in self.parts.items()}
        scores = {name: part.score for name, part in found.items()}
        return Measurement(
            score=self._mean(scores),
            metrics={f"{name}/{k}": v for name, part in found.items() for k, v in part.metrics.items()},
            chance={f"{name}/{k}": v for name, part in found.items() for k, v in part.chance.items()},
            parts=scores | {f"{name}/{k}": v for name, part in found.items() for k, v in part.parts.items()},
        )

    def _mean(self, scores: Mapping[str, float]) -> float:
        total = math.fsum(self.weights[name] * score / self._unit[name] for name, score in scores.items())
        return total / math.fsum(self.weights.values())


def _of_part(dense: Measurement, name: str) -> Measurement:
    """Return a part's own measurement out of the whole."""

    def below(values: Mapping[str, float]) -> dict[str, float]:
        return {k.removeprefix(f"{name}/"): v for k, v in values.items() if k.startswith(f"{name}/")}

    return Measurement(
        score=dense.parts[name],
        metrics=below(dense.metrics),
        chance=below(dense.chance),
        parts=below(dense.parts),
    )

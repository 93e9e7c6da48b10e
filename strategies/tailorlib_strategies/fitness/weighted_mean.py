"""WeightedMean: several fitnesses as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tailorlib.evaluation.samples import interleaved, joined
from tailorlib.exceptions import EvaluationError, RecipeError, TailorError
from tailorlib.fitness import Fitness, Measurement, SampleResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import Engine
    from tailorlib.evaluation.overlap import Fingerprint


class WeightedMean(Fitness):
    """Scores a model by the weighted mean of several fitnesses' scores.

    Its samples are those of all parts, mixed in proportion.

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
        self._units: dict[int, Mapping[str, float]] = {}
        self._dense: list[SampleResult] = []
        self._samples: list[tuple[str, int]] = []
        self._min_samples = 1

    @property
    def tokens(self) -> int:
        """Number of tokens that one evaluation runs through the model."""
        return sum(part.tokens for part in self.parts.values())

    @property
    def num_samples(self) -> int:
        """Number of samples of all parts, after :meth:`setup`."""
        return len(self._samples)

    @property
    def min_samples(self) -> int:
        """Number of first samples with which each part has as many as it needs."""
        return self._min_samples

    @property
    def fingerprints(self) -> Sequence[Fingerprint]:
        """Those of all parts."""
        return [piece for part in self.parts.values() for piece in part.fingerprints]

    @property
    def needs_dense(self) -> bool:
        """Whether a part has to look at the dense model."""
        return any(part.needs_dense for part in self.parts.values())

    def observe_dense(self, model: PreTrainedModel) -> None:
        """Let every part look at the dense model."""
        for part in self.parts.values():
            part.observe_dense(model)

    def check(self) -> None:
        """Check every part's data.

        Raises:
            RecipeError: With the faults of all parts.
        """
        self._each(lambda part: part.check())

    def set_reference(self, dense: Measurement, results: Sequence[SampleResult] | None = None) -> Measurement:
        """Take the dense base model's part scores as the unit of each part.

        Given the dense model's results, a score on the first samples is relative to its part scores on the same
        samples: one easy window among few must not make its part count more than the others.

        Raises:
            EvaluationError: If a part's score is not positive, so that nothing can be relative to it.
        """
        if not self.relative_to_dense:
            return dense
        # a part may itself be relative to the dense model: its unit is the score that it has from now on
        own = self._of_parts(results or ())
        unit = {
            name: part.set_reference(_of_part(dense, name), own.get(name)).score
            for name, part in self.parts.items()
        }
        bad = [f"{name}={score}" for name, score in unit.items() if not score > 0]
        if bad:
            raise EvaluationError(
                "Scores relative to the dense model need positive dense scores, got "
                f"{', '.join(bad)}. Set relative_to_dense: false."
            )
        self._unit, self._dense, self._units = unit, list(results or ()), {}
        return replace(dense, score=self._mean(unit, unit), parts={**dense.parts, **unit})

    def shards(self, samples: Sequence[int], number: int) -> list[list[int]]:
        """Let each part share out its samples, and join them."""
        lists = []
        for name, places in self._by_part(samples).items():
            of = {self._samples[place][1]: place for place in places}
            lists.append([[of[i] for i in part] for part in self.parts[name].shards(list(of), number)])
        return joined(lists, number)

    def _setup(self, engine: Engine) -> None:
        self._each(lambda part: part.setup(engine))
        names = list(self.parts)
        self._samples = [(names[k], i) for k, i in interleaved([p.num_samples for p in self.parts.values()])]
        least = {(name, part.min_samples - 1) for name, part in self.parts.items()}
        self._min_samples = max(i for i, sample in enumerate(self._samples, start=1) if sample in least)

    def _each(self, do: Callable[[Fitness], None]) -> None:
        """Do something to every part, and raise the faults of all of them together."""
        faults: list[str] = []
        for name, part in self.parts.items():
            try:
                do(part)
            except TailorError as error:
                faults += [f"{name}: {fault}" for fault in error.faults]
        if faults:
            raise RecipeError(faults)

    def _score_samples(self, model: PreTrainedModel, samples: Sequence[int]) -> list[SampleResult]:
        found: dict[int, SampleResult] = {}
        for name, places in self._by_part(samples).items():
            results = self.parts[name].score_samples(model, [self._samples[place][1] for place in places])
            found.update(zip(places, results, strict=True))
        return [found[place] for place in samples]

    def _summarise(self, results: Sequence[SampleResult]) -> Measurement:
        found = {name: self.parts[name].summarise(own) for name, own in self._of_parts(results).items()}
        scores = {name: part.score for name, part in found.items()}
        return Measurement(
            score=self._mean(scores, self._unit_on(len(results))),
            metrics={f"{name}/{k}": v for name, part in found.items() for k, v in part.metrics.items()},
            chance={f"{name}/{k}": v for name, part in found.items() for k, v in part.chance.items()},
            parts=scores | {f"{name}/{k}": v for name, part in found.items() for k, v in part.parts.items()},
        )

    def _by_part(self, samples: Sequence[int]) -> dict[str, list[int]]:
        """Return the samples of each part, as this fitness numbers them; parts without any are left out."""
        found: dict[str, list[int]] = {name: [] for name in self.parts}
        for place in samples:
            found[self._samples[place][0]].append(place)
        return {name: places for name, places in found.items() if places}

    def _of_parts(self, results: Sequence[SampleResult]) -> dict[str, list[SampleResult]]:
        """Return the results of the first samples, shared out to the parts that have any."""
        parts = self._by_part(range(len(results)))
        return {name: [results[place] for place in places] for name, places in parts.items()}

    def _unit_on(self, samples: int) -> Mapping[str, float]:
        """Return the dense model's part scores on some first samples, as far as they can be a unit."""
        if samples >= len(self._dense):
            return self._unit
        if samples not in self._units:
            found = {
                name: self.parts[name].summarise(r) for name, r in self._of_parts(self._dense[:samples]).items()
            }
            own = {name: measurement.score for name, measurement in found.items() if measurement.score > 0}
            self._units[samples] = {**self._unit, **own}
        return self._units[samples]

    def _mean(self, scores: Mapping[str, float], unit: Mapping[str, float]) -> float:
        total = math.fsum(self.weights[name] * score / unit[name] for name, score in scores.items())
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

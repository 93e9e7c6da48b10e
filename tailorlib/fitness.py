"""Fitness: how good a tailored model is."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tailorlib.exceptions import EvaluationError, PluginError, shown
from tailorlib.forks import staying
from tailorlib.plain_data import number, numbers, plain
from tailorlib.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import Engine
    from tailorlib.evaluation.overlap import Fingerprint


SampleResult = Any
"""A model's result on one sample: plain data, as JSON can hold it."""


@dataclass(frozen=True)
class Measurement:
    """What a fitness found.

    Args:
        score: The figure that the search maximises, higher is better.
        metrics: Every figure worth keeping, by name; accuracies and perplexities with their usual names.
        chance: Expected value of some of the ``metrics`` for a model that guesses, where that is known.
        parts: Score of each part of a combined fitness, by the part's name.

    All of them are kept as Python's own numbers; scalars of numpy and torch are numbers.

    Raises:
        PluginError: If something else stands where a number belongs.
    """

    score: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", number(self.score, "A measurement's score"))
        for name, what in (("metrics", "metric"), ("chance", "chance of a metric"), ("parts", "part's score")):
            object.__setattr__(self, name, numbers(getattr(self, name), what))


def as_measurement(found: object, what: str) -> Measurement:
    """Return a measurement that a plugin gave.

    Args:
        found: What a plugin gave.
        what: What gives it, for the message: the subject of a sentence.

    Raises:
        PluginError: If it is none.
    """
    if not isinstance(found, Measurement):
        hint = f" Write: return Measurement({shown(found)})." if isinstance(found, int | float) else ""
        raise PluginError(f"{what} gives a Measurement, got {shown(found)}.{hint}")
    return found


class Fitness(ABC):
    """Scores a live model. Higher is better.

    A fitness is a list of samples in a fixed order: questions, windows of text. A model's result on a sample is
    plain data and depends on nothing but the two; a measurement is made of the results of the first samples. So a
    coarse measurement can be continued to a finer one, and samples can be shared out to devices.

    A subclass writes :meth:`_setup` (tokenise once, check the data) and one of two things:

    - :meth:`_evaluate`, if a model can only be scored as a whole: that is one sample;
    - :attr:`num_samples`, :meth:`_score_samples` and :meth:`_summarise`.
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

    def evaluate(self, model: PreTrainedModel, samples: int | None = None) -> Measurement:
        """Score a live model.

        Args:
            model: A causal language model in evaluation mode, on the engine's device.
            samples: How many of the samples to score, from the first; all by default, and at most.

        Raises:
            EvaluationError: If there are less than :attr:`min_samples`, or the score is NaN or infinite.
        """
        return self.summarise(self.score_samples(model, range(min(self.num_samples, samples or self.num_samples))))

    # -- Samples --------------------------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """Number of samples, after :meth:`setup`."""
        return 1

    @property
    def min_samples(self) -> int:
        """Least number of first samples that a measurement can be made of: each task has one of them."""
        return 1

    def score_samples(self, model: PreTrainedModel, samples: Sequence[int]) -> list[SampleResult]:
        """Score a live model on some samples.

        Args:
            model: A causal language model in evaluation mode, on the engine's device.
            samples: Numbers of the samples, each once, in any order.

        Returns:
            The results in the order asked for, as JSON holds them.

        Raises:
            PluginError: If there is not one for each sample, or one isn't plain data.
        """
        with staying():
            results = self._score_samples(model, samples)
        if not isinstance(results, list | tuple) or len(results) != len(samples):
            number_of = f"{len(results)}" if isinstance(results, list | tuple) else type(results).__name__
            raise PluginError(
                f"{type(self).__name__}._score_samples gives a list of one result for each of the {len(samples)} "
                f"samples, got {number_of}."
            )
        return [plain(result, "A result on a sample") for result in results]

    def summarise(self, results: Sequence[SampleResult]) -> Measurement:
        """Make a measurement of the results of the first ``len(results)`` samples.

        Raises:
            EvaluationError: If there are less than :attr:`min_samples`, or the score is NaN or infinite.
            PluginError: If the subclass gives no measurement.
        """
        if len(results) < self.min_samples:
            raise EvaluationError(
                f"{type(self).__name__} is measured on at least {self.min_samples} samples, got {len(results)}."
            )
        with staying():
            measurement = as_measurement(self._summarise(results), f"{type(self).__name__}._summarise")
        if not math.isfinite(measurement.score):
            bad = [k for k, v in measurement.metrics.items() if not math.isfinite(v)]
            raise EvaluationError(
                f"{type(self).__name__} gives a finite score, got {measurement.score}"
                + (f" (not finite: {', '.join(bad)})." if bad else ".")
            )
        return measurement

    def shards(self, samples: Sequence[int], number: int) -> list[list[int]]:
        """Share samples out into at most ``number`` parts of about equal cost, none of them empty.

        Samples that have much in common, such as few-shot examples, belong together.
        """
        parts = [list(samples[i::number]) for i in range(number)]
        return [part for part in parts if part]

    @property
    def fingerprints(self) -> Sequence[Fingerprint]:
        """What stands for the data that is scored, after :meth:`setup`, to find data that two fitnesses share.

        See :func:`tailorlib.evaluation.overlap.overlap`. Empty by default: nothing is known of the data.
        """
        return ()

    @property
    def contents(self) -> Mapping[str, str]:
        """Digests of the data and definitions that are scored, by name, after :meth:`setup`.

        A study is resumed only with the same ones. Empty by default: texts that the fitness holds as attributes
        (:class:`~tailorlib.text.TextSource`), fitnesses and names of files among them count without it. What else
        decides a score belongs here; :func:`tailorlib.contents.digest_of` makes a digest.
        """
        return {}

    # -- The dense model ------------------------------------------------------------------------------------------

    @property
    def needs_dense(self) -> bool:
        """Whether :meth:`observe_dense` has to be called before anything is scored."""
        return False

    def observe_dense(self, model: PreTrainedModel) -> None:
        """Look at the live dense base model: for a fitness that compares a candidate's outputs with the base's.

        It is called once per process, after :meth:`setup` and before anything is scored; nothing by default.
        """

    def set_reference(self, dense: Measurement, results: Sequence[SampleResult] | None = None) -> Measurement:
        """Take note of the dense base model's measurement.

        Args:
            dense: The measurement, on all samples.
            results: The dense model's results on all samples, where candidates are scored on parts of them: a
                fitness that is relative to the dense model compares on the same samples then.

        Returns:
            The same measurement as this fitness scores it from now on: a fitness that scores relative to the
            dense model gives it another score (1.0) than it had before there was a reference.
        """
        return dense

    @property
    def tokens(self) -> int:
        """Number of tokens that one evaluation runs through the model, after :meth:`setup`; 0 if unknown."""
        return 0

    # -- What a subclass writes -----------------------------------------------------------------------------------

    def _setup(self, engine: Engine) -> None:
        """Compile the data; nothing by default."""

    def _evaluate(self, model: PreTrainedModel) -> Measurement:
        """Score the model as a whole."""
        raise PluginError(f"{type(self).__name__} writes _evaluate, or _score_samples and _summarise.")

    def _score_samples(self, model: PreTrainedModel, samples: Sequence[int]) -> list[SampleResult]:
        """Score some samples; by default there is one, the whole."""
        what = f"{type(self).__name__}._evaluate"
        return [asdict(as_measurement(self._evaluate(model), what)) for _ in samples]

    def _summarise(self, results: Sequence[SampleResult]) -> Measurement:
        """Make a measurement of the first samples' results."""
        return Measurement(**results[0])


FITNESS: Registry[Fitness] = Registry(Fitness, "tailorlib.fitness")

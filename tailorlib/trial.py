"""Trial: one evaluated candidate, as the journal keeps it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tailorlib.distributions import Params
from tailorlib.exceptions import JournalError, PluginError, TailorError, shown
from tailorlib.plain_data import number, numbers, plain, safe_text
from tailorlib.records import decode, encode
from tailorlib.tailoring import Tailoring

TrialState = Literal["complete", "failed"]
MAX_REASON = 10_000
"""Most characters of a reason that are kept: its beginning and its end."""


@dataclass(frozen=True)
class Trial:
    """One candidate and what came of it.

    Args:
        number: Position in the study, from 0.
        params: The active parameters (see :meth:`tailorlib.search_space.SearchSpace.active`).
        tailoring: What the parameters mean.
        state: ``"complete"``, or ``"failed"`` with a ``reason``.
        fitness: The score, higher is better; ``None`` if the trial failed.
        metrics: Every figure that the fitness reported, by name.
        seconds: Wall time of stitching and evaluation.
        costs: What it took, by name: ``samples`` that were scored anew; ``tokens``; ``layers_run`` and
            ``layers_reused``, the mean over its tokens;
            ``merges`` and ``merges_reused``; ``prefix_cache_mib`` and ``merge_cache_mib`` held afterwards.
        origin: Who proposed it: ``"optimizer"``, or the name of a warm start.
        reason: Why the trial failed.
        objectives: Scores of a study with several objectives, by name and in the recipe's order, each higher is
            better; empty where the fitness is the only one.
        samples: Number of first samples that it was scored on, those of an earlier trial of the same candidate
            included; 0 where that is unknown.
        fidelity: The same as a share of all samples, in (0, 1].
    """

    number: int
    params: Params
    tailoring: Tailoring
    state: TrialState
    fitness: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    costs: Mapping[str, float] = field(default_factory=dict)
    origin: str = "optimizer"
    reason: str | None = None
    objectives: Mapping[str, float] = field(default_factory=dict)
    samples: int = 0
    fidelity: float = 1.0

    @property
    def reused_layers(self) -> float:
        """Share of the layers that didn't have to run, in [0, 1]."""
        reused = self.costs.get("layers_reused", 0.0)
        return reused / max(1e-9, reused + self.costs.get("layers_run", 0.0))

    @property
    def loss(self) -> float:
        """What optimizers minimise: the negated fitness, infinite for a failed trial.

        With :attr:`losses` the only place where a sign is turned.
        """
        return math.inf if self.fitness is None else -self.fitness

    @property
    def losses(self) -> tuple[float, ...]:
        """The negated objectives in their order, or the loss where there is only one; infinite if it failed."""
        if self.fitness is None:
            return (math.inf,) * max(1, len(self.objectives))
        return tuple(-score for score in self.objectives.values()) or (self.loss,)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for one line of the journal."""
        return {
            "number": self.number,
            "state": self.state,
            "fitness": self.fitness,
            "objectives": dict(self.objectives),
            "samples": self.samples,
            "fidelity": self.fidelity,
            "metrics": dict(self.metrics),
            "seconds": round(self.seconds, 4),
            "costs": {k: round(v, 4) for k, v in self.costs.items()},
            "origin": self.origin,
            "reason": self.reason,
            "params": {k: list(v) if isinstance(v, tuple) else v for k, v in self.params.items()},
            "tailoring": self.tailoring.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        """Rebuild a trial from :meth:`to_dict`.

        Raises:
            JournalError: If a key is missing, a value is of the wrong type, or they contradict each other.
        """
        try:
            found = cls(
                number=_whole(data["number"], "number"),
                params={str(k): tuple(v) if isinstance(v, list) else v for k, v in data["params"].items()},
                tailoring=Tailoring.from_dict(data["tailoring"]),
                state=data["state"],
                fitness=None if data["fitness"] is None else number(data["fitness"], "A fitness"),
                objectives=numbers(data.get("objectives", {}), "objective"),
                samples=_whole(data.get("samples", 0), "samples"),
                fidelity=number(data.get("fidelity", 1.0), "A fidelity"),
                metrics=numbers(data["metrics"], "metric"),
                seconds=number(data["seconds"], "A time in seconds"),
                costs=numbers(data.get("costs", {}), "cost"),
                origin=str(data["origin"]),
                reason=data["reason"],
            )
            fault = found._contradiction()
        except JournalError:
            raise
        except TailorError as error:
            raise JournalError(f"A journal line is no trial: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise JournalError(f"A journal line is no trial: {error!r}.") from error
        if fault:
            raise JournalError(f"A journal line is no trial: {fault}")
        return found

    def _contradiction(self) -> str | None:
        """Return which values can't be together, or none."""
        finite = [("seconds", self.seconds), ("fidelity", self.fidelity)]
        finite += [*self.costs.items(), *self.objectives.items()]
        for name, value in finite:
            if not math.isfinite(value):
                return f"{name} is finite, got {value}."
        if self.seconds < 0 or not 0 < self.fidelity <= 1:
            return f"it took {self.seconds} seconds and has the fidelity {self.fidelity}."
        if self.state not in ("complete", "failed"):
            return f"its state is {shown(self.state)}."
        sound = (
            self.fitness is not None and math.isfinite(self.fitness) and self.reason is None
            if self.state == "complete"
            else self.fitness is None
            and not self.objectives
            and isinstance(self.reason, str)
            and self.reason != ""
        )
        return None if sound else f"{self.state} with fitness {self.fitness} and reason {shown(self.reason)}."


def as_recorded(trial: Trial) -> Trial:
    """Return a trial as the journal will give it back: of a result that can't be recorded, a failed trial.

    Every process makes it of the same trial, so that all of them, and a resumed study, go on with the same values.

    Args:
        trial: A trial as the fitness and the optimizer left it.

    Raises:
        PluginError: If not even the candidate can be recorded.
    """
    if trial.state == "failed":
        reason = trial.reason if isinstance(trial.reason, str) else ""
        trial = replace(trial, reason=safe_text(reason, MAX_REASON).strip() or "It failed without a reason.")
    try:
        return _reread(trial)
    except TailorError as error:
        reason = f"The result can't be recorded: {error}"
        failed = replace(trial, state="failed", fitness=None, metrics={}, costs={}, objectives={}, reason=reason)
    try:
        return _reread(failed)
    except TailorError as error:
        raise PluginError(
            f"A candidate is one that the journal can record; the one for trial {trial.number}, proposed by "
            f"{trial.origin!r}, can't be: {error} Mend the search space, the optimizer or the models' names."
        ) from error


def _reread(trial: Trial) -> Trial:
    return Trial.from_dict(decode(encode(plain(trial.to_dict(), "A trial"), 1))[1])


def _whole(value: object, name: str) -> int:
    if type(value) is not int or value < 0:
        raise JournalError(f"A journal line is no trial: its {name} is a whole number from 0, got {shown(value)}.")
    return value


def incumbent(trials: Iterable[Trial]) -> Trial | None:
    """Return the fittest complete trial (the earliest among equals), or ``None``.

    Trials on fewer samples count only as long as there is none on more: their scores don't compare.
    """
    complete = [t for t in trials if t.fitness is not None]
    most = max((t.fidelity for t in complete), default=1.0)
    return min((t for t in complete if t.fidelity == most), key=lambda t: (t.loss, t.number), default=None)

"""Compensation: what mends a model where layers were removed, in closed form and without training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tailorlib.guards import Check, Guarded, gives
from tailorlib.registry import Registry
from tailorlib.tailoring import Tailoring

if TYPE_CHECKING:
    from tailorlib.calibration.mixture import Calibration
    from tailorlib.evaluation.overlap import Fingerprint
    from tailorlib.models.family import ModelFamily


@dataclass(frozen=True)
class CompensationContext:
    """What a compensation may look at.

    Args:
        family: The model family, loaded.
        device: Where to compute.
        longest: Number of layers in the longest gap that a candidate can have.
        score: Returns the fitness of a tailoring; on several ranks all call it alike.
        seed: The study's seed.
    """

    family: ModelFamily
    device: torch.device
    longest: int
    score: Callable[[Tailoring], float]
    seed: int = 0


@dataclass(frozen=True)
class Seam:
    """A place where layers are missing.

    Args:
        plan: Position in the tailoring of the layer below.
        layer: Depth of that layer.
        above: Depth of the layer that follows; the number of layers where none does.
    """

    plan: int
    layer: int
    above: int


def seams(tailoring: Tailoring, num_layers: int) -> list[Seam]:
    """Return where a tailoring lacks layers; none where a layer stands beside others than its neighbours in depth.

    A layer that is merged of several depths, or that stands out of order, has no depth of its own: what is above
    and below it can't be compared with a full-depth model. Nothing stands below a gap at the beginning.

    Args:
        tailoring: The tailoring.
        num_layers: Number of layers of the full-depth model.
    """
    depths = [depth_of(tailoring, i) for i in range(len(tailoring.layers))] + [num_layers]
    found = []
    for i, (layer, above) in enumerate(pairwise(depths)):
        if layer is not None and above is not None and above > layer + 1:
            found.append(Seam(i, layer, above))
    return found


def unbridged(tailoring: Tailoring, num_layers: int) -> list[str]:
    """Return which neighbours of a tailoring are no seam and no neighbours in the full-depth model, in words."""
    depths = [depth_of(tailoring, i) for i in range(len(tailoring.layers))]
    found = []
    if depths[0] is not None and depths[0] > 0:
        found.append(f"nothing stands below layer {depths[0]}, where {depths[0]} layers are missing")
    for i, depth in enumerate(depths):
        if depth is None:
            sources = ", ".join(str(s) for s in tailoring.layers[i].sources)
            found.append(f"layer {i} of the tailoring is made of several depths ({sources})")
    for i, (below, above) in enumerate(pairwise(depths)):
        if below is not None and above is not None and above <= below:
            found.append(f"layer {i + 1} of the tailoring is of depth {above}, above one of depth {below}")
    return found


def depth_of(tailoring: Tailoring, plan: int) -> int | None:
    """Return the depth in the full-depth model of what a layer is made of; ``None`` if it has several."""
    depths = {source.layer for part in tailoring.layers[plan].plans for source in part.sources}
    return depths.pop() if len(depths) == 1 else None


class Compensation(Guarded, ABC):
    """Completes a candidate's plan with what makes up for the layers that it lacks.

    ``__init__`` takes recipe settings. :meth:`prepare` gathers whatever is needed over calibration text; after
    that :meth:`complete` is called with every candidate, and looks at nothing but its plan.
    """

    _guards: ClassVar[Mapping[str, Check]] = {"complete": gives(Tailoring, "a Tailoring")}
    per_candidate: ClassVar[bool] = True
    """Whether it is quick enough to complete every candidate of a search."""

    @property
    def label(self) -> str:
        """What tables call it; the class name by default."""
        return type(self).__name__

    @property
    def calibration(self) -> Calibration | None:
        """The text that it is fitted on, if there is one."""
        return None

    def check(self) -> None:
        """Find what is wrong with the settings, without weights.

        Raises:
            TailorError: With all faults.
        """

    def check_family(self, family: ModelFamily) -> None:
        """Find out whether a prepared family can be compensated; no weight is read.

        Raises:
            RecipeError: If not, with the reason.
        """

    @abstractmethod
    def prepare(self, context: CompensationContext) -> None:
        """Gather what :meth:`complete` needs; the family is loaded.

        Raises:
            TailorError: If that can't be had.
        """

    @abstractmethod
    def complete(self, tailoring: Tailoring) -> Tailoring:
        """Return a tailoring with its compensation; of equal plans equal ones.

        Args:
            tailoring: A candidate without terms.
        """

    @property
    def fingerprints(self) -> Sequence[Fingerprint]:
        """What stands for the calibration text where shared data is looked for, after :meth:`check_family`."""
        return ()

    def facts(self) -> Mapping[str, Any]:
        """Return what a report says of it, as plain data, after :meth:`prepare`."""
        return {}

    def costs(self, family: ModelFamily, longest: int) -> Sequence[str]:
        """Return what :meth:`prepare` takes, in words for a plan; the family is prepared or outlined."""
        return ()


def completed(compensation: Compensation | None, tailorings: Iterable[Tailoring]) -> list[Tailoring]:
    """Return tailorings with their compensation, if there is one."""
    return [t if compensation is None else compensation.complete(t.bare) for t in tailorings]


COMPENSATIONS: Registry[Compensation] = Registry(Compensation, "tailorlib.compensations")

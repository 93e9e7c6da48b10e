"""WarmStart: tailorings worth trying first, and baselines to hold a search against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailorlib.registry import Registry
from tailorlib.tailoring import Tailoring

if TYPE_CHECKING:
    from tailorlib.evaluation.engine import Engine
    from tailorlib.models.family import ModelFamily
    from tailorlib.search_space import SearchSpace


@dataclass(frozen=True)
class WarmStartContext:
    """What a warm start may look at.

    Args:
        family: The model family, loaded.
        space: The search space, set up.
        engine: The evaluation engine.
        seed: The study's seed.
    """

    family: ModelFamily
    space: SearchSpace
    engine: Engine
    seed: int


class WarmStart(ABC):
    """Proposes tailorings from the models themselves, without a search.

    In a recipe's ``warm_starts`` its proposals are a study's first trials; in ``benchmark.baselines`` its first
    proposal is a row of the final table.
    """

    @property
    def label(self) -> str:
        """What tables call it; the class name by default."""
        return type(self).__name__

    @abstractmethod
    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return tailorings, the best guess first."""


WARM_STARTS: Registry[WarmStart] = Registry(WarmStart, "tailorlib.warm_starts")

"""WarmStart: tailorings worth trying first, and baselines to hold a search against."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tailorlib.exceptions import RecipeError
from tailorlib.guards import Check, Guarded, gives_all
from tailorlib.registry import Registry
from tailorlib.tailoring import Tailoring

if TYPE_CHECKING:
    from tailorlib.evaluation.engine import Engine
    from tailorlib.models.family import ModelFamily
    from tailorlib.search_space import SearchSpace

_log = logging.getLogger(__name__)


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

    def in_space(self, tailorings: Iterable[Tailoring]) -> list[Tailoring]:
        """Return those that lie in the search space, in the space's own form, each once; the others are logged."""
        found: dict[str, Tailoring] = {}
        for tailoring in tailorings:
            try:
                own = self.space.decode(self.space.encode(tailoring.bare), seed=self.seed)
            except RecipeError as error:
                _log.info("A proposal outside the search space is left out: %s", error)
            else:
                found.setdefault(own.digest, own)
        return list(found.values())


class WarmStart(Guarded, ABC):
    """Proposes tailorings from the models themselves, without a search.

    In a recipe's ``warm_starts`` its proposals are a study's first trials, and have to lie in the search space; in
    ``benchmark.baselines`` its first proposal is a row of the final table, and can be any tailoring of the family.
    """

    _guards: ClassVar[Mapping[str, Check]] = {"propose": gives_all(Tailoring, "tailorings")}

    @property
    def label(self) -> str:
        """What tables call it; the class name by default."""
        return type(self).__name__

    @abstractmethod
    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return tailorings, the best guess first; each can be stitched, in the search space or not.

        Raises:
            RecipeError: If its settings, or the search space, leave nothing to propose.
        """

    def starts(self, context: WarmStartContext) -> list[Tailoring]:
        """Return the proposals that can be a study's first trials: those in the space, in the space's own form.

        Raises:
            RecipeError: If there is none, with the reason why the first one isn't in the space.
        """
        proposals = self.propose(context)
        found = context.in_space(proposals)
        if proposals and not found:
            try:
                context.space.encode(proposals[0])
            except RecipeError as error:
                raise RecipeError(
                    f"A warm start lies in the search space; {self.label} proposes nothing that lies in this "
                    f"{type(context.space).__name__}. {error} Or list it in benchmark.baselines: those needn't."
                ) from error
        return found


WARM_STARTS: Registry[WarmStart] = Registry(WarmStart, "tailorlib.warm_starts")

"""RandomTailoring: what chance gives, to hold everything else against."""

from __future__ import annotations

from collections.abc import Sequence

from tailorlib.exceptions import RecipeError
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import Tailoring
from tailorlib.warm_start import WarmStart, WarmStartContext


class RandomTailoring(WarmStart):
    """Draws tailorings from the search space at random: a control for every search.

    Args:
        count: How many.
    """

    def __init__(self, count: int = 1) -> None:
        if count < 1:
            raise RecipeError(f"RandomTailoring draws at least one tailoring, got count={count}.")
        self.count = count

    @property
    def label(self) -> str:
        """What tables call it."""
        return "random tailoring"

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return the draws; the same ones for the same seed and space."""
        rng = numpy_generator(context.seed, "RandomTailoring")
        space = context.space
        return [space.decode(space.sample(rng), seed=context.seed) for _ in range(self.count)]

"""BlockInfluence: ShortGPT's layers, removed at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from tailorlib.distributions import Subset
from tailorlib.evaluation.hidden_states import block_influence
from tailorlib.evaluation.text import windows
from tailorlib.exceptions import RecipeError, TailorError
from tailorlib.operation import OPERATIONS, MergeOperation
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Tailoring
from tailorlib.text import TextSource
from tailorlib.warm_start import WarmStart, WarmStartContext

_log = logging.getLogger(__name__)


class BlockInfluence(WarmStart):
    """Removes the layers that turn the hidden states least (ShortGPT, arXiv 2403.03853).

    Proposes that removal with all layers from the base; then with all layers from each candidate; then with
    every layer merged from all candidates, once per scale. What lies outside the search space is left out.

    Args:
        text: Calibration text.
        context_length: Length in tokens of the windows that the text is cut into.
        max_tokens: Number of tokens to run.
        merge_scales: Scales at which all candidates are merged.
        merge: Merge operation whose only hyperparameter is ``scale``.
    """

    def __init__(
        self,
        text: TextSource,
        context_length: int = 256,
        max_tokens: int = 2048,
        merge_scales: list[float] | None = None,
        merge: str = "TaskArithmetic",
    ) -> None:
        if context_length < 1 or max_tokens < 1:
            raise RecipeError(
                "BlockInfluence takes a positive context_length and max_tokens, got "
                f"{context_length} and {max_tokens}."
            )
        self.text, self.context_length, self.max_tokens = text, context_length, max_tokens
        self.merge_scales, self.merge = tuple(merge_scales or ()), merge

    @property
    def label(self) -> str:
        """The method's own name, and the figure that it goes by."""
        return "ShortGPT (block influence)"

    def propose(self, context: WarmStartContext) -> Sequence[Tailoring]:
        """Return the tailorings: the base's layers first, then each candidate's, then merged ones."""
        removable, number = _removal(context)
        influence = self.influence(context)
        least = sorted(removable, key=lambda layer: (influence[layer], layer))[:number]
        kept = [i for i in range(context.family.layout.num_layers) if i not in least]
        _log.info("Block influence removes the layers %s.", ", ".join(map(str, sorted(least))))
        proposals: list[Tailoring] = []
        for plans in self._plans(kept, context.family.layout.candidates):
            try:  # the space's own form of it, so that the search recognises the candidate
                params = context.space.encode(Tailoring(plans, seed=context.seed))
                proposals.append(context.space.decode(params, seed=context.seed))
            except RecipeError as error:
                _log.info("A proposal of block influence is left out: %s", error)
        return proposals

    def influence(self, context: WarmStartContext) -> list[float]:
        """Return the block influence of each layer of the dense base."""
        engine, family = context.engine, context.family
        length = min(self.context_length, engine.max_length)
        found = windows(engine.tokenizer, self.text.documents(), length, self.max_tokens, context.seed)
        compiled = engine.compile([window.request for window in found])
        model = family.stitch(Tailoring.whole(BASE, family.layout.num_layers))
        layers = list(model.get_submodule(family.architecture.layers).children())
        values: list[float] = block_influence(model, layers, compiled).tolist()
        return values

    def _plans(self, kept: Sequence[int], candidates: Sequence[str]) -> Iterator[tuple[LayerPlan, ...]]:
        for model in (BASE, *candidates):
            yield tuple(LayerPlan((LayerSource(model, i),)) for i in kept)
        if len(candidates) < 2 or not self.merge_scales:
            return
        operation = self._operation()
        for scale in self.merge_scales:
            yield tuple(
                LayerPlan(
                    tuple(LayerSource(model, i) for model in candidates),
                    operation=self.merge,
                    params=(("scale", float(scale)),),
                    base=LayerSource(BASE, i) if operation.needs_base else None,
                )
                for i in kept
            )

    def _operation(self) -> MergeOperation:
        try:
            operation = OPERATIONS.get(self.merge)()
        except TailorError as error:
            raise RecipeError(f"BlockInfluence.merge names a merge operation: {error}") from error
        if not isinstance(operation, MergeOperation) or set(operation.distributions()) != {"scale"}:
            raise RecipeError(
                f"BlockInfluence.merge is an operation whose only hyperparameter is 'scale', got {self.merge!r} "
                f"with {sorted(operation.distributions())}. Use TaskArithmetic."
            )
        return operation


def _removal(context: WarmStartContext) -> tuple[tuple[int, ...], int]:
    """Return the layers that may go, and how many do."""
    removed = context.space.distributions().get("removed")
    removal = getattr(context.space, "removal", None)
    removable = () if removal is None else tuple(removal.removable(context.family.layout.num_layers))
    # a space that folds layers, or removes blocks of them, has another subset or none
    if not isinstance(removed, Subset) or removed.n != len(removable):
        raise RecipeError(
            "BlockInfluence needs a search space that removes layers one by one, got "
            f"{type(context.space).__name__} as the recipe sets it. Use PruningSpace, or another warm start."
        )
    return removable, removed.k

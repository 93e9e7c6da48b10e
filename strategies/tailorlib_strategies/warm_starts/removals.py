"""What the warm starts share: how many layers may go, calibration text, proposals in the space's own form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tailorlib import LayerPlan, LayerSource, MergeOperation, Subset, Tailoring, TextSource, WarmStart
from tailorlib.evaluation.text import Window, windows
from tailorlib.exceptions import EvaluationError, RecipeError, TailorError
from tailorlib.operation import OPERATIONS
from tailorlib.tailoring import BASE
from tailorlib.warm_start import WarmStartContext
from tailorlib_strategies.search_spaces.folding import FOLDED
from tailorlib_strategies.search_spaces.removal_choice import REMOVED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import CompiledRequests, Engine

T = TypeVar("T")


class Calibrated(WarmStart):
    """A warm start that looks at what the dense base does on a text.

    Args:
        text: Calibration text.
        context_length: Length in tokens of the windows that the text is cut into.
        max_tokens: Number of tokens to run.
    """

    def __init__(self, text: TextSource, context_length: int, max_tokens: int) -> None:
        if context_length < 1 or max_tokens < 1:
            raise RecipeError(
                f"{type(self).__name__} takes a positive context_length and max_tokens, got {context_length} and "
                f"{max_tokens}."
            )
        self.text, self.context_length, self.max_tokens = text, context_length, max_tokens

    def windows(self, context: WarmStartContext) -> list[Window]:
        """Return the windows that are run, the same for the same seed.

        Raises:
            DataError: If there is no text.
        """
        engine = context.engine
        length = min(self.context_length, engine.max_length)
        return windows(engine.tokenizer, self.text.documents(), length, self.max_tokens, context.seed)

    def compiled(self, context: WarmStartContext) -> CompiledRequests:
        """Return the same, laid out for the engine."""
        return context.engine.compile([window.request for window in self.windows(context)])


@dataclass(frozen=True)
class Removal:
    """Which layers may go, and how many do.

    Args:
        removable: The layers that may go, ascending.
        sizes: How many go: the one number of the search space; the least, middle and largest where it varies.
    """

    removable: tuple[int, ...]
    sizes: tuple[int, ...]

    def least(self, scores: Sequence[float] | Mapping[int, float], who: WarmStart) -> list[tuple[int, ...]]:
        """Return for each size the removable layers of the least score, ascending; ties go to the lower layer.

        Raises:
            EvaluationError: If a score is NaN.
        """
        if any(math.isnan(scores[i]) for i in self.removable):
            raise EvaluationError(
                f"{who.label} ranks layers by numbers, got NaN. The dense base gives NaN on the calibration text; "
                "try family.init_args.dtype float32."
            )
        order = sorted(self.removable, key=lambda i: (scores[i], i))
        return [tuple(sorted(order[:size])) for size in self.sizes]


def removal_of(context: WarmStartContext, who: WarmStart) -> Removal:
    """Return how a search space removes layers, or folds them away.

    Raises:
        RecipeError: If it doesn't remove single layers.
    """
    distributions = context.space.distributions()
    removal = getattr(context.space, "removal", None)
    removable = () if removal is None else tuple(removal.removable(context.family.layout.num_layers))
    removed, folded = distributions.get(REMOVED), distributions.get(FOLDED)
    # a space that removes blocks of layers has another subset
    subset = removed if isinstance(removed, Subset) and removed.n == len(removable) else folded
    if not isinstance(subset, Subset) or not removable:
        raise RecipeError(
            f"{type(who).__name__} needs a search space that removes layers one by one, got "
            f"{type(context.space).__name__} as the recipe sets it. Use PruningSpace, or another warm start."
        )
    return Removal(removable, tuple(sorted({subset.low, (subset.low + subset.k) // 2, subset.k})))


def removed_by(start: WarmStart, context: WarmStartContext, who: WarmStart) -> tuple[int, ...]:
    """Return the layers that the first proposal of another warm start does without; folded ones are among them.

    Raises:
        RecipeError: If it proposes nothing, or its layers aren't those of the base in their order.
    """
    proposals = start.propose(context)
    depths = [plan.sources[0].layer for plan in proposals[0].layers] if proposals else []
    if not depths or sorted(set(depths)) != depths:
        raise RecipeError(
            f"{type(who).__name__} takes the layers that another warm start removes; {start.label} "
            f"{'has the layers ' + str(depths) if depths else 'proposes nothing'}. Name one that removes layers, "
            "such as BlockInfluence."
        )
    return tuple(i for i in range(context.family.layout.num_layers) if i not in depths)


def without(context: WarmStartContext, removed: Iterable[int], model: str = BASE) -> Tailoring:
    """Return one model's layers, less some, between the base's embeddings, norm and head."""
    gone = frozenset(removed)
    kept = (i for i in range(context.family.layout.num_layers) if i not in gone)
    return Tailoring(tuple(LayerPlan((LayerSource(model, i),)) for i in kept), seed=context.seed)


def filled(
    context: WarmStartContext, removed: Sequence[int], scales: Sequence[float], merge: str
) -> Iterator[Tailoring]:
    """Yield what the layers that stay can be made of, alike at all depths.

    Args:
        context: The context.
        removed: The layers that go.
        scales: Scales at which all candidates are merged, if there are two or more candidates.
        merge: Merge operation with a hyperparameter ``scale``.

    Yields:
        The base's layers, then each candidate's, then all candidates merged, once per scale.

    Raises:
        RecipeError: If the operation is not known or has no scale.
    """
    layout = context.family.layout
    for model in (BASE, *layout.candidates):
        yield without(context, removed, model)
    if len(layout.candidates) < 2 or not scales:
        return
    operation = merge_by_scale(merge, "merge")
    kept = [i for i in range(layout.num_layers) if i not in removed]
    for scale in scales:
        yield Tailoring(tuple(merged(operation, scale, layout.candidates, i) for i in kept), seed=context.seed)


def presented(context: WarmStartContext, tailorings: Iterable[Tailoring]) -> list[Tailoring]:
    """Return those in the search space, in its own form; if there is none, all: they can be baselines."""
    unique = {tailoring.digest: tailoring for tailoring in tailorings}
    return context.in_space(unique.values()) or list(unique.values())


def candidates_of(context: WarmStartContext, who: WarmStart) -> tuple[str, ...]:
    """Return the names of the candidates.

    Raises:
        RecipeError: If there is none.
    """
    candidates = context.family.layout.candidates
    if not candidates:
        raise RecipeError(
            f"{type(who).__name__} needs candidate models beside the base, got none. Add some to the family, or "
            "leave it out."
        )
    return candidates


def merge_by_scale(name: str, setting: str) -> MergeOperation:
    """Return the merge operation of that name.

    Raises:
        RecipeError: If there is none, or it has no hyperparameter ``scale``.
    """
    operation = merge_operation(name, setting)
    if "scale" not in operation.distributions():
        raise RecipeError(
            f"{setting} is an operation with the hyperparameter 'scale', got {name!r} with "
            f"{sorted(operation.distributions())}. Use TaskArithmetic."
        )
    return operation


def merge_operation(name: str, setting: str) -> MergeOperation:
    """Return the merge operation of that name.

    Raises:
        RecipeError: If there is none.
    """
    try:
        operation = OPERATIONS.get(name)()
    except TailorError as error:
        raise RecipeError(f"{setting} names a merge operation: {error}") from error
    if not isinstance(operation, MergeOperation):
        raise RecipeError(f"{setting} names a merge operation, got {name!r}, which merges nothing.")
    return operation


def merged(operation: MergeOperation, scale: float, models: Iterable[str], i: int) -> LayerPlan:
    """Return the plan of layer ``i``, merged of some models at a scale, other hyperparameters in the middle."""
    sources = tuple(LayerSource(model, i) for model in models)
    base = LayerSource(BASE, i) if operation.needs_base else None
    params = {name: d.default for name, d in operation.distributions().items()} | {"scale": float(scale)}
    return LayerPlan(sources, operation.name, tuple(sorted(params.items())), base)


@contextmanager
def reusing_states(engine: Engine) -> Iterator[None]:
    """Let go of hidden states at the end that nobody will ask for again."""
    try:
        yield
    finally:
        engine.states.protect(())
        engine.states.clear()


def measured(
    context: WarmStartContext,
    tailorings: Iterable[Tailoring],
    parent: Tailoring,
    measure: Callable[[PreTrainedModel], T],
    advance: Callable[[], None],
) -> list[T]:
    """Stitch tailorings that each differ from one parent at one place, and measure them.

    Args:
        context: The context.
        tailorings: What to measure; from the top down, so that each finds the hidden states of the one before.
        parent: What they have their lower layers from.
        measure: What is asked of each live model.
        advance: Called after each.
    """
    engine, found = context.engine, []
    engine.states.protect(parent.prefixes)
    for tailoring in tailorings:
        model = context.family.stitch(tailoring)
        with engine.reusing(model, tailoring.prefixes, parent.prefixes):
            found.append(measure(model))
        advance()
    return found

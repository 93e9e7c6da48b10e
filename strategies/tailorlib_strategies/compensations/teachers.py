"""Teachers: full-depth models of the family that a compensated one is to imitate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from rich.markup import escape

from tailorlib import Tailoring
from tailorlib.compensation import CompensationContext
from tailorlib.console import bar, say
from tailorlib.exceptions import EvaluationError, RecipeError, did_you_mean, shown
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import BASE
from tailorlib_strategies.warm_starts.removals import merge_by_scale, merged

AUTO, MERGE = "auto", "merge"
SCALES = (0.2, 0.35, 0.5)
"""Scales of task arithmetic at which all variants are merged for a teacher."""


def teachers(family: ModelFamily, seed: int, scales: Sequence[float] = SCALES) -> Iterator[tuple[str, Tailoring]]:
    """Yield the full-depth models that can teach, with their names: base, variants, merges of all variants.

    Args:
        family: A prepared family.
        seed: The study's seed.
        scales: Scales at which all variants are merged.
    """
    layout = family.layout
    for model in layout.models:
        layers = Tailoring.whole(model, layout.num_layers).layers
        yield model, Tailoring(layers, seed=seed)
    if len(layout.candidates) > 1:
        operation = merge_by_scale("TaskArithmetic", "teacher")
        for scale in scales:
            plans = (merged(operation, scale, layout.candidates, i) for i in range(layout.num_layers))
            yield f"merge at {scale:g}", Tailoring(tuple(plans), seed=seed)


def choose_teacher(asked: str, context: CompensationContext) -> tuple[str, Tailoring, dict[str, float]]:
    """Return the teacher that a setting names: name, tailoring, and the fitness of those that were compared.

    Args:
        asked: A model's name, ``"merge"`` for the fittest merge of all variants, ``"auto"`` for the best.
        context: The study's.

    Raises:
        RecipeError: If there is no such model.
        EvaluationError: If none of those that were compared can be scored.
    """
    every = dict(teachers(context.family, context.seed))
    check_teacher(asked, context.family)
    if asked not in (AUTO, MERGE):
        return asked, every[asked], {}
    models = context.family.layout.models
    compared = {name: t for name, t in every.items() if asked == AUTO or name not in models}
    if len(compared) == 1:
        ((name, only),) = compared.items()
        return name, only, {}
    scores: dict[str, float] = {}
    with bar("Comparing teachers", len(compared)) as advance:
        for name, tailoring in compared.items():
            with suppress(EvaluationError):  # a merge can be no model at all
                scores[name] = context.score(tailoring)
            advance()
    if not scores:
        raise EvaluationError(f"A teacher has a fitness; none of {', '.join(compared)} can be scored.")
    best = max(scores, key=lambda name: scores[name])
    against = f"; the base's is {scores[BASE]:.4g}" if best != BASE and BASE in scores else ""
    say(f"[green]✓[/] The teacher is {escape(best)}, of the best fitness {scores[best]:.4g}{against}")
    return best, compared[best], scores


def check_teacher(asked: str, family: ModelFamily) -> None:
    """Check that a family has the teacher that a setting names; the family is prepared.

    Raises:
        RecipeError: If not.
    """
    known = [AUTO, MERGE, *family.layout.models]
    if asked not in known:
        hint = did_you_mean(asked, known)
        raise RecipeError(f"teacher is one of {', '.join(known)}, got {shown(asked)}.{hint}")
    if asked == MERGE and len(family.layout.candidates) < 2:
        raise RecipeError("teacher 'merge' needs two candidates or more. Take 'auto', or a model's name.")

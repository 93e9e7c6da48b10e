"""Strings of models, tasks and recipes, made fit to be shown; and the names of what a report speaks of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tailorlib.distributions import ParamValue
from tailorlib.escaping import visible
from tailorlib.report.importance import Decision
from tailorlib.tailoring import SELECT, LayerPlan, Owner


def clean(text: object, limit: int = 0) -> str:
    """Return text in which characters that a terminal, XML or UTF-8 can't take are shown by their numbers.

    Args:
        text: Anything; its string is taken.
        limit: Largest number of characters; what is longer is cut and ends with ``…``. 0 for any.
    """
    shown = visible(text)
    return f"{shown[: limit - 1]}…" if 0 < limit < len(shown) else shown


def label(text: object, limit: int = 28) -> str:
    """Return text for a figure: clean, in one line, and never taken for a formula."""
    return clean(text, limit).replace("\n", " ").replace("$", r"\$")


def number(value: float | None, digits: int = 4) -> str:
    """Return a figure in a few digits, and a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}g}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a percentage, and a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers as text, such as ``"0, 3–5"``."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}{'–' if len(r) > 2 else ', '}{r[-1]}" for r in runs)


def value(given: ParamValue) -> str:
    """Return a hyperparameter as text."""
    if isinstance(given, tuple):
        return "/".join(map(value, given))
    return f"{given:.4g}" if isinstance(given, float) else clean(given)


def plan_text(plan: LayerPlan) -> str:
    """Return what makes a layer, such as ``"TIES of code:3 and math:3 over base:3 (density 0.5)"``."""
    sources = _and([clean(s) for s in plan.sources])
    text = sources if plan.operation == SELECT else f"{clean(plan.operation)} of {sources}"
    if plan.base is not None:
        text += f" over {clean(plan.base)}"
    if plan.params:
        text += f" ({', '.join(f'{clean(k)} {value(v)}' for k, v in plan.params)})"
    text += "".join(f"; {clean(name)}: {plan_text(part)}" for name, part in plan.parts)
    scales = {"attention": plan.attention_scale, "mlp": plan.mlp_scale}
    text += "".join(f"; {name} x{scale:.4g}" for name, scale in scales.items() if scale != 1)
    return text + "".join(f"; + {term}" for term in plan.term_texts)


def owner_text(owner: Owner) -> str:
    """Return what gives the embeddings, norm or head."""
    if isinstance(owner, str):
        return clean(owner)
    text = f"{clean(owner.operation)} of {_and([clean(m) for m in owner.models])}"
    if owner.base is not None:
        text += f" over {clean(owner.base)}"
    return text + (f" ({', '.join(f'{clean(k)} {value(v)}' for k, v in owner.params)})" if owner.params else "")


def decision_text(decisions: Sequence[Decision], longest: int = 0) -> str:
    """Return decisions as text, such as ``"layers 3, 13–17 removed; layer 2 from code"``.

    Args:
        decisions: What was done together.
        longest: Most characters of a list of layers; what is longer is counted. 0 for any.
    """
    layers: dict[str, list[int]] = {}
    for d in decisions:
        what = d.kind if d.kind in ("removed", "merged") else f"from {clean(d.model)}"
        if d.layer < 0:
            return f"10 % more layers {what}"
        layers.setdefault(what, []).append(d.layer)
    texts = []
    for what, found in layers.items():
        named = f"layer{'s' if len(found) > 1 else ''} {ranges(found)}"
        texts.append(f"{named if not 0 < longest < len(named) else f'{len(found)} layers'} {what}")
    return "; ".join(texts)


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"

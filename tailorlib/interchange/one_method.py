"""One configuration for merges of one method, with selections written in that method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tailorlib.interchange.documents import Document, Input, Setting, Slice
from tailorlib.interchange.methods import BASELESS, TASK_VECTORS, Merge
from tailorlib.interchange.plan import Layer, Plan, repeats
from tailorlib.tailoring import BASE, LayerSource

_BY_BASE = frozenset((*TASK_VECTORS.values(), "sce", "ram", "ramplus_tl"))
"""Methods that give the base, to the bit, if there is nothing else."""


def one_method(plan: Plan, method: str, baseless: bool) -> Document | None:
    """Return the configuration of a plan whose merges are of one method, if there is one.

    Args:
        plan: The plan.
        method: mergekit's method.
        baseless: Whether the merges have no base model.
    """
    if baseless and method in BASELESS:
        return None  # without a base model, mergekit takes config.json from any of the models
    pieces = [_slice(plan, layer, method, i) for i, layer in enumerate(plan.layers)]
    before, behind = _slice(plan, plan.before, method), _slice(plan, plan.behind, method)
    layers = [piece for piece in pieces if piece is not None]
    if before is None or behind is None or len(layers) < len(pieces):
        return None
    first = layers[0] if _same(layers[0], before, plan, plan.before) else before
    natural = _same(layers[-1], behind, plan, plan.behind) and len(layers[-1].inputs) <= len(first.inputs)
    if not natural and len(behind.inputs) > len(first.inputs):
        first = before  # mergekit looks at as many of the last slice's sources as the first slice has
        if len(behind.inputs) > len(first.inputs):
            return None
    ends = [first] if first.length == 0 else [], [] if natural else [behind]
    if not all(plan.may_give(piece, part) for piece, part in ((first, plan.before), (behind, plan.behind))):
        return None
    document = Document(method, plan.references[BASE])
    for piece in (*ends[0], *layers, *ends[1]):
        document.add(piece)
    return document


def selection(plan: Plan, method: str, source: LayerSource, length: int) -> Slice | None:
    """Return the slice that takes a layer as it is, to the bit, by a method that merges; if there is one.

    Args:
        plan: The plan.
        method: mergekit's method.
        source: The layer.
        length: Number of layers, 0 or 1.
    """
    name, start = plan.references[source.model], source.layer
    if method in _BY_BASE:
        return Slice((Input(name, start),), length, base=name)
    if method == "karcher":
        return Slice((Input(name, start),), length)
    others = [n for model, n in plan.references.items() if model not in {source.model, *plan.own_vocabulary}]
    if not others:
        return None
    other = plan.references[BASE] if plan.references[BASE] in others else others[0]
    if method in ("slerp", "nearswap"):
        parameters = (("t", Setting(0.0)),)
        return Slice((Input(name, start), Input(other, start)), length, base=name, parameters=parameters)
    if method == "multislerp":  # of one model beside the base it gives that one
        chosen = Input(name, start, (("weight", Setting(1.0)),))
        return Slice((Input(other, start), chosen), length, base=other)
    return None


def _slice(plan: Plan, layer: Layer, method: str, index: int | None = None) -> Slice | None:
    source = layer.only
    if source is not None:
        return selection(plan, method, source, 0 if index is None else 1)
    merges = _merges(layer, method)
    if not merges or repeats(next(iter(merges.values())).inputs):
        return None
    return plan.slice_of(layer, merges, index)


def _merges(layer: Layer, method: str) -> dict[str, Merge]:
    """Return a layer's tensors as merges of the same inputs, selected ones too; nothing if they can't be."""
    atoms: dict[str, LayerSource | Merge] = {}
    for tensor, made in layer.sums.items():
        ((atoms[tensor], weight), *more) = made.items()
        if more or weight != 1:
            return {}
    pattern = next((atom for atom in atoms.values() if isinstance(atom, Merge)), None)
    if pattern is None and method == "slerp":
        base, *others = dict.fromkeys(atom for atom in atoms.values() if isinstance(atom, LayerSource))
        pattern = Merge(method, tuple(others), base) if len(others) == 1 else None
    if pattern is None:
        return {}
    if method in TASK_VECTORS.values():
        sources = dict.fromkeys(s for atom in atoms.values() if isinstance(atom, Merge) for s in atom.sources)
        atoms = {t: _with_sources(a, sources) if isinstance(a, Merge) else a for t, a in atoms.items()}
        pattern = _with_sources(pattern, sources)
    merges = {t: a if isinstance(a, Merge) else _as_merge(a, pattern) for t, a in atoms.items()}
    found = {tensor: merge for tensor, merge in merges.items() if merge is not None}
    same = len({merge.inputs for merge in found.values()}) == 1
    return found if same and len(found) == len(merges) else {}


def _with_sources(merge: Merge, sources: Iterable[LayerSource]) -> Merge:
    """Return a merge of task vectors with more sources, of weight 0: they add nothing and have no vote."""
    known = dict(zip(merge.sources, merge.own, strict=True))
    spare = tuple((name, 0.0 if name == "weight" else value) for name, value in merge.own[0])
    return replace(merge, sources=tuple(sources), own=tuple(known.get(source, spare) for source in sources))


def _as_merge(source: LayerSource, pattern: Merge) -> Merge | None:
    """Return the merge of a pattern's inputs that gives one of them, to the bit; if there is one."""
    if pattern.method in ("slerp", "nearswap") and source == pattern.base:
        return replace(pattern, shared=(("t", 0.0),))
    if pattern.method == "slerp" and source in pattern.sources:
        return replace(pattern, shared=(("t", 1.0),))
    if pattern.method in TASK_VECTORS.values() and source == pattern.base:
        own = (tuple((name, 0.0 if name == "weight" else value) for name, value in o) for o in pattern.own)
        return replace(pattern, own=tuple(own))
    return None


def _same(piece: Slice, wanted: Slice, plan: Plan, part: Layer) -> bool:
    """Say whether mergekit makes the same parts outside the layers from both slices."""
    return plan.may_give(piece, part) and _decisive(piece, part) == _decisive(wanted, part)


def _decisive(piece: Slice, part: Layer) -> object:
    """Return what decides what mergekit makes of a slice's sources outside the layers."""
    inputs = tuple((i.model, *_at(i.parameters, part.sums)) for i in piece.inputs)
    return piece.base, inputs, _at(piece.parameters, part.sums)


def _at(parameters: Iterable[tuple[str, Setting]], names: Iterable[str]) -> tuple[object, ...]:
    settings = dict(parameters)
    return tuple((p, name, setting.at(name)) for name in names for p, setting in settings.items())

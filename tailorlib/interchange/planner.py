"""Planner: from what each tensor is made of to as few mergekit configurations as can make it."""

from __future__ import annotations

from collections.abc import Iterable

from tailorlib.interchange.documents import Document, Setting, Slice
from tailorlib.interchange.methods import Merge
from tailorlib.interchange.one_method import one_method
from tailorlib.interchange.plan import Layer, Plan, padded, repeats
from tailorlib.interchange.several import Parts, part_documents
from tailorlib.tailoring import BASE, LayerSource


def documents_of(plan: Plan) -> list[Document]:
    """Return configurations that make what is planned, each using only those before it; one if one can.

    Raises:
        Inexpressible: If there are none.
    """
    atoms = [atom for layer in (*plan.layers, plan.outer) for atom in layer.atoms]
    kinds = {(atom.method, atom.base is None) for atom in atoms if isinstance(atom, Merge)}
    if not kinds and not any(repeats(_plain(layer.atoms)) for layer in plan.layers):
        return [weighted_sums(plan)]
    if len(kinds) == 1:
        document = one_method(plan, *kinds.pop())
        if document is not None:
            return [document]
    parts = Parts()
    placed = parts.place(plan)
    return [*part_documents(plan, parts), weighted_sums(placed)]


def _plain(atoms: Iterable[LayerSource | Merge]) -> list[LayerSource]:
    return [atom for atom in atoms if isinstance(atom, LayerSource)]


def weighted_sums(plan: Plan) -> Document:
    """Return the configuration of a plan without merges that takes no model twice for one layer.

    It is ``passthrough`` if there is nothing to add up, else ``linear``.
    """
    alone = all(len(layer.atoms) == 1 for layer in plan.layers)
    owned = plan.before.only is not None and plan.behind.only is not None
    method = "passthrough" if alone and owned else "linear"
    document = Document(method, plan.references[BASE])
    if method == "linear":
        document.parameters["normalize"] = False
    pieces = [_slice(plan, layer, method, i) for i, layer in enumerate(plan.layers)]
    before, behind = _slice(plan, plan.before, method), _slice(plan, plan.behind, method)
    first = pieces[0] if _gives(pieces[0], plan, plan.before) else before
    natural = _gives(pieces[-1], plan, plan.behind, len(first.inputs))
    if not natural and len(behind.inputs) > len(first.inputs):
        first = padded(before, behind)
    for piece in ([first] if first.length == 0 else []) + pieces + ([] if natural else [behind]):
        document.add(piece)
    return document


def _slice(plan: Plan, layer: Layer, method: str, index: int | None = None) -> Slice:
    sources = _plain(layer.atoms)
    parameter = "scale" if method == "passthrough" else "weight"
    weights = {t: tuple(made.get(source, 0.0) for source in sources) for t, made in layer.sums.items()}
    bare = method == "passthrough" and set(weights.values()) == {(1.0,)}
    merges = {
        tensor: Merge(method, tuple(sources), own=tuple(() if bare else ((parameter, w),) for w in values))
        for tensor, values in weights.items()
    }
    return plan.slice_of(layer, merges, index)


def _gives(piece: Slice, plan: Plan, part: Layer, most: int | None = None) -> bool:
    """Say whether mergekit makes parts outside the layers right from this slice.

    Args:
        piece: A slice of a weighted sum.
        plan: The plan.
        part: What they should be.
        most: Number of sources that mergekit looks at: as many as the first slice has.
    """
    if not plan.may_give(piece, part):
        return False
    for name, made in part.sums.items():
        found = {i.model: _weight(dict(i.parameters), name) for i in piece.inputs[:most]}
        wanted = {plan.named(atom.model): w for atom, w in made.items() if isinstance(atom, LayerSource)}
        if {model: w for model, w in found.items() if w} != {model: w for model, w in wanted.items() if w}:
            return False
    return True


def _weight(parameters: dict[str, Setting], name: str) -> object:
    return parameters.get("weight", parameters.get("scale", Setting(1.0))).at(name)

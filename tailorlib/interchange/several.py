"""Configurations before the last one: merges of one method each, whose results the last one draws on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from tailorlib.interchange.documents import Document, Slice
from tailorlib.interchange.methods import BASELESS, Inexpressible, Merge
from tailorlib.interchange.one_method import selection
from tailorlib.interchange.plan import Layer, Plan
from tailorlib.tailoring import BASE, LayerSource

Atom = LayerSource | Merge


@dataclass
class Part:
    """A configuration whose result has a merge, all of one method, in each layer.

    Args:
        name: What later configurations call the result.
        method: mergekit's method.
        baseless: Whether the merges have no base model.
        merges: The merges, from bottom to top.
        outer: The merge of the parts outside the layers, if it is of use.
    """

    name: str
    method: str
    baseless: bool
    merges: list[Merge] = field(default_factory=list)
    outer: Merge | None = None

    def index(self, merge: Merge) -> int:
        """Return the layer that a merge is; a new one if need be."""
        if merge not in self.merges:
            self.merges.append(merge)
        return self.merges.index(merge)


class Parts:
    """All configurations before the last one."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, bool, int], Part] = {}

    def place(self, plan: Plan) -> Plan:
        """Return the plan with results of other configurations in the place of merges."""
        layers = []
        for layer in plan.layers:
            places = dict(zip(layer.atoms, self.placed(layer.atoms), strict=True))
            layers.append(_moved(layer, places))
        return replace(plan, layers=tuple(layers), outer=_moved(plan.outer, self._placed_outer(plan.outer.atoms)))

    def placed(self, atoms: Iterable[Atom]) -> list[LayerSource]:
        """Return where each of a layer's atoms is found, no two of them in one model."""
        places: list[LayerSource] = []
        for atom in atoms:
            taken = {place.model for place in places}
            if isinstance(atom, LayerSource) and atom.model not in taken:
                places.append(atom)
                continue
            # a second layer of a model is copied into a model of its own
            merge = atom if isinstance(atom, Merge) else Merge("passthrough", (atom,))
            part = next(part for part in self._variants(merge) if part.name not in taken)
            places.append(LayerSource(part.name, part.index(merge)))
        return places

    def _placed_outer(self, atoms: Iterable[Atom]) -> dict[Atom, LayerSource]:
        """Return which model has each atom as its parts outside the layers."""
        places: dict[Atom, LayerSource] = {}
        for atom in atoms:
            if isinstance(atom, LayerSource):
                places[atom] = atom
                continue
            part = next(part for part in self._variants(atom) if part.outer in (None, atom))
            part.outer = atom
            places[atom] = LayerSource(part.name, 0)
        return places

    def _variants(self, merge: Merge) -> Iterator[Part]:
        baseless = merge.base is None
        for variant in count(1):
            name = "-".join(("tailor", merge.method, *(() if baseless else ("base",)), str(variant)))
            key = (merge.method, baseless, variant)
            yield self.found.setdefault(key, Part(name, merge.method, baseless))


def part_documents(plan: Plan, parts: Parts) -> list[Document]:
    """Return the configurations, each using only those before it.

    Raises:
        Inexpressible: If one would have to merge vocabularies that differ.
    """
    documents: list[Document] = []
    written: set[str] = set()
    while waiting := [part for part in parts.found.values() if part.name not in written]:
        # copies come last: writing any other one can ask for more of them
        part = min(waiting, key=lambda p: p.method == "passthrough")
        written.add(part.name)
        documents.insert(0, _document(plan, parts, part))
    return documents


def _document(plan: Plan, parts: Parts, part: Part) -> Document:
    unnamed = part.method in BASELESS and part.baseless
    document = Document(part.method, None if unnamed else plan.references[BASE], part.name)
    pieces = [_slice(plan, parts.placed(merge.inputs), merge, 0) for merge in part.merges]
    ends = [] if part.outer is None else [_slice(plan, list(part.outer.inputs), part.outer, None)]
    if not pieces and plan.pad_to:
        pieces = [replace(ends[0], length=1)]
    pieces += pieces[-1:] * (plan.pad_to - len(pieces))
    if not ends:
        ends = _unused_ends(plan, part, pieces)
    for piece in (*ends, *pieces, *ends):
        document.add(piece)
    return document


def _unused_ends(plan: Plan, part: Part, pieces: list[Slice]) -> list[Slice]:
    """Return what keeps mergekit from failing at parts outside the layers that nobody needs."""
    if all(plan.may_give(piece, plan.before) for piece in (pieces[0], pieces[-1])):
        fewer = len(pieces[0].inputs) < len(pieces[-1].inputs)
        return [replace(pieces[-1], length=0)] if fewer else []
    end = selection(plan, part.method, LayerSource(BASE, 0), 0)
    if part.method == "passthrough":
        end = plan.slice_of(Layer({"": {}}), {"": Merge("passthrough", (LayerSource(BASE, 0),))})
    if end is None:
        raise Inexpressible(
            f"mergekit's {part.method} would also merge the vocabularies of its models, and they differ"
        )
    return [end]


def _slice(plan: Plan, places: list[LayerSource], merge: Merge, index: int | None) -> Slice:
    base, sources = (None, places) if merge.base is None else (places[0], places[1:])
    moved = replace(merge, sources=tuple(sources), base=base)
    return plan.slice_of(Layer({"": {}}), {"": moved}, index)


def _moved(layer: Layer, places: Mapping[Atom, LayerSource]) -> Layer:
    return replace(layer, sums={t: {places[a]: w for a, w in made.items()} for t, made in layer.sums.items()})

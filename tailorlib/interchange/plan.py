"""What mergekit configurations have to express, and slices that express parts of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tailorlib.distributions import Scalar
from tailorlib.interchange.documents import Input, Parameters, Setting, Slice
from tailorlib.interchange.methods import Merge, Sum
from tailorlib.models.architecture import Architecture
from tailorlib.tailoring import LayerSource


@dataclass(frozen=True)
class Layer:
    """What a layer, or the parts outside the layers, are made of.

    Args:
        sums: The weighted sum that gives each tensor, by its name inside the layer.
        hints: Filters that tell its tensors apart.
    """

    sums: Mapping[str, Sum]
    hints: tuple[str, ...] = ()

    @property
    def atoms(self) -> tuple[LayerSource | Merge, ...]:
        """Everything that the layer is a sum of; each once."""
        return tuple(dict.fromkeys(atom for made in self.sums.values() for atom in made))

    @property
    def only(self) -> LayerSource | None:
        """The layer that it is a copy of, if it is one."""
        items = {tuple(made.items()) for made in self.sums.values()}
        if len(items) != 1:
            return None
        ((atom, weight), *more) = items.pop()
        return atom if isinstance(atom, LayerSource) and weight == 1 and not more else None


@dataclass(frozen=True)
class Plan:
    """All that the configurations have to express.

    Args:
        architecture: Where the parts of these models live.
        references: What mergekit calls each model.
        layers: The layers, from bottom to top.
        outer: The parts outside the layers; there, a model stands as its layer 0.
        own_vocabulary: Models whose embeddings and head have other rows than the base's.
        own_head: Models whose files hold a head that mergekit would copy although it is tied.
        pad_to: Number of layers that results in between must have; 0 for any.
    """

    architecture: Architecture
    references: Mapping[str, str]
    layers: tuple[Layer, ...]
    outer: Layer
    own_vocabulary: frozenset[str] = frozenset()
    own_head: frozenset[str] = frozenset()
    pad_to: int = 0

    @property
    def before(self) -> Layer:
        """What mergekit makes from the first slice's sources: the embeddings."""
        modules = tuple(f"{name}." for name in self.architecture.embeddings)
        return Layer({name: made for name, made in self.outer.sums.items() if name.startswith(modules)})

    @property
    def behind(self) -> Layer:
        """What mergekit makes from the last slice's sources: the final norm, and the head if it isn't tied."""
        before = self.before.sums
        return Layer({name: made for name, made in self.outer.sums.items() if name not in before})

    def may_give(self, piece: Slice, part: Layer) -> bool:
        """Say whether mergekit can make parts outside the layers from a slice's sources at all."""
        unfit = self.own_vocabulary | (self.own_head if part == self.behind else frozenset())
        return not {i.model for i in piece.inputs} & {self.references[name] for name in unfit}

    def slice_of(self, layer: Layer, merges: Mapping[str, Merge], index: int | None = None) -> Slice:
        """Return the slice that makes each tensor by its merge; the merges have the same inputs.

        Args:
            layer: The layer.
            merges: The merge of each of its tensors.
            index: The layer's number in the output; ``None`` for parts outside the layers, whose slice has none.
        """
        first = next(iter(merges.values()))
        inputs = [] if first.base is None else [Input(self.named(first.base.model), first.base.layer)]
        for k, source in enumerate(first.sources):
            own = {tensor: dict(merge.own[k]) if merge.own else {} for tensor, merge in merges.items()}
            names = self._names(own, None if index is None else source.layer)
            inputs.append(Input(self.named(source.model), source.layer, _settings(own, names, layer.hints)))
        shared = {tensor: dict(merge.shared) for tensor, merge in merges.items()}
        return Slice(
            tuple(inputs),
            length=0 if index is None else 1,
            base=None if first.base is None else self.named(first.base.model),
            parameters=_settings(shared, self._names(shared, index), layer.hints),
        )

    def named(self, model: str) -> str:
        """Return what mergekit calls a model: one of the family, or the result of another configuration."""
        return self.references.get(model, model)

    def _names(self, tensors: Iterable[str], layer: int | None) -> dict[str, str]:
        """Return the full names of tensors, which mergekit's filters look at."""
        prefix = "" if layer is None else self.architecture.layer_prefix(layer)
        return {tensor: prefix + tensor for tensor in tensors}


def repeats(sources: Iterable[LayerSource]) -> bool:
    """Say whether a model is among the sources twice: mergekit lists a model once per slice."""
    models = [source.model for source in sources]
    return len(set(models)) < len(models)


def padded(piece: Slice, other: Slice) -> Slice:
    """Add sources of weight 0 until there are as many as in the other slice: mergekit looks at no more of that."""
    known = {i.model for i in piece.inputs}
    spare = [Input(i.model, 0, (("weight", Setting(0.0)),)) for i in other.inputs if i.model not in known]
    return replace(piece, inputs=(*piece.inputs, *spare[: len(other.inputs) - len(piece.inputs)]))


def _settings(
    values: Mapping[str, Mapping[str, Scalar]], names: Mapping[str, str], hints: Sequence[str]
) -> Parameters:
    inside = {names[tensor]: tensor for tensor in values}
    return tuple(
        (p, Setting.of({names[tensor]: own[p] for tensor, own in values.items()}, hints, inside))
        for p in next(iter(values.values()))
    )

"""Layers that stay in memory between candidates, within a byte budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

from torch import Tensor, nn

from tailorlib.models.quantization import stored_bytes

K = TypeVar("K", bound=Hashable)


@dataclass
class LayerModules:
    """The tensors of one layer, and as many modules over them as slots that it fills at once.

    Every byte is counted in one place: a tensor that is lent counts where it comes from, and a view of a mapped
    file counts apart, because its pages are the system's to drop and the same for all processes.

    Args:
        tensors: The layer's tensors by name, on the device, in the compute data type.
        mapped: Names of the tensors that are views of mapped files.
        lent: Names of the tensors that other kept layers own.
        lenders: Keys of those layers.
        modules: Modules that share these tensors.
    """

    tensors: dict[str, Tensor]
    mapped: frozenset[str] = frozenset()
    lent: frozenset[str] = frozenset()
    lenders: frozenset[Hashable] = frozenset()
    modules: list[nn.Module] = field(default_factory=list)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of memory that go with the layer: of tensors that are neither lent nor mapped."""
        own = (t for name, t in self.tensors.items() if name not in self.lent and name not in self.mapped)
        return sum(map(stored_bytes, own))

    @cached_property
    def mapped_nbytes(self) -> int:
        """Bytes of its own tensors that are views of mapped files."""
        return sum(stored_bytes(self.tensors[name]) for name in self.mapped if name not in self.lent)


class LayerCache(Generic[K]):
    """Layers by key; the least recently used ones are dropped when their memory exceeds a budget.

    Layers that the present tailoring uses are never dropped, because the live model would hold them all the same:
    ``nbytes`` is at most the budget, or what those take alone.

    Args:
        budget: Bytes of memory to keep at most; no limit if ``None``. Views of mapped files take none.
        dropped: Is called with the key of each layer that is dropped.
    """

    def __init__(self, budget: int | None, dropped: Callable[[K], None] | None = None) -> None:
        self.budget, self._dropped = budget, dropped
        self.nbytes, self.hits, self.misses = 0, 0, 0
        self._layers: OrderedDict[K, LayerModules] = OrderedDict()
        self._expected: frozenset[K] = frozenset()

    def __len__(self) -> int:
        return len(self._layers)

    def items(self) -> Iterator[tuple[K, LayerModules]]:
        """Iterate over the kept layers with their keys, the least recently used one first."""
        return iter(list(self._layers.items()))

    def expect(self, keys: Collection[K]) -> None:
        """Say which layers the next tailoring uses; they count as hits or misses, each once.

        Others are dropped until the budget holds.
        """
        self._expected = frozenset(keys)
        found = sum(key in self._layers for key in self._expected)
        self.hits += found
        self.misses += len(self._expected) - found
        self._shrink()

    def get(self, key: K) -> LayerModules | None:
        """Return a kept layer, or ``None``."""
        layer = self._layers.get(key)
        if layer is not None:
            self._layers.move_to_end(key)
        return layer

    def put(self, key: K, layer: LayerModules) -> None:
        """Keep a layer, and drop old ones until the budget holds."""
        self._remove(key)
        self._layers[key] = layer
        self.nbytes += layer.nbytes
        self._shrink()

    def drop_borrowers(self, lender: Hashable) -> None:
        """Drop the layers that have tensors of another one: they would keep its memory alive uncounted."""
        for key, layer in self.items():
            if lender in layer.lenders:
                self._drop(key)

    def _shrink(self) -> None:
        if self.budget is None or self.nbytes <= self.budget:
            return
        for key, layer in self.items():
            if key not in self._expected and layer.nbytes:  # one without memory of its own makes no room
                self._drop(key)
                if self.nbytes <= self.budget:
                    return

    def _drop(self, key: K) -> None:
        self._remove(key)
        if self._dropped is not None:
            self._dropped(key)

    def _remove(self, key: K) -> None:
        layer = self._layers.pop(key, None)
        if layer is not None:
            self.nbytes -= layer.nbytes


@dataclass(frozen=True)
class StitchingCounts:
    """How often layers were found in memory; the difference of two counts is what happened in between.

    A layer counts once per tailoring, in however many slots it stands.

    Args:
        selected_hits: Layers of the models that were there, those that a merge takes tensors of included.
        selected_misses: Layers of the models that had to be taken from their files.
        merged_hits: Merged layers and outer parts that were there.
        merged_misses: Merged layers and outer parts that had to be computed.
    """

    selected_hits: int = 0
    selected_misses: int = 0
    merged_hits: int = 0
    merged_misses: int = 0

    def __sub__(self, earlier: StitchingCounts) -> StitchingCounts:
        return StitchingCounts(
            self.selected_hits - earlier.selected_hits,
            self.selected_misses - earlier.selected_misses,
            self.merged_hits - earlier.merged_hits,
            self.merged_misses - earlier.merged_misses,
        )

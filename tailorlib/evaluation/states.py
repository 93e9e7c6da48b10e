"""Hidden states that are kept between candidates, so that no layer runs twice on the same input.

Two candidates that agree on the embeddings and their first k layers agree on the hidden states behind layer k. The
states of a batch are kept under the name of what made them (:attr:`tailorlib.tailoring.Tailoring.prefixes`), in a
budget of bytes: on the device first, then on the host. They are the very numbers that the layers gave, so that a
candidate which begins with them has the same bits as one that begins with the tokens.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tailorlib.exceptions import DataError

Key = tuple[int, str]
"""A batch's serial number, and the name of the layers that it ran through."""


@dataclass(frozen=True)
class Work:
    """What forward passes took, in tokens times layers.

    Args:
        run: Layers that ran.
        reused: Layers whose output was known.
        tokens: Tokens of all forward passes.
    """

    run: int = 0
    reused: int = 0
    tokens: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.run + other.run, self.reused + other.reused, self.tokens + other.tokens)

    def __sub__(self, other: Work) -> Work:
        return Work(self.run - other.run, self.reused - other.reused, self.tokens - other.tokens)


class StateCache:
    """Hidden states within a budget of bytes; the least recently used ones go first, protected ones last.

    Args:
        device: Where the models run.
        device_bytes: Budget on the device.
        host_bytes: Budget of the host, which takes what leaves the device. On a CPU both are one.
    """

    def __init__(self, device: torch.device, device_bytes: int, host_bytes: int = 0) -> None:
        self.device = torch.device(device)
        if self.device.type == "cpu":
            device_bytes, host_bytes = device_bytes + host_bytes, 0
        self.device_bytes, self.host_bytes = device_bytes, host_bytes
        self.near, self.far = _Tier(device_bytes), _Tier(host_bytes)
        self._protected: frozenset[str] = frozenset()

    @property
    def budget(self) -> int:
        """Bytes of device and host together."""
        return self.device_bytes + self.host_bytes

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.near.nbytes + self.far.nbytes

    def __contains__(self, key: Key) -> bool:
        return key in self.near or key in self.far

    def get(self, key: Key) -> Tensor | None:
        """Return kept states, on the device, and count them as just used."""
        states = self.near.get(key)
        if states is None:
            states = self.far.get(key)
        return None if states is None else states.to(self.device, non_blocking=True)

    def put(self, key: Key, states: Tensor) -> None:
        """Keep states, and drop others until the budgets hold.

        Raises:
            DataError: If these alone exceed both budgets.
        """
        self.check(states.nbytes)
        for dropped, tensor in self.near.put(key, states, key[1] in self._protected):
            if tensor.nbytes <= self.far.budget and dropped not in self.far:
                self.far.put(dropped, _on_host(tensor), dropped[1] in self._protected)

    def check(self, nbytes: int) -> None:
        """Check that a batch's states have room, if anything is to be kept at all.

        Raises:
            DataError: If not.
        """
        if self.budget and nbytes > max(self.near.budget, self.far.budget):
            raise DataError(
                f"The prefix cache has room for the largest batch, {nbytes / 2**20:.2f} MiB; it has "
                f"{self.budget / 2**20:.2f} MiB. Raise study.prefix_cache_mib, set it to 0 to keep nothing, or "
                "lower study.tokens_per_batch."
            )

    def protect(self, names: Iterable[str]) -> None:
        """Say which prefixes are expected to be used again; the ones named before are not, unless named again."""
        self._protected = frozenset(names)
        for tier in (self.near, self.far):
            tier.protect(self._protected)

    def clear(self) -> None:
        """Forget everything."""
        self.near.clear()
        self.far.clear()

    def give_up(self) -> None:
        """Forget everything, and keep nothing from now on: memory is short."""
        self.clear()
        self.device_bytes = self.host_bytes = self.near.budget = self.far.budget = 0


@dataclass
class Splice:
    """Where a forward pass begins, and what it leaves behind.

    Args:
        start: Number of layers that don't run.
        states: The hidden states behind them.
        wanted: After which numbers of layers hidden states are kept.
        found: Those states, by the number of layers.
    """

    start: int = 0
    states: Tensor | None = None
    wanted: frozenset[int] = frozenset()
    found: dict[int, Tensor] = field(default_factory=dict)


class Reuse:
    """One candidate's way through the cache; see :func:`reusing`.

    Args:
        cache: Where states are kept.
        prefixes: Names of the candidate's embeddings and first 0, 1, ... layers.
        needed: Prefixes that a later candidate is known to share.
        stride: Every how many layers states are kept that nobody is known to need.
    """

    def __init__(self, cache: StateCache, prefixes: Sequence[str], needed: Iterable[str], stride: int) -> None:
        self.cache, self.prefixes, self.needed, self.stride = cache, tuple(prefixes), frozenset(needed), stride
        self.footprint: dict[int, int] = {}
        """Bytes of the states of each batch behind one layer."""
        self.work = Work()

    def find(self, serial: int) -> tuple[int, Tensor | None]:
        """Return how many layers of a batch are known, and the states behind the last of them."""
        for depth in range(len(self.prefixes) - 1, 0, -1):
            states = self.cache.get((serial, self.prefixes[depth]))
            if states is not None:
                return depth, states
        return 0, None

    def wants(self, depth: int) -> bool:
        """Say whether the states behind so many layers are worth keeping; all layers leave nothing to save."""
        if not self.cache.budget:
            return False
        if not 0 < depth < len(self.prefixes) - 1:
            return depth == len(self.prefixes) - 1 and self.prefixes[depth] in self.needed
        return depth % self.stride == 0 or self.prefixes[depth] in self.needed

    def splice(self, serial: int) -> Splice:
        """Return where a batch's forward pass begins, and what it leaves behind."""
        start, states = self.find(serial)
        wanted = frozenset(depth for depth in range(start + 1, len(self.prefixes)) if self.wants(depth))
        return Splice(start, states, wanted)

    def keep(self, serial: int, tokens: int, splice: Splice) -> None:
        """Keep what a forward pass left, the deepest first, so that it is the first to go; and count the work."""
        layers = len(self.prefixes) - 1
        self.work += Work(tokens * (layers - splice.start), tokens * splice.start, tokens)
        found = splice.found
        for depth in sorted(found, reverse=True):
            self.footprint[serial] = found[depth].nbytes
            self.cache.put((serial, self.prefixes[depth]), found[depth])


_REUSE: WeakKeyDictionary[nn.Module, Reuse] = WeakKeyDictionary()


@contextmanager
def reusing(model: nn.Module, reuse: Reuse | None) -> Iterator[None]:
    """Let all forward passes of a live model begin with what is known, inside the ``with`` block."""
    before = _REUSE.pop(model, None)
    if reuse is not None:
        _REUSE[model] = reuse
    try:
        yield
    finally:
        _REUSE.pop(model, None)
        if before is not None:
            _REUSE[model] = before


def reuse_of(model: nn.Module) -> Reuse | None:
    """Return what :func:`reusing` set."""
    return _REUSE.get(model)


@contextmanager
def spliced(layers: Sequence[nn.Module], splice: Splice) -> Iterator[None]:
    """Let the first layers answer with known states, without computing; collect what is wanted of the others."""
    handles = []
    passed = layers[: splice.start]
    before = [layer.__dict__.get("forward") for layer in passed]
    try:
        for i, layer in enumerate(passed):
            known = splice.states if i == splice.start - 1 else None
            layer.forward = _answer(known, tuple_like=_gives_tuples(layer))
        for depth in splice.wanted:
            handles.append(layers[depth - 1].register_forward_hook(_collect(splice.found, depth)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, own in zip(passed, before, strict=True):
            if own is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = own


def stride_for(layers: int, footprint: int, budget: int) -> int:
    """Return every how many layers states are kept, so that two candidates' fit into the budget.

    Args:
        layers: Number of layers of a candidate.
        footprint: Bytes of the states behind one layer, all batches together.
        budget: Bytes that may be held.
    """
    return max(1, math.ceil(2 * layers * footprint / budget)) if budget else layers + 1


_TUPLES: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
"""Which classes of layers answer with a tuple; seen when their states are first collected."""


def _gives_tuples(layer: nn.Module) -> bool:
    return _TUPLES.get(type(layer), False)


def _answer(known: Tensor | None, *, tuple_like: bool) -> Callable[..., Any]:
    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, None]:
        states = known if known is not None else (args[0] if args else kwargs["hidden_states"])
        return (states, None) if tuple_like else states

    return forward


def _collect(found: dict[int, Tensor], depth: int) -> Callable[..., None]:
    def hook(layer: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
        _TUPLES[type(layer)] = isinstance(output, tuple)
        found[depth] = output[0] if isinstance(output, tuple) else output

    return hook


class _Tier:
    """States in one place, within a budget."""

    def __init__(self, budget: int) -> None:
        self.budget, self.nbytes = budget, 0
        self._common: OrderedDict[Key, Tensor] = OrderedDict()
        self._protected: OrderedDict[Key, Tensor] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        return key in self._common or key in self._protected

    def get(self, key: Key) -> Tensor | None:
        for held in (self._protected, self._common):
            if key in held:
                held.move_to_end(key)
                return held[key]
        return None

    def put(self, key: Key, states: Tensor, protected: bool) -> list[tuple[Key, Tensor]]:
        """Take states, and return what has to leave; perhaps these very states."""
        if states.nbytes > self.budget:
            return [(key, states)]
        if key not in self:
            (self._protected if protected else self._common)[key] = states
            self.nbytes += states.nbytes
        left = []
        while self.nbytes > self.budget:
            left.append((self._common or self._protected).popitem(last=False))
            self.nbytes -= left[-1][1].nbytes
        return left

    def protect(self, names: frozenset[str]) -> None:
        both = {**self._common, **self._protected}
        self._protected = OrderedDict((k, t) for k, t in both.items() if k[1] in names)
        self._common = OrderedDict((k, t) for k, t in both.items() if k[1] not in names)

    def clear(self) -> None:
        self._common.clear()
        self._protected.clear()
        self.nbytes = 0


def _on_host(states: Tensor) -> Tensor:
    if states.device.type != "cuda":
        return states.to("cpu")
    pinned = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
    return pinned.copy_(states, non_blocking=True)  # read again on the same stream only

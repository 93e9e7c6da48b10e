"""Moments: sums over calibration text from which every bridge between two depths of a model is solved.

H_i      input of layer i, [tokens, d]; H_L is what the final norm reads
Z_l      what the tap of layer l reads, [tokens, f]: for most models the input of the MLP's last matrix
G_l      Z_l^T R Z_l, [f, f] (the diagonal alone, [f], where the tap is a norm's weight)
C_l,m    Z_l^T R (H_m - H_{l+1}), [f, d]
R        diag(1 / |H_{l+1}|^2): every token counts by its relative error, as the norms that read the stream do. The
         first tokens of a text, whose states are a hundred times larger, would drown all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tailorlib.calibration.taps import Tap, listen
from tailorlib.models.architecture import Architecture
from tailorlib.models.statistics.collect import row_batches

TOKENS_PER_PASS = 2048


@dataclass
class Moments:
    """Sums of one layer over a text.

    Args:
        gram: G_l, float32, [f, f] or [f].
        cross: C_l,m of each m, float32, [f, d] or [d].
        moved: Sum over tokens of ``|H_m - H_{l+1}|^2 / |H_{l+1}|^2``, of each m.
        cosine: Sum over tokens of ``cos(H_{l+1}, H_m)``, of each m.
        magnitude: Sum over tokens of ``|H_m| / |H_{l+1}|``, of each m.
        tokens: Number of tokens.
    """

    gram: Tensor
    cross: dict[int, Tensor]
    moved: dict[int, float] = field(default_factory=dict)
    cosine: dict[int, float] = field(default_factory=dict)
    magnitude: dict[int, float] = field(default_factory=dict)
    tokens: int = 0

    def gap(self, above: int) -> dict[str, float]:
        """Return the means over tokens of what the removed layers would change."""
        named = {"moved": self.moved, "cosine": self.cosine, "magnitude": self.magnitude}
        return {name: sums[above] / self.tokens for name, sums in named.items()}


@dataclass(frozen=True)
class Streams:
    """What a model computes for some rows, one pass of it.

    Args:
        states: H_0 .. H_L, each [tokens, d].
        taps: Z_l of the layers that are listened to, each [tokens, f].
    """

    states: list[Tensor]
    taps: dict[int, Tensor]

    def weighted(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return ``R^(1/2) Z_l`` and the diagonal of ``R^(1/2)``, [tokens, 1]."""
        root = 1 / self.states[layer + 1].norm(dim=1, keepdim=True).clamp_min(1e-12)
        return self.taps[layer] * root, root

    def target(self, layer: int, above: int, root: Tensor) -> Tensor:
        """Return ``R^(1/2) (H_m - H_{l+1})``, [tokens, d]."""
        return (self.states[above] - self.states[layer + 1]) * root


class Listener:
    """Runs rows through a model, and hands on its residual stream and what its taps read.

    Args:
        model: A live model in evaluation mode.
        architecture: Where its parts live.
        taps: The taps by layer.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture, taps: dict[int, Tap]) -> None:
        self.model, self.architecture, self.taps = model, architecture, taps
        self.layers = list(model.get_submodule(architecture.layers))

    @torch.no_grad()
    def run(
        self,
        rows: Sequence[Sequence[int]],
        heard: Callable[[Streams], None],
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """Run rows, some at a time; the token that begins a row is left out of all that is handed on.

        Args:
            rows: Token ids.
            heard: Called with what each pass computes.
            advance: Called after each row.
        """
        states: list[Tensor] = []
        taps: dict[int, Tensor] = {}
        keep: Tensor | None = None

        def stream(_: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            states.append(_inner(args[0] if args else kwargs["hidden_states"], keep))

        def hear(layer: int) -> Callable[[Tensor], None]:
            def inner(read: Tensor) -> None:
                taps[layer] = _inner(read, keep)

            return inner

        norm = self.model.get_submodule(self.architecture.norm)
        handles = [module.register_forward_pre_hook(stream, with_kwargs=True) for module in (*self.layers, norm)]
        handles += [listen(tap, self.layers[i], self.architecture, hear(i)) for i, tap in self.taps.items()]
        try:
            for batch in row_batches(rows, TOKENS_PER_PASS):
                ids = torch.tensor(batch, device=self.model.device)
                keep = torch.ones_like(ids, dtype=torch.bool)
                keep[:, 0] = False
                keep = keep.flatten()
                states.clear()
                taps.clear()
                self.model.get_decoder()(input_ids=ids, use_cache=False)
                heard(Streams(list(states), dict(taps)))
                for _ in batch:
                    advance()
        finally:
            for handle in handles:
                handle.remove()


def _inner(tensor: Tensor, keep: Tensor | None) -> Tensor:
    """Return the rows of a tensor that belong to text, [tokens, width], in float32."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return flat[keep].float() if keep is not None else flat.float()


class Gathering:
    """Adds up the moments of some layers.

    Args:
        targets: The depths m that each layer l is bridged to.
        norms: The layers whose tap is a norm's weight: of their moments the diagonal counts.
    """

    def __init__(self, targets: Mapping[int, Sequence[int]], norms: frozenset[int] = frozenset()) -> None:
        self.targets, self.norms = targets, norms
        self._found: dict[int, Moments] = {}

    def add(self, streams: Streams) -> None:
        """Add the tokens of a pass."""
        sizes = [state.norm(dim=1).clamp_min(1e-12) for state in streams.states]
        for layer, above in self.targets.items():
            z, root = streams.weighted(layer)
            if layer not in self._found:
                self._found[layer] = self._empty(layer, z, streams.states[0].shape[1])
            found = self._found[layer]
            found.tokens += len(z)
            if layer in self.norms:
                found.gram += (z * z).sum(0)
            else:
                found.gram.addmm_(z.T, z)
            weighted = z * root
            # Z^T R H_m for each m, and for l + 1 once: the differences are taken in the end
            for m in (layer + 1, *above):
                if layer in self.norms:
                    found.cross[m] += (weighted * streams.states[m]).sum(0)
                else:
                    found.cross[m].addmm_(weighted.T, streams.states[m])
            near, size = streams.states[layer + 1], sizes[layer + 1]
            for m in above:
                ratio = sizes[m] / size
                cosine = torch.linalg.vecdot(near, streams.states[m]) / (size * sizes[m])
                found.moved[m] += float((ratio.square() + 1 - 2 * ratio * cosine).sum(dtype=torch.float64))
                found.cosine[m] += float(cosine.sum(dtype=torch.float64))
                found.magnitude[m] += float(ratio.sum(dtype=torch.float64))

    def taken(self, layer: int) -> Moments:
        """Return the moments of a layer, and let go of them."""
        found = self._found.pop(layer)
        below = found.cross.pop(layer + 1)
        for product in found.cross.values():
            product -= below
        return found

    def _empty(self, layer: int, z: Tensor, hidden: int) -> Moments:
        width, above = z.shape[1], self.targets[layer]
        diagonal = layer in self.norms
        return Moments(
            gram=z.new_zeros(width) if diagonal else z.new_zeros(width, width),
            cross={m: z.new_zeros(*([] if diagonal else [width]), hidden) for m in (layer + 1, *above)},
            moved=dict.fromkeys(above, 0.0),
            cosine=dict.fromkeys(above, 0.0),
            magnitude=dict.fromkeys(above, 0.0),
        )

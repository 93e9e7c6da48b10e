"""Refitting: kept layers are corrected in order, each on the stream that the tailored model itself has there.

For the layers from bottom to top, with the teacher's stream H and the candidate's X:

1. the attention's output matrix, so that the candidate's stream behind the attention is the teacher's there;
2. the MLP's output matrix, so that the next kept layer m reads H_m: across a gap this is a bridge.

Each step is a ridge regression on what the layer really computes after the steps before, so errors from below are
mended on the way. Unlike a bridge, a correction belongs to one candidate. It takes a few passes over the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tailorlib.calibration.bridges import RIDGES, Ridge, Solution
from tailorlib.calibration.gather import as_stored
from tailorlib.calibration.mixture import CalibrationRows
from tailorlib.calibration.moments import TOKENS_PER_PASS
from tailorlib.calibration.taps import Tap, listen, tap_of
from tailorlib.compensation import depth_of
from tailorlib.console import bar
from tailorlib.exceptions import ModelError
from tailorlib.models.architecture import Architecture, cut_config
from tailorlib.models.statistics.collect import row_batches
from tailorlib.models.stitching import Stitcher
from tailorlib.tailoring import BASE, Tailoring

if TYPE_CHECKING:
    from tailorlib.models.family import ModelFamily


@dataclass(frozen=True)
class RefitJob:
    """What is refitted.

    Args:
        family: A prepared family.
        tailoring: The candidate, without terms.
        teacher: A tailoring of all layers.
        rows: The calibration text.
        device: Where to compute.
        dtype: Data type that the models compute in; sums are in float32.
        everything: Whether all kept layers are corrected, or only those below a gap.
        attention: Whether the attention's output is corrected, too.
        ridges: Values of lambda to choose from.
    """

    family: ModelFamily
    tailoring: Tailoring
    teacher: Tailoring
    rows: CalibrationRows
    device: torch.device
    dtype: torch.dtype = torch.float32
    everything: bool = True
    attention: bool = True
    ridges: tuple[float, ...] = RIDGES

    @property
    def depths(self) -> list[int]:
        """The depth of each layer, and the number of layers at the end.

        Raises:
            ModelError: If a layer has none, or they are not in order.
        """
        number = self.family.layout.num_layers
        found = [depth_of(self.tailoring, i) for i in range(len(self.tailoring.layers))]
        depths = [depth for depth in found if depth is not None]
        if len(depths) < len(found) or sorted(set(depths)) != depths:
            raise ModelError(
                "A tailoring is refitted layer by layer: each is of one depth of the family, and in order. "
                f"Got the depths {found}."
            )
        return [*depths, number]


@dataclass
class _Batch:
    """Some rows with the streams that were computed for them.

    Args:
        domain: The domain that they are held out of; ``None`` if they are fitted on.
        ids: Token ids, [rows, length].
        teacher: The teacher's stream, [rows, length, d].
        own: The candidate's.
    """

    domain: str | None
    ids: Tensor
    teacher: Tensor
    own: Tensor


class Runner:
    """Runs single layers of a live model, with the masks and positions that its decoder makes.

    Args:
        model: The live model; its list of layers and config change meanwhile.
        config: The config of the whole model.
        architecture: Where its parts live.
        kinds: Depth whose kind each layer has.
    """

    def __init__(
        self, model: PreTrainedModel, config: Any, architecture: Architecture, kinds: Sequence[int]
    ) -> None:
        self.model, self.config, self.architecture, self.kinds = model, config, architecture, list(kinds)
        self.layers: list[nn.Module] = list(model.get_submodule(architecture.layers))

    def embedded(self, ids: Tensor) -> Tensor:
        """Return the input of the first layer."""
        found: list[Tensor] = []

        def keep(_: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])

        with self._only(0), _hooked(self.layers[0], keep):
            self.model.get_decoder()(input_ids=ids, use_cache=False)
        return found[0]

    def run(self, layer: int, ids: Tensor, states: Tensor) -> Tensor:
        """Return a layer's output on a stream, [rows, length, d]."""
        found: list[Tensor] = []

        def give(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (states, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": states}

        def keep(_: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])

        norm = self.model.get_submodule(self.architecture.norm)
        with self._only(layer), _hooked(self.layers[layer], give), _hooked(norm, keep):
            self.model.get_decoder()(input_ids=ids, use_cache=False)
        return found[0]

    @contextmanager
    def _only(self, layer: int) -> Iterator[None]:
        """Let the model consist of one layer."""
        parent, _, name = self.architecture.layers.rpartition(".")
        module = self.layers[layer]
        setattr(self.model.get_submodule(parent), name, nn.ModuleList([module]))
        for part in module.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = 0  # type: ignore[assignment]
        cut_config(self.model.config, self.config, [self.kinds[layer]])
        yield


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _output_of(module: nn.Module, found: list[Tensor]) -> Iterator[None]:
    """Note what a module gives."""
    handle = module.register_forward_hook(lambda _, __, output: found.append(output))
    try:
        yield
    finally:
        handle.remove()


class Refitting:
    """Corrects the layers of one candidate.

    Args:
        job: What is refitted.
    """

    def __init__(self, job: RefitJob) -> None:
        self.job, self.depths = job, job.depths
        family = job.family
        self.teacher, self.own = (self._runner(tailoring) for tailoring in (job.teacher, job.tailoring))
        self.batches = [
            _Batch(domain, ids, *(runner.embedded(ids) for runner in (self.teacher, self.own)))
            for domain, rows in [(None, job.rows.fit), *job.rows.held.items()]
            for batch in row_batches(rows, TOKENS_PER_PASS)
            for ids in [torch.tensor(batch, device=job.device)]
        ]
        self.architecture = family.architecture

    def _runner(self, tailoring: Tailoring) -> Runner:
        job = self.job
        stitcher = Stitcher(
            job.family.assembly,
            job.family.config,
            device=job.device,
            dtype=job.dtype,
            merge_cache_bytes=0,
            trust_remote_code=job.family.source.trust_remote_code,
        )
        kinds = [plan.sources[0].layer for plan in tailoring.layers]
        model = stitcher.stitch(tailoring)
        for module in model.get_submodule(job.family.architecture.layers):
            for parameter in module.parameters():  # corrected in place: what is mapped or shared stays as it is
                parameter.data = parameter.data.clone() if tailoring is job.tailoring else parameter.data
        return Runner(model, job.family.config, job.family.architecture, kinds)

    def __call__(self) -> dict[int, dict[str, Tensor]]:
        """Return what is added to the tensors of each layer, by its position and their names."""
        found: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad(), bar("Refitting", len(self.depths) - 1) as advance:
            self._lead(0, self.depths[0])
            for i, (depth, above) in enumerate(pairwise(self.depths)):
                found[i] = self._layer(i, depth, above)
                for batch in self.batches:
                    batch.own = self.own.run(i, batch.ids, batch.own)
                advance()
        return {i: tensors for i, tensors in found.items() if tensors}

    def _lead(self, start: int, stop: int) -> None:
        """Run the teacher from one depth to another."""
        for depth in range(start, stop):
            for batch in self.batches:
                batch.teacher = self.teacher.run(depth, batch.ids, batch.teacher)

    def _layer(self, i: int, depth: int, above: int) -> dict[str, Tensor]:
        """Correct one layer, and lead the teacher to the next kept depth."""
        module, config = self.own.layers[i], self.own.model.config
        due = self.job.everything or above > depth + 1
        tensors: dict[str, Tensor] = {}
        if due and self.job.attention:
            tap = tap_of(self.architecture, module, config, self.architecture.attention_out)
            tensors |= self._correct(i, tap, self._middle(depth, tap), attention=True)
        else:
            self._lead(depth, depth + 1)
        self._lead(depth + 1, above)
        if due:
            goals = [batch.teacher for batch in self.batches]
            tap = tap_of(self.architecture, module, config)
            tensors |= self._correct(i, tap, goals, attention=False)
        return tensors

    def _middle(self, depth: int, tap: Tap) -> list[Tensor]:
        """Run one layer of the teacher, and return its stream behind the attention."""
        found = []
        for batch in self.batches:
            shares: list[Tensor] = []
            with _output_of(self.teacher.layers[depth].get_submodule(tap.module), shares):
                output = self.teacher.run(depth, batch.ids, batch.teacher)
            found.append(batch.teacher + shares[0].view_as(output) * tap.factor)
            batch.teacher = output
        return found

    def _correct(self, i: int, tap: Tap, goals: Sequence[Tensor], *, attention: bool) -> dict[str, Tensor]:
        """Correct one tensor of a layer, in place, and return what was added to it as files have it."""
        solution = self._solution(i, tap, goals, attention)
        name = self.job.family.architecture.layer_prefix(self.depths[i]) + tap.weight.replace("*", "0")
        stored = as_stored(solution.delta, tap, self.job.family.checkpoints[BASE].dtype(name))
        module = self.own.layers[i].get_submodule(tap.module)
        for suffix, delta in stored.items():
            parameter = module.down_proj if tap.kind == "experts" else getattr(module, suffix.rpartition(".")[2])
            assert isinstance(parameter, Tensor)
            parameter.data += delta.to(parameter.device, parameter.dtype)  # of all experts alike
        return stored

    def _solution(self, i: int, tap: Tap, goals: Sequence[Tensor], attention: bool) -> Solution:
        """Return the regression of what is lacking, behind the attention or the layer, on what a tap reads."""
        gram: Tensor | None = None
        cross: Tensor | None = None
        held: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for batch, goal in zip(self.batches, goals, strict=True):
            read, got = self._read(i, tap, batch, attention)
            z, y = self._weighted(read, goal, got)
            if batch.domain is not None:
                held.setdefault(batch.domain, []).append((z, y))
                continue
            own = (z * z).sum(0) if tap.kind == "norm" else z.T @ z
            product = (z * y).sum(0) if tap.kind == "norm" else z.T @ y
            gram = own if gram is None else gram.add_(own)
            cross = product if cross is None else cross.add_(product)
        assert gram is not None and cross is not None
        inputs = {domain: torch.cat([z for z, _ in pairs]) for domain, pairs in held.items()}
        targets = {domain: torch.cat([y for _, y in pairs]) for domain, pairs in held.items()}
        return Ridge(gram, inputs, f"layer {i}", self.job.ridges).solve({0: cross}, {0: targets})[0]

    def _read(self, i: int, tap: Tap, batch: _Batch, attention: bool) -> tuple[Tensor, Tensor]:
        """Run one layer of the candidate; return what a tap reads, and the stream behind attention or layer."""
        module = self.own.layers[i]
        read: list[Tensor] = []
        shares: list[Tensor] = []
        handle = listen(tap, module, self.architecture, read.append)
        try:
            with _output_of(module.get_submodule(tap.module), shares):
                output = self.own.run(i, batch.ids, batch.own)
        finally:
            handle.remove()
        return read[0], batch.own + shares[0].view_as(output) * tap.factor if attention else output

    @staticmethod
    def _weighted(read: Tensor, goal: Tensor, got: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the tokens of text, each token by its relative error."""
        rows, length, hidden = goal.shape
        z = read.view(rows, length, -1)[:, 1:].flatten(0, 1).float()
        wanted = goal[:, 1:].reshape(-1, hidden).float()
        root = 1 / wanted.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return z * root, (wanted - got[:, 1:].reshape(-1, hidden).float()) * root

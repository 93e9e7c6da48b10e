"""Gathering bridges: one streamed pass of a teacher over calibration text, or several where memory is short."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tailorlib.calibration.bridges import RIDGES, Ridge, Solution
from tailorlib.calibration.mixture import CalibrationRows
from tailorlib.calibration.moments import Gathering, Listener, Moments, Streams
from tailorlib.calibration.taps import Tap, tap_of
from tailorlib.console import bar, say
from tailorlib.exceptions import ModelError
from tailorlib.models.cache import build_once, cache_root
from tailorlib.models.digests import model_contents
from tailorlib.models.stitching import Stitcher
from tailorlib.models.terms import FOLDER, save_term, term_path
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Tailoring, any_number

if TYPE_CHECKING:
    from tailorlib.models.family import ModelFamily

FORMAT = 1
"""Version of how bridges are computed and stored; a new one makes all be gathered again."""
MANIFEST = "bridges.json"
Form = Literal["inner", "outputs"]
"""What a correction is a map of: the MLP's inner activations, or its outputs."""
KINDS: Mapping[Form, str] = {"inner": "Bridge", "outputs": "OutputMap"}


@dataclass(frozen=True)
class BridgeTable:
    """All bridges of a teacher, in the cache.

    Args:
        name: What the names of its terms begin with: the kind and a digest of all that decides them.
        facts: What was found: ``pairs`` by ``"l-m"`` with ``ridge``, ``left`` (by domain), ``moved`` and
            ``cosine``; ``taps`` by layer; ``tokens``.
    """

    name: str
    facts: Mapping[str, Any]

    def has(self, layer: int, above: int) -> bool:
        """Say whether there is a bridge from a layer to a depth."""
        return f"{layer}-{above}" in self.facts["pairs"]

    def terms(self, layer: int, above: int) -> tuple[tuple[str, str], ...]:
        """Return the terms of a layer's plan, for a gap up to a depth."""
        term = f"{self.name}/{layer}-{above}"
        return tuple((suffix, term) for suffix in self.facts["taps"][str(layer)])

    def left(self, layer: int, above: int) -> Mapping[str, float]:
        """Return the share of the squared error that a bridge leaves on held-out text, by domain."""
        found: Mapping[str, float] = self.facts["pairs"][f"{layer}-{above}"]["left"]
        return found


@dataclass(frozen=True)
class Job:
    """What bridges are gathered of.

    Args:
        family: A prepared family.
        teacher: A tailoring of all layers.
        rows: The calibration text.
        longest: Number of layers in the longest gap that is bridged.
        device: Where to compute.
        dtype: Data type that the teacher computes in; sums are in float32.
        memory_bytes: What the sums may take at once; more passes are made where they need more.
        ridges: Values of lambda to choose from.
        form: What corrections are a map of.
    """

    family: ModelFamily
    teacher: Tailoring
    rows: CalibrationRows
    longest: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    memory_bytes: int = 8 << 30
    ridges: tuple[float, ...] = RIDGES
    form: Form = "inner"

    @property
    def targets(self) -> dict[int, list[int]]:
        """The depths that each layer is bridged to."""
        number = self.family.layout.num_layers
        pairs = {i: list(range(i + 2, min(i + 2 + self.longest, number + 1))) for i in range(number)}
        return {layer: above for layer, above in pairs.items() if above}

    @property
    def name(self) -> str:
        """What the names of the terms begin with."""
        family = self.family
        content = {
            "format": FORMAT,
            "models": {n: model_contents(family.sources[n]) for n in sorted({BASE, *self.teacher.models})},
            "teacher": self.teacher.digest,
            "fit": self.rows.fit,
            "held": dict(self.rows.held),
            "longest": self.longest,
            "dtype": str(self.dtype),
            "ridges": self.ridges,
            "form": self.form,
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{KINDS[self.form]}-{digest[:16]}"


def bridge_table(job: Job) -> BridgeTable:
    """Return all bridges of a job: from the cache, or gathered now.

    Raises:
        ModelError: If the teacher has not all layers, a layer can't be corrected, activations are not finite, or
            the cache can't be written.
    """
    number = job.family.layout.num_layers
    if [plan.sources[0].layer for plan in job.teacher.layers] != list(range(number)):
        raise ModelError(
            f"A teacher has all {number} layers of the family in order of depth; got one of "
            f"{len(job.teacher.layers)} layers. Take the base, a variant or a merge of whole models."
        )
    name = job.name
    folder = build_once(cache_root() / FOLDER / name, lambda f: _build(job, name, f), valid=_is_whole)
    return BridgeTable(name, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))


def bytes_of(width: int, hidden: int, targets: int) -> int:
    """Return the memory that the sums of one layer take, solving included.

    Args:
        width: Width of what the tap reads.
        hidden: Width of the residual stream.
        targets: Number of depths that the layer is bridged to.
    """
    return 4 * (3 * width * width + (targets + 1) * width * hidden)


@dataclass(frozen=True)
class Footprint:
    """What gathering bridges takes.

    Args:
        disk_bytes: Size of all bridges in the cache.
        memory_bytes: Memory of the sums at once, beside the teacher.
        operations: Floating-point operations.
    """

    disk_bytes: int
    memory_bytes: int
    operations: float


def footprint(family: ModelFamily, tokens: int, longest: int, memory_bytes: int = 8 << 30) -> Footprint:
    """Return what gathering bridges takes, from shapes alone: no weight is read.

    Args:
        family: A prepared or outlined family.
        tokens: Number of tokens of the calibration text.
        longest: Number of layers in the longest gap that is bridged.
        memory_bytes: What the sums may take at once.
    """
    number, hidden = family.layout.num_layers, int(family.config.hidden_size)
    disk = sums = 0
    work = 2.0 * sum(family.layer_parameters())
    architecture = family.architecture
    for layer in range(number - 1):
        plan = LayerPlan((LayerSource(BASE, layer),))
        shapes = {s: (shape, dtype) for s, shape, dtype in family.assembly.layer_shapes(plan)}
        found = [s for s in shapes if any_number(s) in architecture.mlp_out and s.endswith(".weight")]
        targets = len(range(layer + 2, min(layer + 2 + longest, number + 1)))
        if not found or not targets:
            continue
        (shape, dtype) = shapes[found[0]]
        width = prod(shape) // hidden if len(shape) > 1 else 1
        disk += targets * prod(shape) * dtype.itemsize
        sums += bytes_of(width, hidden, targets)
        work += 2.0 * width * width + 2.0 * (targets + 1) * width * hidden
    return Footprint(disk, min(sums, memory_bytes), work * tokens)


def _is_whole(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _build(job: Job, name: str, folder: Path) -> None:
    family = job.family
    domains = ", ".join(job.rows.held)
    say(f"Gathering bridges over {job.rows.tokens:,} tokens ({domains}), once: they are kept in the cache")
    stitcher = Stitcher(
        family.assembly,
        family.config,
        device=job.device,
        dtype=job.dtype,
        merge_cache_bytes=0,
        trust_remote_code=family.source.trust_remote_code,
    )
    with torch.inference_mode():
        model = stitcher.stitch(job.teacher)
        layers = list(model.get_submodule(family.architecture.layers))
        taps = {i: tap_of(family.architecture, layers[i], model.config) for i in job.targets}
        groups = _groups(job, layers, taps)
        facts: dict[str, Any] = {"format": FORMAT, "pairs": {}, "taps": {}, "tokens": job.rows.tokens}
        facts["taps"] = {str(i): _suffixes(tap) for i, tap in taps.items()}
        passes = len(groups) * (len(job.rows.fit) + sum(map(len, job.rows.held.values())))
        with bar("Gathering bridges", passes) as advance:
            for group in groups:
                listener = Listener(model, family.architecture, {i: taps[i] for i in group})
                gathering, held = _group(job, listener, advance)
                for i in group:
                    weight = _matrix(taps[i], layers[i]) if job.form == "outputs" else None
                    solved = _solved(job, gathering.taken(i), held, i, weight)
                    facts["pairs"] |= _saved(job, folder, name, solved, taps[i], i)
    _warn(facts)
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _groups(job: Job, layers: Sequence[torch.nn.Module], taps: Mapping[int, Tap]) -> list[list[int]]:
    """Return the layers in groups whose sums fit into memory together."""
    hidden, groups, free = int(job.family.config.hidden_size), list[list[int]](), 0
    for i, above in job.targets.items():
        needed = bytes_of(_width(taps[i], layers[i]), hidden, len(above))
        if not groups or needed > free:
            groups.append([])
            free = job.memory_bytes
        groups[-1].append(i)
        free -= needed
    return groups


def _width(tap: Tap, layer: torch.nn.Module) -> int:
    if tap.kind == "norm":
        return 1
    module: Any = layer.get_submodule(tap.module)
    if tap.kind == "experts":
        return int(module.down_proj.shape[2])
    shape = module.weight.shape
    return int(shape[0] if tap.transposed else shape[1]) + (tap.bias is not None)


def _group(
    job: Job, listener: Listener, advance: Callable[[], None]
) -> tuple[Gathering, dict[str, list[Streams]]]:
    """Return the moments of some layers, and what the teacher computes on held-out text."""
    norms = frozenset(i for i, tap in listener.taps.items() if tap.kind == "norm")
    gathering = Gathering({i: job.targets[i] for i in listener.taps}, norms)
    listener.run(job.rows.fit, gathering.add, advance)
    held: dict[str, list[Streams]] = {}
    for domain, rows in job.rows.held.items():
        listener.run(rows, held.setdefault(domain, []).append, advance)
    return gathering, held


def _solved(
    job: Job, moments: Moments, held: Mapping[str, Sequence[Streams]], layer: int, weight: Tensor | None
) -> Iterator[tuple[int, Solution, dict[str, float]]]:
    """Yield the corrections of one layer by the depth that they lead to, with what is known of the gap."""
    weighted = {domain: [streams.weighted(layer) for streams in passes] for domain, passes in held.items()}
    inputs = {domain: torch.cat([z for z, _ in pairs]) for domain, pairs in weighted.items()}
    targets: dict[int, dict[str, Tensor]] = {
        above: {
            domain: torch.cat(
                [s.target(layer, above, root) for s, (_, root) in zip(passes, weighted[domain], strict=True)]
            )
            for domain, passes in held.items()
        }
        for above in job.targets[layer]
    }
    solutions = Ridge(moments.gram, inputs, f"layer {layer}", job.ridges, weight).solve(moments.cross, targets)
    for above, solution in solutions.items():
        yield above, solution, moments.gap(above)


def _saved(
    job: Job,
    folder: Path,
    name: str,
    solved: Iterable[tuple[int, Solution, dict[str, float]]],
    tap: Tap,
    layer: int,
) -> dict[str, Any]:
    """Write the corrections of one layer, and return what is to be known of them."""
    prefix = job.family.architecture.layer_prefix(layer)
    dtype = job.family.checkpoints[BASE].dtype(prefix + tap.weight.replace("*", "0"))
    facts = {}
    for above, solution, gap in solved:
        term = f"{name}/{layer}-{above}"
        save_term(folder / term_path(term).name, term, as_stored(solution.delta, tap, dtype))
        facts[f"{layer}-{above}"] = {"ridge": solution.ridge, "left": dict(solution.left), **gap}
    return facts


def as_stored(delta: Tensor, tap: Tap, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a correction as files have the tensors that it is added to.

    Args:
        delta: The correction, [f, d] or [d]; with the bias as its last row, if the tap has one.
        tap: Where it is added.
        dtype: Data type that the tensors are stored in.
    """
    delta = (delta / tap.factor).cpu()
    if tap.kind == "norm":
        return {tap.weight: delta.to(dtype)}
    tensors = {}
    if tap.bias is not None:
        tensors[tap.bias] = delta[-1].to(dtype)
        delta = delta[:-1]
    tensors[tap.weight] = (delta if tap.transposed else delta.T).to(dtype).contiguous()
    return tensors


def _matrix(tap: Tap, layer: torch.nn.Module) -> Tensor:
    """Return the matrix whose outputs are mapped, [d, f], the bias as its last column.

    Raises:
        ModelError: If a tap has no single matrix.
    """
    if tap.kind != "matrix":
        raise ModelError(
            "OutputMap maps the outputs of an MLP's last matrix, and these layers end in "
            f"{'a norm' if tap.kind == 'norm' else 'many experts'}. Take Bridge."
        )
    module: Any = layer.get_submodule(tap.module)
    weight: Tensor = module.weight.T if tap.transposed else module.weight
    if tap.bias is not None:
        weight = torch.cat([weight, module.bias[:, None]], dim=1)
    return weight.float()


def _suffixes(tap: Tap) -> list[str]:
    return [tap.weight, *([tap.bias] if tap.bias is not None else [])]


def _warn(facts: Mapping[str, Any]) -> None:
    """Say which domain a bridge leaves worse than none."""
    worse: dict[str, float] = {}
    for pair in facts["pairs"].values():
        for domain, left in pair["left"].items():
            if left > 1:
                worse[domain] = max(worse.get(domain, 0.0), left)
    for domain, left in worse.items():
        say(
            f"[yellow]![/] Some bridges leave {left - 1:.0%} more error on {domain!r} than no bridge: its "
            "calibration text has too few tokens, or the domains contradict each other."
        )

"""The plan of a study: its size, memory and time, told before any weight is made, fetched or read.

Time is calibrated and not guessed: the study's own fitness is evaluated on models of the family's config with one
layer and with a few, of random weights. The difference gives the cost of a layer, the rest is that of embeddings,
head and metrics; both on the device, in the data type and with the batches that the search will use. A rehearsal
of the optimizer tells how many layers have to run, and how many merges no cache has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from statistics import fmean

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tailorlib.console import bar, say
from tailorlib.exceptions import EvaluationError
from tailorlib.models.architecture import cut_config, tailored_config
from tailorlib.models.precision import compute_dtype, dtype_name
from tailorlib.models.quantization import Quantizer
from tailorlib.operation import MergeOperation
from tailorlib.search.footprint import EXAMPLES, Memory, example, memory
from tailorlib.search.rehearsal import Step, rehearse
from tailorlib.search.study import Study
from tailorlib.seeding import torch_generator
from tailorlib.tailoring import BASE, SELECT, LayerPlan, Tailoring

_CALIBRATED = 8
"""Number of layers of the larger model: with fewer, the difference of two times is mostly noise."""
_REHEARSED = 48
"""Number of trials that are rehearsed: enough to leave the beginning, where the caches are empty."""
_TURNS = 3
"""How often each model of a calibration is evaluated; the shortest time counts."""


@dataclass(frozen=True)
class Estimate(Memory):
    """What a study is going to take.

    Args:
        seconds_per_trial: Evaluation of a candidate, and the merges that no cache has.
        seconds: The trials of the whole search, and nothing else: see :func:`not_timed`.
        merge_seconds: Share of a trial that goes into merges.
        reused: Share of the layers that don't have to run, in [0, 1].
        share: Share of the samples that a trial is scored on, on average, in (0, 1].
    """

    seconds_per_trial: float
    seconds: float
    merge_seconds: float
    reused: float
    share: float


def estimate(study: Study, device: torch.device, devices: int = 1) -> Estimate:
    """Calibrate on the device and say what a study takes; the study is prepared, the family not loaded.

    Args:
        study: A prepared study, or one whose family is outlined.
        device: Where to calibrate.
        devices: Number of such devices that share the work.

    Raises:
        EvaluationError: If the fitness can't be evaluated on a model of random weights.
    """
    dtype = compute_dtype(study.family.dtype, device)
    with bar(f"Calibrating on {device.type}", 2 + 2 * _TURNS) as advance:
        steps = rehearse(study, min(_REHEARSED, study.settings.trials), dtype) or [
            Step(drawn, len(drawn.layers), ()) for drawn in [example(study, 0)]
        ]
        advance()
        few = min(_CALIBRATED, len(steps[0].tailoring.layers))
        one, several = _seconds(study, few, device, dtype, advance)
        merging = _merge_seconds(study, [plan for step in steps for plan in step.merged], device) / len(steps)
        advance()
    per_layer = max(several - one, 0.0) / max(1, few - 1)
    share = fmean(step.share for step in steps)
    run = fmean(step.layers_run * step.share for step in steps) / share
    trial = max(one + (run - 1) * per_layer, 0.0) * share + merging
    trials = study.settings.trials / share  # a scheduler makes more of them, each on fewer samples
    return Estimate(
        seconds_per_trial=trial,
        seconds=trial * trials / min(devices, study.settings.batch_size * study.settings.shards),
        merge_seconds=merging,
        reused=1 - run * share / fmean(len(step.tailoring.layers) * step.share for step in steps),
        share=share,
        **asdict(memory(study, device)),
    )


def plan_table(study: Study, device: torch.device, devices: int = 1, calibrate: bool = True) -> Table:
    """Return models, layers, parameters, size of the space, memory and time as a table.

    Args:
        study: A prepared study, or one whose family is outlined.
        device: Where it would run.
        devices: Number of such devices that share the work.
        calibrate: Whether to measure the time on the device. Without, the rest is said at once, for models of any
            size on any machine.
    """
    family, layout, size = study.family, study.family.layout, study.space.size()
    dense = family.num_parameters(Tailoring.whole(BASE, layout.num_layers))
    examples = sorted((example(study, i) for i in range(EXAMPLES)), key=lambda e: len(e.layers))
    least, most = examples[0], examples[-1]
    found = memory(study, device)
    table = Table(show_header=False, title="Plan", title_justify="left")
    table.add_row("models", escape(f"{len(layout.models)}: {', '.join(layout.models)}"))
    for number, sentence in enumerate(family.first):
        table.add_row("" if number else "before it", escape(sentence))
    kept = _range(len(least.layers), len(most.layers), "")
    table.add_row("layers", f"{layout.num_layers}, of which {kept} are kept")
    tailored = _range(family.num_parameters(least) / 1e6, family.num_parameters(most) / 1e6, ".1f")
    table.add_row("parameters", f"{dense / 1e6:.1f} M dense, {tailored} M tailored")
    continuous = f", each with up to {size.continuous} continuous hyperparameters" if size.continuous else ""
    table.add_row("search space", f"{big_number(size.discrete)} tailorings{continuous}")
    table.add_row("tokens per trial", f"{study.fitness.tokens:,}" if study.fitness.tokens else "unknown")
    dtype = dtype_name(compute_dtype(family.dtype, device))
    precision = dtype if family.quantization == "none" else f"{family.quantization}, computing in {dtype}"
    cache = f", caches up to {found.cache_bytes / 1e9:.2f} GB" if found.cache_bytes else ""
    mapped = f" ({found.mapped_bytes / 1e9:.2f} GB of it mapped files)" if found.mapped_bytes else ""
    table.add_row("memory", f"{found.device_bytes / 1e9:.2f} GB on {device.type} in {precision}{mapped}{cache}")
    adapters = f", {found.adapter_bytes / 1e9:.2f} GB of them adapters" if found.adapter_bytes else ""
    table.add_row("files", f"{found.disk_bytes / 1e9:.2f} GB of checkpoints{adapters}, read when needed")
    if study.compensation is not None:
        for cost in study.compensation.costs(family, study.space.most_removed):
            table.add_row(study.compensation.label, escape(cost))
    if calibrate:
        _add_times(table, study, device, devices)
        table.add_row("not timed", escape("; ".join(not_timed(study))))
    return table


def not_timed(study: Study) -> list[str]:
    """Return what a search does beside its trials, in words: how long that takes is not known before."""
    found = [*study.family.first, "loading the models", "scoring the dense model"]
    if study.family.calibrates:
        found.append("gathering layer statistics")
    if study.compensation is not None:
        found.append(f"preparing the compensation {study.compensation.label}")
    found += [f"the warm start {start.label}" for start in study.warm_starts]
    found += [f"the {section}" for section in study.fitnesses if section != "fitness"]
    return found + (["writing the model"] if study.settings.export else [])


def _add_times(table: Table, study: Study, device: torch.device, devices: int) -> None:
    found = estimate(study, device, devices)
    say(f"[green]✓[/] Calibrated on {device.type}")
    merging = f", {found.merge_seconds:.2f} of them merging" if found.merge_seconds >= 0.005 else ""
    reused = f"; about {found.reused:.0%} of the layers are known from earlier trials" if found.reused else ""
    some = f" on {found.share:.0%} of the samples" if found.share < 1 else ""
    table.add_row("time per trial", f"{found.seconds_per_trial:.2f} s{some}{merging}{reused}")
    what = "trials" if found.share == 1 else "evaluations on all samples"
    where = "one device" if devices == 1 else f"{devices} devices"
    table.add_row("time", f"{duration(found.seconds)} for {study.settings.trials} {what} on {where}")


def big_number(number: int) -> str:
    """Return a whole number of any size in a readable form, such as ``1.83e+21``."""
    if number < 10**6:
        return f"{number:,}"
    digits = str(number)
    return f"{digits[0]}.{digits[1:3]}e+{len(digits) - 1}"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it, such as ``"2 h 5 min"``."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _range(low: float, high: float, spec: str) -> str:
    ends = format(low, spec), format(high, spec)
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _seconds(
    study: Study, layers: int, device: torch.device, dtype: torch.dtype, advance: Callable[[], None]
) -> tuple[float, float]:
    """Return the times of evaluating a model of one layer and of more: the shortest of some, in turns."""
    model = _random_model(study, min(layers, 2), device, dtype)
    parent, _, name = study.family.architecture.layers.rpartition(".")
    distinct = list(model.get_submodule(study.family.architecture.layers))
    taken: dict[int, list[float]] = {1: [], layers: []}
    for _ in range(_TURNS):
        for number, seconds in taken.items():
            repeated = [
                i % len(distinct) for i in range(number)
            ]  # what a layer costs doesn't depend on its weights
            cut_config(model.config, study.family.config, repeated)
            setattr(model.get_submodule(parent), name, nn.ModuleList(distinct[i] for i in repeated))
            if study.fitness.needs_dense:
                study.fitness.observe_dense(model)
            _synchronise(device)
            start = time.perf_counter()
            with suppress(EvaluationError):  # random weights may score nothing finite; the time is the same
                study.fitness.evaluate(model)
            _synchronise(device)
            seconds.append(time.perf_counter() - start)
            advance()
    return min(taken[1]), min(taken[layers])


def _random_model(study: Study, layers: int, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    config = tailored_config(study.family.config, range(layers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=study.family.source.trust_remote_code
        )
    if study.family.quantization != "none":
        quantizer = Quantizer(study.family.quantization, device, dtype)
        for layer in model.get_submodule(study.family.architecture.layers):
            tensors = dict(layer.state_dict())
            quantizer.convert(layer)
            quantizer.assign(layer, quantizer.quantize(layer, tensors))
    return model.requires_grad_(False).eval().to(device)


def _merge_seconds(study: Study, layers: Sequence[LayerPlan], device: torch.device) -> float:
    """Return the time of merging some layers, each kind measured on one layer of random numbers."""
    assembly = study.family.assembly
    seconds: dict[tuple[str, int], float] = {}
    total = 0.0
    for plan in layers:
        for part in plan.plans:
            if part.operation != SELECT:
                key = (part.operation, len(part.sources))
                if key not in seconds:
                    seconds[key] = _one_merge(assembly.operation(part.operation), part, study, device)
                total += seconds[key] / len(plan.plans)
    return total


def _one_merge(operation: MergeOperation, plan: LayerPlan, study: Study, device: torch.device) -> float:
    """Return the time of merging one layer of random numbers, stored as the family's are; the second of two."""
    numbers = torch_generator("plan")
    layer = [
        [torch.randn(shape, generator=numbers).to(dtype) for _ in range(len(plan.sources) + 1)]
        for _, shape, dtype in study.family.assembly.layer_shapes(plan)
    ]
    statistics: list[Tensor | None] = [None] * len(plan.sources)
    generators = [torch_generator("plan", i) for i in range(len(plan.sources))]
    for _ in range(2):
        start = time.perf_counter()
        for stored in layer:
            base, *tensors = (tensor.to(device, torch.float32) for tensor in stored)
            operation.apply(
                tensors, base=base, params=dict(plan.params), generators=generators, statistics=statistics
            )
        _synchronise(device)
        taken = time.perf_counter() - start
    return taken


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

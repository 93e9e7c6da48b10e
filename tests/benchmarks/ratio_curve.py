# ruff: noqa: T201
"""How retained quality falls with the share of layers that goes, and what the smaller models cost to run.

    python tests/benchmarks/ratio_curve.py --base MODEL --candidates math=A commonsense=B code=C --data DATA \\
        --record FOLDER --search "StructuredBayes + Racing + influence" --plot docs/images/ratios.png

Reads what ``family_searches.py`` found in the same folder: a curve for the kind of search, over all shares that
it was run at in the space ``--space``, and one for each baseline. What was not yet scored on unseen data is scored
now.
``--sizes`` exports a model of each share and times it beside the dense base, in turns: a forward pass over
``PROMPT`` tokens, and each token of a greedy continuation.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from family_lab import BASELINES, QUESTIONS, Place, add_place, baseline, lab, measure_unseen, place_of
from family_searches import above_chance, lines_of
from searches import Record
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from tailorlib import Tailoring
from tailorlib.export import export_model

PROMPT, CONTINUED, REPEATS = 128, 32, 5


@dataclass(frozen=True)
class Point:
    """A kind of search, or a baseline, at a share.

    Args:
        removed: Share of the dense base's parameters that is gone, in percent.
        plain: Retained score in percent, of each seed.
        corrected: Retained score above chance in percent, of each seed.
    """

    removed: float
    plain: list[float]
    corrected: list[float]


def point(place: Place, tailorings: list[Tailoring]) -> Point:
    """Score models on what no search saw."""
    own = lab(place)
    dense, found = measure_unseen(place, own.dense), [measure_unseen(place, t) for t in tailorings]
    return Point(
        removed_percent(place, tailorings[0]),
        [100 * float(np.mean([m.parts[t] / dense.parts[t] for t in QUESTIONS])) for m in found],
        [above_chance(m, dense) for m in found],
    )


def removed_percent(place: Place, tailoring: Tailoring) -> float:
    """Return the share of the dense base's parameters that a model lacks, in percent."""
    own = lab(place)
    return 100 - 100 * own.family.num_parameters(tailoring) / own.family.num_parameters(own.dense)


def curves_of(place: Place, search: str, space: str, names: list[str]) -> dict[str, dict[str, Point]]:
    """Return points by name and share."""
    curves: dict[str, dict[str, Point]] = defaultdict(dict)
    for line in lines_of(place, Record(place.record / "searches.jsonl")):
        label, _, where = line.name.rstrip("]").rpartition(" [")
        kind, _, share = where.rpartition("@")
        if label == search and kind == space:
            curves[search][share] = point(place, line.tailorings)
    for share in curves[search]:
        for name in names:
            tailoring = baseline(place, name, share)
            if tailoring is not None:
                curves[name][share] = point(place, [tailoring])
    return curves


def show(curves: dict[str, dict[str, Point]]) -> None:
    """Print a row for each curve and share."""
    print(f"\n{'share':>6} {'removed %':>10} {'plain %':>15} {'chance-corr. %':>15}  model")
    for share in sorted(next(iter(curves.values())), key=float):
        for name, points in curves.items():
            if share in points:
                one = points[share]
                print(f"{share:>6} {one.removed:10.1f} {_cell(one.plain)} {_cell(one.corrected)}  {name}")


def _cell(values: list[float]) -> str:
    spread = f" ±{np.std(values, ddof=1) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}".rjust(15)


def plot(curves: dict[str, dict[str, Point]], path: Path) -> None:
    """Draw both kinds of retained quality over the share of parameters that is gone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharex=True)
    for axis, what in zip(axes, ("plain", "corrected"), strict=True):
        for at, (name, points) in enumerate(curves.items()):
            own = sorted(points.values(), key=lambda one: one.removed)
            values = [getattr(one, what) for one in own]
            spread = [0.0] + [np.std(v, ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in values]
            places, means = [0.0] + [one.removed for one in own], [100.0] + [float(np.mean(v)) for v in values]
            width = 2.4 if at == 0 else 1.2
            axis.errorbar(places, means, spread, label=name, marker="o", markersize=4, linewidth=width, capsize=3)
        axis.axhline(100, color="gray", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.3)
        axis.set_xlabel("parameters removed, %")
    axes[0].set(ylabel="retained, % of the dense base", title="plain")
    axes[1].set_title("above chance")
    axes[1].axhline(0, color="gray", linewidth=0.8, linestyle=":")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(
        handles, labels, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False, fontsize=9
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


# -- What a smaller model costs ---------------------------------------------------------------------------------


def sizes(place: Place, tailorings: dict[str, Tailoring]) -> None:
    """Print parameters, operations and times of exported models, each beside the dense base."""
    own = lab(place)
    print(
        f"\n{'share':>6} {'layers':>6} {'parameters':>11} {'FLOPs/token':>12} {'prompt ms':>10} {'tokens/s':>9}"
        f" {'prompt x':>9} {'tokens x':>9}   {PROMPT} tokens of prompt, {CONTINUED} continued, batch 1"
    )
    with tempfile.TemporaryDirectory() as folder:
        exported = {}
        for share, tailoring in {"0": own.dense, **tailorings}.items():
            path = export_model(own.family, tailoring, Path(folder) / share)
            exported[share] = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for share, model in exported.items():
            dense_times, times = timed_in_turns(exported["0"], model)
            parameters = sum(p.numel() for p in model.parameters())
            print(
                f"{share:>6} {model.config.num_hidden_layers:6} {parameters / 1e6:9.1f} M"
                f" {flops(model) / 1e6:10.0f} M {1e3 * times[0]:10.1f} {1 / times[1]:9.1f}"
                f" {dense_times[0] / times[0]:9.2f} {dense_times[1] / times[1]:9.2f}",
                flush=True,
            )


def flops(model: PreTrainedModel) -> float:
    """Return the operations of a forward pass per token of the prompt."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=torch.zeros(1, PROMPT, dtype=torch.long), use_cache=False)
    return float(counter.get_total_flops()) / PROMPT


def timed_in_turns(dense: PreTrainedModel, model: PreTrainedModel) -> tuple[list[float], list[float]]:
    """Return median seconds of the prompt, and of each further token, for the dense base and for a model."""
    taken: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for repeat in range(REPEATS + 1):
        for is_dense, one in ((True, dense), (False, model)):
            seconds = timed(one)
            if repeat:  # the first warms up
                taken[is_dense].append(seconds)
    first, second = ([statistics.median(column) for column in zip(*taken[d], strict=True)] for d in (True, False))
    return first, second


def timed(model: PreTrainedModel) -> tuple[float, float]:
    """Return seconds of a forward pass over the prompt, and of each token after it."""
    tokens = torch.arange(PROMPT).unsqueeze(0)
    with torch.inference_mode():
        began = time.perf_counter()
        model(input_ids=tokens, logits_to_keep=1)
        prompt = time.perf_counter() - began
        began = time.perf_counter()
        model.generate(  # type: ignore[operator]
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            min_new_tokens=CONTINUED,
            max_new_tokens=CONTINUED,
        )
        whole = time.perf_counter() - began
    return prompt, (whole - prompt) / CONTINUED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place(parser)
    parser.add_argument(
        "--search", required=True, help="label of a kind of search, as family_searches.py prints it"
    )
    parser.add_argument("--space", default="merge", help="name of its space, without the share")
    parser.add_argument("--baselines", nargs="*", choices=list(BASELINES), default=list(BASELINES))
    parser.add_argument("--plot", type=Path, help="where to write the picture, a PNG")
    parser.add_argument("--sizes", action="store_true", help="export a model of each share and time it")
    arguments = parser.parse_args()
    place = place_of(arguments)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, {versions}")
    print(f"$ python {shlex.join(sys.argv)}")
    curves = curves_of(place, arguments.search, arguments.space, arguments.baselines)
    if not curves[arguments.search]:
        parser.error(f"{str(arguments.record)!r} has no search {arguments.search!r} in {arguments.space!r}")
    show(curves)
    if arguments.plot:
        plot(curves, arguments.plot)
    if arguments.sizes:
        best = {}
        for found in Record(place.record / "searches.jsonl"):
            kind, _, share = found.setting.space.rpartition("@")
            if found.setting.label == arguments.search and kind == arguments.space:
                best[share] = Tailoring.from_dict(found.steps[-1].tailoring)
        sizes(place, {share: best[share] for share in sorted(best, key=float)})


if __name__ == "__main__":
    main()

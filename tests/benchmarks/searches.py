# ruff: noqa: T201
"""Searches over a real family for comparisons: resumable, side by side, no sample ever scored twice.

A search goes through the same :class:`~tailorlib.search.campaign.Campaign` as a study, so optimizer, scheduler and
warm starts do here what they do there. Only the scores come out of a store of evaluations that all comparisons
share. What is spent is counted in sample evaluations as the search asks for them, known or not.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from tailorlib import Optimizer, Tailoring, Trial
from tailorlib.exceptions import TailorError
from tailorlib.fitness import Fitness
from tailorlib.optimizer import OPTIMIZERS
from tailorlib.registry import load_plugin
from tailorlib.scheduler import SCHEDULERS, Scheduler
from tailorlib.search.campaign import Campaign
from tailorlib.search_space import SearchSpace
from tailorlib.trial import incumbent

Starts = Sequence[tuple[str, Tailoring]]


@dataclass(frozen=True)
class Setting:
    """One search of a comparison.

    Args:
        optimizer: Its name, with settings after a colon: ``Nevergrad:optimizer=DE``.
        scheduler: The same of a scheduler; empty for none.
        start: ``cold``, or the name of a set of warm starts.
        space: Name of a search space.
        seed: The study's seed.
        budget: What may be spent, in evaluations on all samples.
    """

    optimizer: str
    scheduler: str = ""
    start: str = "cold"
    space: str = ""
    seed: int = 0
    budget: float = 100.0

    @property
    def label(self) -> str:
        """Optimizer, scheduler and start, for tables."""
        return " + ".join(part for part in (self.optimizer, self.scheduler, self.start) if part)


@dataclass(frozen=True)
class Step:
    """The best candidate from some point on.

    Args:
        spent: What had been spent when it was found, in evaluations on all samples.
        score: Its search score.
        tailoring: The candidate, as plain data.
    """

    spent: float
    score: float
    tailoring: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What one search found.

    Args:
        setting: The search.
        steps: Each candidate that was the best for a while.
        trials: Number of trials.
        thinking: Seconds of optimizer and scheduler.
    """

    setting: Setting
    steps: list[Step]
    trials: int
    thinking: float

    def at(self, spent: float) -> Step | None:
        """Return the best candidate when that much was spent."""
        return next((s for s in reversed(self.steps) if s.spent <= spent + 1e-9), None)


def plugin_of(spec: str, registry: Any, **defaults: Any) -> Any:
    """Return a plugin by name and settings, such as ``Nevergrad:optimizer=DE,budget=100``."""
    name, _, settings = spec.partition(":")
    pairs = (item.partition("=") for item in settings.split(",") if item)
    return registry.get(name)(**{**defaults, **{key: yaml.safe_load(value) for key, _, value in pairs}})


def optimizer_of(spec: str, budget: float) -> Optimizer:
    """Return an optimizer by name and settings; nevergrad's are told the budget."""
    defaults = {"budget": round(budget)} if spec.partition(":")[0] == "Nevergrad" else {}
    found: Optimizer = plugin_of(spec, OPTIMIZERS, **defaults)
    return found


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Add the option for a user's own optimizers and schedulers."""
    parser.add_argument("--plugins", nargs="*", default=[], help="files or modules with more optimizers")


def check_plugins(
    parser: argparse.ArgumentParser,
    plugins: Sequence[str],
    optimizers: Iterable[str],
    schedulers: Iterable[str] = (),
    budget: float = 100.0,
) -> None:
    """Load a user's plugins, and make each optimizer and scheduler once: what can't be is said at once."""
    try:
        for spec in plugins:
            load_plugin(spec)
        for spec in optimizers:
            optimizer_of(spec.removeprefix("!"), budget)
        for spec in filter(None, schedulers):
            plugin_of(spec, SCHEDULERS)
    except (TypeError, ValueError, TailorError) as error:
        parser.error(str(error))


def run_search(
    setting: Setting,
    space: SearchSpace,
    fitness: Fitness,
    score: Callable[[Tailoring, int], float],
    starts: Starts,
    *,
    dense: Tailoring | None = None,
    objectives: Callable[[Tailoring, int], dict[str, float]] | None = None,
    known_as: Setting | None = None,
) -> tuple[Found, list[Trial]]:
    """Search once.

    Args:
        setting: The search.
        space: Its space, set up.
        fitness: Says how many samples there are.
        score: Returns a candidate's score on a number of first samples.
        starts: Warm starts, already within the space.
        dense: The dense model, whose scores say how few samples compare with all.
        objectives: Returns the scores of several objectives, as ``score`` does.
        known_as: What the record calls it; ``setting`` by default.
    """
    samples = fitness.num_samples
    optimizer = optimizer_of(setting.optimizer, setting.budget)
    scheduler: Scheduler | None = plugin_of(setting.scheduler, SCHEDULERS) if setting.scheduler else None
    names = ("fitness",)
    if objectives is not None and dense is not None:
        names = tuple(objectives(dense, samples))  # type: ignore[assignment]
    optimizer.setup(space, setting.seed, names)
    if scheduler is not None:
        scheduler.setup(samples, fitness.min_samples, setting.budget)
    campaign = Campaign(space, optimizer, setting.budget, samples, scheduler, starts, setting.seed)
    if dense is not None and scheduler is not None:
        campaign.observe_dense(lambda n: score(dense, n))
    told: list[Trial] = []
    steps: list[Step] = []
    best: Trial | None = None
    thinking = 0.0
    while True:
        began = time.perf_counter()
        jobs = campaign.jobs(1)
        thinking += time.perf_counter() - began
        if not jobs:
            break
        (job,) = jobs
        tailoring = job.proposal.tailoring
        value = score(tailoring, job.samples)
        trial = Trial(
            len(told),
            job.proposal.params,
            tailoring,
            "complete",
            value,
            origin=job.proposal.origin,
            objectives={} if objectives is None else objectives(tailoring, job.samples),
            samples=job.samples,
            fidelity=job.samples / samples,
        )
        told.append(trial)
        began = time.perf_counter()
        campaign.tell([trial])
        thinking += time.perf_counter() - began
        before, best = best, incumbent([trial] if best is None else [best, trial])
        if best is not before and best is not None and best.fidelity == 1.0:
            steps.append(Step(campaign.spent, best.fitness or 0.0, best.tailoring.to_dict()))
    return Found(known_as or setting, steps, len(told), thinking), told


class Record:
    """What was found, in a file of JSON lines: a comparison that is interrupted goes on where it was.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def __iter__(self) -> Iterator[Found]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for line in lines:
            try:
                data = json.loads(line)
            except ValueError:  # torn by an interruption
                continue
            steps = [Step(**step) for step in data["steps"]]
            yield Found(Setting(**data["setting"]), steps, data["trials"], data["thinking"])

    def add(self, found: Found) -> None:
        """Keep a result; several processes may add at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def run_all(
    settings: Iterable[Setting],
    record: Record,
    work: Callable[[Setting], Found],
    processes: int,
    plugins: Sequence[str] = (),
) -> None:
    """Run the searches that a record does not have, in several processes; each adds to the record.

    Args:
        settings: The searches, in the order that they are begun.
        record: What is known, and where the rest goes.
        work: Runs one; a function at the top level of a module, as processes need it.
        processes: How many at once.
        plugins: Files or modules with more plugins.
    """
    known = {found.setting for found in record}
    missing = [setting for setting in settings if setting not in known]
    total = len(missing)
    print(f"{len(known)} searches are known, {total} to run", flush=True)
    began = time.perf_counter()
    context = get_context("spawn")
    with context.Pool(processes, _load, (tuple(plugins),)) as pool:
        for number, found in enumerate(pool.imap_unordered(work, missing), start=1):
            record.add(found)
            minutes = (time.perf_counter() - began) / 60
            last = found.steps[-1].score if found.steps else float("nan")
            what = f"{found.setting.label} {found.setting.space} seed {found.setting.seed}"
            left = f"{minutes:.1f} min, {minutes / number * (total - number):.0f} left"
            print(f"{number}/{total} {what}: {last:.4f}, {found.trials} trials; {left}", flush=True)


def _load(plugins: Sequence[str]) -> None:
    for spec in plugins:
        load_plugin(spec)


__all__ = [
    "Found",
    "Record",
    "Setting",
    "Step",
    "add_plugins",
    "check_plugins",
    "optimizer_of",
    "plugin_of",
    "run_all",
    "run_search",
]

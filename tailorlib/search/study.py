"""What a recipe asks for, as objects: the study's settings and everything the search works with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from tailorlib.compensation import Compensation, CompensationContext
from tailorlib.console import say, step
from tailorlib.evaluation.engine import Engine
from tailorlib.evaluation.overlap import overlap, shared_pieces
from tailorlib.exceptions import RecipeError, TailorError
from tailorlib.fitness import Fitness
from tailorlib.forks import staying
from tailorlib.limits import MEBIBYTES, SEEDS, Limits, limit_faults
from tailorlib.models.family import ModelFamily
from tailorlib.models.precision import DTYPES
from tailorlib.objective import Objective
from tailorlib.optimizer import Optimizer
from tailorlib.scheduler import Scheduler
from tailorlib.search.campaign import Campaign, check_capabilities
from tailorlib.search_space import SearchSpace
from tailorlib.tailoring import BASE, Tailoring
from tailorlib.warm_start import WarmStart, WarmStartContext

SHARED = 0.05
"""Part of the data from which on sharing is said: texts of one kind have some licences and idioms in common."""


@dataclass(frozen=True)
class StudySettings:
    """How long to search, and where the results go.

    Args:
        directory: The run folder: journal, resolved recipe, metrics, pictures and the model.
        trials: Number of candidates to evaluate, warm starts included. With a scheduler, which scores some on few
            samples, it is the budget in evaluations on all samples.
        seed: Seed of the optimizer and of every random mask.
        batch_size: Candidates asked for before any of them is told. With several devices they are evaluated
            side by side; any number of devices gives the same trials for the same batch size.
        existing: What to do with an earlier study in the folder: ``refuse``, ``archive`` (rename it), or
            ``resume`` (go on with it, if there is one: for schedulers that start a job again).
        export: Write the best model to ``DIRECTORY/model`` at the end.
        max_length: Longest sequence in tokens, as long as the model allows by default.
        tokens_per_batch: Tokens per forward pass; lower it when memory runs out.
        shards: Parts that the samples of a candidate are cut into, for several devices to work on one candidate.
            The last digits of a fitness depend on it; the number of devices changes nothing.
        prefix_cache_mib: Memory on the device for hidden states that candidates with the same lower layers share,
            in MiB; 0 to keep none.
        host_prefix_cache_mib: The same in the host's memory, for what has no room on an accelerator.
        max_failures: Stop when that many trials in a row fail.
        max_deaths: A candidate at which a process was killed so many times (for its memory, by a crash, or from
            outside) is a failed trial when the study is resumed.
        trial_seconds: Time limit of one candidate on one process, in seconds: what takes longer is a failed trial.
            Choose it generously, several times what ``tailor plan`` says: with it, trials depend on the clock.

    Raises:
        RecipeError: If a number is out of range.
    """

    directory: str = "runs/study"
    trials: int = 100
    seed: int = 0
    batch_size: int = 1
    existing: Literal["refuse", "archive", "resume"] = "refuse"
    export: bool = True
    max_length: int | None = None
    tokens_per_batch: int = 4096
    shards: int = 1
    prefix_cache_mib: int = 1024
    host_prefix_cache_mib: int = 4096
    max_failures: int = 10
    max_deaths: int = 2
    trial_seconds: float | None = None

    def __post_init__(self) -> None:
        faults = setting_faults(vars(self))
        if faults:
            raise RecipeError(faults)


_LIMITS: Limits = {
    "trials": (1, 10_000_000),
    "seed": SEEDS,
    "batch_size": (1, 1_000_000),
    "max_length": (2, 2**31 - 1),
    "tokens_per_batch": (1, 2**24),
    "shards": (1, 1_000_000),
    "prefix_cache_mib": MEBIBYTES,
    "host_prefix_cache_mib": MEBIBYTES,
    "max_failures": (1, 10_000_000),
    "max_deaths": (1, 10_000_000),
    "trial_seconds": (0.0, 365 * 86_400),
}
_OPTIONAL = {"max_length": "the models' own", "trial_seconds": "no limit"}
"""Settings that may be null, and what that means."""


def setting_faults(settings: Mapping[str, object]) -> list[str]:
    """Return a sentence for each number of a study's settings that is out of range; some may be missing."""
    given = {k: v for k, v in settings.items() if not (v is None and k in _OPTIONAL)}
    faults = []
    for name, limit in _LIMITS.items():
        hint = f" Leave it out for {_OPTIONAL[name]}." if name in _OPTIONAL else ""
        faults += [fault + hint for fault in limit_faults("study", given, {name: limit})]
    return faults


class Benchmark:
    """The final table: models compared on data that the search never saw.

    Args:
        fitness: How to score them. Leave it out for no table.
        baselines: Warm starts whose first proposal becomes a row.
        variants: Whether the best single candidate (by the search's fitness, whole) becomes a row.
    """

    def __init__(
        self, fitness: Fitness | None = None, baselines: list[WarmStart] | None = None, variants: bool = True
    ) -> None:
        self.fitness, self.baselines, self.variants = fitness, list(baselines or ()), variants


class Validation:
    """A guard against overfitting: the best candidate is scored on data that the search doesn't use.

    Args:
        fitness: How to score it. Leave it out for no validation.
        every: Number of trials from one validation to the next, at least; one is made when the best changed.
        patience: Stop the search after so many validations in a row that found no better score; ``None``: never.

    Raises:
        RecipeError: If a number is out of range.
    """

    def __init__(self, fitness: Fitness | None = None, every: int = 1, patience: int | None = None) -> None:
        faults = [] if every >= 1 else [f"validation.every is at least 1, got {every}."]
        if patience is not None and patience < 1:
            faults.append(f"validation.patience is at least 1, got {patience}. Leave it out to never stop.")
        if patience is not None and fitness is None:
            faults.append("validation.patience needs validation.fitness: there is nothing to watch.")
        if faults:
            raise RecipeError(faults)
        self.fitness, self.every, self.patience = fitness, every, patience


@dataclass(frozen=True)
class Study:
    """Everything that a recipe describes, ready to be used.

    Call :meth:`prepare` first; it reads no weights.
    """

    family: ModelFamily
    space: SearchSpace
    optimizer: Optimizer
    fitness: Fitness
    settings: StudySettings = field(default_factory=StudySettings)
    warm_starts: Sequence[WarmStart] = ()
    benchmark: Benchmark = field(default_factory=Benchmark)
    scheduler: Scheduler | None = None
    objectives: Sequence[Objective] = ()
    validation: Validation = field(default_factory=Validation)
    compensation: Compensation | None = None

    @property
    def directory(self) -> Path:
        """The run folder."""
        return Path(self.settings.directory)

    def prepare(self, device: torch.device, *, build: bool = True) -> Engine:
        """Check everything that can be checked, compile the data, and return the evaluation engine.

        Args:
            device: Where candidates are going to run.
            build: Whether the family may make, convert or fetch models; if not, :attr:`family` is only outlined.

        Raises:
            RecipeError: With all faults that were found.
        """
        faults: list[str] = []
        checked = self.fitnesses
        faults += _objective_faults(self.objectives)
        for section, fitness in checked.items():
            with _collect(faults, section):
                fitness.check()
        if self.compensation is not None:
            with _collect(faults, "compensation"):
                self.compensation.check()
        with _collect(faults, "family"):
            self.family.prepare() if build else self.family.outline()
            if self.compensation is not None:
                with _collect(faults, "compensation"):
                    self.compensation.check_family(self.family)
            with _collect(faults, "search_space"):
                self.space.setup(self.family.layout)
                with _collect(faults, "family"):
                    self.family.require(self.space.operations())
                with _collect(faults, "optimizer"):
                    self._check_optimizer()
                    self.start_optimizer()
        if faults:
            raise RecipeError(faults)
        engine = self._engine(device)
        with step("Tasks and texts compiled"):
            for section, fitness in checked.items():
                with _collect(faults, section):
                    fitness.setup(engine)
        if not faults and self.scheduler is not None:
            with _collect(faults, "scheduler"):
                self.start_scheduler()
        if faults:
            raise RecipeError(faults)
        self._warn_of_overlap()
        return engine

    @property
    def fitnesses(self) -> dict[str, Fitness]:
        """The fitnesses of the recipe, by section."""
        sections = {"fitness": self.fitness, "validation": self.validation.fitness}
        sections["benchmark"] = self.benchmark.fitness
        return {section: fitness for section, fitness in sections.items() if fitness is not None}

    def start_optimizer(self) -> None:
        """Set the optimizer up, anew if need be."""
        names = tuple(objective.name for objective in self.objectives) or ("fitness",)
        self.optimizer.setup(self.space, self.settings.seed, names)

    def start_scheduler(self) -> None:
        """Set the scheduler up, if there is one, anew if need be; the fitness is set up."""
        if self.scheduler is not None:
            self.scheduler.setup(self.fitness.num_samples, self.fitness.min_samples, self.settings.trials)

    def compensate(self, device: torch.device, score: Callable[[Tailoring], float]) -> None:
        """Gather what the compensation needs, if there is one; the family is loaded.

        Args:
            device: Where to compute.
            score: Returns the fitness of a tailoring; every rank calls it alike.
        """
        if self.compensation is not None:
            self.compensation.prepare(
                CompensationContext(self.family, device, self.space.most_removed, score, self.settings.seed)
            )

    def campaign(self, warm_starts: Iterable[tuple[str, Tailoring]] = (), *, compensated: bool = True) -> Campaign:
        """Return the course of this study from its beginning; the study is prepared.

        Args:
            warm_starts: Pairs (origin, tailoring) to try first.
            compensated: Whether candidates get their compensation, which is prepared then.
        """
        self.start_optimizer()
        self.start_scheduler()
        return Campaign(
            self.space,
            self.optimizer,
            self.settings.trials,
            samples=self.fitness.num_samples,
            scheduler=self.scheduler,
            warm_starts=warm_starts,
            seed=self.settings.seed,
            complete=None if self.compensation is None or not compensated else self.compensation.complete,
        )

    @property
    def dense(self) -> Tailoring:
        """The base model, whole."""
        return Tailoring.whole(BASE, self.family.layout.num_layers)

    def observe_dense(self) -> None:
        """Show the dense base model to every fitness that compares with it; the family is loaded."""
        for fitness in self.fitnesses.values():
            if fitness.needs_dense:
                with step("Outputs of the dense base model recorded"):
                    fitness.observe_dense(self.family.stitch(self.dense))

    def context(self, engine: Engine) -> WarmStartContext:
        """Return what warm starts may look at."""
        return WarmStartContext(self.family, self.space, engine, self.settings.seed)

    def _check_optimizer(self) -> None:
        check_capabilities(
            self.optimizer,
            self.space,
            batch_size=self.settings.batch_size,
            scheduler=self.scheduler is not None,
            objectives=len(self.objectives),
        )

    def _warn_of_overlap(self) -> None:
        """Say what the search shares with the data that is to judge it."""
        for section, fitness in self.fitnesses.items():
            shared = None if fitness is self.fitness else overlap(self.fitness, fitness)
            if shared is not None and shared.share >= SHARED:
                say(
                    f"[yellow]![/] {section}.fitness shares {shared.share:.0%} of its questions or documents with "
                    f"the search's fitness, such as {shared.example!r}: its figures will flatter the search. Use "
                    "another split or other tasks there."
                )

        known = () if self.compensation is None else self.compensation.fingerprints
        for section, fitness in self.fitnesses.items() if known else ():
            shared = shared_pieces(known, fitness.fingerprints)
            if shared.share >= SHARED:
                where = "fitness" if section == "fitness" else f"{section}.fitness"
                say(
                    f"[yellow]![/] compensation.calibration has {shared.share:.0%} of the questions or documents "
                    f"of {where}, such as {shared.example!r}: its figures will flatter what is compensated. Use "
                    "another split or other text there."
                )

    def _engine(self, device: torch.device) -> Engine:
        longest = getattr(self.family.config, "max_position_embeddings", None) or 2048
        return Engine(
            self.family.tokenizer,
            device=device,
            max_length=min(self.settings.max_length or longest, longest),
            tokens_per_batch=self.settings.tokens_per_batch,
            state_bytes=self.settings.prefix_cache_mib << 20,
            host_state_bytes=0 if device.type == "cpu" else self.settings.host_prefix_cache_mib << 20,
            bytes_per_token=int(self.family.config.hidden_size)
            * DTYPES.get(self.family.dtype, torch.bfloat16).itemsize,
        )


def _objective_faults(objectives: Sequence[Objective]) -> list[str]:
    names = [objective.name for objective in objectives]
    faults = [
        f"objectives have names of their own, got {n!r} twice." for n in sorted(set(names)) if names.count(n) > 1
    ]
    if len(names) == 1:
        faults.append(
            f"objectives are several, got {names[0]!r} alone. Leave the section out: the fitness is one."
        )
    return faults


@contextmanager
def _collect(faults: list[str], section: str) -> Iterator[None]:
    try:
        with staying():
            yield
    except TailorError as error:
        faults.extend(f"{section}: {fault}" for fault in error.faults)

"""What a recipe asks for, as objects: the study's settings and everything the search works with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from tailorlib.console import step
from tailorlib.evaluation.engine import Engine
from tailorlib.exceptions import RecipeError, TailorError
from tailorlib.fitness import Fitness
from tailorlib.models.family import ModelFamily
from tailorlib.models.precision import DTYPES
from tailorlib.optimizer import Optimizer
from tailorlib.search_space import SearchSpace
from tailorlib.tailoring import BASE, Tailoring
from tailorlib.warm_start import WarmStart, WarmStartContext


@dataclass(frozen=True)
class StudySettings:
    """How long to search, and where the results go.

    Args:
        directory: The run folder: journal, resolved recipe, metrics, pictures and the model.
        trials: Number of candidates to evaluate, warm starts included.
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

    def __post_init__(self) -> None:
        low = {"trials": 1, "seed": 0, "batch_size": 1, "tokens_per_batch": 1, "max_failures": 1, "shards": 1}
        low |= {"prefix_cache_mib": 0, "host_prefix_cache_mib": 0}
        faults = [
            f"study.{k} is at least {v}, got {getattr(self, k)}." for k, v in low.items() if getattr(self, k) < v
        ]
        if self.max_length is not None and self.max_length < 2:
            faults.append(f"study.max_length is at least 2, got {self.max_length}.")
        if faults:
            raise RecipeError(faults)


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

    @property
    def directory(self) -> Path:
        """The run folder."""
        return Path(self.settings.directory)

    def prepare(self, device: torch.device) -> Engine:
        """Check everything that can be checked, compile the data, and return the evaluation engine.

        Raises:
            RecipeError: With all faults that were found.
        """
        faults: list[str] = []
        checked = {"fitness": self.fitness}
        if self.benchmark.fitness is not None:
            checked["benchmark"] = self.benchmark.fitness
        for section, fitness in checked.items():
            with _collect(faults, section):
                fitness.check()
        with _collect(faults, "family"):
            self.family.prepare()
            with _collect(faults, "search_space"):
                self.space.setup(self.family.layout)
                with _collect(faults, "family"):
                    self.family.require(self.space.operations())
                with _collect(faults, "optimizer"):
                    self.optimizer.setup(self.space, self.settings.seed)
        if faults:
            raise RecipeError(faults)
        engine = self._engine(device)
        with step("Tasks and texts compiled"):
            for section, fitness in checked.items():
                with _collect(faults, section):
                    fitness.setup(engine)
        if faults:
            raise RecipeError(faults)
        return engine

    @property
    def dense(self) -> Tailoring:
        """The base model, whole."""
        return Tailoring.whole(BASE, self.family.layout.num_layers)

    def observe_dense(self) -> None:
        """Show the dense base model to every fitness that compares with it; the family is loaded."""
        for fitness in (self.fitness, self.benchmark.fitness):
            if fitness is not None and fitness.needs_dense:
                with step("Outputs of the dense base model recorded"):
                    fitness.observe_dense(self.family.stitch(self.dense))

    def context(self, engine: Engine) -> WarmStartContext:
        """Return what warm starts may look at."""
        return WarmStartContext(self.family, self.space, engine, self.settings.seed)

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


@contextmanager
def _collect(faults: list[str], section: str) -> Iterator[None]:
    try:
        yield
    except RecipeError as error:
        faults.extend(f"{section}: {fault}" for fault in error.faults)
    except TailorError as error:
        faults.append(f"{section}: {error}")

"""A run folder, read to be looked at: nothing in it is locked or changed, and whatever can be missing may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tailorlib.bounded import load_yaml
from tailorlib.exceptions import RecipeError, TailorError
from tailorlib.fitness import Measurement
from tailorlib.journal import Journal
from tailorlib.pareto import study_result
from tailorlib.report.names import clean
from tailorlib.report.table import BenchmarkRow, read_benchmark, table_cells
from tailorlib.run_lock import holder
from tailorlib.search_space import FamilyLayout
from tailorlib.tailoring import BASE, Tailoring
from tailorlib.trial import Trial

RECIPE, BENCHMARK = "recipe.yaml", "benchmark.json"
MOST_LAYERS = 1000
"""More layers than this no model has: the journal is not what it seems."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Args:
        folder: The folder.
        journal: Its record.
        recipe: Its recipe; what the journal keeps of it, where the file is missing.
        recipe_text: Text of the recipe file, or ``None``.
        benchmark: Rows of ``benchmark.json``, the dense model first; none without a benchmark.
        holder: Which process works on it now, or ``None``.
        remarks: What is missing or can't be read.
    """

    folder: Path
    journal: Journal
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str | None = None
    benchmark: Sequence[BenchmarkRow] = ()
    holder: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return clean(self.folder.resolve().name or self.folder)

    @property
    def trials(self) -> list[Trial]:
        """The trials in their order."""
        return self.journal.trials

    @property
    def validations(self) -> Mapping[int, Measurement]:
        """What validation found, by trial."""
        return {n: m for n, m in self.journal.validations.items() if self.trial(n) is not None}

    @cached_property
    def _by_number(self) -> dict[int, Trial]:
        return {trial.number: trial for trial in self.trials}

    def trial(self, number: int) -> Trial | None:
        """Return the trial of a number, or ``None`` if there is none."""
        return self._by_number.get(number)

    @cached_property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives; none where the fitness is the only one."""
        return next((tuple(t.objectives) for t in self.trials if t.objectives), ())

    @cached_property
    def best(self) -> Trial | None:
        """The study's result: best in validation, else of the best balance or the best fitness."""
        return study_result(self.trials, {n: m.score for n, m in self.validations.items()})

    @cached_property
    def layout(self) -> FamilyLayout | None:
        """The family's layout; for older journals as the trials let guess it, ``None`` where there are none."""
        return self.journal.header.layout or guessed_layout(self.trials, section(self.recipe, "family"))

    @cached_property
    def dense_fitness(self) -> float | None:
        """Fitness of the dense base model: 1 where the fitness is relative to it."""
        settings = section(self.recipe, "fitness").get("init_args")
        if isinstance(settings, Mapping) and settings.get("relative_to_dense") is True:
            return 1.0
        return None if self.journal.dense is None else self.journal.dense.score

    def retained(self, trial: Trial | None) -> float | None:
        """Return a trial's fitness as a share of the dense model's, if that is a meaningful ratio."""
        if trial is None or trial.fitness is None or not self.dense_fitness or self.dense_fitness < 0:
            return None
        return trial.fitness / self.dense_fitness

    def removed_parameters(self, tailoring: Tailoring) -> float | None:
        """Return which share of the dense base's parameters a tailoring does without, if the journal says."""
        sizes, whole = self.journal.header.layer_parameters, self.journal.header.parameters
        if not sizes or not whole:
            return None
        kept = [plan.sources[0].layer for plan in tailoring.layers]
        if max(kept) >= len(sizes):
            return None
        return (sum(sizes) - sum(sizes[i] for i in kept)) / whole

    @property
    def asked(self) -> int | None:
        """Number of trials asked for; with a scheduler the budget in evaluations on all samples."""
        trials = section(self.recipe, "study").get("trials")
        return trials if isinstance(trials, int) else None

    @property
    def has_scheduler(self) -> bool:
        """Whether candidates are scored on parts of the samples."""
        return bool(self.recipe.get("scheduler")) or any(t.fidelity < 1 for t in self.trials)

    @cached_property
    def spent(self) -> float:
        """What was spent, in evaluations on all samples; trials where nobody counted samples."""
        whole = next((t.samples / t.fidelity for t in self.trials if t.samples and t.fidelity), 0.0)
        if not whole or not self.has_scheduler:
            return float(len(self.trials))
        return sum(t.costs.get("samples", 0.0) for t in self.trials) / whole

    @property
    def state(self) -> str:
        """``running``, ``finished``, ``failed`` or ``interrupted``, as far as the record tells."""
        if self.holder is not None:
            return "running"
        sessions = self.journal.sessions
        ended = sessions[-1].get("ended") if sessions else None
        if isinstance(ended, Mapping):
            return clean(ended.get("how", "finished"))
        if self.asked is not None and self.spent >= self.asked:
            return "finished"
        if (self.folder / "tailoring.yaml").exists():  # written when a search ends
            return "finished"
        return "interrupted"

    @property
    def last_activity(self) -> str | None:
        """When something was last written, as the journal says; ``None`` for older journals."""
        times = [s.get("time") for s in self.journal.sessions]
        times += [s["ended"].get("time") for s in self.journal.sessions if isinstance(s.get("ended"), Mapping)]
        return max((clean(t) for t in times if t), default=None)


def read_run(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        JournalError: If it has no journal, or one that is damaged before its last line.
    """
    path, remarks = Path(folder), []
    journal = Journal.read(path)
    recipe: Mapping[str, Any] = journal.header.identity
    text = None
    try:
        text = (path / RECIPE).read_text(encoding="utf-8")
        data = load_yaml(text, f"The recipe {str(path / RECIPE)!r}")
        if not isinstance(data, Mapping):
            raise RecipeError(f"A recipe is a mapping of sections, got {type(data).__name__}.")
        recipe = data
    except FileNotFoundError:
        remarks.append(f"There is no {RECIPE}: what was asked is shown as far as the journal keeps it.")
    except (OSError, UnicodeDecodeError, RecipeError) as error:
        remarks.append(f"{RECIPE} can't be read, and the journal's part of it is shown: {clean(error)}")
    benchmark: list[BenchmarkRow] = []
    try:
        benchmark = read_benchmark(path / BENCHMARK) if (path / BENCHMARK).is_file() else []
        table_cells(benchmark) if benchmark else None  # rows of different benchmarks don't make a table
    except (TailorError, ValueError, ArithmeticError) as error:
        benchmark = []
        remarks.append(f"There is no benchmark table: {clean(error)}")
    return Run(path, journal, recipe, text, benchmark, holder(path), tuple(remarks))


def section(recipe: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a section of a recipe as a mapping; a class that is only named is one, too."""
    data = recipe.get(key)
    if isinstance(data, str):
        return {"class_path": data}
    return data if isinstance(data, Mapping) else {}


def class_text(data: Any) -> str:
    """Return the name of the class that a part of a recipe names, and its plain settings."""
    if isinstance(data, str):
        return clean(data.rpartition(".")[2])
    if not isinstance(data, Mapping) or "class_path" not in data:
        return "–" if data in (None, [], {}) else clean(data, 200)
    name = clean(str(data["class_path"]).rpartition(".")[2])
    settings = data.get("init_args")
    if not isinstance(settings, Mapping):
        return name
    plain = [f"{clean(k)} {clean(v, 60)}" for k, v in settings.items() if isinstance(v, str | int | float)]
    return f"{name} ({', '.join(plain)})" if plain else name


def guessed_layout(trials: list[Trial], family: Mapping[str, Any]) -> FamilyLayout | None:
    """Return the layout of a family as the layers and models let guess it that the trials use."""
    settings = family.get("init_args")
    given = settings if isinstance(settings, Mapping) else {}
    named: Mapping[str, Any] = next(
        (given[k] for k in ("candidates", "variants") if isinstance(given.get(k), Mapping)), {}
    )
    used = {s for t in trials for plan in t.tailoring.layers for s in plan.drawn}
    if not used:
        return None
    models = dict.fromkeys([str(m) for m in named] + sorted({s.model for s in used}))
    layers = 1 + max(s.layer for s in used)
    removed = [v for t in trials for v in _numbers(t.params.get("removed"))]
    layers = max([layers, *(1 + v for v in removed)])
    if layers > MOST_LAYERS:
        return None
    return FamilyLayout(tuple(m for m in models if m != BASE), layers, ("unknown",) * layers)


def _numbers(given: object) -> list[int]:
    return [v for v in given if isinstance(v, int)] if isinstance(given, tuple) else []

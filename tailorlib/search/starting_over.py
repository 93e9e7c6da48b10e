"""A study that starts over: the candidates of its earlier records, and the scores among them that still hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tailorlib.contents import Changes
from tailorlib.exceptions import JournalError
from tailorlib.journal import Journal
from tailorlib.journal_header import JournalHeader, identity_differences
from tailorlib.trial import Trial

UNSCORED = (
    "search_space",
    "optimizer",
    "scheduler",
    "warm_starts",
    "validation",
    "study.seed",
    "study.batch_size",
    "family.init_args.candidates",
)
"""Parts of a recipe that decide which candidates are proposed, and never what one of them scores."""


@dataclass(frozen=True)
class Earlier:
    """What a study has from its earlier records.

    Args:
        trials: One trial of each candidate, in the order in which they were first evaluated.
        kept: Trials whose scores hold for the present content, by candidate and number of samples.
    """

    trials: tuple[Trial, ...] = ()
    kept: Mapping[tuple[str, int], Trial] = field(default_factory=dict)

    @property
    def touched(self) -> int:
        """Number of candidates that have no score that holds."""
        held = {digest for digest, _ in self.kept}
        return sum(trial.tailoring.digest not in held for trial in self.trials)


def earlier_work(folder: Path, header: JournalHeader) -> Earlier:
    """Read the records that a study starts over from.

    Args:
        folder: The run folder.
        header: The header of its present record.

    Raises:
        JournalError: If a record is gone or damaged.
    """
    records: list[Journal] = []
    name, seen = header.continues, set[str]()
    while name is not None:
        if name in seen or Path(name).name != name:
            raise JournalError(f"A record starts over from another file of its folder, got {name!r}.")
        seen.add(name)
        records.append(Journal.read(folder, name))
        name = records[-1].header.continues
    trials: dict[str, Trial] = {}
    kept: dict[tuple[str, int], Trial] = {}
    for record in reversed(records):  # the oldest first
        changes = score_changes(record.header, header)
        for trial in record.trials:
            trials.setdefault(trial.tailoring.digest, trial)
            holds = changes is not None and not changes.touches(trial.tailoring)
            if holds and trial.fitness is not None:
                kept[trial.tailoring.digest, trial.samples] = trial
    return Earlier(tuple(trials.values()), kept)


def score_changes(old: JournalHeader, new: JournalHeader) -> Changes | None:
    """Return what changed of what scores depend on; ``None`` if no score of the old record holds."""
    if old.contents is None or new.contents is None:
        return None
    differences = identity_differences(old.identity, new.identity, contents_known=True)
    if any(not where.startswith(UNSCORED) for where in differences):
        return None
    return old.contents.changes(new.contents)

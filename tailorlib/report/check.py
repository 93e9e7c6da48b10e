"""The verb ``tailor check``: what of a run folder is damaged, and all that is sound of it kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.text import Text

from tailorlib.bounded import load_yaml, read_text
from tailorlib.console import emit, say
from tailorlib.exceptions import RecipeError, TailorError
from tailorlib.journal_repair import BESIDE, Checked, check_journal, check_lines
from tailorlib.journal_repair import repair as repair_file
from tailorlib.report.names import clean, ranges
from tailorlib.report.run import RECIPE
from tailorlib.run_lock import holder
from tailorlib.tailoring import Tailoring
from tailorlib.trial import Trial

MOST = 10
"""So many faults of a file are told one by one."""


def check(run: str, repair: bool = False) -> int:
    """Say what of a study's record is damaged, and keep all that is sound: `tailor check RUN [--repair]`.

    Args:
        run: The run folder.
        repair: Write damaged files anew from their sound lines; the damaged ones stay beside them.

    Returns:
        0 if all is sound or was repaired, 1 if something is damaged.

    Raises:
        JournalError: If the folder has no journal, or a repair can't be made.
    """
    folder = Path(run)
    found = [check_journal(folder)]
    found += [check_lines(path) for pattern in BESIDE for path in sorted(folder.glob(pattern))]
    damaged = [checked for checked in found if checked.faults]
    terms = sorted({term for trial in _trials(found[0]) for term in trial.tailoring.terms})
    texts = {**_texts(folder), **_term_faults(folder, terms)}
    at_work = holder(folder)
    for checked in found:
        _tell(checked)
    if terms and not any(term in texts for term in terms):
        say(Text.assemble(("✓ ", "green"), f"terms: {len(terms)} sound ones"))
    for name, fault in texts.items():
        say(Text.assemble(("✗ ", "red"), f"{name}: {clean(fault)}"))
    mended: list[Checked] = []
    if repair:
        mended = [checked for checked in damaged if _repair(folder, checked)]
    elif damaged and at_work is None:
        say(
            Text(
                f"Keep what is sound: tailor check {clean(run)} --repair. What is lost is made again at --resume."
            )
        )
    left = [str(c.path.name) for c in damaged if c not in mended] + list(texts)
    emit(
        "check",
        {
            "run": run,
            "holder": at_work,
            "sound": not damaged and not texts,
            "files": {c.path.name: {"lines": c.lines, "faults": c.faults, "remarks": c.remarks} for c in found},
            "texts": texts,
            "lost_trials": sorted(found[0].journal.lost) if found[0].journal is not None else [],
            "repaired": [checked.path.name for checked in mended],
        },
    )
    return 1 if left else 0


def _tell(checked: Checked) -> None:
    name = checked.path.name
    if not checked.faults:
        say(Text.assemble(("✓ ", "green"), f"{name}: {checked.lines} sound lines"))
    for fault in checked.faults[:MOST]:
        say(Text.assemble(("✗ ", "red"), f"{name}: {clean(fault, 500)}"))
    if len(checked.faults) > MOST:
        say(Text(f"  and {len(checked.faults) - MOST} more faults of {name}"))
    if checked.faults:
        say(Text(f"  {checked.lines} lines of it are sound"))
    for remark in checked.remarks:
        say(Text.assemble(("! ", "yellow"), f"{name}: {clean(remark)}"))
    if checked.journal is not None and checked.journal.lost:
        say(Text(f"  lost: the trials {ranges(checked.journal.lost)}; a resumed study makes them again"))


def _repair(folder: Path, checked: Checked) -> bool:
    name = checked.path.name
    if checked.content is None:
        say(Text.assemble(("✗ ", "red"), f"{name} can't be repaired: nothing says what study it is of."))
        return False
    backup = repair_file(folder, checked)
    kept = f"{checked.lines} lines kept" + (f"; what it was is {backup.name}" if backup.exists() else "")
    say(Text.assemble(("✓ ", "green"), f"{name} is repaired: {kept}"))
    return True


def _texts(folder: Path) -> dict[str, str]:
    """Return what is wrong with the texts of a run that are read again, by name."""
    readers: dict[str, Callable[[Path], object]] = {
        RECIPE: lambda path: _mapping(load_yaml(read_text(path, "recipe"), "The recipe")),
        "tailoring.yaml": Tailoring.load,
    }
    faults = {}
    for name, read in readers.items():
        try:
            if (folder / name).exists():
                read(folder / name)
        except TailorError as error:
            faults[name] = str(error)
    if not (folder / RECIPE).exists():
        faults[RECIPE] = "It is missing: a study is resumed with --config RECIPE then."
    return faults


def _trials(checked: Checked) -> Sequence[Trial]:
    return () if checked.journal is None else checked.journal.trials


def _term_faults(folder: Path, terms: Sequence[str]) -> dict[str, str]:
    """Return what is wrong with the terms that a run's candidates need, by name."""
    if not terms:
        return {}
    from tailorlib.models.terms import FOLDER, TermFiles  # it takes torch

    files, faults = TermFiles(folder / FOLDER), {}
    for term in terms:
        try:
            files.check(term)
        except TailorError as error:
            faults[term] = str(error)
    return faults


def _mapping(data: object) -> None:
    if not isinstance(data, dict):
        raise RecipeError(f"A recipe is a mapping of sections, got {type(data).__name__}.")

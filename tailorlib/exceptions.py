"""Errors that a user can mend.

Each message names the rule, what was given, and the remedy. The command line prints such an error without a
traceback and exits with status 2; anything else is a defect of the library and keeps its traceback.
"""

from __future__ import annotations

import difflib
import reprlib
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path


class TailorError(Exception):
    """Base of every error that a user's input can cause.

    Args:
        faults: One sentence, or one per fault: rule, what was given, remedy. They become one message.
    """

    status = 2
    """What the command line exits with."""
    _several = "There are {} faults"

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = (faults,) if isinstance(faults, str) else tuple(faults)
        if len(self.faults) == 1:
            super().__init__(self.faults[0])
        else:
            lines = "\n".join(f"  {i}. {fault}" for i, fault in enumerate(self.faults, start=1))
            super().__init__(f"{self._several.format(len(self.faults))}:\n{lines}")


class RecipeError(TailorError):
    """One or more faults of a recipe, collected into one message."""

    _several = "The recipe has {} faults"


class PluginError(TailorError):
    """A plugin that is unknown, collides with another, or breaks its contract."""


class ModelError(TailorError):
    """A model, adapter or checkpoint that is missing, broken, or does not belong to the family."""


class DataError(TailorError):
    """A text or task that is missing, empty, or malformed."""


class JournalError(TailorError):
    """A study record that is damaged, in use, or belongs to another recipe."""


class EvaluationError(TailorError):
    """An evaluation that gave no usable number."""


class LostRankError(TailorError):
    """Another process of a search is gone."""

    status = 1


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or the list of known names.

    Args:
        name: What was given.
        known: The names that would have been accepted.
    """
    known = sorted(known)
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {by_lower[close[0]]!r}?"
    return f" Known: {', '.join(known)}." if known else " None is known."


def listed(names: Iterable[object], most: int = 20) -> str:
    """Return names as a message lists them: the first ones, and how many more there are."""
    every = [name if isinstance(name, str) and name.isprintable() else shown(name) for name in names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return (", ".join(every[:most]) or "none") + more


def error_text(error: BaseException) -> str:
    """Return the message of an error of anybody's class, as UTF-8 can hold it."""
    try:
        return str(error).encode("utf-8", "backslashreplace").decode("utf-8")
    except Exception:
        return f"(the message of this {type(error).__name__} can't be shown: its __str__ raises)"


def one_line(error: BaseException) -> str:
    """Return an error as one line without a full stop: its kind, and what it says."""
    text = " ".join(error_text(error).split())[:500].rstrip(".")
    return f"{type(error).__name__}{f': {text}' if text else ''}"


def told(error: BaseException) -> str:
    """Return an error as one line: its kind, what it says, and file and line where it comes from a user's code."""
    own = own_frames(error)
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{one_line(error)}{where}."


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an error that lie in code of the user's: neither installed packages nor tailorlib."""
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).parent)
    return [
        f for f in frames if not f.filename.startswith((here, "<")) and not any(o in f.filename for o in _OTHERS)
    ]


def where_raised(error: BaseException, most: int = 3) -> str:
    """Return an error's innermost frames in parentheses: file, line, function, code; of a user's code if any."""
    frames = own_frames(error) or traceback.extract_tb(error.__traceback__)
    told_frames = [
        f"{Path(f.filename).name}, line {f.lineno}, in {f.name}: {(f.line or '').strip()[:100]}"
        for f in reversed(frames[-most:])
    ]
    return f" ({'; called from '.join(told_frames)})" if told_frames else ""


_OTHERS = ("site-packages", "/lib/python", "/tailorlib_strategies/")


class _Short(reprlib.Repr):
    """Writes a few levels and items of anything, so that what is huge or contains itself costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple, self.maxstring = 4, 8, 8, 8, 120

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 256 else f"a whole number of {x.bit_length()} bits"


_SHORT = _Short()


def shown(data: object) -> str:
    """Return data as a message shows it: in at most 200 characters, with control characters escaped."""
    text = _SHORT.repr(data)
    return text if len(text) <= 200 else text[:200] + " ..."

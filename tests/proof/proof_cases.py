"""Classes of faults: lists of cases, each of which breaks something and checks what came of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from proof_bench import Bench


@dataclass(frozen=True)
class Case:
    """Some faults of one kind.

    Args:
        name: Names it, and is the same in every run.
        check: Makes the faults in an empty folder; raises whatever if tailorlib does something wrong.
        faults: How many there are.
    """

    name: str
    check: Callable[[Path], None]
    faults: int = 1


class FaultClass(ABC):
    """A kind of faults.

    Args:
        bench: Files that all cases share.
    """

    name: ClassVar[str]
    checked: ClassVar[str]
    """What is checked, for the table."""
    in_process: ClassVar[bool] = True
    """Whether the cases start no processes, so that a few are tests of their own."""
    seconds: ClassVar[float] = 120.0
    """What a case may take, on a busy machine."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    @abstractmethod
    def cases(self) -> Sequence[Case]:
        """Return the cases, always the same."""


def spread(items: Sequence[Case], count: int | None) -> list[Case]:
    """Return some items, evenly from the first to the last; all if there is no count."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]

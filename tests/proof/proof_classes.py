"""Every class of faults."""

from __future__ import annotations

from proof_cases import FaultClass
from proof_interruptions import Disks, Kills, Signals
from proof_journals import JournalFaults, KeptResults

CLASSES: dict[str, type[FaultClass]] = {
    cls.name: cls for cls in (Kills, JournalFaults, KeptResults, Disks, Signals)
}
"""By name, in the order of the table."""

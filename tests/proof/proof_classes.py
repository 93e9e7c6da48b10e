"""Every class of faults."""

from __future__ import annotations

from proof_cases import FaultClass
from proof_changes import Changes
from proof_injections import Injections
from proof_interruptions import Disks, Kills, Signals
from proof_journals import JournalFaults, KeptResults
from proof_models import Models
from proof_plugins import Plugins
from proof_recipes import Recipes

CLASSES: dict[str, type[FaultClass]] = {
    cls.name: cls
    for cls in (Kills, JournalFaults, KeptResults, Disks, Models, Recipes, Plugins, Signals, Injections, Changes)
}
"""By name, in the order of the table."""

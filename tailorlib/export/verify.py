"""Verification: an exported folder, loaded as anybody would load it, is held against the live stitched model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tailorlib.escaping import visible
from tailorlib.exceptions import TailorError
from tailorlib.export.checks import CHECKS, DifferenceError, Subject
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Check:
    """One thing that was compared and found equal.

    Args:
        name: What was compared.
        finding: What was found, in a few words.
    """

    name: str
    finding: str


@dataclass(frozen=True)
class VerifyReport:
    """What :func:`verify_export` compared; a report exists only if everything was as it should be.

    Args:
        folder: The exported model.
        checks: The comparisons, in order.
        seconds: Wall time of all of them.
    """

    folder: Path
    checks: tuple[Check, ...]
    seconds: float

    def table(self) -> Table:
        """Return the report as a table for the terminal."""
        title = Text(visible(f"Verified {self.folder} in {self.seconds:.1f} s"))
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("check", no_wrap=True)
        table.add_column("found", overflow="fold")
        for check in self.checks:
            table.add_row(Text(visible(check.name)), Text.assemble(("✓ ", "green"), visible(check.finding)))
        return table


def verify_export(
    family: ModelFamily, tailoring: Tailoring, folder: str | Path, *, device: torch.device | None = None
) -> VerifyReport:
    """Check that an exported folder is the tailored model, to the bit.

    Every tensor of the files is compared with the one that the tailoring makes; the config with the one that
    transformers writes; logits of the reloaded model with those of the live stitched one, in float32 and in the
    stored data type, on one device; generation with a KV cache with generation without; tied weights, number of
    parameters and tokenizer.

    Args:
        family: The family that the model was exported from, prepared.
        tailoring: What was exported.
        folder: The exported model.
        device: Where models run; if ``None``, the family's device, or the CPU if it isn't loaded.

    Returns:
        What was compared.

    Raises:
        ModelError: If the tailoring doesn't fit the family.
        TailorError: At the first check that fails, with its name and the difference.
    """
    family.check(tailoring)
    subject = Subject(family, tailoring, Path(folder).expanduser().absolute(), device or family.device or CPU)
    start = time.perf_counter()
    checks = []
    for name, check in CHECKS.items():
        try:
            checks.append(Check(name, check(subject)))
        except DifferenceError as difference:
            raise TailorError(
                f"The export in {str(subject.folder)!r} is not the model that it should be: {name}: {difference}. "
                "Export it again."
            ) from difference
    return VerifyReport(subject.folder, tuple(checks), time.perf_counter() - start)

"""Bridge and OutputMap: every gap is bridged by a term of the layer below it, in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from tailorlib import Tailoring
from tailorlib.calibration.gather import BridgeTable, Form, Job, bridge_table, footprint
from tailorlib.calibration.mixture import Calibration
from tailorlib.compensation import CompensationContext, seams
from tailorlib.exceptions import PluginError
from tailorlib.models.family import ModelFamily
from tailorlib.models.precision import gemm_seconds
from tailorlib_strategies.compensations.taught import AUTO, Taught


class Tabled(Taught):
    """A compensation that takes what belongs to a gap from a table of all gaps, gathered before the search."""

    _form: ClassVar[Form] = "inner"

    def __init__(self, calibration: Calibration, teacher: str = AUTO) -> None:
        super().__init__(calibration, teacher)
        self._table: BridgeTable | None = None
        self._num_layers = 0

    @property
    def table(self) -> BridgeTable:
        """All gaps, after :meth:`prepare`."""
        if self._table is None:
            raise PluginError(f"{type(self).__name__} is used before prepare(context).")
        return self._table

    def prepare(self, context: CompensationContext) -> None:
        """Choose the teacher, and gather the table unless the cache has it."""
        lesson = self.lesson(context)
        job = Job(
            context.family,
            lesson.teacher,
            lesson.rows,
            context.longest,
            context.device,
            dtype=lesson.dtype,
            form=self._form,
        )
        self._table = bridge_table(job)
        self._num_layers = context.family.layout.num_layers

    def complete(self, tailoring: Tailoring) -> Tailoring:
        """Return a tailoring with a term over each gap that has a layer below it."""
        table, layers = self.table, list(tailoring.layers)
        for seam in seams(tailoring, self._num_layers):
            if table.has(seam.layer, seam.above):
                layers[seam.plan] = replace(layers[seam.plan], terms=table.terms(seam.layer, seam.above))
        return replace(tailoring, layers=tuple(layers))

    def costs(self, family: ModelFamily, longest: int) -> Sequence[str]:
        """Return disk, memory and time of the table, from shapes and the device's rate of matrix products."""
        found = footprint(family, self.calibration.tokens, longest)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        seconds = found.operations / (2 * 768**3) * gemm_seconds(torch.float32, device)
        disk, memory = found.disk_bytes / 1e9, found.memory_bytes / 1e9
        return (
            f"{disk:.2f} GB in the cache, and {memory:.2f} GB of memory for a while",
            f"about {max(1, round(seconds / 60))} min for {self.calibration.tokens:,} tokens, once",
        )

    def facts(self) -> Mapping[str, Any]:
        """Return the teacher, the fitness of those that were compared, and the number of tokens."""
        return {**super().facts(), "table": self.table.name}


class Bridge(Tabled):
    """Adds to the MLP below each gap what the missing layers added to the stream, as far as it shows there.

    With the stream H and the MLP's inner activations Z of a full-depth teacher on calibration text, the last kept
    layer l below a gap up to layer m gets the ridge regression of ``H_m - H_{l+1}`` on ``Z_l`` as a further term
    of its MLP's output matrix. No parameter is added, nothing is trained, and a bridge depends on (teacher, text,
    l, m) alone: all are gathered once, before the search.

    Args:
        calibration: The text, in domains.
        teacher: ``auto`` for the fittest of base, variants and merges of all variants; ``merge`` for the fittest
            merge; or a model's name.
    """


class OutputMap(Tabled):
    """Maps the output of the MLP below each gap to what the missing layers added to the stream.

    The least-squares form of ReplaceMe (arXiv 2505.02819), with the ridge of :class:`Bridge`: the correction is
    ``M W`` with a matrix M [d, d] and the MLP's output matrix W, so it sees d numbers of a token, and a bridge all
    of the MLP's inner ones. It is there to compare with.

    Args:
        calibration: The text, in domains.
        teacher: As of :class:`Bridge`.
    """

    _form = "outputs"

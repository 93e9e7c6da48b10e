"""Refit: the kept layers of one candidate are corrected in order, each on the stream that it really gets."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Literal

from tailorlib import Tailoring
from tailorlib.calibration.mixture import Calibration
from tailorlib.calibration.refit import RefitJob, Refitting
from tailorlib.compensation import CompensationContext
from tailorlib.exceptions import PluginError
from tailorlib.export.command import foreign_modules
from tailorlib.models.digests import model_contents
from tailorlib.models.terms import save_terms, stored_terms
from tailorlib.plugin_sources import source_of
from tailorlib.tailoring import BASE
from tailorlib_strategies.compensations.taught import AUTO, Lesson, Taught

FORMAT = 1


class Refit(Taught):
    """Corrects the attention's and the MLP's output matrix of every kept layer, from the bottom up.

    Each correction is a ridge regression on what the candidate itself computes there, towards the stream of a
    full-depth teacher: behind the attention, then where the next kept layer reads. It takes minutes a
    candidate, and is worth as much again as bridges: for the best few at the end, with ``tailor compensate``.

    Args:
        calibration: The text, in domains.
        teacher: As of :class:`Bridge`.
        layers: ``all`` the kept layers, or only those below ``gaps``.
        attention: Whether the attention's output matrix is corrected, too.
    """

    per_candidate = False

    def __init__(
        self,
        calibration: Calibration,
        teacher: str = AUTO,
        layers: Literal["all", "gaps"] = "all",
        attention: bool = True,
    ) -> None:
        super().__init__(calibration, teacher)
        self.layers, self.attention = layers, attention
        self._context: CompensationContext | None = None
        self._lesson: Lesson | None = None

    def prepare(self, context: CompensationContext) -> None:
        """Choose the teacher."""
        self._lesson, self._context = self.lesson(context), context

    def complete(self, tailoring: Tailoring) -> Tailoring:
        """Return a tailoring with its corrections; they lie in the cache."""
        if self._lesson is None or self._context is None:
            raise PluginError("Refit is used before prepare(context).")
        job = RefitJob(
            self._context.family,
            tailoring.bare,
            self._lesson.teacher,
            self._lesson.rows,
            self._context.device,
            dtype=self._lesson.dtype,
            everything=self.layers == "all",
            attention=self.attention,
        )
        name = f"Refit-{_digest(job)[:16]}"
        terms = stored_terms(name) or save_terms(name, Refitting(job)())
        layers = [
            replace(plan, terms=tuple((suffix, f"{name}/{i}") for suffix in terms.get(i, ())))
            for i, plan in enumerate(tailoring.layers)
        ]
        return replace(tailoring, layers=tuple(layers))


def _digest(job: RefitJob) -> str:
    """Return a digest of all that decides the corrections."""
    family = job.family
    models = sorted({BASE, *job.teacher.models, *job.tailoring.models})
    content = {
        "format": FORMAT,
        "models": {name: model_contents(family.sources[name]) for name in models},
        "plugins": dict(filter(None, map(source_of, sorted(foreign_modules(job.tailoring))))),
        "tailoring": job.tailoring.digest,
        "teacher": job.teacher.digest,
        "fit": job.rows.fit,
        "held": dict(job.rows.held),
        "dtype": str(job.dtype),
        "everything": job.everything,
        "attention": job.attention,
        "ridges": job.ridges,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

"""Rehearsal: a study's optimizer on a made-up landscape, to see what its candidates will have in common.

How much of a trial the caches save depends on the optimizer: one that changes a layer of the best candidate at a
time repeats most of the layers below, one that jumps repeats nothing. The rehearsal asks the study's own optimizer
for candidates, tells it made-up fitness, and leads them through caches of the real size that hold nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch

from tailorlib.evaluation.states import Reuse, Splice, StateCache, stride_for
from tailorlib.models.layer_cache import LayerCache, LayerModules
from tailorlib.search.campaign import Job
from tailorlib.search.study import Study
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import LayerPlan, Tailoring
from tailorlib.trial import Trial, incumbent

_PIECES = 8
"""Number of batches that the tokens are thought to be in."""


@dataclass(frozen=True)
class Step:
    """One trial of a rehearsal.

    Args:
        tailoring: The candidate.
        layers_run: Number of layers that have to run.
        merged: Layers that have to be merged.
        share: Share of the samples that are scored.
    """

    tailoring: Tailoring
    layers_run: float
    merged: tuple[LayerPlan, ...]
    share: float = 1.0


def rehearse(study: Study, trials: int, dtype: torch.dtype) -> list[Step]:
    """Return what the first trials of a study would have to compute, warm starts left out.

    Args:
        study: A prepared study. Its optimizer is set up anew before and after.
        trials: How many trials to rehearse.
        dtype: Data type that the study computes in.
    """
    settings, told = study.settings, list[Trial]()
    every = study.fitness.num_samples
    campaign, landscape, caches = study.campaign(compensated=False), _Landscape(study), _Caches(study, dtype)
    steps: list[Step] = []
    while len(steps) < trials and (jobs := campaign.jobs(min(settings.batch_size, trials - len(steps)))):
        best = incumbent(told)
        steps += caches.run(jobs, None if best is None else best.tailoring, every)
        done = [_trial(len(told) + i, job, landscape, every) for i, job in enumerate(jobs)]
        told += done
        campaign.tell(done)
    study.start_optimizer()
    study.start_scheduler()
    return steps


class _Caches:
    """The caches of a study, filled with tensors that have a size and no memory."""

    def __init__(self, study: Study, dtype: torch.dtype) -> None:
        family, settings = study.family, study.settings
        self.assembly, self.itemsize = family.assembly, dtype.itemsize
        self.footprint = study.fitness.tokens * int(family.config.hidden_size) * dtype.itemsize
        nowhere = torch.device("meta")
        self.states = StateCache(
            nowhere,
            settings.prefix_cache_mib << 20,
            0,  # what the host holds has to travel; it is left out
        )
        self.piece = torch.empty(math.ceil(self.footprint / _PIECES), dtype=torch.uint8, device=nowhere)
        self.first: dict[tuple[int, int], int] = {}
        self.merged: LayerCache[tuple[LayerPlan, int]] = LayerCache(family.merge_cache_mib << 20)

    def run(self, jobs: Sequence[Job], best: Tailoring | None, samples: int) -> Iterator[Step]:
        for job in sorted(jobs, key=lambda job: job.proposal.tailoring.prefixes):
            tailoring, span = job.proposal.tailoring, (job.known, job.samples)
            self.states.protect(best.prefixes if best is not None else ())
            run, merged = self._layers_run(tailoring, span), tuple(self._merges(tailoring))
            yield Step(tailoring, run, merged, (job.samples - job.known) / samples)

    def _layers_run(self, tailoring: Tailoring, span: tuple[int, int]) -> float:
        first = self.first.setdefault(span, _PIECES * len(self.first))  # other samples have other hidden states
        layers = len(tailoring.layers)
        if self.piece.nbytes > self.states.budget or not self.footprint:
            return layers
        stride = stride_for(layers, self.footprint, self.states.budget)
        reuse = Reuse(self.states, tailoring.prefixes, (), stride)
        for serial in range(first, first + _PIECES):
            splice = reuse.splice(serial)
            found = dict.fromkeys(splice.wanted, self.piece)
            reuse.keep(serial, 1, Splice(splice.start, None, splice.wanted, found))
        return reuse.work.run / _PIECES

    def _merges(self, tailoring: Tailoring) -> Iterator[LayerPlan]:
        plans = {(plan, tailoring.seed): plan for plan in tailoring.layers if not plan.is_selection}
        self.merged.expect(plans.keys())
        for key, plan in plans.items():
            if self.merged.get(key) is None:
                size = self.itemsize * sum(prod(shape) for _, shape, _ in self.assembly.layer_shapes(plan))
                tensor = torch.empty(size, dtype=torch.uint8, device="meta")
                self.merged.put(key, LayerModules({"all": tensor}))
                yield plan


class _Landscape:
    """A fitness to which every layer, source and merge adds its part."""

    def __init__(self, study: Study) -> None:
        self._seed = study.settings.seed
        self._names = [objective.name for objective in study.objectives]

    def fitness(self, tailoring: Tailoring) -> float:
        """Return a made-up fitness; kept layers are worth about ten times as much as what they are made of."""
        worth = 0.0
        for plan in tailoring.layers:
            worth += numpy_generator("rehearsal", self._seed, plan.sources[0].layer).exponential()
            worth += 0.1 * numpy_generator("rehearsal", self._seed, plan.digest).normal()
        return worth

    def objectives(self, tailoring: Tailoring) -> dict[str, float]:
        """Return made-up scores of the objectives."""
        return {
            name: self.fitness(tailoring) + numpy_generator(name, tailoring.digest).normal()
            for name in self._names
        }


def _trial(number: int, job: Job, landscape: _Landscape, samples: int) -> Trial:
    proposal = job.proposal
    return Trial(
        number,
        proposal.params,
        proposal.tailoring,
        "complete",
        landscape.fitness(proposal.tailoring),
        objectives=landscape.objectives(proposal.tailoring),
        samples=job.samples,
        fidelity=job.samples / samples,
    )

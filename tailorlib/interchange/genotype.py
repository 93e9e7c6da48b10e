"""Genotypes of the GPTailor paper's code (github.com/Guinan-Su/auto-merge-llm): a search result as flat JSON.

``remove_idx_n`` are the removed layers, in any order. For each kept layer i of the base, ``layer_i_candidate_j``
says whether candidate j contributes: none means the base's layer, one that candidate's, several the base's plus
``layer_i_merge_scale_factor`` times the sum of their task vectors. ``layer_i_output_scale`` is searched there and
never applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard

from tailorlib.exceptions import RecipeError, shown
from tailorlib.interchange.configuration import MAX_LAYERS
from tailorlib.interchange.imported import Imported, family_names
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Owner, PartPlan, Tailoring

_N = r"(0|[1-9]\d{0,5})"
KEY = re.compile(rf"remove_idx_{_N}|layer_{_N}_(?:candidate_{_N}|merge_scale_factor|output_scale)")
"""What a genotype's keys look like."""


def from_genotype(
    data: object,
    *,
    base: str,
    candidates: Sequence[str],
    num_layers: int,
    legacy_base_index: bool = False,
) -> Imported:
    """Read a genotype.

    As there, the embeddings are made like the first kept layer, norm and head like the last one.

    Args:
        data: The genotype as plain data.
        base: Reference of the base model.
        candidates: References of the candidates, in the order of the search.
        num_layers: Number of layers of each.
        legacy_base_index: Take task vectors as the paper's code does: against the base's layer of the number that
            the layer has in the output. It is another layer as soon as one below is removed. By default they are
            taken against the base's layer of the sources' number. With n sources and a scale of 1/n it makes no
            difference.

    Raises:
        RecipeError: With every fault.
    """
    faults = _model_faults(base, candidates, num_layers)
    if not isinstance(data, Mapping):
        faults.append(f"A genotype is a mapping of numbers by name, got {shown(data)}.")
    if faults or not isinstance(data, Mapping):
        raise RecipeError(faults)
    genotype = _Genotype(data, num_layers, len(candidates))
    if genotype.faults:
        raise RecipeError(genotype.faults)
    names = family_names(base, candidates)
    models = [names[reference] for reference in candidates]
    plans = [
        _plan([models[j] for j in genotype.chosen(i)], i, new if legacy_base_index else i, genotype.scale(i))
        for new, i in enumerate(genotype.kept)
    ]
    first, last = _owner(plans[0]), _owner(plans[-1])
    tailoring = Tailoring(tuple(plans), embeddings=first, norm=last, head=last)
    notes = _notes(genotype, legacy_base_index)
    return Imported(tailoring, base, {names[reference]: reference for reference in candidates}, notes)


class _Genotype:
    """A genotype's numbers, checked."""

    def __init__(self, data: Mapping[object, object], num_layers: int, candidates: int) -> None:
        self.data, self.num_layers, self.candidates = data, num_layers, candidates
        self.faults: list[str] = []
        matches = {key: KEY.fullmatch(key) for key in data if isinstance(key, str)}
        unknown = [shown(key) for key in data if not isinstance(key, str) or matches[key] is None]
        if unknown:
            self.faults.append(
                "A genotype has the keys remove_idx_n, layer_i_candidate_j, layer_i_merge_scale_factor and "
                f"layer_i_output_scale; got also {_listed(unknown)}."
            )
        known = [match for match in matches.values() if match is not None]
        removed = self._removed({int(match[1]): data[match[0]] for match in known if match[1] is not None})
        self.kept = [i for i in range(num_layers) if i not in removed]
        layers = [match for match in known if match[2] is not None]
        self._check_indices(layers)
        self._check_values([m for m in layers if int(m[2]) in set(self.kept)])
        if not self.kept:
            self.faults.append(f"A genotype keeps at least one layer, got all {num_layers} removed.")

    def chosen(self, layer: int) -> list[int]:
        """Return the candidates that contribute to a kept layer."""
        return [j for j in range(self.candidates) if self.data[f"layer_{layer}_candidate_{j}"]]

    def scale(self, layer: int) -> float:
        """Return the scale of a kept layer's merge."""
        value = self.data.get(f"layer_{layer}_merge_scale_factor", 1.0)
        return float(value) if _is_number(value) else 1.0

    def output_scales(self) -> list[int]:
        """Return the kept layers that have an output scale other than 1."""
        return [i for i in self.kept if self.data.get(f"layer_{i}_output_scale", 1) != 1]

    def _removed(self, found: Mapping[int, object]) -> set[int]:
        if sorted(found) != list(range(len(found))):
            self.faults.append(f"The keys remove_idx_n count from 0, got n = {_listed(sorted(found))}.")
        wrong = [v for v in found.values() if not _is_number(v) or v not in range(self.num_layers)]
        if wrong:
            self.faults.append(
                f"A removed layer is one of 0 to {self.num_layers - 1}, got {_listed(map(shown, wrong))}."
            )
        removed = [int(v) for v in found.values() if _is_number(v)]
        twice = sorted({i for i in removed if removed.count(i) > 1})
        if twice:
            self.faults.append(f"A layer is removed once, got {_listed(twice)} several times.")
        return set(removed)

    def _check_indices(self, layers: Sequence[re.Match[str]]) -> None:
        high = sorted({int(m[2]) for m in layers if int(m[2]) >= self.num_layers})
        if high:
            self.faults.append(f"The models have {self.num_layers} layers, the genotype names {_listed(high)}.")
        beyond = sorted({int(m[3]) for m in layers if m[3] is not None and int(m[3]) >= self.candidates})
        if beyond:
            self.faults.append(
                f"{self.candidates} candidates are given, numbered from 0; the genotype names {_listed(beyond)}. "
                "Give all candidates of the search, in its order."
            )
        wanted = {f"layer_{i}_candidate_{j}" for i in self.kept for j in range(self.candidates)}
        lacking = sorted(
            wanted - set(map(str, self.data)), key=lambda key: [int(n) for n in re.findall(r"\d+", key)]
        )
        if lacking:
            self.faults.append(
                f"Every kept layer says which candidates contribute; lacking are {_listed(lacking)}."
            )

    def _check_values(self, layers: Sequence[re.Match[str]]) -> None:
        pairs = [(m, self.data[m[0]]) for m in layers]
        flags = [f"{m[0]}: {shown(v)}" for m, v in pairs if m[3] is not None and not _is_flag(v)]
        numbers = [f"{m[0]}: {shown(v)}" for m, v in pairs if m[3] is None and not _is_number(v)]
        if flags:
            self.faults.append(f"A candidate contributes (1) or not (0), got {_listed(flags)}.")
        if numbers:
            self.faults.append(f"Scales are finite numbers, got {_listed(numbers)}.")


def _plan(models: Sequence[str], layer: int, base_layer: int, scale: float) -> LayerPlan:
    if len(models) < 2:
        return LayerPlan((LayerSource(models[0] if models else BASE, layer),))
    sources = tuple(LayerSource(model, layer) for model in models)
    return LayerPlan(sources, "TaskArithmetic", (("scale", scale),), LayerSource(BASE, base_layer))


def _owner(plan: LayerPlan) -> Owner:
    models = tuple(source.model for source in plan.sources)
    return models[0] if len(models) == 1 else PartPlan(models, plan.operation, plan.params, BASE)


def _notes(genotype: _Genotype, legacy_base_index: bool) -> tuple[str, ...]:
    notes = []
    scaled = genotype.output_scales()
    if scaled:
        notes.append(
            f"layer_i_output_scale of the layers {_listed(scaled)} is left out: the paper's code searches it and "
            "never applies it."
        )
    moved = [
        i
        for new, i in enumerate(genotype.kept)
        if new != i and len(genotype.chosen(i)) > 1 and genotype.scale(i) * len(genotype.chosen(i)) != 1
    ]
    if moved and not legacy_base_index:
        notes.append(
            f"The paper's code merges the layers {_listed(moved)} against other layers of the base; "
            "legacy_base_index reproduces that."
        )
    return tuple(notes)


def _model_faults(base: str, candidates: Sequence[str], num_layers: int) -> list[str]:
    faults = []
    if not base:
        faults.append("A genotype names no models: give the base.")
    if not candidates or not all(candidates):
        faults.append("A genotype names no models: give the candidates, in the order of the search.")
    if len({base, *candidates}) < len(candidates) + 1:
        faults.append(f"Base and candidates are different models, got {_listed([base, *candidates])}.")
    if not 1 <= num_layers <= MAX_LAYERS:
        faults.append(f"The models have 1 to {MAX_LAYERS:,} layers, got {shown(num_layers)}.")
    return faults


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _is_flag(value: object) -> bool:
    return isinstance(value, bool | int | float) and value in (0, 1)


def _listed(items: Iterable[object]) -> str:
    texts = list(map(str, items))
    return ", ".join(texts[:12]) + (f" and {len(texts) - 12} more" if len(texts) > 12 else "")

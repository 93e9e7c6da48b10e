"""What tailorlib's operations are in mergekit, and the other way round.

An operation is either a weighted sum of layers, which mergekit calls ``linear``, or a method of its own. Notation:
s scale, w_k the weight of source k, d_k its density, delta_k = theta_k - theta_base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tailorlib.distributions import ParamValue, Scalar
from tailorlib.tailoring import SELECT, LayerPlan, LayerSource

Settings = tuple[tuple[str, Scalar], ...]
RANDOM = frozenset({"dare_linear", "dare_ties", "della_linear", "della"})
"""Methods that draw random masks if a density is below 1."""
CONSENSUS = frozenset({"ties", "dare_ties", "della", "breadcrumbs_ties"})
"""Methods with a sign consensus: they can divide by the weights that agree."""
BASELESS = frozenset({"nuslerp", "multislerp"})
"""Methods that refuse a configuration's base model where a slice doesn't take it."""
TASK_VECTORS: Mapping[str, str] = {
    "TIES": "ties",
    "DARELinear": "dare_linear",
    "DARETIES": "dare_ties",
    "DELLALinear": "della_linear",
    "DELLA": "della",
    "Breadcrumbs": "breadcrumbs",
    "BreadcrumbsTIES": "breadcrumbs_ties",
}
"""Sparsified task vectors: the operations and mergekit's methods."""


class Inexpressible(Exception):  # noqa: N818 (a reason on its way to a RecipeError)
    """Why mergekit can't express a plan."""


@dataclass(frozen=True)
class Merge:
    """What one of mergekit's methods makes of layers.

    Args:
        method: mergekit's name of it.
        sources: The layers, without the base.
        base: The layer of mergekit's ``base_model``, if it has one.
        shared: mergekit's parameters of the method.
        own: Its parameters of each source.
    """

    method: str
    sources: tuple[LayerSource, ...]
    base: LayerSource | None = None
    shared: Settings = ()
    own: tuple[Settings, ...] = field(default=())

    @property
    def inputs(self) -> tuple[LayerSource, ...]:
        """The base, if any, and the sources."""
        return (*([self.base] if self.base is not None else []), *self.sources)

    @property
    def is_random(self) -> bool:
        """Whether mergekit draws a mask for it."""
        densities = [value for own in self.own for name, value in own if name == "density"]
        return self.method in RANDOM and any(isinstance(d, float) and d < 1 for d in densities)


Sum = Mapping[LayerSource | Merge, float]
"""A weighted sum of layers and merges."""


def sum_of(plan: LayerPlan) -> dict[LayerSource | Merge, float]:
    """Return what mergekit computes for a plan (without its parts and residual scales).

    Raises:
        Inexpressible: With the reason, if mergekit has no such method.
    """
    params = dict(plan.params)
    if plan.operation in _SUMS:
        weighted = _SUMS[plan.operation](plan, params)
        total: dict[LayerSource | Merge, float] = {}
        for source, weight in weighted:
            total[source] = total.get(source, 0.0) + weight
        return {s: w for s, w in total.items() if w} or dict.fromkeys(list(total)[:1], 0.0)
    if plan.operation in TASK_VECTORS:
        merge = _task_vectors(plan, params)
        return {merge: 1.0} if merge.sources else {merge.inputs[0]: 1.0}
    if plan.operation in _OTHERS:
        return {_OTHERS[plan.operation](plan, params): 1.0}
    raise Inexpressible(f"mergekit 0.1.5 has no counterpart of {plan.operation}")


def per_source(params: Mapping[str, ParamValue], name: str, number: int) -> tuple[float, ...]:
    """Return a hyperparameter of each source: given as one number for all, or as a number for each."""
    value = params.get(name)
    if not isinstance(value, tuple):
        return (_number(params, name),) * number
    if len(value) != number:
        raise Inexpressible(f"it has {number} sources and {len(value)} values of {name!r}")
    return value


def weights_of(plan: LayerPlan, params: Mapping[str, ParamValue]) -> tuple[float, ...]:
    """Return the weight of each source, all 1 if the plan names none."""
    return per_source({"weights": 1.0, **params}, "weights", len(plan.sources))


Weighted = list[tuple[LayerSource, float]]


def _selection(plan: LayerPlan, params: Mapping[str, ParamValue]) -> Weighted:
    return [(plan.sources[0], 1.0)]


def _linear(plan: LayerPlan, params: Mapping[str, ParamValue]) -> Weighted:
    weights = weights_of(plan, params)
    if _value(params, "normalize"):
        weights = _normalized(weights)
    return list(zip(plan.sources, weights, strict=True))


def _task_arithmetic(plan: LayerPlan, params: Mapping[str, ParamValue]) -> Weighted:
    """theta_base + s sum_k w_k delta_k = (1 - s sum_k w_k) theta_base + sum_k s w_k theta_k."""
    if plan.base is None:
        raise Inexpressible("it has no base")
    scale, weights = _number(params, "scale"), weights_of(plan, params)
    kept = [(source, scale * w) for source, w in zip(plan.sources, weights, strict=True)]
    return [(plan.base, 1 - scale * math.fsum(weights)), *kept]


def _folding(plan: LayerPlan, params: Mapping[str, ParamValue]) -> Weighted:
    """theta_1 + s sum_k (theta_k - theta_1) = (1 - s (K - 1)) theta_1 + s sum_k theta_k."""
    first, *rest = plan.sources
    scale = _number(params, "scale")
    return [(first, 1 - scale * len(rest)), *((source, scale) for source in rest)]


_SUMS: Mapping[str, Callable[[LayerPlan, Mapping[str, ParamValue]], Weighted]] = {
    SELECT: _selection,
    "Linear": _linear,
    "TaskArithmetic": _task_arithmetic,
    "LayerFolding": _folding,
}


def _task_vectors(plan: LayerPlan, params: Mapping[str, ParamValue]) -> Merge:
    number, method = len(plan.sources), TASK_VECTORS[plan.operation]
    density = per_source(params, "density", number)
    weights, scale = weights_of(plan, params), _number(params, "scale")
    normalize = bool(params.get("normalize", False))
    rescale = str(_value(params, "rescale")) if min(density) < 1 else "none"
    if rescale == "density":
        if "epsilon" in params:
            raise Inexpressible(
                f"mergekit rescales {method} to the L1 norm, not by the probability of each entry; "
                "rescale: l1 can be expressed"
            )
        # delta_k / d_k is written as a weight; dividing by the weights that agree would undo it
        if not normalize:
            weights = tuple(w / d for w, d in zip(weights, density, strict=True))
        elif len(set(density)) == 1:
            scale /= density[0]
        else:
            raise Inexpressible("with normalize: true, mergekit can't divide by densities that differ")
    columns = {"weight": weights, "density": density}
    columns |= {n: per_source(params, n, number) for n in ("epsilon", "gamma") if n in params}
    if plan.base is None:
        raise Inexpressible("it has no base")
    # the base's own task vector is zero: it adds nothing and has no vote, and mergekit takes a model once
    kept = [i for i, source in enumerate(plan.sources) if source != plan.base]
    own = tuple(tuple((name, values[i]) for name, values in columns.items()) for i in kept)
    shared = (("normalize", normalize), ("rescale", rescale == "l1"), ("lambda", scale))
    return Merge(method, tuple(plan.sources[i] for i in kept), plan.base, shared, own)


def _slerp(plan: LayerPlan, params: Mapping[str, ParamValue]) -> Merge:
    first, second = plan.sources
    return Merge("slerp", (second,), first, (("t", _number(params, "t")),))


def _nuslerp(plan: LayerPlan, params: Mapping[str, ParamValue]) -> Merge:
    weights, vectors = weights_of(plan, params), _value(params, "vectors")
    if abs(sum(weights)) < 1e-6:  # mergekit would take equal weights
        weights = _normalized(weights)
    shared = (("nuslerp_flatten", vectors == "tensor"), ("nuslerp_row_wise", vectors == "columns"))
    return Merge("nuslerp", plan.sources, plan.base, shared, _weighted(weights))


def _multislerp(plan: LayerPlan, params: Mapping[str, ParamValue]) -> Merge:
    weights, normalize = weights_of(plan, params), bool(_value(params, "normalize"))
    if normalize and abs(sum(weights)) < 1e-6:  # mergekit would divide by it
        weights = _normalized(weights)
    if len(weights) == 1 and not normalize and weights != (1.0,):
        raise Inexpressible("mergekit's multislerp takes one source beside the base as it is, whatever its weight")
    return Merge("multislerp", plan.sources, plan.base, (("normalize_weights", normalize),), _weighted(weights))


def _karcher(plan: LayerPlan, params: Mapping[str, ParamValue]) -> Merge:
    if len(set(weights_of(plan, params))) > 1:
        raise Inexpressible("mergekit's karcher gives all models the same weight")
    return Merge("karcher", plan.sources, shared=_named(params, "max_iter", "tol"))


def _plain(method: str, *names: str) -> Callable[[LayerPlan, Mapping[str, ParamValue]], Merge]:
    return lambda plan, params: Merge(method, plan.sources, plan.base, _named(params, *names))


_OTHERS: Mapping[str, Callable[[LayerPlan, Mapping[str, ParamValue]], Merge]] = {
    "SLERP": _slerp,
    "NuSLERP": _nuslerp,
    "TaskNuSLERP": _nuslerp,
    "MultiSLERP": _multislerp,
    "TaskMultiSLERP": _multislerp,
    "Karcher": _karcher,
    "ModelStock": _plain("model_stock", "filter_wise"),
    "SCE": _plain("sce", "select_topk"),
    "NearSwap": _plain("nearswap", "t"),
    "ArceeFusion": _plain("arcee_fusion"),
    "RAM": _plain("ram", "epsilon"),
    "RAMPlus": _plain("ramplus_tl", "epsilon", "r", "alpha"),
}


def _normalized(weights: Sequence[float]) -> tuple[float, ...]:
    """Return weights divided by their sum, equal ones where it is nothing: as the operations do."""
    total = math.fsum(weights)
    if abs(total) <= 1e-8 * max(map(abs, weights)):
        return (1 / len(weights),) * len(weights)
    return tuple(w / total for w in weights)


def _weighted(weights: Sequence[float]) -> tuple[Settings, ...]:
    return tuple((("weight", w),) for w in weights)


def _named(params: Mapping[str, ParamValue], *names: str) -> Settings:
    return tuple((name, _value(params, name)) for name in names)


def _value(params: Mapping[str, ParamValue], name: str) -> Scalar:
    value = params.get(name)
    if value is None or isinstance(value, tuple):
        raise Inexpressible(f"its hyperparameter {name!r} is one value, got {value}")
    return value


def _number(params: Mapping[str, ParamValue], name: str) -> float:
    value = _value(params, name)
    if not isinstance(value, int | float):
        raise Inexpressible(f"its hyperparameter {name!r} is a number, got {value!r}")
    return float(value)

"""From what mergekit's methods compute to tailorlib's operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tailorlib.distributions import ParamValue, Scalar
from tailorlib.interchange.methods import CONSENSUS, TASK_VECTORS
from tailorlib.interchange.settings import Found, InvalidSettingError, Kind, decimal, truth, whole
from tailorlib.tailoring import SELECT, LayerSource

_ZERO = 1e-8
_NO_SUM = "the weights sum to zero, and mergekit divides by that."


@dataclass(frozen=True)
class Made:
    """What a tensor is made of.

    Args:
        sources: The layers.
        operation: The operation that makes one of them.
        params: Its hyperparameters.
        base: The layer against which task vectors are taken, if it needs one.
        factor: What the result is multiplied by; 1 unless it is a selection.
    """

    sources: tuple[LayerSource, ...]
    operation: str = SELECT
    params: tuple[tuple[str, ParamValue], ...] = ()
    base: LayerSource | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Inputs:
    """What mergekit gives a method for one tensor.

    Args:
        path: Where the slice stands.
        sources: The sources without the base.
        base: The base, if the method looks at it.
        shared: Parameters of the method.
        own: Parameters of each source.
    """

    path: str
    sources: tuple[LayerSource, ...]
    base: LayerSource | None
    shared: Mapping[str, Found]
    own: tuple[Mapping[str, Found], ...]

    def number(self, name: str) -> float:
        """Return one of the method's parameters as a number."""
        return _number(self.shared[name])

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a parameter of each source."""
        return tuple(_number(found[name]) for found in self.own)

    def only(self, *kept: int) -> Inputs:
        """Return the same with fewer sources."""
        return replace(self, sources=tuple(self.sources[k] for k in kept), own=tuple(self.own[k] for k in kept))


Parameters = Mapping[str, tuple[Kind, Scalar | None]]


@dataclass(frozen=True)
class Method:
    """A merge method of mergekit 0.1.5.

    Args:
        read: Gives the operation.
        base: Whether it needs a base model (``True``), takes one if there is one (``None``), or looks at none.
        least: The least number of sources beside the base.
        most: The largest.
        shared: Kind and default of each parameter of the method; no default for one that must be given.
        own: The same of the parameters of each source.
    """

    read: Callable[[Inputs], Made]
    base: bool | None = False
    least: int = 1
    most: int | None = None
    shared: Parameters = field(default_factory=dict)
    own: Parameters = field(default_factory=dict)


def _passthrough(inputs: Inputs) -> Made:
    return Made(inputs.sources, factor=inputs.numbers("scale")[0])


def _linear(inputs: Inputs) -> Made:
    weights, normalize = inputs.numbers("weight"), bool(inputs.shared["normalize"].value)
    if normalize and abs(sum(weights)) < _ZERO:
        raise InvalidSettingError(
            inputs.own[0]["weight"].path, "the weights sum to zero, which mergekit divides by."
        )
    kept = [k for k, weight in enumerate(weights) if weight] or list(range(len(weights)))
    inputs, weights = inputs.only(*kept), tuple(weights[k] for k in kept)
    if len(kept) == 1:
        return Made(inputs.sources, factor=1.0 if normalize else weights[0])
    return Made(inputs.sources, "Linear", (("normalize", normalize), *_weights(weights)))


def _task_arithmetic(inputs: Inputs) -> Made:
    weights = _normalized(inputs)
    kept = [k for k, weight in enumerate(weights) if weight]
    if not kept:
        return _base(inputs)
    params = (("scale", inputs.number("lambda")), *_weights([weights[k] for k in kept]))
    return Made(inputs.only(*kept).sources, "TaskArithmetic", params, inputs.base)


def _sparse(operation: str, method: str) -> Callable[[Inputs], Made]:
    """Return the reader of a method that sparsifies task vectors."""

    def read(inputs: Inputs) -> Made:
        consensus = method in CONSENSUS
        weights = inputs.numbers("weight") if consensus else _normalized(inputs)
        density = [min(1.0, _within(found["density"], 0.0)) for found in inputs.own]
        kept = [k for k, weight in enumerate(weights) if weight and density[k]]
        if not kept:
            return _base(inputs)
        chosen = inputs.only(*kept)
        columns = {"density": tuple(density[k] for k in kept)}
        if "gamma" in chosen.own[0]:
            columns["gamma"] = tuple(_within(found["gamma"], 0.0, 1.0) for found in chosen.own)
        if "epsilon" in chosen.own[0]:
            columns["epsilon"] = chosen.numbers("epsilon")
            for found, d, epsilon in zip(chosen.own, columns["density"], columns["epsilon"], strict=True):
                if d < 1 and not 0 < d - abs(epsilon) <= d + abs(epsilon) < 1:
                    raise InvalidSettingError(
                        found["epsilon"].path, f"density {d} +- epsilon {epsilon} leaves (0, 1)."
                    )
        params: list[tuple[str, ParamValue]] = [(name, _alike(values)) for name, values in columns.items()]
        params += [("scale", inputs.number("lambda"))]
        params += [("rescale", "l1" if inputs.shared["rescale"].value else "none")]
        params += [("normalize", bool(inputs.shared["normalize"].value))] if consensus else []
        params += _weights([weights[k] for k in kept])
        return Made(chosen.sources, operation, tuple(params), inputs.base)

    return read


def _slerp(inputs: Inputs) -> Made:
    t = _within(inputs.shared["t"], 0.0, 1.0)
    assert inputs.base is not None  # the method needs one
    if t in (0.0, 1.0):
        return Made((inputs.base if t == 0 else inputs.sources[0],))
    return Made((inputs.base, *inputs.sources), "SLERP", (("t", t),))


def _nuslerp(inputs: Inputs) -> Made:
    weights = inputs.numbers("weight")
    if abs(sum(weights)) < 1e-6:  # mergekit then takes the middle
        weights = (1.0, 1.0)
    whole_tensor, columns = (bool(inputs.shared[f"nuslerp_{n}"].value) for n in ("flatten", "row_wise"))
    params = (("vectors", "tensor" if whole_tensor else "columns" if columns else "rows"), *_weights(weights))
    return Made(inputs.sources, "NuSLERP" if inputs.base is None else "TaskNuSLERP", params, inputs.base)


def _multislerp(inputs: Inputs) -> Made:
    if inputs.number("eps") != 1e-8:
        raise InvalidSettingError(inputs.shared["eps"].path, "has no counterpart; the default 1e-8 has.")
    if len(inputs.sources) == 1:
        return Made(inputs.sources)
    weights, normalize = inputs.numbers("weight"), bool(inputs.shared["normalize_weights"].value)
    if normalize and abs(sum(weights)) < _ZERO:
        raise InvalidSettingError(
            inputs.own[0]["weight"].path, "the weights sum to zero, which mergekit divides by."
        )
    params = (("normalize", normalize), *_weights(weights))
    return Made(inputs.sources, "MultiSLERP" if inputs.base is None else "TaskMultiSLERP", params, inputs.base)


def _karcher(inputs: Inputs) -> Made:
    if len(inputs.sources) == 1:
        return Made(inputs.sources)
    steps, tol = int(_within(inputs.shared["max_iter"], 1.0)), _within(inputs.shared["tol"], 0.0)
    return Made(inputs.sources, "Karcher", (("max_iter", steps), ("tol", tol)))


def _nearswap(inputs: Inputs) -> Made:
    t = inputs.number("t")
    if t <= 0:
        return _base(inputs)
    if t < 1e-6:
        raise InvalidSettingError(inputs.shared["t"].path, f"below 1e-6 mergekit moves less than t, got {t}.")
    return Made(inputs.sources, "NearSwap", (("t", t),), inputs.base)


def _sce(inputs: Inputs) -> Made:
    share = min(1.0, inputs.number("select_topk"))
    if not inputs.sources or share <= 0:
        return _base(inputs)
    return Made(inputs.sources, "SCE", (("select_topk", share),), inputs.base)


def _plain(operation: str, *names: str) -> Callable[[Inputs], Made]:
    """Return the reader of a method whose parameters are the operation's."""

    def read(inputs: Inputs) -> Made:
        if not inputs.sources:
            return _base(inputs)
        params = tuple((name, inputs.shared[name].value) for name in names)
        return Made(inputs.sources, operation, params, inputs.base)

    return read


def _task_vector_method(operation: str, method: str) -> Method:
    random, consensus = method.startswith(("dare", "della")), method in CONSENSUS
    own: dict[str, tuple[Kind, Scalar | None]] = {"weight": (decimal, None), "density": (decimal, 1.0)}
    own |= {"gamma": (decimal, 0.01)} if method.startswith("breadcrumbs") else {}
    own |= {"epsilon": (decimal, 0.15)} if method.startswith("della") else {}
    shared = {
        "int8_mask": (truth, False),
        "normalize": (truth, method in ("ties", "della")),
        "rescale": (truth, random),
        "lambda": (decimal, 1.0),
    }
    read = _sparse(operation, method) if consensus or method != "task_arithmetic" else _task_arithmetic
    return Method(read, base=True, least=0, shared=shared, own=own)


METHODS: Mapping[str, Method] = {
    "passthrough": Method(_passthrough, most=1, own={"scale": (decimal, 1.0)}),
    "linear": Method(_linear, shared={"normalize": (truth, True)}, own={"weight": (decimal, None)}),
    "task_arithmetic": _task_vector_method("TaskArithmetic", "task_arithmetic"),
    **{method: _task_vector_method(operation, method) for operation, method in TASK_VECTORS.items()},
    "slerp": Method(_slerp, base=True, least=1, most=1, shared={"t": (decimal, None)}),
    "nuslerp": Method(
        _nuslerp,
        base=None,
        least=2,
        most=2,
        shared={"nuslerp_row_wise": (truth, False), "nuslerp_flatten": (truth, True)},
        own={"weight": (decimal, None)},
    ),
    "multislerp": Method(
        _multislerp,
        base=None,
        shared={"normalize_weights": (truth, True), "eps": (decimal, 1e-8)},
        own={"weight": (decimal, None)},
    ),
    "karcher": Method(_karcher, shared={"max_iter": (whole, 10), "tol": (decimal, 1e-5)}),
    "model_stock": Method(
        _plain("ModelStock", "filter_wise"), base=True, least=2, shared={"filter_wise": (truth, False)}
    ),
    "sce": Method(_sce, base=True, least=0, shared={"int8_mask": (truth, False), "select_topk": (decimal, 1.0)}),
    "nearswap": Method(_nearswap, base=True, least=1, most=1, shared={"t": (decimal, None)}),
    "arcee_fusion": Method(_plain("ArceeFusion"), base=True, least=1, most=1),
    "ram": Method(_plain("RAM", "epsilon"), base=True, least=0, shared={"epsilon": (decimal, 1e-5)}),
    "ramplus_tl": Method(
        _plain("RAMPlus", "epsilon", "r", "alpha"),
        base=True,
        least=0,
        shared={"r": (decimal, 0.1), "alpha": (decimal, 0.2), "epsilon": (decimal, 1e-5)},
    ),
}
"""What mergekit 0.1.5 has, by its names."""


def _base(inputs: Inputs) -> Made:
    assert inputs.base is not None  # every method that calls this needs one
    return Made((inputs.base,))


def _normalized(inputs: Inputs) -> tuple[float, ...]:
    """Return the weights of a method without consensus: divided by their sum if it says so."""
    weights = inputs.numbers("weight") if inputs.own else ()
    total = sum(weights)
    if not inputs.shared["normalize"].value or abs(total) < _ZERO:
        return weights
    return tuple(weight / total for weight in weights)


def _weights(weights: Sequence[float]) -> list[tuple[str, ParamValue]]:
    return [] if set(weights) == {1.0} else [("weights", tuple(weights))]


def _alike(values: tuple[float, ...]) -> ParamValue:
    return values[0] if len(set(values)) == 1 else values


def _within(found: Found, low: float, high: float | None = None) -> float:
    value = _number(found)
    if value < low or (high is not None and value > high):
        bounds = f"{low:g} or more" if high is None else f"within [{low:g}, {high:g}]"
        raise InvalidSettingError(found.path, f"is {bounds}, got {value}.")
    return value


def _number(found: Found) -> float:
    assert isinstance(found.value, int | float)  # its kind has made sure
    return float(found.value)

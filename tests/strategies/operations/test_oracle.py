"""Every merge method against mergekit 0.1.5 and against its paper's formula, on tensors easy and adversarial.

What comes out is the table of docs/reference/merges.md. A case where mergekit is wrong or where it leaves the
result open is named with the reason, and the paper's formula decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import closed_forms as forms
import pytest
import torch
from merge_cases import ALL, FAMILIES, apply, deviation, peer, sources
from tailorlib_strategies.operations import (
    DARETIES,
    DELLA,
    RAM,
    SCE,
    SLERP,
    TIES,
    ArceeFusion,
    Breadcrumbs,
    BreadcrumbsTIES,
    DARELinear,
    DELLALinear,
    Karcher,
    LayerFolding,
    Linear,
    ModelStock,
    MultiSLERP,
    NearSwap,
    NuSLERP,
    RAMPlus,
    TaskArithmetic,
    TaskMultiSLERP,
    TaskNuSLERP,
)
from torch import Tensor

from tailorlib import MergeOperation

Params = Mapping[str, Any]
Peer = Callable[[Sequence[Tensor], Tensor, Params, list[float]], Tensor]
TOLERANCE = 1e-5
EQUAL, UNEQUAL, SIGNED = (1.0, 1.0, 1.0), (1.0, 0.5, 2.0), (1.0, -1.0, 0.5)
TIES_OF = dict.fromkeys(
    ("bfloat16", "bfloat16 fine-tunes", "bfloat16 in blocks", "equal models"),
    "which of tied entries survive is left to an unstable sort",
)
ANTIPODES = {"opposite signs": "the angle of antiparallel vectors is rounding noise"}
SHORT = {"small": "an absolute threshold takes small tensors for none"}


@dataclass(frozen=True)
class Method:
    op: MergeOperation
    form: forms.Form
    settings: Sequence[tuple[Params, Sequence[float] | None]]
    mergekit: str
    peer: Peer
    differs: Mapping[str, str] = field(default_factory=dict)
    """Why mergekit's result doesn't count, by family."""
    on_our_masks: Peer | None = None
    """Calls mergekit with sparse task vectors in those cases, if only its choice of entries is in doubt."""
    undecided: Mapping[str, str] = field(default_factory=dict)
    """Why the formula itself says nothing in floating point, by family."""

    @property
    def random(self) -> bool:
        """Whether the method draws a mask; what that is expected to be is checked in test_random_masks.py."""
        return isinstance(self.op, DARELinear | DELLALinear)


def task_vectors(method: str) -> Peer:
    """Call a method of mergekit's family of task arithmetic."""

    def call(tensors: Sequence[Tensor], base: Tensor, params: Params, weights: list[float]) -> Tensor:
        per_model = {n: v for n, v in params.items() if n in {"density", "gamma", "epsilon"}}
        lists = {n: list(v[: len(tensors)]) if isinstance(v, tuple) else v for n, v in per_model.items()}
        shared = {
            "lambda": params["scale"],
            "rescale": params.get("rescale") == "l1",
            "normalize": params.get("normalize", False),
        }
        return peer(method, tensors, base, weight=weights, **shared, **lists)

    return call


def on_our_masks(method: str, sparsify: Callable[..., Tensor]) -> Peer:
    """Call a random method of mergekit's with task vectors that are dropped and rescaled already."""

    def call(tensors: Sequence[Tensor], base: Tensor, params: Params, weights: list[float]) -> Tensor:
        vectors = forms.sparse_vectors(sparsify, tensors, base, params)
        ours = [(base + v).float() for v in vectors]
        return task_vectors(method)(ours, base, {**params, "density": 1.0, "rescale": "none"}, weights)

    return call


def weighted(method: str, *, base: bool, normalize: str = "") -> Peer:
    """Call an interpolation of mergekit's, given the name that its normalising goes by."""

    def call(tensors: Sequence[Tensor], origin: Tensor, params: Params, weights: list[float]) -> Tensor:
        shared = {normalize: params["normalize"]} if normalize else {}
        if "vectors" in params:
            shared["nuslerp_flatten"] = params["vectors"] == "tensor"
            shared["nuslerp_row_wise"] = params["vectors"] == "columns"
        return peer(method, tensors, origin if base else None, weight=weights, **shared)

    return call


def plain(method: str, *, base: bool = True) -> Peer:
    return lambda tensors, origin, params, weights: peer(method, tensors, origin if base else None, **params)


def folded(tensors: Sequence[Tensor], base: Tensor, params: Params, weights: list[float]) -> Tensor:
    scale, K = params["scale"], len(tensors)
    return peer("linear", tensors, weight=[1 - scale * (K - 1)] + [scale] * (K - 1), normalize=False)


def with_weights(*settings: Params) -> list[tuple[Params, Sequence[float] | None]]:
    return [(params, weights) for params, weights in zip(settings, (EQUAL, UNEQUAL, SIGNED), strict=True)]


def without_weights(*settings: Params) -> list[tuple[Params, Sequence[float] | None]]:
    return [(params, None) for params in settings]


TRIMS = with_weights(
    {"density": 0.5, "scale": 0.7, "rescale": "none"},
    {"density": (0.1, 0.9, 0.3), "scale": 1.0, "rescale": "l1"},
    {"density": 0.75, "scale": 1.3, "rescale": "none"},
)
OUTLIERS = [({**p, "gamma": g}, w) for (p, w), g in zip(TRIMS, (0.01, (0.1, 0.0, 0.3), 0.4), strict=True)]
DROPS = with_weights(
    {"density": 0.5, "scale": 0.7, "rescale": "density"},
    {"density": (0.2, 0.9, 0.3), "scale": 1.0, "rescale": "l1"},
    {"density": 0.75, "scale": 1.3, "rescale": "none"},
)
RANKED = [({**p, "epsilon": e}, w) for (p, w), e in zip(DROPS, (0.1, (0.1, 0.3, 0.0), 0.2), strict=True)]


def normalizing(settings: Sequence[tuple[Params, Any]]) -> list[tuple[Params, Any]]:
    return [({**p, "normalize": n}, w) for (p, w), n in zip(settings, (True, True, False), strict=True)]


VECTORS = [({"vectors": v}, w) for v in ("tensor", "rows", "columns") for w in (EQUAL, UNEQUAL, (0.3, 0.7))]
MEANS = [({"normalize": n}, w) for n, w in ((True, EQUAL), (True, UNEQUAL), (False, (0.2, 0.5, 0.4)))]
ONE_ENTRY = {"one element": "a tensor of one entry is dropped whole"}
EPSILON = {"small": "1e-8 is added to lengths"}
NO_MEAN = "no direction: an error"

METHODS = [
    Method(Linear(), forms.linear, MEANS, "linear", weighted("linear", base=False, normalize="normalize")),
    Method(
        SLERP(),
        forms.slerp,
        without_weights(*({"t": t} for t in (0.0, 0.3, 0.5, 1.0))),
        "slerp",
        lambda tensors, base, params, weights: peer("slerp", tensors[1:], tensors[0], **params),
    ),
    Method(NuSLERP(), forms.nuslerp, VECTORS, "nuslerp", weighted("nuslerp", base=False), ANTIPODES),
    Method(
        TaskNuSLERP(),
        forms.of_task_vectors(forms.nuslerp),
        VECTORS,
        "nuslerp",
        weighted("nuslerp", base=True),
        ANTIPODES,
    ),
    Method(
        MultiSLERP(),
        forms.multislerp,
        MEANS,
        "multislerp",
        weighted("multislerp", base=False, normalize="normalize_weights"),
        {"all zero": NO_MEAN, **EPSILON},
    ),
    Method(
        TaskMultiSLERP(),
        forms.of_task_vectors(forms.multislerp),
        MEANS,
        "multislerp",
        weighted("multislerp", base=True, normalize="normalize_weights"),
        {"all zero": NO_MEAN, "equal to the base": NO_MEAN, **EPSILON},
    ),
    Method(
        Karcher(),
        forms.karcher,
        [({"max_iter": m, "tol": t}, EQUAL) for m, t in ((10, 1e-5), (1, 1e-5), (50, 1e-4))],
        "karcher",
        plain("karcher", base=False),
        {**ANTIPODES, **SHORT},
    ),
    Method(
        TaskArithmetic(),
        forms.task_arithmetic,
        with_weights({"scale": 0.35}, {"scale": 1.0}, {"scale": 1.7}),
        "task_arithmetic",
        task_vectors("task_arithmetic"),
    ),
    Method(
        TIES(),
        forms.sparse(forms.trimmed, agreeing=True),
        normalizing(TRIMS),
        "ties",
        task_vectors("ties"),
        TIES_OF,
        on_our_masks("ties", forms.trimmed),
    ),
    Method(
        DARELinear(),
        forms.sparse(forms.dropped, agreeing=False),
        DROPS,
        "dare_linear",
        on_our_masks("dare_linear", forms.dropped),
    ),
    Method(
        DARETIES(),
        forms.sparse(forms.dropped, agreeing=True),
        normalizing(DROPS),
        "dare_ties",
        on_our_masks("dare_ties", forms.dropped),
    ),
    Method(
        DELLALinear(),
        forms.sparse(forms.dropped_by_rank, agreeing=False),
        RANKED,
        "della_linear",
        on_our_masks("della_linear", forms.dropped_by_rank),
    ),
    Method(
        DELLA(),
        forms.sparse(forms.dropped_by_rank, agreeing=True),
        normalizing(RANKED),
        "della",
        on_our_masks("della", forms.dropped_by_rank),
    ),
    Method(
        Breadcrumbs(),
        forms.sparse(forms.without_outliers, agreeing=False),
        OUTLIERS,
        "breadcrumbs",
        task_vectors("breadcrumbs"),
        {**TIES_OF, **ONE_ENTRY},
        on_our_masks("breadcrumbs", forms.without_outliers),
    ),
    Method(
        BreadcrumbsTIES(),
        forms.sparse(forms.without_outliers, agreeing=True),
        normalizing(OUTLIERS),
        "breadcrumbs_ties",
        task_vectors("breadcrumbs_ties"),
        {**TIES_OF, **ONE_ENTRY},
        on_our_masks("breadcrumbs_ties", forms.without_outliers),
    ),
    Method(
        ModelStock(),
        forms.model_stock,
        without_weights({"filter_wise": False}, {"filter_wise": True}),
        "model_stock",
        plain("model_stock"),
        SHORT,
    ),
    Method(
        SCE(),
        forms.sce,
        without_weights({"select_topk": 0.1}, {"select_topk": 0.5}, {"select_topk": 1.0}),
        "sce",
        plain("sce"),
        {**ONE_ENTRY, **SHORT, "bfloat16 in blocks": "which of tied entries are selected is left open"},
    ),
    Method(
        NearSwap(),
        forms.nearswap,
        without_weights({"t": 0.001}, {"t": 0.1}, {"t": 1.0}),
        "nearswap",
        plain("nearswap"),
    ),
    Method(
        ArceeFusion(),
        forms.arcee_fusion,
        without_weights({}),
        "arcee_fusion",
        plain("arcee_fusion"),
        undecided=dict.fromkeys(("equal models", "small"), "the divergence of all rows is rounding noise"),
    ),
    Method(
        RAM(),
        forms.ram,
        without_weights({"epsilon": 1e-5}, {"epsilon": 0.1}, {"epsilon": 1.0}),
        "ram",
        plain("ram"),
    ),
    Method(
        RAMPlus(),
        forms.ram,
        without_weights(
            {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
            {"epsilon": 0.5, "r": 0.5, "alpha": 0.5},
            {"epsilon": 1.0, "r": 1.0, "alpha": 10.0},
        ),
        "ramplus_tl",
        plain("ramplus_tl"),
    ),
    Method(
        LayerFolding(),
        forms.folding,
        without_weights({"scale": 1.0}, {"scale": 0.5}, {"scale": -0.3}),
        "linear, weights 1 - (K - 1) scale, scale, ...",
        folded,
    ),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.op.name)
def test_a_method_agrees_with_mergekit_and_with_its_formula(method: Method, evidence) -> None:
    from_mergekit = dict.fromkeys(FAMILIES, 0.0)
    from_formula = 0.0
    for group, families in FAMILIES.items():
        for name in families.keys() - method.undecided.keys():
            for params, weights in method.settings:
                ours, formula, theirs = results(method, families[name], params, weights, name)
                case = f"{name} with {params} and weights {weights}"
                from_formula = max(from_formula, off := deviation(ours, formula, families[name][0]))
                assert off <= TOLERANCE, f"{off} from the formula: {case}"
                if theirs is not None:
                    from_mergekit[group] = max(
                        from_mergekit[group], off := deviation(ours, theirs, families[name][0])
                    )
                    assert off <= TOLERANCE, f"{off} from mergekit: {case}"
    evidence.record(
        "merges",
        method.op.name,
        mergekit_method=f"`{method.mergekit}`",
        **{group.replace(" ", "_"): f"{value:.0e}" for group, value in from_mergekit.items()},
        formula=f"{from_formula:.0e}",
        **({} if method.random else {"over_seeds": "deterministic"}),
        not_compared=reasons(method),
    )


def results(
    method: Method, family: list[Tensor], params: Params, weights: Sequence[float] | None, name: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return our result, the formula's, and mergekit's where it counts; all of inputs widened to float32."""
    base, *tensors = wide = [t.float() for t in family]
    tensors = sources(method.op, wide)
    used = [] if weights is None else list(weights[: len(tensors)])
    params = {n: v[: len(tensors)] if isinstance(v, tuple) else v for n, v in params.items()}
    given = {**params, "weights": tuple(used)} if used else params
    ours = apply(method.op, wide, **given)
    if family[0].dtype != torch.float32:  # computed in float32, rounded once
        assert torch.equal(apply(method.op, family, **given), ours.to(family[0].dtype)), name
    call = method.on_our_masks if name in method.differs else method.peer
    theirs = None if call is None else call(tensors, base, params, used)
    return ours, method.form(tensors, base, params, used), theirs


def reasons(method: Method) -> str:
    """Return the cases that mergekit isn't the oracle of, by reason."""
    by_reason: dict[str, list[str]] = {}
    for family, reason in {**method.differs, **method.undecided}.items():
        by_reason.setdefault(reason, []).append(family)
    listed = "; ".join(f"{', '.join(families)}: {reason}" for reason, families in by_reason.items())
    return f"(on the same masks) {listed}" if method.on_our_masks else listed or "nothing"


def test_what_is_not_compared_is_there() -> None:
    assert {name for method in METHODS for name in (*method.differs, *method.undecided)} <= ALL.keys()


@pytest.mark.parametrize("name", ["equal models", "small"])
def test_arcee_fusion_takes_every_entry_from_either_model(name: str) -> None:
    base, source = ALL[name][:2]
    merged = apply(ArceeFusion(), [base, source])
    assert bool(((merged == base) | (merged == source)).all())

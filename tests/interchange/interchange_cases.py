"""Families of five models, random tailorings of them, and mergekit run in this process."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.scripts.multimerge import load_config
from model_cases import CASES, CPU, LAYERS
from safetensors.torch import load_file
from torch import Tensor

from tailorlib.distributions import ParamValue
from tailorlib.export import export_model
from tailorlib.models.architecture import layer_kinds
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, Owner, PartPlan, Tailoring
from tailorlib.testing.tiny import write_tiny_family

OPTIONS = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
Params = dict[str, ParamValue]

PARAMS: Mapping[str, Callable[[int], Params]] = {
    # of n sources; random masks only at density 1, where they keep everything
    "Linear": lambda n: {"normalize": n % 2 == 0, "weights": (0.9, -0.2, 0.6, 0.3)[:n]},
    "TaskArithmetic": lambda n: {"scale": 0.7, "weights": (0.5, 1.2, -0.4, 0.2)[:n]},
    "LayerFolding": lambda n: {"scale": 0.8},
    "SLERP": lambda n: {"t": 0.3},
    "NuSLERP": lambda n: {"vectors": "columns", "weights": (0.3, 0.9)},
    "TaskNuSLERP": lambda n: {"vectors": "rows", "weights": (0.3, 0.9)},
    "MultiSLERP": lambda n: {"normalize": True, "weights": (0.9, 0.2, 0.6, 0.3)[:n]},
    "TaskMultiSLERP": lambda n: {"normalize": True},
    "Karcher": lambda n: {"max_iter": 10, "tol": 1e-5},
    "TIES": lambda n: {
        "density": (0.5, 0.8, 0.4, 0.9)[:n],
        "scale": 1.1,
        "normalize": n % 2 == 0,
        "rescale": "l1" if n % 2 else "none",
        "weights": (1.0, 0.4, 0.7, 1.5)[:n],
    },
    "DARELinear": lambda n: {"density": 1.0, "scale": 0.6, "rescale": "density"},
    "DARETIES": lambda n: {"density": 1.0, "scale": 0.6, "rescale": "density", "normalize": True},
    "DELLALinear": lambda n: {"density": 1.0, "epsilon": 0.1, "scale": 0.6, "rescale": "density"},
    "DELLA": lambda n: {"density": 1.0, "epsilon": 0.1, "scale": 0.6, "rescale": "density", "normalize": False},
    "Breadcrumbs": lambda n: {"density": 0.7, "gamma": 0.02, "scale": 0.6, "rescale": "l1"},
    "BreadcrumbsTIES": lambda n: {
        "density": 0.7,
        "gamma": (0.02, 0.1, 0.0, 0.05)[:n],
        "scale": 0.6,
        "rescale": "none",
        "normalize": True,
    },
    "ModelStock": lambda n: {"filter_wise": n % 2 == 0},
    "SCE": lambda n: {"select_topk": 0.6},
    "NearSwap": lambda n: {"t": 0.01},
    "ArceeFusion": lambda n: {},
    "RAM": lambda n: {"epsilon": 1e-3},
    "RAMPlus": lambda n: {"epsilon": 1e-3, "r": 0.3, "alpha": 0.2},
}
"""Hyperparameters of every operation that mergekit has a counterpart of."""
NEEDS_BASE = frozenset(PARAMS) - {"Linear", "LayerFolding", "SLERP", "NuSLERP", "MultiSLERP", "Karcher"}
TIED_ENTRIES = frozenset({"TIES", "Breadcrumbs", "BreadcrumbsTIES", "SCE", "DELLA", "DARETIES"})
"""Where rounding or the order of a sort decides about entries of equal magnitude, or votes that cancel. Models
stored in bfloat16 have many."""
_NUMBER = {"SLERP": 2, "NuSLERP": 2, "TaskNuSLERP": 2, "NearSwap": 1, "ArceeFusion": 1}


def make_family(root: Path, case: str, storage: str = "float32") -> ModelFamily:
    """Return a loaded family with the candidates a, b, c and d."""
    folder = root / f"{case}-{storage}"
    if not folder.exists():
        dtype = getattr(torch, storage)
        write_tiny_family(folder, num_layers=LAYERS, dtype=dtype, candidates=4, **CASES[case])
    family = ModelFamily(str(folder / "base"), {n: str(folder / n) for n in "abcd"}, dtype="float32")
    family.load(CPU)
    return family


def merged(operation: str, sources: Sequence[LayerSource], base: LayerSource) -> LayerPlan:
    """Return a plan of an operation with its hyperparameters of the table."""
    params = tuple(PARAMS[operation](len(sources)).items())
    return LayerPlan(tuple(sources), operation, params, base if operation in NEEDS_BASE else None)


def as_owner(plan: LayerPlan) -> Owner:
    """Return the owner that is made as a plan of layers is."""
    models = tuple(dict.fromkeys(source.model for source in plan.sources))
    return PartPlan(models, plan.operation, plan.params, None if plan.base is None else plan.base.model)


class Tailorings:
    """Random tailorings of a family.

    Args:
        family: The family.
        seed: The seed.
        operations: What layers are merged by; none for selections alone.
        scaled: Whether branches of layers are scaled.
        parted: Whether layers have parts.
    """

    def __init__(
        self,
        family: ModelFamily,
        seed: int,
        operations: Sequence[str],
        *,
        scaled: bool = True,
        parted: bool = True,
    ) -> None:
        self.rng, self.operations, self.scaled, self.parted = random.Random(seed), operations, scaled, parted
        self.models, self.kinds = family.layout.models, layer_kinds(family.config)

    def one(self) -> Tailoring:
        """Return a tailoring of four layers."""
        plans = tuple(self._layer(i) for i in sorted(self.rng.sample(range(LAYERS), 4)))
        return Tailoring(plans, embeddings=self._owner(), norm=self._owner(), head=self._owner())

    def _layer(self, i: int) -> LayerPlan:
        plan = self._plan(i)
        if self.scaled and self.rng.random() < 0.3:
            plan = replace(plan, attention_scale=0.5)
        if self.scaled and self.rng.random() < 0.3:
            plan = replace(plan, mlp_scale=1.25)
        if self.parted and self.rng.random() < 0.3:
            plan = replace(plan, parts=(("mlp", self._plan(i)),))
        return plan

    def _plan(self, i: int) -> LayerPlan:
        if not self.operations or self.rng.random() < 0.4:
            return LayerPlan((LayerSource(self.rng.choice(self.models), self._depth(i)),))
        return self.merge(self.rng.choice(self.operations), i)

    def merge(self, operation: str, i: int) -> LayerPlan:
        """Return a merge of layers of about one depth."""
        candidates = self.models[1:]
        if operation == "LayerFolding":
            depths = [j for j, kind in enumerate(self.kinds) if kind == self.kinds[i]]
            model, number = self.rng.choice(self.models), min(len(depths), self.rng.choice([2, 3]))
            return merged(
                operation, [LayerSource(model, j) for j in self.rng.sample(depths, number)], LayerSource(BASE, i)
            )
        number = _NUMBER.get(operation, self.rng.choice([2, 3, 4]))
        sources = [LayerSource(m, self._depth(i)) for m in self.rng.sample(candidates, number)]
        return merged(operation, sources, LayerSource(BASE, self._depth(i)))

    def _depth(self, i: int) -> int:
        same = [j for j, kind in enumerate(self.kinds) if kind == self.kinds[i]]
        return self.rng.choice([i, i, self.rng.choice(same)])

    def _owner(self) -> Owner:
        merges = [operation for operation in self.operations if operation != "LayerFolding"]
        if merges and self.rng.random() < 0.3:
            return as_owner(self.merge(self.rng.choice(merges), 0))
        return self.rng.choice(self.models)


def run_mergekit(text: str, folder: Path) -> dict[str, Tensor]:
    """Run mergekit on the text of one configuration or several, and return the tensors of the last one.

    mergekit fails to write the config of a model with lists of layers, after its weights; that is passed over.
    """
    results = folder / "results"
    configurations, _ = load_config(text, str(results))
    names = [document.get("name") for document in yaml.safe_load_all(text)]
    out = folder / "merged"
    for name in names:
        LoaderCache().loaders.clear()
        target = out if name is None else results / name
        with torch.random.fork_rng(devices=[]):  # mergekit draws from the global generator
            try:
                run_merge(configurations[name], str(target), OPTIONS)
            except Exception as error:
                if name is not None or "layer_types" not in str(error):
                    raise
    return read_tensors(out)


def our_tensors(family: ModelFamily, tailoring: Tailoring, folder: Path) -> dict[str, Tensor]:
    """Return the tensors of an exported model."""
    return read_tensors(export_model(family, tailoring, folder / "ours"))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_close(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], units: int = 1) -> None:
    """Compare tensors: float32 within 1e-5 of the largest entry, bfloat16 within units in the last place."""
    assert set(theirs) == set(ours)
    for name, tensor in ours.items():
        other = theirs[name]
        assert other.dtype == tensor.dtype, name
        if tensor.dtype == torch.float32:
            torch.testing.assert_close(
                other, tensor, rtol=0.0, atol=1e-5 * float(tensor.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
            )
        else:
            wide, wanted = other.float(), tensor.float()
            unit = torch.exp2(torch.maximum(wide.abs(), wanted.abs()).clamp(min=1e-30).log2().floor() - 7)
            noise = 1e-7 * float(wanted.abs().max())  # of float32, where terms cancel to almost nothing
            assert bool(((wide - wanted).abs() <= units * unit + noise).all()), name


def assert_equal(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Compare tensors to the bit."""
    assert set(theirs) == set(ours)
    assert [name for name in ours if not torch.equal(theirs[name], ours[name])] == []


Families = Callable[..., ModelFamily]


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Families:
    """Return a function ``(case, storage) -> family``; its folders are written once."""
    root = tmp_path_factory.mktemp("interchange")
    made: dict[tuple[str, str], ModelFamily] = {}

    def family(case: str = "llama", storage: str = "float32") -> ModelFamily:
        if (case, storage) not in made:
            made[case, storage] = make_family(root, case, storage)
        return made[case, storage]

    return family


@pytest.fixture
def llama(families: Families) -> ModelFamily:
    """Return the Llama family in float32."""
    return families()

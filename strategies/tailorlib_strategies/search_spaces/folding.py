"""FoldingSpace: neighbouring layers folded into one (LaCo, arXiv 2402.11187).

The ablation "FL-merge" of the GPTailor paper (arXiv 2506.20480): where PruningSpace drops a layer, this space adds
what it does differently to the layer below it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tailorlib import (
    Categorical,
    Distribution,
    FamilyLayout,
    LayerPlan,
    LayerSource,
    MergeOperation,
    Params,
    Subset,
    Tailoring,
)
from tailorlib.distributions import ParamValue
from tailorlib.exceptions import RecipeError
from tailorlib.search_space import SpaceSize
from tailorlib.tailoring import BASE
from tailorlib_strategies.operations.folding import LayerFolding
from tailorlib_strategies.operations.removal import LayerRemoval
from tailorlib_strategies.operations.residual_scale import ResidualScale
from tailorlib_strategies.operations.selection import LayerSelection
from tailorlib_strategies.search_spaces.declared import DeclaredSpace, Faults
from tailorlib_strategies.search_spaces.hyperparameters import Hyperparameters
from tailorlib_strategies.search_spaces.merge_choice import SELECTION, MergeChoice, named_once
from tailorlib_strategies.search_spaces.mix import plain
from tailorlib_strategies.search_spaces.outer_choice import OuterChoice
from tailorlib_strategies.search_spaces.removal_choice import exact
from tailorlib_strategies.search_spaces.scale_choice import ScaleChoice

FOLDED = "folded"


class FoldingSpace(DeclaredSpace):
    """Exactly R of L layers are folded into the kept layer below: theta_l + scale * sum_k (theta_{l+k} - theta_l).

    Parameters: ``folded``, a Subset of the layers that can be folded: not the first, not protected, of the kind
    of the layer below. A run of folded layers goes into one kept layer, all of one model, ``layer.{i}.source``,
    with ``layer.{i}.LayerFolding.scale``: 1 is LaCo, 0 plain removal of the folded layers. A kept layer into
    which none is folded has the parameters of a layer of PruningSpace. Embeddings, final norm and head stay the
    base's.

    Args:
        removal: How many layers are folded away; protected layers aren't.
        folding: The range of the folding's scale; LaCo's 1 by default.
        selection: Whether a layer, or a run of layers, can be a candidate's; ``None`` leaves the base's.
        merges: Merge operations for the layers into which none is folded.
        residual_scale: Ranges of the factors of each kept layer's branches; ``None`` leaves them at 1.
    """

    def __init__(
        self,
        removal: LayerRemoval,
        folding: LayerFolding | None = None,
        selection: LayerSelection | None = SELECTION,
        merges: list[MergeOperation] | None = None,
        residual_scale: ResidualScale | None = None,
    ) -> None:
        self.removal, self.selection, self.residual_scale = removal, selection, residual_scale
        self.folding = LayerFolding() if folding is None else folding
        self.merges = named_once("FoldingSpace.merges", merges)
        if self.folding.name in {op.name for op in self.merges}:
            raise RecipeError(
                f"FoldingSpace.merges are of several models, got {self.folding.name}. Give its range to "
                "FoldingSpace.folding."
            )

    def _arrange(self, layout: FamilyLayout) -> None:
        exact(self.removal)
        kinds, number = layout.layer_types, self.removal.number(layout.num_layers)
        self._foldable = tuple(
            i for i in self.removal.removable(layout.num_layers) if i > 0 and kinds[i] == kinds[i - 1]
        )
        if len(self._foldable) < number:
            raise RecipeError(
                "FoldingSpace folds layers that aren't protected into a layer below that is of the same kind, got "
                f"{len(self._foldable)} such layers for {number} to fold. Fold or protect fewer."
            )
        self._subset = Subset(len(self._foldable), number)
        self._merge = MergeChoice(
            "FoldingSpace.merges", layout.candidates, self.selection is not None, self.merges
        )
        self._scale = ScaleChoice(self.residual_scale)
        self._outer = OuterChoice("FoldingSpace", (), self._merge)
        self._selects = self.selection is not None and bool(layout.candidates)
        self._hyperparameters = Hyperparameters(self.folding)

    def _parameters(self) -> Iterator[tuple[str, Distribution]]:
        yield FOLDED, self._subset
        for i in range(self.layout.num_layers):
            for name, distribution in (*self._merge.parameters(), *self._of_run(i), *self._scale.parameters()):
                yield f"layer.{i}.{name}", distribution

    def _of_run(self, i: int) -> Iterator[tuple[str, Distribution]]:
        """Yield what a run of layers from ``i`` on has beside the parameters of a single layer."""
        if i + 1 not in self._foldable:
            return
        if self._selects and self._merge.merging:
            yield "source", Categorical(self.layout.models)
        yield from self._hyperparameters.parameters()

    def active(self, params: Params) -> Params:
        """Return what matters: of a run its model and scale, of a single layer what makes it."""
        active: dict[str, ParamValue] = {FOLDED: params[FOLDED]}
        for run in self._runs(params):
            prefix = f"layer.{run[0]}."
            if len(run) == 1:
                active |= self._merge.active(params, prefix)
            else:
                active |= self._hyperparameters.active(params, prefix)
                if self._selects:
                    active[f"{prefix}source"] = params[f"{prefix}source"]
            active |= self._scale.active(params, prefix)
        return active

    def decode(self, params: Params, *, seed: int = 0) -> Tailoring:
        """Return the tailoring that an assignment means; inactive parameters may be missing."""
        runs = self._runs(params)
        prefixes = [f"layer.{run[0]}." for run in runs]
        plans = zip((self._plan(params, run) for run in runs), prefixes, strict=True)
        return Tailoring(tuple(self._scale.scaled(plan, params, prefix) for plan, prefix in plans), seed=seed)

    def _plan(self, params: Params, run: Sequence[int]) -> LayerPlan:
        prefix = f"layer.{run[0]}."
        if len(run) == 1:
            return self._merge.decode(params, prefix).layer(run[0])
        model = str(params[f"{prefix}source"]) if self._selects else BASE
        sources = tuple(LayerSource(model, i) for i in run)
        return LayerPlan(sources, self.folding.name, self._hyperparameters.decode(params, prefix))

    def _runs(self, params: Params) -> list[list[int]]:
        """Return the kept layers from bottom to top, each with those that are folded into it."""
        positions = params[FOLDED]
        assert isinstance(positions, tuple)
        folded = {self._foldable[int(position)] for position in positions}
        runs: list[list[int]] = []
        for i in range(self.layout.num_layers):
            if i in folded:
                runs[-1].append(i)
            else:
                runs.append([i])
        return runs

    def _read(self, tailoring: Tailoring, faults: Faults) -> dict[str, ParamValue]:
        params, wrong = self._outer.encode(tailoring)
        faults.add(wrong)
        runs = [self._run_of(plan) for plan in tailoring.layers]
        folded, wrong = self._encode_runs(runs)
        faults.add(wrong)
        params |= folded
        for run, plan in zip(runs, tailoring.layers, strict=True):
            prefix, where = f"layer.{run[0]}.", f"layer {run[0]}"
            if plan.parts:
                faults.add(["it is made in parts, where the space makes layers whole"], where)
            scales, wrong = self._scale.encode_layer(plan, prefix)
            faults.add(wrong, where)
            if len(run) == 1:
                named, wrong = self._merge.encode_layer(plan, run[0], prefix)
            else:
                named, wrong = self._encode_run(plan, run, prefix)
            faults.add(wrong, where)
            params |= named | scales
        return params

    def _run_of(self, plan: LayerPlan) -> list[int]:
        layers = [source.layer for source in plan.sources]
        return layers if plan.operation == self.folding.name and len(set(layers)) > 1 else layers[:1]

    def _encode_runs(self, runs: Sequence[Sequence[int]]) -> tuple[dict[str, ParamValue], list[str]]:
        """Return which layers are folded, and what is wrong with the whole of the layers."""
        L, wrong = self.layout.num_layers, []  # noqa: N806
        used = [i for run in runs for i in run]
        lost = sorted(set(range(L)) - set(used))
        if lost:
            wrong.append(f"it drops the layers {lost}, where the space folds layers and drops none")
        if any(a >= b for a, b in pairwise(used)) or used[-1] >= L:
            wrong.append(f"its layers {used} are not ascending numbers below {L}")
        folded = {i for run in runs for i in run[1:]}
        fixed = sorted(folded - set(self._foldable))
        if fixed:
            wrong.append(f"it folds the layers {fixed}, where those that can be folded are {list(self._foldable)}")
        if len(folded) != self._subset.k:
            wrong.append(f"it folds {len(folded)} layers, where the space folds {self._subset.k}")
        return {FOLDED: tuple(p for p, i in enumerate(self._foldable) if i in folded)}, wrong

    def _encode_run(
        self, plan: LayerPlan, run: Sequence[int], prefix: str
    ) -> tuple[dict[str, ParamValue], list[str]]:
        named, wrong = self._hyperparameters.encode(dict(plan.params))
        model = plan.sources[0].model
        if self._selects:
            named["source"] = model
        if model not in self.layout.models:
            wrong.append(f"{model} is no model of the family ({', '.join(self.layout.models)})")
        params = {f"{prefix}{name}": value for name, value in named.items()}
        if not wrong and self._plan(params, run) != plain(plan):
            reached = self._plan(params, run).to_dict()
            wrong.append(f"{plain(plan).to_dict()} can't be had; the nearest is {reached}")
        return params, wrong

    def size(self) -> SpaceSize:
        """Return the exact number of discrete candidates, and the most continuous parameters active at once."""
        run = self._hyperparameters.count() * (len(self.layout.models) if self._selects else 1)
        kept = self.layout.num_layers - self._subset.k
        continuous = {
            singles: singles * self._merge.continuous() + (kept - singles) * self._hyperparameters.continuous()
            for singles in self._singles()
        }
        discrete = sum(ways * self._merge.count() ** n * run ** (kept - n) for n, ways in self._singles().items())
        return SpaceSize(discrete, max(continuous.values()) + kept * self._scale.continuous())

    def _singles(self) -> Counter[int]:
        """Return the number of choices of folded layers, by the number of kept layers that none is folded into."""
        # state: layers folded so far, single layers below the last kept one, whether that one is single
        states: Counter[tuple[int, int, bool]] = Counter({(0, 0, True): 1})
        for i in range(1, self.layout.num_layers):
            following: Counter[tuple[int, int, bool]] = Counter()
            for (folded, singles, single), ways in states.items():
                following[folded, singles + single, True] += ways
                if i in self._foldable and folded < self._subset.k:
                    following[folded + 1, singles, False] += ways
            states = following
        found: Counter[int] = Counter()
        for (folded, singles, single), ways in states.items():
            if folded == self._subset.k:
                found[singles + single] += ways
        return found

    def operations(self) -> tuple[MergeOperation, ...]:
        """Return the folding, and the merges that can be chosen."""
        self.layout  # noqa: B018  (raises before setup)
        return (self.folding, *self._merge.operations)

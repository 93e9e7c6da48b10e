"""Import from mergekit: a configuration as the tailoring that gives the same tensors.

Each tensor is looked at by its name, as mergekit does: filters and gradients of every parameter are resolved, and
what comes out for the tensors of a layer is put together to a plan, with parts where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from tailorlib.bounded import load_yaml
from tailorlib.exceptions import RecipeError, did_you_mean, shown
from tailorlib.interchange.configuration import (
    Configuration,
    LayerCount,
    SliceData,
    SourceData,
    read_configuration,
    renamed,
)
from tailorlib.interchange.from_methods import METHODS, Inputs, Made, Method
from tailorlib.interchange.imported import Imported, family_names
from tailorlib.interchange.methods import RANDOM
from tailorlib.interchange.names import TensorNames, filters_for, most_common
from tailorlib.interchange.roles import roles_of
from tailorlib.interchange.settings import Faults, Found, InvalidSettingError, Kind, Scope, filters_in, first_found
from tailorlib.tailoring import SELECT, LayerPlan, LayerSource, Owner, PartPlan, Tailoring

_SUMS = (SELECT, "Linear", "TaskArithmetic")


def from_mergekit(
    text: str,
    *,
    num_layers: LayerCount | None = None,
    names: TensorNames | Callable[[str], TensorNames | None] | None = None,
) -> Imported:
    """Read a configuration of mergekit 0.1.5.

    Which model becomes ``base`` is told by :func:`~tailorlib.interchange.roles.roles_of`.

    Args:
        text: The YAML text.
        num_layers: Number of layers of each model, or a function that finds it by the model's reference; needed
            for configurations that list ``models``.
        names: Names of the models' tensors, with which filters are compared, or a function that finds them by the
            base model's reference; those of Llama by default.

    Raises:
        RecipeError: With everything that has no counterpart, by its place.
        ModelError: If a function that is given raises it.
    """
    configuration = read_configuration(load_yaml(text, "A mergekit configuration"), num_layers)
    faults = Faults()
    roles = roles_of(configuration, faults)
    if configuration.method not in METHODS:
        hint = did_you_mean(configuration.method, METHODS)
        faults.add("merge_method", f"is a method of mergekit 0.1.5, got {shown(configuration.method)}.{hint}")
    if faults.found:
        raise RecipeError(list(faults.found))
    family = family_names(roles.base, list(roles.candidates))
    found = names(roles.base) if callable(names) else names
    reader = _Reader(renamed(configuration, family), found or TensorNames(), faults)
    tailoring = reader.tailoring()
    if faults.found or tailoring is None:
        raise RecipeError(list(faults.found))
    notes = [*configuration.notes, *roles.notes, *reader.notes()]
    if configuration.method in RANDOM and any(map(_is_random, tailoring.layers)):
        notes.append("Random masks are drawn anew: same densities as mergekit's, other entries.")
    if found is None and reader.hints:
        notes.append("The models were not looked at: filters are compared with the names of Llama's tensors.")
    others = {family[written]: reference for written, reference in roles.candidates.items()}
    return Imported(tailoring, roles.base, others, tuple(notes))


class _Reader:
    """Makes plans of a configuration whose models have their family names.

    Args:
        configuration: The configuration.
        names: Names of the models' tensors.
        faults: Takes what has no counterpart.
    """

    def __init__(self, configuration: Configuration, names: TensorNames, faults: Faults) -> None:
        self.configuration, self.names, self.faults = configuration, names, faults
        self.method: Method = METHODS[configuration.method]
        scopes = [configuration.parameters, *(piece.parameters for piece in configuration.slices)]
        scopes += [source.parameters for piece in configuration.slices for source in piece.sources]
        self._scopes = scopes
        known = {*self.method.shared, *self.method.own}
        settings = (value for scope in scopes for name, value in scope.values.items() if name in known)
        self.hints = list(dict.fromkeys(chain.from_iterable(map(filters_in, settings))))

    def notes(self) -> list[str]:
        """Return what mergekit itself would not read."""
        known = {*self.method.shared, *self.method.own}
        unread = {f"{s.path}.{name}" for s in self._scopes for name in s.values if name not in known}
        shared = {*self.method.shared} - {*self.method.own}
        sources = (source for piece in self.configuration.slices for source in piece.sources)
        unread |= {
            f"{s.parameters.path}.{name}" for s in sources for name in s.parameters.values if name in shared
        }
        if not unread:
            return []
        listed = ", ".join(sorted(unread)[:5]) + (", ..." if len(unread) > 5 else "")
        return [f"mergekit's {self.configuration.method} reads no {listed}; neither did this import."]

    def tailoring(self) -> Tailoring | None:
        """Return the tailoring, or ``None`` if there are faults."""
        slices = self.configuration.slices
        for piece in slices:
            self._check_inputs(piece, piece.sources)
        if self.faults.found:
            return None
        plans: list[LayerPlan | None] = []
        for piece in slices:
            plans += [self._layer(piece, k, len(plans) + k) for k in range(piece.length)]
        embeddings = self._owner(slices[0], slices[0].sources, "embeddings")
        # mergekit looks at no more of the last slice's sources than the first slice has
        last = slices[-1].sources[: len(slices[0].sources)]
        if len(last) < len(slices[-1].sources):
            self._check_inputs(slices[-1], last)
        norm, head = (self._owner(slices[-1], last, part) for part in ("norm", "head"))
        if self.faults.found or embeddings is None or norm is None:
            return None
        made = tuple(plan for plan in plans if plan is not None)
        return Tailoring(made, embeddings=embeddings, norm=norm, head=embeddings if head is None else head)

    def _check_inputs(self, piece: SliceData, sources: Sequence[SourceData]) -> None:
        """Collect why mergekit would refuse a slice's sources."""
        models, method = [source.model for source in sources], self.method
        path = f"{piece.path}.sources" if piece.path != "models" else "models"
        twice = next((model for i, model in enumerate(models) if model in models[:i]), None)
        if twice is not None:
            self.faults.add(path, f"mergekit takes each model once, got {twice!r} twice.")
        if method.base is not False and piece.base is not None and piece.base not in models:
            self.faults.add(path, f"mergekit needs the base model among them, got {', '.join(models)}.")
        elif method.base and piece.base is None:
            self.faults.add(path, f"{self.configuration.method} needs a base_model.")
        number = len(models) - (method.base is not False and piece.base in models)
        if not method.least <= number <= (method.most or number):
            wanted = f"{method.least} to {method.most}" if method.most else f"{method.least} or more"
            beside = "" if method.base is False else " beside the base"
            self.faults.add(path, f"{self.configuration.method} takes {wanted} models{beside}, got {number}.")

    def _layer(self, piece: SliceData, offset: int, index: int) -> LayerPlan | None:
        t = offset / (piece.length - 1) if piece.length > 1 else 1.0
        sources = [(source, LayerSource(source.model, source.start + offset)) for source in piece.sources]
        prefix = self.names.architecture.layer_prefix
        count = len(self.names.layers)
        outside = [s for _, s in sources if count > 1 and s.layer >= count]
        if outside:
            self.faults.add(piece.path, f"the models have {count} layers, got {outside[0]}.")
            return None
        made: dict[str, Made] = {}
        for suffix in self.names.of_layer(sources[0][1].layer):
            try:
                listed = self.names.listed(suffix)
                inputs = [prefix(s.layer) + listed for _, s in sources]
                made[suffix] = self._made(piece, sources, t, prefix(index) + listed, inputs)
                if listed != suffix and made[suffix].operation not in _SUMS:
                    message = (
                        f"mergekit merges all experts as one tensor, which {made[suffix].operation} would notice."
                    )
                    raise InvalidSettingError("merge_method", message)
            except InvalidSettingError as error:
                self.faults.add(error.path, str(error))
        if len(made) < len(self.names.of_layer(sources[0][1].layer)):
            return None
        return self._plan(made)

    def _owner(self, piece: SliceData, sources: Sequence[SourceData], part: str) -> Owner | None:
        """Return what gives a part outside the layers, or ``None`` if the models have none or it can't be told."""
        pairs = [(source, LayerSource(source.model, 0)) for source in sources]
        found: dict[str, Made] = {}
        tensors = [name for name in self.names.outer if self.names.part(name) == part]
        for name in tensors:
            try:
                found[name] = self._made(piece, pairs, 0.0, name, [name] * len(pairs))
            except InvalidSettingError as error:
                self.faults.add(error.path, str(error))
        if not found:
            return None
        if len(set(found.values())) > 1:
            self.faults.add(piece.path, f"the tensors of the {part} ({', '.join(tensors)}) are made differently.")
            return None
        made = _without_factor(next(iter(found.values())))
        if made.operation == SELECT:
            return made.sources[0].model
        base = None if made.base is None else made.base.model
        return PartPlan(tuple(source.model for source in made.sources), made.operation, made.params, base)

    def _made(
        self,
        piece: SliceData,
        sources: Sequence[tuple[SourceData, LayerSource]],
        t: float,
        output: str,
        inputs: Sequence[str],
    ) -> Made:
        """Return what a tensor is made of, given its full names in the output and in each source."""
        method, top = self.method, self.configuration.parameters

        def find(scopes: Sequence[Scope], name: str, tensor: str, kind: Kind, default: object, path: str) -> Found:
            return first_found(scopes, name, tensor, t, kind, default, path)  # type: ignore[arg-type]

        shared = {
            name: find((piece.parameters, top), name, output, kind, default, piece.path)
            for name, (kind, default) in method.shared.items()
        }
        has_base = method.base is not False
        base = next((at for source, at in sources if has_base and source.model == piece.base), None)
        kept = [(s, at, tensor) for (s, at), tensor in zip(sources, inputs, strict=True) if at != base]
        own = tuple(
            {
                name: find((s.parameters, piece.parameters, top), name, tensor, kind, default, s.path)
                for name, (kind, default) in method.own.items()
            }
            for s, _, tensor in kept
        )
        return method.read(Inputs(piece.path, tuple(at for _, at, _ in kept), base, shared, own))

    def _plan(self, made: dict[str, Made]) -> LayerPlan:
        """Return the plan of a layer, given what each of its tensors is made of."""
        made = _as_scaled(made)
        scales = {}
        for branch in ("attention", "mlp"):
            tensors = [suffix for suffix in made if self.names.architecture.branch(suffix) == branch]
            factors = {made[suffix].factor for suffix in tensors}
            scales[branch] = 1.0
            if len(factors) == 1 and not self.names.architecture.unit_offset:
                scales[branch] = factors.pop()
                made |= {suffix: replace(made[suffix], factor=1.0) for suffix in tensors}
        whole = {suffix: _without_factor(found) for suffix, found in made.items()}
        default, parts = filters_for(whole, self.hints)
        return replace(
            _layer_plan(default),
            attention_scale=scales["attention"],
            mlp_scale=scales["mlp"],
            parts=tuple((text, _layer_plan(found)) for text, found in parts),
        )


def _without_factor(made: Made) -> Made:
    """Write a factor that is no residual scale as a sum: of one model, that model's tensor times a weight."""
    if made.factor == 1:
        return made
    weights = dict(made.params).get("weights")
    found = weights if isinstance(weights, tuple) else (1.0,)  # what a ratio was found for, or a selection
    scaled = tuple(made.factor * weight for weight in found)
    return replace(made, operation="Linear", params=(("normalize", False), ("weights", scaled)), factor=1.0)


def _as_scaled(made: Mapping[str, Made]) -> dict[str, Made]:
    """Write sums that are others times a number as those, with a factor."""
    usual = most_common(made.values())
    return {suffix: _ratio(found, usual) for suffix, found in made.items()}


def _ratio(found: Made, usual: Made) -> Made:
    weights, others = dict(found.params).get("weights"), dict(usual.params).get("weights")
    sums = ("Linear", False)
    if any((m.operation, dict(m.params).get("normalize")) != sums or m.factor != 1 for m in (found, usual)):
        return found
    if found.sources != usual.sources or not isinstance(weights, tuple) or not isinstance(others, tuple):
        return found
    pairs = [(w, o) for w, o in zip(weights, others, strict=True) if w or o]
    if not pairs or not all(o for _, o in pairs):
        return found
    factor = pairs[0][0] / pairs[0][1]
    same = all(abs(w - factor * o) <= 1e-12 * abs(w) for w, o in pairs)
    return replace(usual, factor=factor) if same and factor else found


def _is_random(plan: LayerPlan) -> bool:
    densities = (dict(part.params).get("density", 1.0) for part in plan.plans)
    return any(min(d if isinstance(d, tuple) else (d,)) != 1.0 for d in densities)


def _layer_plan(made: Made) -> LayerPlan:
    return LayerPlan(made.sources, made.operation, made.params, made.base)

"""Export to mergekit: a tailoring as a configuration with which mergekit makes the same tensors.

mergekit has one method per configuration, and takes the embeddings from the sources of the first slice, norm and
head from those of the last one. So the layers become slices; a slice of no layers at either end says who owns the
parts around them, where the layers beside them don't; and what needs a second method becomes a configuration
before the last one, whose result the last one draws on (``mergekit-multi``).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tailorlib.exceptions import RecipeError
from tailorlib.interchange.documents import Document, to_text
from tailorlib.interchange.listed import LISTED
from tailorlib.interchange.methods import Inexpressible, Merge, sum_of
from tailorlib.interchange.names import TensorNames
from tailorlib.interchange.plan import Layer, Plan, repeats
from tailorlib.interchange.planner import documents_of
from tailorlib.models.family import ModelFamily
from tailorlib.models.vocabulary import AlignedCheckpoint
from tailorlib.tailoring import BASE, LayerPlan, LayerSource, PartPlan, Tailoring, models_of

_HUB_ID = re.compile(r"^[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?$")


@dataclass(frozen=True)
class MergekitText:
    """A tailoring in mergekit's words.

    Args:
        text: The YAML text.
        tool: The command that takes it: ``mergekit-yaml`` or, for several configurations, ``mergekit-multi``.
        notes: What to know when running it, one sentence each.
    """

    text: str
    tool: str
    notes: tuple[str, ...]

    def command(self, file: str | Path, output: str | Path) -> str:
        """Return the command that makes the model ``output`` of the text in ``file``, from any working folder.

        mergekit takes a relative path with one ``/``, such as that of an intermediate result, for a hub id, and
        asks the network for it: hence ``./``.
        """
        source = str(Path(file).expanduser().absolute())
        if self.tool != "mergekit-multi":
            return shlex.join([self.tool, source, str(output)])
        place = str(output) if Path(output).is_absolute() else f"./{Path(output)}"
        return shlex.join([self.tool, source, "--intermediate-dir", f"{place}-parts", "--out-path", place])


def to_mergekit(
    tailoring: Tailoring, family: ModelFamily, *, references: Mapping[str, str] | None = None
) -> MergekitText:
    """Return the configuration with which mergekit 0.1.5 makes a tailored model's tensors.

    Args:
        tailoring: The candidate.
        family: The family, prepared.
        references: What mergekit calls the models, by family name; by default a hub id where the family has one,
            else the model's folder.

    Raises:
        ModelError: If the tailoring doesn't fit the family.
        RecipeError: With every reason why mergekit can't express it, by layer.
    """
    family.check(tailoring)
    names = TensorNames.of_family(family)
    translation = _Translation(family, names, {**_references(family), **(references or {})})
    layers = tuple(translation.layer(i, plan) for i, plan in enumerate(tailoring.layers))
    outer = translation.outer(tailoring)
    translation.check_models(tailoring)
    documents: list[Document] = []
    if not translation.faults:
        plan = Plan(
            architecture=names.architecture,
            references=translation.references,
            layers=layers,
            outer=outer,
            own_vocabulary=translation.own_vocabulary,
            own_head=translation.own_head,
            pad_to=family.layout.num_layers if translation.lists_layers else 0,
        )
        try:
            documents = documents_of(plan)
        except Inexpressible as reason:
            translation.faults.append(f"{reason}.")
    if translation.faults:
        raise RecipeError([f"mergekit can't express this tailoring: {fault}" for fault in translation.faults])
    notes = translation.notes(tailoring, (*layers, outer), documents)
    tool = "mergekit-yaml" if len(documents) == 1 else "mergekit-multi"
    return MergekitText(to_text(documents, translation.dtype), tool, notes)


class _Translation:
    """Turns plans into mergekit's terms and collects why some can't be."""

    def __init__(self, family: ModelFamily, names: TensorNames, references: Mapping[str, str]) -> None:
        self.family, self.names, self.references = family, names, dict(references)
        self.faults: list[str] = []
        self._listed = LISTED.get(names.architecture.model_type)
        self._checked: set[frozenset[str]] = set()

    @property
    def dtype(self) -> str:
        """Data type of most of the base's weights, as mergekit calls it."""
        base = self.family.checkpoints[BASE]
        largest = max(self.family.assembly.outer_shapes(), key=lambda shape: shape[1])
        return str(base.dtype(self.names.architecture.stored_name(largest[0]))).removeprefix("torch.")

    @property
    def lists_layers(self) -> bool:
        """Whether the config has entries with an item per layer."""
        per_layer = self.names.architecture.per_layer
        return any(getattr(self.family.config, name, None) is not None for name in per_layer)

    @property
    def own_vocabulary(self) -> frozenset[str]:
        """Models whose embeddings and head have other rows than the base's."""
        return frozenset(n for n, c in self.family.checkpoints.items() if isinstance(c, AlignedCheckpoint))

    @property
    def own_head(self) -> frozenset[str]:
        """Models whose files hold a head although it is tied to the embeddings."""
        head = f"{self.names.architecture.stored_head}.weight"
        holders = frozenset(n for n, c in self.family.checkpoints.items() if head in c)
        return holders if self.names.is_tied else frozenset()

    def layer(self, index: int, plan: LayerPlan) -> Layer:
        """Return what mergekit computes for a layer, by its names of the tensors."""
        where = f"layer {index} ({', '.join(map(str, plan.sources))})"
        sums: dict[str, dict[LayerSource | Merge, float]] = {}
        reasons: dict[str, None] = {}
        for suffix in self.family.assembly.suffixes(plan):
            try:
                made = self._tensor(plan, suffix)
            except Inexpressible as reason:
                reasons[str(reason)] = None
                continue
            if sums.setdefault(self.names.listed(suffix), made) != made:
                reasons["mergekit keeps all experts in one tensor, and they are made differently here"] = None
        self._check_tensors(frozenset(map(self.names.listed, self.family.assembly.suffixes(plan))), reasons)
        self.faults += [f"{where}: {reason}." for reason in reasons]
        branches = (*self.names.architecture.attention_out, *self.names.architecture.mlp_out)
        modules = [name.rpartition(".")[0] for name in branches if plan.is_scaled]
        return Layer(sums, (*(name for name, _ in plan.parts), *dict.fromkeys(modules)))

    def outer(self, tailoring: Tailoring) -> Layer:
        """Return what mergekit computes for each tensor outside the layers."""
        found: dict[str, dict[LayerSource | Merge, float]] = {}
        for part, owner in tailoring.parts.items():
            tensors = [name for name in self.names.outer if self.names.part(name) == part]
            plan = owner_plan(owner)
            try:
                made = sum_of(plan)
                aligned = self.own_vocabulary & set(models_of(owner))
                beside_head = part != "norm" or not self.names.is_tied or isinstance(owner, PartPlan)
                if aligned and beside_head:
                    raise Inexpressible(f"the vocabulary of {', '.join(sorted(aligned))} differs from the base's")
                if any(isinstance(atom, Merge) and repeats(atom.inputs) for atom in made):
                    raise Inexpressible("mergekit takes a model once, and the base is among the sources")
            except Inexpressible as reason:
                self.faults += [f"{part} ({owner}): {reason}."] if tensors else []
                continue
            found.update(dict.fromkeys(tensors, made))
        return Layer(found)

    def check_models(self, tailoring: Tailoring) -> None:
        """Collect what keeps mergekit from reading these models."""
        model_type = self.names.architecture.model_type
        if self._listed is None:
            self.faults.insert(0, f"mergekit 0.1.5 lists no architecture of the type {model_type!r}.")
        elif self._listed.needs_head and self.names.is_tied:
            self.faults.insert(0, f"mergekit 0.1.5 reads no {model_type} with tied embeddings.")
        for name in tailoring.models:
            reference = self.references[name]
            if not _readable(reference):
                self.faults.append(
                    f"in a model's name mergekit reads '+' and '@' as an adapter and a revision, got "
                    f"{reference!r} for {name!r}. Rename the folder."
                )

    def notes(
        self, tailoring: Tailoring, layers: Sequence[Layer], documents: Sequence[Document]
    ) -> tuple[str, ...]:
        """Return what to know when running mergekit."""
        notes = []
        merges = {atom for layer in layers for atom in layer.atoms if isinstance(atom, Merge)}
        if any(merge.is_random for merge in merges):
            notes.append("mergekit draws random masks of its own: same densities, other entries.")
        kinds = self.family.layout.layer_types
        kept = tuple(kinds[plan.sources[0].layer] for plan in tailoring.layers)
        if kept != kinds and (self.lists_layers or len(set(kinds)) > 1):
            notes.append(
                "Of what config.json says of layers, mergekit 0.1.5 adapts nothing but their number, and with "
                "lists such as layer_types it fails there, after writing the weights. Take config.json from "
                "`tailor export`."
            )
        adapters = [name for name in tailoring.models if self.family.sources[name].is_adapter]
        if adapters:
            notes.append(f"{', '.join(adapters)}: give mergekit a --lora-merge-cache folder for adapters.")
        if self._several_dtypes():
            notes.append(f"The base stores several data types; mergekit writes all tensors as {self.dtype}.")
        if set(models_of(tailoring.norm)) & self.own_head:
            notes.append("mergekit also writes the head in the file of the norm's owner; transformers ignores it.")
        if len(documents) > 1:
            notes.append(
                f"{len(documents)} configurations: mergekit-multi keeps all results but the last in its "
                "--intermediate-dir, and takes what lies there from earlier runs unless --no-lazy is given."
            )
        return tuple(notes)

    def _tensor(self, plan: LayerPlan, suffix: str) -> dict[LayerSource | Merge, float]:
        made = sum_of(plan.plan_of(suffix))
        if plan.term_of(suffix) is not None:
            raise Inexpressible(f"{', '.join(plan.term_texts)} is added to it, and mergekit adds no stored tensor")
        branch = self.names.architecture.branch(suffix)
        factor = {"attention": plan.attention_scale, "mlp": plan.mlp_scale}.get(branch or "", 1.0)
        if factor != 1 and self.names.architecture.unit_offset:
            raise Inexpressible("a residual scale changes a norm that multiplies by 1 + weight")
        if self.names.architecture.experts is not None and any(isinstance(m, Merge) for m in made):
            raise Inexpressible(f"mergekit merges all experts as one tensor, which {plan.operation} would notice")
        return {source: weight * factor for source, weight in made.items()}

    def _check_tensors(self, found: frozenset[str], reasons: dict[str, None]) -> None:
        if self._listed is None or found in self._checked:
            return
        self._checked.add(found)
        unknown, lacking = sorted(found - self._listed.known), self._listed.required - found
        if unknown:
            reasons[f"mergekit would leave out {', '.join(unknown)}, which it doesn't list"] = None
        prefix = self.names.architecture.layer_prefix(0)
        files = self.family.checkpoints.values()  # old ones hold more than a model reads
        lacking = frozenset(name for name in lacking if not all(prefix + name in file for file in files))
        if lacking:
            reasons[f"mergekit asks for {', '.join(sorted(lacking))}, which these models lack"] = None

    def _several_dtypes(self) -> bool:
        assembly = self.family.assembly
        inner = (dtype for _, _, dtype in assembly.layer_shapes(LayerPlan((LayerSource(BASE, 0),))))
        return len({*inner, *(dtype for _, _, dtype in assembly.outer_shapes())}) > 1


def owner_plan(owner: str | PartPlan) -> LayerPlan:
    """Return the owner of a part outside the layers as a plan of layers numbered 0."""
    if isinstance(owner, str):
        return LayerPlan((LayerSource(owner, 0),))
    base = None if owner.base is None else LayerSource(owner.base, 0)
    return LayerPlan(tuple(LayerSource(m, 0) for m in owner.models), owner.operation, owner.params, base)


def _references(family: ModelFamily) -> dict[str, str]:
    """Return what mergekit calls a family's models."""
    found: dict[str, str] = {}
    for name, source in family.sources.items():
        location = family.references[name].partition("#")[0]
        is_hub = _HUB_ID.match(location) is not None and not Path(location).expanduser().exists()
        found[name] = location if is_hub else str(source.folder.absolute())
        if source.is_adapter:
            found[name] = f"{found[BASE]}+{found[name]}"
    return found


def _readable(reference: str) -> bool:
    model, _, adapter = reference.partition("+")
    return "+" not in adapter and all("@" not in part or _HUB_ID.match(part) for part in (model, adapter))

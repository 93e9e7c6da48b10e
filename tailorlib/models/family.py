"""ModelFamily: a base model and the models fine-tuned from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import AutoTokenizer, PreTrainedModel

from tailorlib.exceptions import ModelError, PluginError, RecipeError, did_you_mean, shown
from tailorlib.limits import MEBIBYTES, Limits, limit_faults
from tailorlib.models.architecture import Architecture, layer_kinds
from tailorlib.models.assembly import Assembly
from tailorlib.models.chat import GENERATION, Chat, open_chat
from tailorlib.models.checkpoint import Checkpoint
from tailorlib.models.opening import Opened, note_on, with_own_head
from tailorlib.models.outline import Planned, outline_base, outline_candidate
from tailorlib.models.precision import DTYPES, DtypeName, compute_dtype
from tailorlib.models.quantization import QUANTIZATIONS, QuantizationName
from tailorlib.models.shared import SharedTensors, folder_digest
from tailorlib.models.source import ModelSource
from tailorlib.models.statistics import LayerStatistics
from tailorlib.models.stitching import Stitcher
from tailorlib.models.tying import with_head
from tailorlib.operation import MergeOperation, Statistic
from tailorlib.plain_data import safe_text
from tailorlib.registry import Registry
from tailorlib.search_space import FamilyLayout
from tailorlib.tailoring import BASE, SELECT, LayerPlan, LayerSource, PartPlan, Tailoring, models_of
from tailorlib.text import TextSource

TRUST_RULE = (
    "trust_remote_code is asked for per model: it is a list of the names of those models whose own Python code "
    "may be run, such as [base]."
)


class ModelFamily:
    """A base model and the models fine-tuned from it, loaded once and shared by every candidate.

    Args:
        base: The base model: a folder, a hub id, a .gguf file, or 'package:NAME/FILE.gguf'.
        candidates: The fine-tuned models by the names they get in a study: what ``base`` takes, or a folder with a
            LoRA adapter on the base.
        dtype: Data type to evaluate in; 'auto' measures which one the device computes fastest in.
        merge_cache_mib: Memory for merged layers that are kept between candidates, in MiB.
        quantization: Evaluate with the layers' matrices in 4 or 8 bits, by bitsandbytes: merges are computed from
            the stored weights and then quantised. Exports are never quantised.
        calibration: Text for the layer statistics that merges such as RegMean and Fisher ask for.
        calibration_tokens: Number of tokens of that text to gather them over, from its beginning.
        layer_cache_mib: Memory for the models' own layers that are kept in the compute data type, in MiB; no limit
            by default. The least recently used ones go first, and never one that the present tailoring uses: a
            tailoring that exceeds the budget by itself still runs, and no other layer is kept. Layers that are
            views of mapped files take none of it: evaluated on a CPU in the data type in which they are stored.
        trust_remote_code: Names of the models, 'base' or candidates, whose own Python code may be run: the files
            beside a model that the ``auto_map`` of its config or tokenizer names. Of no model by default. Read the
            code first: it can do whatever you can. Every tailored model is built by the base's code; a candidate's
            only reads its config and tokenizer.
        compare: What a search compares with what transformers loads of the same folders when it opens the models:
            'small' compares names and shapes, and all tensors and logits if the base takes at most 600 MB; 'all'
            compares these of models of any size, which takes the memory of one model more.
        chat_from: Name of the model, 'base' or a candidate, whose chat template, special tokens, ends of turns and
            generation settings the tailored model gets; the base's by default. Text becomes the base's tokens
            whatever it is.
    """

    def __init__(
        self,
        base: str,
        candidates: dict[str, str] | None = None,
        dtype: DtypeName = "auto",
        merge_cache_mib: int = 1024,
        quantization: QuantizationName = "none",
        calibration: TextSource | None = None,
        calibration_tokens: int = 65_536,
        layer_cache_mib: int | None = None,
        trust_remote_code: list[str] | None = None,
        compare: Literal["small", "all"] = "small",
        chat_from: str | None = None,
    ) -> None:
        self.base, self.candidates = base, dict(candidates or {})
        self.dtype, self.merge_cache_mib, self.quantization = dtype, merge_cache_mib, quantization
        self.calibration, self.calibration_tokens = calibration, calibration_tokens
        self.layer_cache_mib = layer_cache_mib
        self.trust_remote_code = trust_remote_code
        self.compare = compare
        self.chat_from = chat_from
        self._chat: Chat | None = None
        self._required: set[Statistic] = set()
        self._statistics: LayerStatistics | None = None
        self._checkpoints: dict[str, Checkpoint] = {}
        self._opened: dict[str, Opened] = {}
        self._sources_found: dict[str, ModelSource] = {}
        self._references: dict[str, str] = {}
        self._config: Any = None
        self._kinds: tuple[str, ...] = ()
        self._tokenizer: Any = None
        self._assembly: Assembly | None = None
        self._stitcher: Stitcher | None = None
        self._shared: SharedTensors | None = None
        self._planned: Planned | None = None

    def _sources(self) -> tuple[str, dict[str, str]]:
        """Return the references of base and candidates; a subclass may create models first."""
        return self.base, self.candidates

    def _plan(self) -> Planned:
        """Return what :meth:`_sources` will return; a subclass that creates models there creates none here."""
        return Planned(*self._checked_sources())

    def _checked_sources(self) -> tuple[str, dict[str, str]]:
        found = self._sources()
        pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)
        if not pair or not all(isinstance(text, str) for text in (found[0], *found[1], *found[1].values())):
            raise PluginError(
                f"{type(self).__name__}._sources gives (base, {{name: candidate}}), references of models; got "
                f"{shown(found)}."
            )
        return found

    def prepare(self) -> None:
        """Find all models, open their checkpoints and check that they belong together; no weight is read.

        Raises:
            RecipeError: With every fault of every model.
        """
        if self._assembly is None or self._planned is not None:
            self._planned = None
            self._open(Planned(*self._checked_sources()), build=True)

    def outline(self) -> None:
        """Do what :meth:`prepare` does without making, converting or fetching weights: a plan needs none.

        Names, shapes and data types are those that the models will have. :meth:`load` prepares all the same.

        Raises:
            RecipeError: With every fault of every model.
        """
        if self._assembly is None:
            planned = self._plan()
            self._open(planned, build=False)
            self._planned = planned

    @property
    def calibrates(self) -> bool:
        """Whether :meth:`load` gathers layer statistics, unless the cache has them."""
        return bool(self._required)

    @property
    def first(self) -> tuple[str, ...]:
        """What :meth:`prepare` still has to do after :meth:`outline`, as sentences without a full stop."""
        if self._planned is None:
            return ()
        sources, references = self._sources_found, self._references
        absent = {n: references[n] for n, source in sources.items() if source.outlined and n in references}
        return tuple(f"{name} is {_verb(ref)} first, once" for name, ref in absent.items()) + self._planned.first

    def _open(self, planned: Planned, *, build: bool) -> None:
        faults = self._setting_faults()
        base, candidates = planned.base, dict(planned.candidates)
        self._references = {n: r for n, r in {**candidates, BASE: base}.items() if isinstance(r, str)}
        if BASE in candidates:
            faults.append("No candidate may be called 'base': it is the base model's name. Rename it.")
            candidates = {k: v for k, v in candidates.items() if k != BASE}
        nameless = [
            name for name in candidates if not isinstance(name, str) or not name or safe_text(name) != name
        ]
        if nameless:
            faults.append(f"A candidate has a name, a text of one character or more, got {shown(nameless[0])}.")
            candidates = {k: v for k, v in candidates.items() if k not in nameless}
        faults += self._trust_faults((BASE, *candidates))
        try:
            opened = outline_base(base, trusted=self._trusts(BASE), build=build)
        except ModelError as error:
            raise RecipeError([*faults, f"base: {error}"]) from error
        found: dict[str, Opened] = {}
        for name, reference in candidates.items():
            try:
                found[name] = outline_candidate(opened, name, reference, trusted=self._trusts(name), build=build)
            except ModelError as error:
                faults.append(f"candidate {name!r}: {error}")
        if faults:
            raise RecipeError(faults)
        checkpoints = {name: candidate.checkpoint for name, candidate in found.items()}
        if opened.config.tie_word_embeddings and any(candidate.own_head for candidate in found.values()):
            opened = with_own_head(opened)
            checkpoints = {name: with_head(c, opened.architecture) for name, c in checkpoints.items()}
        checkpoints = {BASE: opened.checkpoint, **checkpoints}
        sources = {BASE: opened.source, **{name: candidate.source for name, candidate in found.items()}}
        self._opened = found
        self._sources_found, self._checkpoints, self._config = sources, checkpoints, opened.config
        self._chat = self._open_chat(opened.source)
        self._kinds = layer_kinds(opened.config)
        self._assembly = Assembly(opened.architecture, checkpoints, opened.layer_suffixes, opened.outer)
        if self.calibration is not None:
            self._statistics = self.assembly.statistics = LayerStatistics(self)

    def _open_chat(self, base: ModelSource) -> Chat | None:
        """Return the chat settings that were asked for, and give them to the config."""
        name = self.chat_from
        if name is None:
            return None
        if name not in self._sources_found:
            hint = did_you_mean(name, self._sources_found)
            raise RecipeError(f"chat_from names a model of the family, got {shown(name)}.{hint}")
        try:
            chat = open_chat(name, self._sources_found[name], self._load_tokenizer(base))
        except ModelError as error:
            raise RecipeError(f"chat_from: {error}") from error
        chat.set_config(self._config)
        return chat

    def require(self, operations: Iterable[MergeOperation]) -> None:
        """Say which merges will be used: :meth:`load` gathers the layer statistics that they ask for.

        Raises:
            RecipeError: If one asks for statistics, and the family has no calibration text.
            DataError: If that text can't be read.
        """
        asking = {operation.name: operation.statistic for operation in operations if operation.statistic}
        if asking and self.calibration is None:
            raise RecipeError(
                f"{', '.join(asking)} needs layer statistics, and the family has no text to gather them over. Set "
                "family.init_args.calibration to a text source, or leave the operation out."
            )
        if asking and self.calibration is not None:
            self.calibration.documents()
        self._required.update(asking.values())

    def load(self, device: torch.device) -> None:
        """Fix the compute data type for a device and build the skeleton; weights are read when first used.

        What :meth:`require` asked for is gathered, unless the cache has it.

        Args:
            device: Where candidates run.
        """
        self.prepare()
        if self._stitcher is None or self._stitcher.device != device:
            self._stitcher = Stitcher(
                self.assembly,
                self._config,
                device=device,
                dtype=compute_dtype(self.dtype, device),
                quantization=self.quantization,
                merge_cache_bytes=self.merge_cache_mib * 2**20,
                layer_cache_bytes=None if self.layer_cache_mib is None else self.layer_cache_mib * 2**20,
                generation_folder=self.generation_folder,
                trust_remote_code=self.source.trust_remote_code,
            )
            self._stitcher.share(self._shared)
            if self._chat is not None:
                self._chat.set_config(self._stitcher.model.generation_config)
        if self._statistics is not None:
            self._statistics.gather(sorted(self._required))

    def share_weights(self, folder: Path) -> SharedTensors:
        """Hold computed weights once per node, and not once per process; after :meth:`prepare`.

        To be called in every process of a node with one folder of that node, best before :meth:`load`: what was
        taken before stays private. It has an effect on CPUs only, and without quantisation; see
        :meth:`tailorlib.models.stitching.Stitcher.share`.

        Args:
            folder: An existing folder, such as that of a :class:`tailorlib.models.shared.SharedFolder`.

        Returns:
            What shares them; it counts what this process computed, and what it found.

        Raises:
            ModelError: If there is no such folder.
        """
        base = self.sources[BASE].folder
        models = {name: folder_digest(source.folder, base) for name, source in self.sources.items()}
        self._shared = SharedTensors(folder, models)
        if self._stitcher is not None:
            self._stitcher.share(self._shared)
        return self._shared

    def stored(self, name: str) -> Checkpoint:
        """Return a model's weights by the architecture's names, with its own vocabulary, after :meth:`prepare`."""
        return self.checkpoints[BASE] if name == BASE else self._opened[name].stored

    def runs_as_itself(self, name: str) -> bool:
        """Say whether a model computes the same by the base's config and vocabulary as by its own."""
        if name == BASE:
            return True
        found = self._opened[name]
        return not found.own_settings and found.checkpoint is found.stored

    @property
    def layout(self) -> FamilyLayout:
        """Names of the candidates in recipe order, number and types of the layers."""
        self.assembly  # noqa: B018 (prepared?)
        names = tuple(n for n in self.checkpoints if n != BASE)
        return FamilyLayout(names, len(self._kinds), self._kinds, self.architecture.branches)

    @property
    def config(self) -> Any:
        """The base model's transformers config; not to be modified."""
        self.assembly  # noqa: B018 (prepared?)
        return self._config

    @property
    def architecture(self) -> Architecture:
        """Where the parts of these models live."""
        return self.assembly.architecture

    @property
    def source(self) -> ModelSource:
        """Where the base model lies."""
        self.assembly  # noqa: B018 (prepared?)
        return self._sources_found[BASE]

    @property
    def sources(self) -> Mapping[str, ModelSource]:
        """Where each model lies, by family name."""
        self.assembly  # noqa: B018 (prepared?)
        return self._sources_found

    @property
    def references(self) -> Mapping[str, str]:
        """Where each model comes from, by family name, as the recipe or a subclass says."""
        return self._references

    @property
    def descriptions(self) -> Mapping[str, str]:
        """What each model is, in words for a model card, by family name; the references by default."""
        return self.references

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer.

        Raises:
            ModelError: If the base has none.
        """
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer(self.source)
            if self._chat is not None:
                self._chat.set_tokenizer(self._tokenizer)
        return self._tokenizer

    def _load_tokenizer(self, source: ModelSource) -> Any:
        try:
            return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=source.trust_remote_code)
        except Exception as error:  # what own code raises is the user's to mend, whatever it is
            if not (source.trust_remote_code or isinstance(error, (OSError, ValueError, KeyError))):
                raise
            raise ModelError(
                f"The base model {str(source.folder)!r} has no tokenizer that "
                f"transformers can load: {error}{note_on(source)}"
            ) from error

    @property
    def chat(self) -> Chat | None:
        """The chat settings of another model that tailored models get; ``None`` if they are the base's."""
        return self._chat

    @property
    def generation_folder(self) -> Path:
        """Where the generation settings of tailored models lie, if there are any."""
        chosen = self.source.folder if self._chat is None else self._chat.folder
        return chosen if (chosen / GENERATION).is_file() else self.source.folder

    @property
    def checkpoints(self) -> Mapping[str, Checkpoint]:
        """The checkpoints by family name: the base, then the candidates in recipe order."""
        self.assembly  # noqa: B018 (prepared?)
        return self._checkpoints

    @property
    def assembly(self) -> Assembly:
        """What makes the tensors of a tailoring."""
        if self._assembly is None:
            raise ModelError("A model family is used before prepare().")
        return self._assembly

    @property
    def stitcher(self) -> Stitcher:
        """What makes live models, after :meth:`load`."""
        if self._stitcher is None:
            raise ModelError("A model family stitches models after load(device).")
        return self._stitcher

    @property
    def compute_dtype(self) -> torch.dtype:
        """Data type that live models compute in, after :meth:`load`."""
        return self.stitcher.dtype

    @property
    def device(self) -> torch.device | None:
        """Where live models run; ``None`` before :meth:`load`."""
        return None if self._stitcher is None else self._stitcher.device

    def stitch(self, tailoring: Tailoring) -> PreTrainedModel:
        """Return the live model of a tailoring, in evaluation mode; valid until the next call.

        Raises:
            ModelError: If the tailoring doesn't fit the family.
            PluginError: If a merge operation is unknown or fails.
        """
        self.check(tailoring)
        return self.stitcher.stitch(tailoring)

    def num_parameters(self, tailoring: Tailoring) -> int:
        """Return the number of parameters of the exported model; tied weights count once."""
        self.check(tailoring)
        inner = (shape for plan in tailoring.layers for _, shape, _ in self.assembly.layer_shapes(plan))
        outer = (shape for _, shape, _ in self.assembly.outer_shapes())
        return sum(map(prod, inner)) + sum(map(prod, outer))

    def layer_parameters(self) -> tuple[int, ...]:
        """Return the number of parameters of each decoder layer of the base."""
        plans = (LayerPlan((LayerSource(BASE, layer),)) for layer in range(self.layout.num_layers))
        return tuple(sum(prod(shape) for _, shape, _ in self.assembly.layer_shapes(plan)) for plan in plans)

    def check(self, tailoring: Tailoring) -> None:
        """Check that a tailoring can be built from this family.

        Raises:
            ModelError: If it names an unknown model or layer, or mixes layers of different types.
            PluginError: If it names an unknown operation.
        """
        for part, owner in tailoring.parts.items():
            for model in models_of(owner):
                self._check_model(model, part)
            if isinstance(owner, PartPlan):
                self._check_operation(owner, owner.models, part)
        for i, plan in enumerate(tailoring.layers):
            self._check_plan(i, plan)

    def _check_plan(self, i: int, plan: LayerPlan) -> None:
        number = int(self.config.num_hidden_layers)
        for source in plan.drawn:
            self._check_model(source.model, f"layer {i}")
            if not 0 <= source.layer < number:
                raise ModelError(
                    f"Layer {i} of the tailoring takes {source}; the models have the layers 0 to {number - 1}."
                )
        kinds = {self._kinds[s.layer]: s for s in plan.drawn}
        if len(kinds) > 1:
            listed = ", ".join(f"{s} ({kind})" for kind, s in kinds.items())
            raise ModelError(f"Layers of one type can be merged; layer {i} of the tailoring draws on {listed}.")
        suffixes = self.assembly.suffixes(plan)
        for name, part in (("", plan), *plan.parts):
            if not any(name in suffix for suffix in suffixes):
                raise ModelError(
                    f"Layer {i} of the tailoring has a plan for its part {name!r}, which matches none of the "
                    f"tensors {', '.join(suffixes)}."
                )
            if part.operation != SELECT:
                self._check_operation(part, part.sources, f"layer {i}")

    def _check_operation(self, plan: LayerPlan | PartPlan, sources: Sequence[object], where: str) -> None:
        operation = self.assembly.operation(plan.operation)
        if len(sources) < operation.min_sources or (operation.needs_base and plan.base is None):
            needed = f"{operation.min_sources} or more sources" + (" and a base" if operation.needs_base else "")
            raise ModelError(f"{plan.operation} needs {needed}; {where} of the tailoring has {plan.to_dict()}.")

    def _check_model(self, model: str, part: str) -> None:
        if model not in self.checkpoints:
            raise ModelError(
                f"The tailoring takes its {part} from {model!r}, which is no model of the family."
                f"{did_you_mean(model, self.checkpoints)}"
            )

    def _setting_faults(self) -> list[str]:
        faults = []
        if self.dtype not in ("auto", *DTYPES):
            faults.append(f"dtype is one of auto, {', '.join(DTYPES)}, got {self.dtype!r}.")
        if self.compare not in ("small", "all"):
            faults.append(f"compare is one of small, all, got {self.compare!r}.")
        if self.quantization not in QUANTIZATIONS:
            faults.append(f"quantization is one of {', '.join(QUANTIZATIONS)}, got {self.quantization!r}.")
        sizes = {"merge_cache_mib": self.merge_cache_mib, "calibration_tokens": self.calibration_tokens}
        if self.layer_cache_mib is not None:
            sizes["layer_cache_mib"] = self.layer_cache_mib
        faults += limit_faults("family", sizes, _LIMITS)
        return faults

    def _trusts(self, name: str) -> bool:
        """Say whether a model's own code may be run; what is no list of names trusts none."""
        return name in (_names(self.trust_remote_code) or ())

    def _trust_faults(self, known: Sequence[str]) -> list[str]:
        listed = _names(self.trust_remote_code)
        if listed is None:
            return [f"{TRUST_RULE} Got {shown(self.trust_remote_code)}."]
        return [
            f"trust_remote_code lists {shown(name)}, which is no model of the family.{did_you_mean(name, known)}"
            for name in listed
            if name not in known
        ]


_LIMITS: Limits = {
    "merge_cache_mib": MEBIBYTES,
    "calibration_tokens": (1, 2**40),
    "layer_cache_mib": MEBIBYTES,
}


def _verb(reference: str) -> str:
    return "converted" if reference.partition("#")[0].endswith(".gguf") else "fetched"


def _names(listed: object) -> Sequence[str] | None:
    """Return a list of names; ``None`` if it is something else."""
    if listed is None:
        return ()
    is_list = isinstance(listed, (list, tuple)) and all(isinstance(name, str) for name in listed)
    return cast("Sequence[str]", listed) if is_list else None


FAMILIES: Registry[ModelFamily] = Registry(ModelFamily, "tailorlib.families")

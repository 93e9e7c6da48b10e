"""FineTunedFamily: a base model, and variants that are fine-tuned from it when they are first needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from rich.markup import escape
from rich.table import Table

from tailorlib.console import say
from tailorlib.exceptions import ModelError
from tailorlib.models.adapter import CONFIG, WEIGHTS
from tailorlib.models.cache import build_once, cache_root, file_digest, is_sealed
from tailorlib.models.family import ModelFamily
from tailorlib.models.outline import Planned, Unbuilt
from tailorlib.models.own_code import code_files, place_code
from tailorlib.models.precision import compute_dtype
from tailorlib.models.source import ModelSource, resolve
from tailorlib.tailoring import BASE
from tailorlib.text import TextSource
from tailorlib_strategies.families.fine_tuning import REPORT, FineTuning, FineTuningReport


class FineTunedFamily(ModelFamily):
    """A base model and variants that short trainings make of it, each once: they are kept in the cache.

    Args:
        base: The base model: a folder, a hub id, a .gguf file, or 'package:NAME/FILE.gguf'.
        variants: How each variant is made, by the name it gets in a study.
        dtype: Data type to train and evaluate in; 'auto' measures which one the device computes fastest in.
        merge_cache_mib: Memory for merged layers that are kept between candidates, in MiB.
        calibration: Text for the layer statistics that merges such as RegMean and Fisher ask for.
        calibration_tokens: Number of tokens of that text to gather them over, from its beginning.
        trust_remote_code: ['base'] if the base's own Python code may be run, to train and to evaluate: the files
            beside it that the ``auto_map`` of its config or tokenizer names. Read that code first: it can do
            whatever you can. Variants have none.
    """

    def __init__(
        self,
        base: str,
        variants: dict[str, FineTuning],
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        merge_cache_mib: int = 1024,
        calibration: TextSource | None = None,
        calibration_tokens: int = 65_536,
        trust_remote_code: list[str] | None = None,
    ) -> None:
        super().__init__(
            base,
            {},
            dtype,
            merge_cache_mib,
            calibration=calibration,
            calibration_tokens=calibration_tokens,
            trust_remote_code=trust_remote_code,
        )
        self.variants = dict(variants)
        self.reports: dict[str, FineTuningReport] = {}
        """What came of each fine-tuning, after :meth:`prepare`."""

    @property
    def descriptions(self) -> Mapping[str, str]:
        """What made each model; its folder in the cache would tell nobody anything."""
        made = {
            name: f"LoRA on the base, {report.tokens:,} tokens of {type(self.variants[name].text).__name__}"
            for name, report in self.reports.items()
        }
        return {**super().descriptions, **made}

    def _sources(self) -> tuple[str, dict[str, str]]:
        source = resolve(self.base, trust_remote_code=self._trusts(BASE))
        if source.is_adapter:
            return self.base, {}  # the family refuses it
        if source.trust_remote_code:
            place_code(source.folder)
        content = _content(source)
        folders = {}
        for name, fine_tuning in self.variants.items():
            folders[name] = self._variant(source, content, name, fine_tuning)
            self.reports[name] = FineTuningReport.read(folders[name])
        if self.reports:
            say(comparison_table(self.reports))
        return self.base, {name: str(folder) for name, folder in folders.items()}

    def _plan(self) -> Planned:
        source = resolve(self.base, trust_remote_code=self._trusts(BASE), build=False)
        if source.is_adapter:
            return Planned(self.base)
        adapters = cache_root() / "adapters"
        # what is made of a base that is not there yet is not there either, nor anything in an empty cache
        content = _content(source) if adapters.is_dir() and not source.outlined else None
        candidates: dict[str, str | Unbuilt] = {}
        steps = 0
        for name, fine_tuning in self.variants.items():
            folder = adapters / fine_tuning.digest(content or "")
            if content is not None and is_sealed(folder) and _is_whole(folder):
                candidates[name] = str(folder)
            else:
                candidates[name] = Unbuilt(lora_rank=fine_tuning.rank)
                steps += fine_tuning.steps
        absent = [name for name, what in candidates.items() if isinstance(what, Unbuilt)]
        verb = "is" if len(absent) == 1 else "are"
        training = f"{', '.join(absent)} {verb} trained first, once: about {steps:,} steps"
        return Planned(self.base, candidates, (training,) if absent else ())

    def _variant(self, base: ModelSource, content: str, name: str, fine_tuning: FineTuning) -> Path:
        """Return the folder of a variant's adapter, trained now if it is not in the cache."""

        def build(target: Path) -> None:
            from tailorlib_strategies.families.training import fine_tune  # Lightning and PEFT load for seconds

            say(f"Fine-tuning {escape(name)} on {fine_tuning.tokens:,} tokens; it is kept in the cache")
            trusted = base.trust_remote_code
            fine_tune(base.folder, fine_tuning, target, name, self._training_dtype(), trust_remote_code=trusted)

        return build_once(cache_root() / "adapters" / fine_tuning.digest(content), build, valid=_is_whole)

    def _training_dtype(self) -> torch.dtype:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = compute_dtype(self.dtype, device)
        # float16 gradients would need scaling: rather train slower
        return torch.float32 if found == torch.float16 else found


def comparison_table(reports: dict[str, FineTuningReport]) -> Table:
    """Return a table of the variants against their base, each on the held-out text of its own domain."""
    table = Table("variant", title="Perplexity on held-out text")
    for column in ("tokens", "trained in", "base", "variant"):
        table.add_column(column, justify="right")
    for name, report in reports.items():
        perplexities = (f"{report.base_perplexity:.2f}", f"{report.perplexity:.2f}")
        table.add_row(escape(name), f"{report.tokens:,}", f"{report.seconds:.0f} s", *perplexities)
    return table


def _content(source: ModelSource) -> str:
    """Return a digest of a model's weights, and of its own code where that is run."""
    files = sorted(source.folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"The base model {str(source.folder)!r} has no .safetensors file. Save it again as safetensors."
        )
    if source.trust_remote_code:
        files += code_files(source.folder)
    digests = "\n".join(f"{file.name} {file_digest(file)}" for file in files)
    return hashlib.sha256(digests.encode()).hexdigest()


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (CONFIG, WEIGHTS, REPORT))

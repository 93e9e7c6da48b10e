"""``tailor init``: a recipe for given models, with defaults from the base's config, to read and change."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.markup import escape
from transformers import AutoConfig, AutoModelForCausalLM

from tailorlib.console import emit, say
from tailorlib.exceptions import ModelError, RecipeError
from tailorlib.files import write_text
from tailorlib.model_names import named_models, tidied
from tailorlib.models import adapter
from tailorlib.models.source import path_of, resolve
from tailorlib.recipe import check_recipe, missing_sections
from tailorlib.tailoring import BASE

ROOM = 0.8
"""Part of an accelerator's memory that weights may fill; caches and activations need the rest."""


@dataclass(frozen=True)
class Described:
    """What the config of a model says.

    Args:
        reference: What the recipe calls it.
        model_type: Its architecture, or ``None`` for an adapter.
        layers: Number of decoder layers.
        parameters: Number of parameters.
    """

    reference: str
    model_type: str | None = None
    layers: int = 0
    parameters: int = 0


def init(
    base: str,
    candidates: list[str],
    output: str = "recipe.yaml",
    ratio: float = 0.25,
    trials: int = 150,
    tasks: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a commented recipe for a base model and models fine-tuned from it.

    Reads configs, never weights; a model of the hub is asked for its config only.

    Args:
        base: The base model: a folder, a hub id, or a GGUF file.
        candidates: Models or LoRA adapters fine-tuned from it, each as NAME=MODEL or MODEL.
        output: The file to write.
        ratio: Share of the layers to remove.
        trials: Number of candidates to evaluate.
        tasks: lm-eval tasks to search on beside text, separated by commas.
        overwrite: Replace the file if it is there.

    Raises:
        RecipeError: If the arguments don't make a recipe, with all faults.
        TailorError: If the file exists.
    """
    base = tidied(base)
    named, faults = named_models(base, candidates)
    faults += [] if 0 < ratio < 1 else [f"--ratio is a share of the layers between 0 and 1, got {ratio}."]
    faults += [] if trials >= 1 else [f"--trials is at least 1, got {trials}."]
    described: dict[str, Described] = {}
    for name, reference in {BASE: base, **named}.items():
        try:
            described[name] = _describe(reference)
        except ModelError as error:
            faults.append(f"{name}: {error}")
    faults += _mismatches(described)
    layers = described[BASE].layers if BASE in described else 0
    if layers and 0 < ratio < 1 and ceil(ratio * layers) >= layers:
        faults.append(f"--ratio keeps a layer or more, got {ratio} of {layers} layers: all of them. Give less.")
    if faults:
        raise RecipeError(faults)
    text = recipe_text(described, output=output, ratio=ratio, trials=trials, tasks=_split(tasks))
    data = yaml.safe_load(text)
    wrong = check_recipe(data) + missing_sections(data)
    if wrong:
        raise RecipeError(wrong)
    write_text(Path(output), text, overwrite=overwrite)
    emit("recipe", {"file": output, "recipe": data})
    say(f"[green]✓[/] Recipe written to {escape(output)}. Read it, then:")
    say(f"  tailor plan --config {escape(shlex.quote(output))}      # memory and time, before any weight is read")
    say(f"  tailor search --config {escape(shlex.quote(output))}")


def recipe_text(
    models: Mapping[str, Described], *, output: str, ratio: float, trials: int, tasks: Sequence[str] = ()
) -> str:
    """Return the text of a recipe.

    Args:
        models: The base, under its name, and the candidates.
        output: File that it is for; the run folder is called like it.
        ratio: Share of the layers to remove.
        trials: Number of candidates to evaluate.
        tasks: lm-eval tasks to search on.
    """
    base = models[BASE]
    lines = "\n".join(
        f"      {_plain(name)}: {_plain(model.reference)}" for name, model in models.items() if name != BASE
    )
    return _TEMPLATE.format(
        command=f"tailor search --config {shlex.quote(output)}" if output.isprintable() else "tailor search",
        size=f"{base.parameters / 1e6:,.0f} M parameters in {base.layers} layers",
        base=_plain(base.reference),
        candidates=lines,
        quantization=_quantization(models),
        ratio=_plain(ratio),
        removed=ceil(ratio * base.layers),
        layers=base.layers,
        search_tasks=_task_part(tasks, "probability of the right answer: smoother than accuracy"),
        folder=_plain(f"runs/{Path(output).stem}"),
        trials=trials,
        device="an accelerator" if torch.accelerator.is_available() else "this machine's CPU",
    )


_TEMPLATE = """\
# Written by `tailor init`. Run it with:
#
#   {command}
#
# The base has {size}.

family:
  class_path: ModelFamily
  init_args:
    base: {base}
    # Fine-tuned from the base: whole models, or LoRA adapters.
    candidates:
{candidates}
{quantization}
search_space:
  class_path: PruningSpace
  init_args:
    # {removed} of {layers} layers go. A number of layers instead: {{count: {removed}}}.
    removal: {{class_path: LayerRemoval, init_args: {{ratio: {ratio}}}}}
    # A kept layer is the base's, one candidate's, or a merge. `tailor plugins` lists all merges.
    merges:
      - {{class_path: TaskArithmetic, init_args: {{scale: [0.0, 1.0]}}}}

optimizer: StructuredBayes

# Candidates that fall behind are given up early. `study.trials` counts evaluations on all samples.
scheduler: Racing

# The search begins with Block Influence's removal, of the base and of merges at these scales.
warm_starts:
  - class_path: BlockInfluence
    init_args:
      text: &mixture
        class_path: Interleaved
        init_args:
          texts:
            - {{class_path: StandardLibraryCode, init_args: {{split: search}}}}
            - {{class_path: PydocTopics, init_args: {{split: search}}}}
      merge_scales: [0.2, 0.35, 0.5, 0.8]

# What removed layers added to the hidden states is fitted in closed form below each gap, on text that no score is
# taken of. Give it a text of each kind that the model is for: what it doesn't see, it can't bring back.
compensation:
  class_path: Bridge
  init_args:
    calibration:
      sources:
        code: {{class_path: StandardLibraryCode, init_args: {{split: train}}}}
        prose: {{class_path: PydocTopics, init_args: {{split: train}}}}
      tokens: 65536

# The mean over the parts, each relative to the dense base: 1.0 is "as good as the dense model". These texts come
# with Python, so that the recipe runs as it is. Put in what your model is for: JSONLines and PlainText read your
# own files, LMEval takes the tasks of lm-evaluation-harness.
fitness:
  class_path: WeightedMean
  init_args:
    parts:
      code:
        class_path: Perplexity
        init_args:
          text: {{class_path: StandardLibraryCode, init_args: {{split: search}}}}
          context_length: 128
          max_tokens: 4096
      prose:
        class_path: Perplexity
        init_args:
          text: {{class_path: PydocTopics, init_args: {{split: search}}}}
          context_length: 128
          max_tokens: 4096
{search_tasks}
# The final table: data that the search never saw, and baselines without a search.
benchmark:
  fitness:
    class_path: WeightedMean
    init_args:
      parts:
        code:
          class_path: Perplexity
          init_args: {{text: {{class_path: StandardLibraryCode, init_args: {{split: test}}}}, max_tokens: 16384}}
        prose:
          class_path: Perplexity
          init_args: {{text: {{class_path: PydocTopics, init_args: {{split: test}}}}, max_tokens: 16384}}
  baselines:
    - class_path: BlockInfluence
      init_args: {{text: *mixture}}
    - RandomTailoring

study:
  directory: {folder}
  trials: {trials}
  seed: 0

# Where it runs is found out: now it would be {device}. All of Lightning's Trainer can be set here.
trainer:
  accelerator: auto
  devices: 1
  # logger: {{class_path: WandbLogger, init_args: {{offline: true}}}}
"""


def _describe(reference: str) -> Described:
    location = reference.partition("#")[0]
    folder = path_of(location)
    if (folder / adapter.CONFIG).is_file():
        return Described(reference)
    if not folder.is_dir() and (location.startswith("package:") or location.endswith(".gguf")):
        folder = resolve(reference).folder
    name, _, revision = (str(folder), "", "") if folder.is_dir() else location.partition("@")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision or None, trust_remote_code=False)
    except Exception as error:  # transformers, the hub's client and the network each have errors of their own
        raise ModelError(
            f"A model is a folder with a config.json or an adapter_config.json, a GGUF file, or a hub id; "
            f"{reference!r} "
            f"can't be read as one: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    config = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return Described(reference, config.model_type, int(config.num_hidden_layers), model.num_parameters())


def _mismatches(models: Mapping[str, Described]) -> list[str]:
    base = models.get(BASE)
    if base is None:
        return []
    if base.model_type is None:
        return [f"base: a model, got the adapter {base.reference!r}. Name the model that it was trained on."]
    faults = []
    for name, model in models.items():
        if model.model_type is None:
            continue
        for what, own, theirs in (
            ("architecture", base.model_type, model.model_type),
            ("number of layers", base.layers, model.layers),
        ):
            if own != theirs:
                faults.append(
                    f"{name}: a candidate has the base's {what}, {own!r}; {model.reference!r} has {theirs!r}."
                )
    return faults


def _quantization(models: Mapping[str, Described]) -> str:
    """Return the line about 4-bit loading: active where the family has no room otherwise."""
    need = 2 * models[BASE].parameters * len(models)
    if torch.cuda.is_available():
        room = torch.cuda.get_device_properties(0).total_memory
        if need > ROOM * room:
            return (
                f"    # {need / 1e9:.1f} GB of 16-bit weights have no room on a card of {room / 1e9:.0f} GB.\n"
                "    quantization: nf4\n"
            )
    packed = 0.26 * need / 1e9
    return f"    # quantization: nf4 # {need / 1e9:.1f} GB of 16-bit weights become about {packed:.1f} GB\n"


def _task_part(tasks: Sequence[str], remark: str) -> str:
    names = ", ".join(map(_plain, tasks or ["arc_easy"]))
    lines = (
        f"tasks: # {remark}",
        "  class_path: LMEval",
        f"  init_args: {{tasks: [{names}], limit: 100}}",
    )
    return "".join(f"      {'' if tasks else '# '}{line}\n" for line in lines)


def _split(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def _plain(value: Any) -> str:
    """Return a value as YAML on one line, also inside brackets."""
    # a line break must stay one, and jsonargparse takes 1e3 for a number where PyYAML doesn't
    bare = not isinstance(value, str) or (
        value.isprintable() and re.fullmatch(r"[-+.\d]*e?[-+\d]*", value) is None
    )
    style = None if bare else '"'
    text: str = yaml.safe_dump(
        [value], default_flow_style=True, default_style=style, width=10**6, allow_unicode=True
    )
    return text.strip()[1:-1]

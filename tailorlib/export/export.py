"""Export: a tailored model as a folder that transformers loads like any other."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailorlib.exceptions import ModelError, TailorError
from tailorlib.export.building import building, publish, tidy
from tailorlib.export.card import CardInfo, pattern_note, render_card
from tailorlib.export.licenses import licenses_of
from tailorlib.export.writer import TensorSpec, write_checkpoint
from tailorlib.files import os_message
from tailorlib.models.architecture import layer_kinds, slot_index, tailored_config
from tailorlib.models.chat import has_template
from tailorlib.models.family import ModelFamily
from tailorlib.models.gguf_header import hub_ids
from tailorlib.models.own_code import code_files, has_own_tokenizer
from tailorlib.models.reading import private_reads
from tailorlib.tailoring import Tailoring

_log = logging.getLogger(__name__)

TAILORING = "tailoring.yaml"
_COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json"),
    *("generation_config.json", "additional_chat_templates"),
)
"""Files of the base that the exported model keeps as they are."""
_ROOM = 64 * 2**20
"""Bytes asked for beside the weights: tokenizer, configs, the file system's own."""


def export_model(
    family: ModelFamily,
    tailoring: Tailoring,
    directory: str | Path,
    *,
    card: CardInfo | None = None,
    device: torch.device | None = None,
    max_shard_bytes: float = 5e9,
    overwrite: bool = False,
) -> Path:
    """Write a tailored model: weights, config, tokenizer, ``tailoring.yaml`` and a model card.

    Tensors are read, merged and written one by one, in the base model's stored data type: what is held at a time
    is what one merge needs and the tensor being written. The folder appears whole or not at all. A sliding-window
    pattern that loses its period is told in a warning.

    Args:
        family: The family, prepared.
        tailoring: The candidate.
        directory: The folder to make.
        card: What the model card should say beyond the layers.
        device: Where merges are computed. If ``None``, as in the search: on the family's device, or the CPU if
            it isn't loaded.
        max_shard_bytes: Largest size of a weights file.
        overwrite: Replace a folder that an earlier export wrote.

    Returns:
        The folder.

    Raises:
        ModelError: If the tailoring doesn't fit the family, or a source can't be read or changes meanwhile.
        TailorError: If the folder exists, can't be written, or the disk is too full.
    """
    family.check(tailoring)
    target = Path(directory).expanduser().absolute()
    try:
        if tidy(target, TAILORING) is not None:
            _log.warning(
                "The model in %r is there again: an export that was killed had moved it away.", str(target)
            )
        _check_target(target, overwrite)
    except OSError as error:
        raise TailorError(os_message(error, target, "written")) from error
    for note in (lost_pattern(family, tailoring), lost_template(family, tailoring)):
        if note:
            _log.warning(note)
    specs = tensor_specs(family, tailoring)
    needed = sum(spec.nbytes for spec in specs) + _ROOM
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target.parent, needed)
        with building(target) as folder:
            with private_reads():
                write_checkpoint(folder, specs, tensors(family, tailoring, device), max_shard_bytes)
            _write_rest(family, tailoring, folder, card or CardInfo(), target.name)
            publish(folder, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(target.parent, needed) from error
        raise TailorError(os_message(error, target, "written")) from error
    return target


def tensor_specs(family: ModelFamily, tailoring: Tailoring) -> list[TensorSpec]:
    """Return name, shape and data type of every tensor of the exported model, in file order."""
    assembly, architecture = family.assembly, family.architecture
    specs = [TensorSpec(architecture.stored_name(n), s, d) for n, s, d in assembly.outer_shapes()]
    for i, plan in enumerate(tailoring.layers):
        prefix = architecture.layer_prefix(i)
        specs += [TensorSpec(prefix + suffix, s, d) for suffix, s, d in assembly.layer_shapes(plan)]
    return specs


def tensors(
    family: ModelFamily, tailoring: Tailoring, device: torch.device | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the exported model by its name in the file, in file order, one at a time."""
    device = device or family.device
    assembly, architecture = family.assembly, family.architecture
    for name, tensor in assembly.outer_tensors(tailoring, device):
        yield architecture.stored_name(name), tensor
    for i, plan in enumerate(tailoring.layers):
        for suffix, tensor in assembly.layer_tensors(plan, tailoring.seed, device):
            yield architecture.layer_prefix(i) + suffix, tensor


def exported_config(family: ModelFamily, tailoring: Tailoring) -> Any:
    """Return the transformers config of the exported model."""
    config = tailored_config(family.config, [slot_index(p) for p in tailoring.layers])
    config.dtype = max(tensor_specs(family, tailoring), key=lambda s: s.nbytes).dtype  # what dtype="auto" reads
    vars(config).pop("_model_name_or_path", None)  # another model's, of GGUF files
    if not family.source.trust_remote_code:  # else the code goes with the model
        vars(config).pop("auto_map", None)
    return config


def lost_pattern(family: ModelFamily, tailoring: Tailoring) -> str:
    """Return a warning if a tailoring breaks the period of its sources' layers, else nothing."""
    kinds = layer_kinds(family.config)
    return pattern_note(kinds, [kinds[slot_index(plan)] for plan in tailoring.layers])


def lost_template(family: ModelFamily, tailoring: Tailoring) -> str:
    """Return a warning if a source of layers has a chat template and the export has none, else nothing."""
    if family.chat is not None or has_template(family.source.folder):
        return ""
    drawn = [name for name in tailoring.models if has_template(family.sources[name].folder)]
    if not drawn:
        return ""
    return (
        f"Layers come from {', '.join(drawn)}, with a chat template, and the tailored model has none, since the "
        "base has none. To give it one, with its special tokens and ends of turns, name the model: --chat-from "
        f"{drawn[0]}, or family.init_args.chat_from in the recipe."
    )


def _write_rest(family: ModelFamily, tailoring: Tailoring, folder: Path, card: CardInfo, title: str) -> None:
    exported_config(family, tailoring).save_pretrained(folder)
    source = family.source
    code = code_files(source.folder) if source.trust_remote_code else ()
    for name in (*_COPIED, *(file.name for file in code), *_own_vocabulary(family)):
        _copy(source.folder / name, folder / name)
    if family.chat is not None:
        family.chat.write(folder)
    (folder / TAILORING).write_text(tailoring.to_yaml(), encoding="utf-8")
    text = render_card(
        card,
        tailoring,
        title=title,
        references=family.descriptions,
        layer_kinds=layer_kinds(family.config),
        num_parameters=family.num_parameters(tailoring),
        licenses={name: licenses_of(source.folder) for name, source in family.sources.items()},
        tied=bool(family.config.tie_word_embeddings),
        code=[file.name for file in code],
        origins={name: hub_ids(source.folder) for name, source in family.sources.items()},
        remarks=[note for note in (lost_template(family, tailoring), _chat_note(family)) if note],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _chat_note(family: ModelFamily) -> str:
    if family.chat is None:
        return ""
    return f"Chat template, special tokens and generation settings are those of {family.chat.name}."


def _own_vocabulary(family: ModelFamily) -> list[str]:
    """Return the files that a tokenizer of the base's own code reads, beside those that are copied anyway."""
    if not (family.source.trust_remote_code and has_own_tokenizer(family.source.folder)):
        return []
    names = getattr(family.tokenizer, "vocab_files_names", {}).values()
    return [name for name in names if name not in _COPIED and Path(name).name == name]


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder of the base, if it is there.

    Raises:
        ModelError: If it can't be read.
    """
    try:
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.is_file():
            shutil.copyfile(source, target)
    except (FileNotFoundError, PermissionError) as error:
        raise ModelError(f"{str(source)!r} of the base model can't be read: {error.strerror}.") from error


def _check_target(target: Path, overwrite: bool) -> None:
    there = next(path for path in (target, *target.parents) if path.exists())
    if not there.is_dir():
        raise TailorError(f"An export makes a folder; {str(there)!r} is a file. Give another name.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise TailorError(f"The folder {str(target)!r} exists and isn't empty. Give another one, or overwrite it.")
    if not (target / TAILORING).is_file():
        raise TailorError(
            f"Only an exported model is overwritten; {str(target)!r} has no {TAILORING}. Delete it yourself, or "
            "give another folder."
        )


def _check_room(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise _full(folder, needed)


def _full(folder: Path, needed: int) -> TailorError:
    free = shutil.disk_usage(folder).free
    return TailorError(
        f"The export needs {needed / 1e6:,.0f} MB in {str(folder)!r}; {free / 1e6:,.0f} MB are free. Make room, "
        "or give a folder on another disk."
    )

"""Export: a tailored model as a folder that transformers loads like any other."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from tailorlib.exceptions import TailorError
from tailorlib.export.card import CardInfo, render_card
from tailorlib.export.writer import TensorSpec, write_checkpoint
from tailorlib.models.architecture import layer_types, slot_index, tailored_config
from tailorlib.models.family import ModelFamily
from tailorlib.tailoring import Tailoring

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
    max_shard_bytes: float = 5e9,
    overwrite: bool = False,
) -> Path:
    """Write a tailored model: weights, config, tokenizer, ``tailoring.yaml`` and a model card.

    One tensor at a time is read, merged and written, in the base model's stored data type. The folder appears
    whole or not at all.

    Args:
        family: The family, prepared. If it is loaded, merges are computed on its device, as in the search.
        tailoring: The candidate.
        directory: The folder to make.
        card: What the model card should say beyond the layers.
        max_shard_bytes: Largest size of a weights file.
        overwrite: Replace a folder that an earlier export wrote.

    Returns:
        The folder.

    Raises:
        ModelError: If the tailoring doesn't fit the family.
        TailorError: If the folder exists, can't be written, or the disk is too full.
    """
    family.check(tailoring)
    target = Path(directory).expanduser().absolute()
    _check_target(target, overwrite)
    specs = tensor_specs(family, tailoring)
    needed = sum(spec.nbytes for spec in specs) + _ROOM
    building: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target.parent, needed)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        write_checkpoint(building, specs, _tensors(family, tailoring), max_shard_bytes)
        _write_rest(family, tailoring, building, card or CardInfo(), target.name)
        _publish(building, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(target.parent, needed) from error
        raise TailorError(f"The folder {str(target)!r} can't be written: {error.strerror or error}.") from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
    return target


def tensor_specs(family: ModelFamily, tailoring: Tailoring) -> list[TensorSpec]:
    """Return name, shape and data type of every tensor of the exported model, in file order."""
    assembly, architecture = family.assembly, family.architecture
    specs = [TensorSpec(architecture.stored_name(n), s, d) for n, s, d in assembly.outer_shapes()]
    for i, plan in enumerate(tailoring.layers):
        prefix = architecture.layer_prefix(i)
        specs += [TensorSpec(prefix + suffix, s, d) for suffix, s, d in assembly.layer_shapes(plan)]
    return specs


def _tensors(family: ModelFamily, tailoring: Tailoring) -> Iterator[tuple[str, Tensor]]:
    assembly, architecture = family.assembly, family.architecture
    for name, tensor in assembly.outer_tensors(tailoring, family.device):
        yield architecture.stored_name(name), tensor
    for i, plan in enumerate(tailoring.layers):
        for suffix, tensor in assembly.layer_tensors(plan, tailoring.seed, family.device):
            yield architecture.layer_prefix(i) + suffix, tensor


def _write_rest(family: ModelFamily, tailoring: Tailoring, folder: Path, card: CardInfo, title: str) -> None:
    config = tailored_config(family.config, [slot_index(p) for p in tailoring.layers])
    config.dtype = max(tensor_specs(family, tailoring), key=lambda s: s.nbytes).dtype  # what dtype="auto" reads
    vars(config).pop("_model_name_or_path", None)  # a leftover of GGUF files: another model's name
    config.save_pretrained(folder)
    for name in _COPIED:
        source = family.source.folder / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        elif source.is_file():
            shutil.copyfile(source, folder / name)
    (folder / TAILORING).write_text(tailoring.to_yaml(), encoding="utf-8")
    text = render_card(
        card,
        tailoring,
        title=title,
        references=family.descriptions,
        layer_types=layer_types(family.config),
        num_parameters=family.num_parameters(tailoring),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise TailorError(f"An export makes a folder; {str(target)!r} is a file. Give another name.")
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


def _publish(building: Path, target: Path) -> None:
    """Move a finished folder to its place; what stood there is removed only after that."""
    building.chmod(0o755)  # mkdtemp makes it private
    for file in (p for p in building.rglob("*") if p.is_file()):
        _sync(file)
    _sync(building)
    old: Path | None = None
    if target.is_dir():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.replace(old)
    try:
        building.replace(target)
    except OSError:
        if old is not None:
            old.replace(target)
        raise
    _sync(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle on a folder to flush
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

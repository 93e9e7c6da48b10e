"""What a model needs to hold a conversation: chat templates, special tokens, ends of turns, generation settings.

Templates are programs of a stranger's. They are copied, and never run here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tailorlib.bounded import read_text
from tailorlib.exceptions import ModelError, RecipeError, shown
from tailorlib.models.source import ModelSource

TEMPLATE, TEMPLATES, OLD_TEMPLATE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
SETTINGS, GENERATION = "tokenizer_config.json", "generation_config.json"
ROLES = ("bos_token", "eos_token", "pad_token")
"""Special tokens that a conversation begins, ends and is padded with."""
_IDS = tuple(f"{role}_id" for role in ROLES)


def has_template(folder: Path) -> bool:
    """Say whether a model's folder has a chat template, in any of the forms that transformers writes."""
    return bool(_template(folder)) or any((folder / TEMPLATES).glob("*.jinja"))


@dataclass(frozen=True)
class Chat:
    """The chat settings of one model of a family, which its exports get.

    Args:
        name: The model's family name.
        folder: Where it lies.
        template: Its templates, as a tokenizer of transformers has them.
        tokens: Its special tokens by role; those that it doesn't name are the base's.
        ids: Entries of its config and generation settings that are ids of such tokens.
    """

    name: str
    folder: Path
    template: Any
    tokens: Mapping[str, str]
    ids: Mapping[str, Any]

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Give the base's tokenizer the templates and special tokens; what it makes of a text stays."""
        tokenizer.chat_template = self.template
        for role, token in self.tokens.items():
            setattr(tokenizer, role, token)

    def set_config(self, config: Any) -> None:
        """Give a model's config, or its generation settings, the ids of the special tokens."""
        for name, value in self.ids.items():
            setattr(config, name, value)

    def write(self, folder: Path) -> None:
        """Put the settings into a folder that has the base's tokenizer."""
        for name in (TEMPLATE, TEMPLATES, OLD_TEMPLATE):
            _remove(folder / name)
            source = self.folder / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            elif source.is_file():
                shutil.copyfile(source, folder / name)
        theirs, ours = _data(self.folder / SETTINGS), _data(folder / SETTINGS)
        special = folder / "special_tokens_map.json"
        roles = {role: theirs.get(role, token) for role, token in self.tokens.items()}
        ours.pop("chat_template", None)
        if "chat_template" in theirs:
            ours["chat_template"] = theirs["chat_template"]
        elif not (folder / TEMPLATE).exists() and isinstance(self.template, str):
            (folder / TEMPLATE).write_text(self.template, encoding="utf-8")
        _write(folder / SETTINGS, ours | roles)
        if special.is_file():
            _write(special, _data(special) | roles)
        generation = _data(self.folder / GENERATION) or _data(folder / GENERATION)
        if generation:
            _write(folder / GENERATION, {k: v for k, v in generation.items() if k not in _IDS} | dict(self.ids))


def open_chat(name: str, source: ModelSource, base: Any) -> Chat:
    """Read the chat settings of a model, and check that the base's tokenizer can follow them.

    Args:
        name: The model's family name.
        source: Where it lies.
        base: The base's tokenizer.

    Raises:
        ModelError: If it has no template, or tokens that the base's vocabulary lacks or has under other ids.
    """
    folder = source.folder
    if not has_template(folder):
        raise ModelError(f"chat_from names a model with a chat template; {str(folder)!r} has none.")
    own = _tokenizer(source)
    if own is None:
        return Chat(name, folder, _template(folder), {}, {})
    template = own.chat_template or _template(folder)
    tokens = {role: str(getattr(own, role)) for role in ROLES if getattr(own, role, None) is not None}
    ids = _ids(folder, own)
    if "pad_token" in tokens and not _knows(base, own, tokens["pad_token"]):  # a conversation needs none
        tokens.pop("pad_token")
        ids.pop("pad_token_id", None)
        if base.pad_token_id is not None:
            ids["pad_token_id"] = base.pad_token_id
    wrong = sorted(set(_misfits(own, base, template, tokens, ids)))
    if wrong:
        raise ModelError(
            f"The chat settings of {str(folder)!r} need tokens that the base's vocabulary has under the same ids; "
            f"it differs in {', '.join(map(shown, wrong[:5]))}. Take another model's, or a base that has them."
        )
    return Chat(name, folder, template, tokens, ids)


def _misfits(
    own: Any, base: Any, template: Any, tokens: Mapping[str, str], ids: Mapping[str, Any]
) -> Iterator[str]:
    """Yield tokens that the settings need and the base's tokenizer doesn't know as such."""
    texts = template.values() if isinstance(template, dict) else [template]
    added = own.get_added_vocab()
    needed = {*tokens.values(), *(token for token in added if any(token in text for text in texts))}
    for number in (n for value in ids.values() for n in (value if isinstance(value, list) else [value])):
        token = own.convert_ids_to_tokens(number) if isinstance(number, int) else None
        if token is None:
            yield str(number)
        else:
            needed.add(token)
    yield from (token for token in needed if not _knows(base, own, token))


def _knows(base: Any, own: Any, token: str) -> bool:
    """Say whether a token has the same id in the base's vocabulary, and is one token of a text there."""
    return bool(base.encode(token, add_special_tokens=False) == [own.convert_tokens_to_ids(token)])


def _ids(folder: Path, own: Any) -> dict[str, Any]:
    """Return the ids of special tokens: of the generation settings, else of the config, else of the tokenizer."""
    found = {}
    for name in _IDS:
        stated = [_data(folder / file).get(name) for file in (GENERATION, "config.json")]
        value = next((v for v in (*stated, getattr(own, name, None)) if v is not None), None)
        if value is not None:
            found[name] = value
    return found


def _tokenizer(source: ModelSource) -> Any:
    """Return a model's tokenizer; ``None`` of an adapter, say, that has only a template."""
    if not any((source.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=source.trust_remote_code)
    except Exception as error:  # transformers raises many kinds for a tokenizer that it can't load
        raise ModelError(f"The tokenizer in {str(source.folder)!r} can't be loaded: {error}") from error


def _template(folder: Path) -> Any:
    """Return the templates of a folder's files: a text, or several texts by name; nothing if there are none."""
    file = folder / TEMPLATE
    if file.is_file():
        return _text(file)
    found = _data(folder / SETTINGS).get("chat_template") or _data(folder / OLD_TEMPLATE).get("chat_template")
    if isinstance(found, list):  # the older form of several templates
        found = {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, dict)}
    return found


def _text(file: Path) -> str:
    try:
        return read_text(file, "file")
    except RecipeError as error:
        raise ModelError(str(error)) from error


def _data(file: Path) -> dict[str, Any]:
    """Return the entries of a JSON file; none if it isn't there.

    Raises:
        ModelError: If it can't be read.
    """
    if not file.is_file():
        return {}
    try:
        data = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"The file {str(file)!r} is no JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ModelError(f"The file {str(file)!r} is a mapping in JSON, got {shown(data)}.")
    return data


def _write(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

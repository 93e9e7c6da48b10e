"""Multimodal models: a language model inside a wrapper. It is named, with how to save that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from tailorlib.exceptions import ModelError, shown
from tailorlib.models.architecture import ARCHITECTURES

_TEXT = ("text_config", "llm_config", "language_config", "thinker_config")
_OTHER = (
    "vision_config",
    "audio_config",
    "vision_tower_config",
    "speech_config",
    "video_config",
    "perceiver_config",
)
_WRAPPERS = ("ForConditionalGeneration", "ForImageTextToText", "ForVision2Seq")


def refuse_multimodal(folder: Path, entries: Mapping[str, Any]) -> None:
    """Refuse a model that wraps a language model together with other parts.

    Args:
        folder: The model's folder.
        entries: What its config.json says.

    Raises:
        ModelError: If it is one, with how its language model is saved by itself.
    """
    kind = entries.get("model_type")
    if isinstance(kind, str) and kind in ARCHITECTURES:
        return
    text = next((entries[name] for name in _TEXT if isinstance(entries.get(name), dict)), None)
    others = [name for name in _OTHER if isinstance(entries.get(name), dict)]
    classes = entries.get("architectures")
    named = [c for c in classes if isinstance(c, str)] if isinstance(classes, list) else []
    if text is None and not others:
        return
    inner = text.get("model_type") if text is not None else None
    wrapper = next((c for c in named if c.endswith(_WRAPPERS)), named[0] if named else None)
    what = shown(kind) + (f" ({shown(wrapper)})" if wrapper else "")
    beside = f" beside {', '.join(others)}" if others else ""
    raise ModelError(
        f"The model {str(folder)!r} is multimodal: {what} holds a language model"
        + (f" of the type {shown(inner)}" if inner else "")
        + f"{beside}. Layers are cut from a language model by itself. {_remedy(folder, inner, wrapper)}"
    )


def _remedy(folder: Path, inner: object, wrapper: str | None) -> str:
    if not isinstance(inner, str) or inner not in ARCHITECTURES:
        return f"tailorlib cuts models of the types {', '.join(sorted(ARCHITECTURES))}; give one of these."
    known = wrapper is not None and wrapper.isidentifier() and hasattr(transformers, wrapper)
    return (
        "Save it from the whole model: "
        f"whole = transformers.{wrapper if known else 'AutoModelForImageTextToText'}.from_pretrained("
        f"{str(folder)!r}, dtype='auto'); "
        "text = transformers.AutoModelForCausalLM.from_config(whole.config.text_config, dtype=whole.dtype); "
        "text.model, text.lm_head = whole.model.language_model, whole.lm_head; "
        "text.save_pretrained('TEXT'). Save its tokenizer there too, and give that folder."
    )

"""What the settings of an lm-eval task make of its documents, and why they make nothing of one."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from tailorlib.exceptions import did_you_mean, listed, shown, told


class Fields:
    """What a task's settings make of a document, as lm-eval does it.

    Args:
        config: ``doc_to_text``, ``doc_to_target``, ``doc_to_choice``, ``output_type`` and ``process_results``.
        columns: Names of the documents' fields.
    """

    def __init__(self, config: Mapping[str, Any], columns: Sequence[str]) -> None:
        self._config, self._columns = config, columns
        self._choosing = config.get("output_type") == "multiple_choice"

    def faults(self, documents: Iterable[tuple[int, Any]]) -> list[str]:
        """Return what is wrong, once for each setting: at the first document that it shows at."""
        found: dict[str, str] = {}
        settings = [
            key for key in ("doc_to_text", "doc_to_choice", "doc_to_target") if self._config.get(key) is not None
        ]
        for key in settings:
            if (fault := self._constant(key)) is not None:
                found[key] = fault
        for number, doc in documents:
            values: dict[str, Any] = {}
            for key in settings:
                if key not in found:
                    fault = self._read(key, number, doc, values)
                    if fault is not None:
                        found[key] = fault
            if len(found) == len(settings):
                break
        return list(found.values())

    def _read(self, key: str, number: int, doc: Any, values: dict[str, Any]) -> str | None:
        setting = self._config[key]
        try:
            values[key] = self._value(key, doc)
        except Exception as error:  # templates and functions of the task's own
            return self._failed(key, setting, number, error)
        check: Callable[[str, int, dict[str, Any]], str | None] = getattr(self, f"_check_{key.rpartition('_')[2]}")
        fault = check(key, number, values)
        if fault is not None:
            del values[key]
        return fault

    def _value(self, key: str, doc: Any) -> Any:
        setting = self._config[key]
        if callable(setting):
            return setting(doc)
        if not isinstance(setting, str):
            return list(setting.values()) if isinstance(setting, Mapping) else setting
        if setting in self._columns:
            return doc[setting]
        text = _template(setting).render(**doc)
        if key == "doc_to_choice":
            return ast.literal_eval(text)
        if text.isdigit() and self._config.get("doc_to_choice") is not None:
            return int(text)
        return text

    def _failed(self, key: str, setting: Any, number: int, error: Exception) -> str:
        """Say why a setting gives nothing for a document."""
        if not isinstance(setting, str):
            return f"{key} fails at document {number}: {told(error)}{self._fields()}"
        if type(error).__name__ in ("TemplateSyntaxError", "TemplateAssertionError"):
            return f"{key} is a template of Jinja; {shown(setting)} can't be read: {str(error).rstrip('.')}."
        missing = [name for name in _variables(setting) if name not in self._columns]
        if missing and type(error).__name__ == "UndefinedError":
            return f"{key} uses the field {missing[0]!r}, which its documents don't have.{self._close(missing[0])}"
        if key == "doc_to_choice" and isinstance(error, ValueError | SyntaxError):
            close = self._close(setting) if setting.isidentifier() else self._fields()
            return (
                f"doc_to_choice is a field, a list, or a template that gives a list; got {shown(setting)}.{close}"
            )
        return f"{key} fails at document {number}: {told(error)}{self._fields()}"

    def _constant(self, key: str) -> str | None:
        """Find a field that is misspelt: lm-eval would take its name for a text."""
        setting = self._config[key]
        if not isinstance(setting, str) or not setting.isidentifier() or setting in self._columns:
            return None
        close = get_close_matches(setting, self._columns, n=1, cutoff=0.7)
        if not close:
            return None
        return (
            f"{key} names the field {setting!r}, which its documents don't have. Did you mean {close[0]!r}? As a "
            f"text that is the same for all documents write {{{{ {setting!r} }}}}."
        )

    def _check_text(self, key: str, number: int, values: dict[str, Any]) -> str | None:
        value = values[key]
        if isinstance(value, int) and self._choosing:
            return None
        if not isinstance(value, str):
            return f"{key} gives a text, got {shown(value)} at document {number}."
        kind = self._config.get("output_type")
        # nothing at all before a choice is what BLiMP asks for: lm-eval begins with the token of beginning there
        nothing = value == "" and key == "doc_to_text" and kind in ("multiple_choice", "loglikelihood")
        if self._config[key] != "" and not nothing and not value.strip() and kind != "loglikelihood_rolling":
            return f"{key} gives an empty text at document {number}. Leave the document out, or write its text."
        return None

    def _check_choice(self, key: str, number: int, values: dict[str, Any]) -> str | None:
        value = values[key]
        if not isinstance(value, list | tuple) or not value:
            return f"{key} gives a list of texts, got {shown(value)} at document {number}.{self._fields()}"
        bad = [choice for choice in value if not isinstance(choice, str) or not choice]
        if bad:
            return f"a choice is a text of at least one character, got {shown(bad[0])} at document {number}."
        return None

    def _check_target(self, key: str, number: int, values: dict[str, Any]) -> str | None:
        value, choices = values[key], values.get("doc_to_choice")
        if self._choosing and choices is not None:
            return self._check_answer(key, number, values, choices)
        empty = isinstance(value, str) and not value.strip()
        if self._config.get("output_type") in ("loglikelihood", "loglikelihood_rolling") and (
            empty or value is None
        ):
            return f"{key} gives the text to score, got {shown(value)} at document {number}."
        return None

    def _check_answer(self, key: str, number: int, values: dict[str, Any], choices: Sequence[str]) -> str | None:
        if self._config.get("process_results") is not None:  # what the target is for is its own affair
            return None
        value = values[key]
        if isinstance(
            values.get("doc_to_text"), int
        ):  # the choices are in the context: the text says which is right
            key, value = "doc_to_text", values["doc_to_text"]
        for answer in value if isinstance(value, list | tuple) else [value]:
            if answer in choices or (isinstance(answer, int) and 0 <= answer < len(choices)):
                continue
            return (
                f"{key} is the right choice, a number from 0 to {len(choices) - 1} or one of "
                f"{shown(list(choices))}; got {shown(answer)} at document {number}."
            )
        return None

    def _close(self, name: str) -> str:
        hint = did_you_mean(name, self._columns)
        return hint if hint.startswith(" Known") else f"{hint}{self._fields()}"

    def _fields(self) -> str:
        return f" Fields: {listed(self._columns)}."


@cache
def _template(text: str) -> Any:
    from lm_eval.utils import env

    return env.from_string(text)


def _variables(text: str) -> list[str]:
    from jinja2 import meta
    from lm_eval.utils import env

    return sorted(meta.find_undeclared_variables(env.parse(text)))

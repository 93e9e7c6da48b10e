"""Strings of models, tasks, plugins and users, made fit for where they are shown.

For a terminal and for logs there is :func:`visible`, for Markdown :func:`markdown`. HTML is made by templates that
escape whatever they are given, with :func:`visible` before that.
"""

from __future__ import annotations

import re

_FORMATS = "\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
_UNSEEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff{_FORMATS}]")
"""Control characters but for tabs and line breaks, halves of characters, marks that turn the direction of what
follows, and what takes no room."""


def visible(text: object) -> str:
    r"""Return text in which characters that can't be seen, or that steer a terminal, stand as ``\x1b``."""
    return _UNSEEN.sub(_named, str(text))


def _named(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def markdown(text: object) -> str:
    """Return text that Markdown shows as it is, also inside a table or at the beginning of a line.

    Characters that can't be seen, such as those that turn the direction of writing, and halves of surrogate pairs
    are shown by their numbers.
    """
    flat = " ".join(str(text).split())
    seen = "".join(c if c.isprintable() else f"(U+{ord(c):04X})" for c in flat)
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", seen)
    unlinked = re.sub(r":(?=//)|@(?=[\w-]+\.)|(?<=www)\.", r"\\\g<0>", escaped, flags=re.IGNORECASE)
    return re.sub(r"^([-+=])(?=[\s=-]|$)|^(\d+)([.)])(?=\s|$)", _at_the_beginning, unlinked)


def _at_the_beginning(match: re.Match[str]) -> str:
    """Return what would begin a list or a heading, escaped."""
    return f"\\{match[1]}" if match[1] else f"{match[2]}\\{match[3]}"

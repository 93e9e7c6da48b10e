"""Options that are true or false can be given as flags; names of options can be written with dashes."""

from __future__ import annotations

import re
from collections.abc import Sequence

SWITCHES = frozenset({"accept_changes", "calibrate", "legacy_base_index", "overwrite", "repair", "verify"})
"""Options of the verbs that are true or false; a test compares them with the verbs' signatures."""
_WORDS = {"true": "true", "yes": "true", "false": "false", "no": "false"}
_NAME = re.compile(r"--[A-Za-z][\w-]*")


def spelled_out(args: Sequence[str]) -> list[str]:
    """Return a command line as its parsers take it.

    ``--verify`` becomes ``--verify=true``, ``--no-verify`` becomes ``--verify=false``, and in the first part of an
    option's name, before any dot, dashes become underscores. A value that is given stays.
    """
    found: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        match = _NAME.match(arg)
        if match is None:
            found.append(arg)
            continue
        name, behind = match[0][2:].replace("-", "_"), arg[match.end() :]
        if not behind and name.removeprefix("no_") in SWITCHES:
            value = "true" if name in SWITCHES else "false"
            if name in SWITCHES and rest and rest[0].lower() in _WORDS:
                value = _WORDS[rest.pop(0).lower()]
            name, behind = name.removeprefix("no_"), f"={value}"
        found.append(f"--{name}{behind}")
    return found

"""The way in of the command ``tailor``."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

from tailorlib.endings import handle_signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, imported without garbage collection.

    The imports make a million objects that stay. Looking through them again and again, and once more at the end,
    takes a fifth of the time of a short command.

    Returns:
        The exit status: 0, or 2 for a mistake of the user.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    handle_signals()  # nothing is written yet, and an exception could be lost inside of an import
    gc.disable()
    try:
        from tailorlib.console import FLAGS
        from tailorlib.light import LIGHT

        verb = next((a for a in args if a not in FLAGS), None)
        if verb in LIGHT:
            from tailorlib.light import main as run
        else:
            from tailorlib.cli import main as run
    finally:
        gc.enable()
    gc.freeze()
    return run(args)

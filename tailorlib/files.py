"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tailorlib.exceptions import TailorError


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and move it into place.

    Raises:
        OSError: If it can't be written; what was there stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a text file, with its folder, whole or not at all.

    Raises:
        TailorError: If it is there and must not be overwritten, or can't be written.
    """
    if path.exists() and not overwrite:
        raise TailorError(f"The file {str(path)!r} exists. Give another name, or --overwrite true.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise TailorError(f"The file {str(path)!r} can't be written: {reason}.") from error

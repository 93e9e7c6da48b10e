"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tailorlib.exceptions import TailorError


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it and its folder to the disk, and move it into place.

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
        sync(path.parent)  # the name is an entry of the folder
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of entries, to the disk.

    Raises:
        OSError: If it can't be opened or flushed.
    """
    if path.is_dir() and os.name == "nt":
        return  # Windows has no handle on a folder to flush
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below a folder to the disk, and the folder last.

    Raises:
        OSError: If one can't be opened or flushed.
    """
    for path in sorted(folder.rglob("*"), reverse=True):  # what is inside goes first
        sync(path)
    sync(folder)


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

"""Files that appear whole or not at all, and what a failure of the operating system is told as."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tailorlib.exceptions import TailorError

_ROOM = "Make room, or name a place on another disk"
_PLACE = "Name another place"
_FAILURES = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("your quota of the disk is used up", _ROOM),
    errno.EFBIG: ("the file would be larger than this process may write", "Raise the limit (ulimit -f)"),
    errno.EMFILE: ("this process has too many files open", "Raise the limit (ulimit -n)"),
    errno.ENFILE: ("the system has too many files open", "Close other programs"),
    errno.EACCES: ("permission denied", "Change its permissions, or name another place"),
    errno.EPERM: ("operation not permitted", "Change its permissions, or name another place"),
    errno.EROFS: ("the file system is read-only", _PLACE),
    errno.ENAMETOOLONG: ("the path is too long", "Choose a shorter name"),
    errno.ENOTDIR: ("a part of the path is no folder", _PLACE),
    errno.EISDIR: ("it is a folder", _PLACE),
    errno.EEXIST: ("a file of that name is in the way", _PLACE),
    errno.ENOTEMPTY: ("the folder is not empty", _PLACE),
    errno.ENOENT: ("No such file or directory", "Check the name"),
    errno.ENOMEM: ("the memory is full", "Close other programs"),
}
"""What the operating system's errors mean, and what to do, for the end of a sentence."""


def os_reason(error: OSError) -> str:
    """Return why the operating system refused something, for the end of a sentence."""
    known = _FAILURES.get(error.errno or 0)
    return known[0] if known else error.strerror or str(error)


def os_message(error: OSError, path: Path | str | None = None, done: str = "read or written") -> str:
    """Return what to say of a failure of the operating system: which file, why, and what to do.

    Args:
        error: The failure.
        path: The file or folder, if the error doesn't know.
        done: What could not be done with it: ``"written"``.
    """
    name = error.filename if path is None else str(path)
    if error.errno is None and name is None:  # an error of a library, with a message of its own
        return str(error) or type(error).__name__
    what = "A file" if name is None else repr(name if isinstance(name, int) else os.fsdecode(name))
    _, remedy = _FAILURES.get(error.errno or 0, ("", ""))
    return f"{what} can't be {done}: {os_reason(error)}.{f' {remedy}.' if remedy else ''}"


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Tell a failure of the operating system in the block as one message about the file that is written there.

    Raises:
        TailorError: With the file, the reason and the remedy.
    """
    try:
        yield
    except OSError as error:
        raise TailorError(os_message(error, path, "written")) from error


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file to read it, and nothing that has no end or is waited for: no device, pipe or socket.

    Raises:
        OSError: If it is no file, isn't there, or can't be read.
    """
    check_regular(path)
    return Path(path).open("rb")


def check_regular(path: Path | str) -> None:
    """Check that a path is a file with a content and an end.

    Raises:
        OSError: If it is a folder, device, pipe or socket, isn't there, or can't be looked at.
    """
    mode = Path(path).stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kinds = {"a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
        kind = next((name for name, matches in kinds.items() if matches(mode)), "a device")
        raise OSError(errno.EINVAL, f"it is {kind} and no file", str(path))


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


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Check that a file may be written.

    Raises:
        TailorError: If it is there and must not be overwritten.
    """
    if path.exists() and not overwrite:
        raise TailorError(f"The file {str(path)!r} exists. Give another name, or --overwrite.")


def write_text(path: Path, text: str, *, overwrite: bool = True) -> None:
    """Write a text file, with its folder, whole or not at all.

    Raises:
        TailorError: If it is there and must not be overwritten, or can't be written.
    """
    refuse_existing(path, overwrite=overwrite)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())

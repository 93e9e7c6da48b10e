"""Folders that are built beside their place and moved there: locked meanwhile, so that a dead process's are known.

The system lets go of a lock when its process ends, in whatever way. The lock is on the folder itself, so it moves
with it and leaves no file behind.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tailorlib.files import sync, sync_tree

if sys.platform != "win32":
    import fcntl

_MADE = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|.+\.(json|txt|jinja|model|py|yaml|md)|additional_chat_templates"
)
"""What an export writes; a folder with anything else in it is somebody's."""
_TRIES = 20


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """Make an empty folder beside a target, and remove it in the end if it was not moved.

    Raises:
        OSError: If it can't be made.
    """
    folder, lock = _make(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def publish(folder: Path, target: Path) -> None:
    """Move a finished folder to its place; what stood there is removed only after that.

    Raises:
        OSError: If it can't be moved; what stood there stands there again.
    """
    folder.chmod(0o755)  # mkdtemp makes it private
    sync_tree(folder)
    old: Path | None = None
    lock = _lock(target)  # of what stands there now: it is locked as long as it has another name
    try:
        if target.is_dir():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.replace(old)
        try:
            folder.replace(target)
        except OSError:
            if old is not None:
                old.replace(target)
            raise
        sync(target.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def tidy(target: Path, mark: str) -> Path | None:
    """Remove what exports that were killed left beside a target, and put back what one had moved away.

    What a living process works on stays, and so does every folder with files that no export writes.

    Args:
        target: The folder of the export.
        mark: A file that every finished export has.

    Returns:
        The folder that was put back, if there was one.
    """
    restored: Path | None = None
    if not target.parent.is_dir():
        return None
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(?P<old>old\.)?[a-z0-9_]{{4,12}}")
    found = [(path, name["old"]) for path in target.parent.iterdir() if (name := pattern.fullmatch(path.name))]
    old = [path for path, is_old in found if is_old and (path / mark).is_file()]
    for path in sorted(old, key=lambda path: path.stat().st_mtime, reverse=True):
        with _left(path) as left:
            if left and not _holds_something(target):
                path.replace(target)  # an empty folder gives way
                sync(target.parent)
                restored = target
            elif left:
                shutil.rmtree(path, ignore_errors=True)
    for path, is_old in found:
        if path not in old and (not is_old or not _holds_something(path)):
            with _left(path) as left:
                if left:
                    shutil.rmtree(path, ignore_errors=True)
    return restored


def _make(target: Path) -> tuple[Path, int | None]:
    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        lock = _lock(folder)
        if lock is not None or folder.is_dir():  # else another process took it for a leftover, in that moment
            return folder, lock
    raise FileExistsError(f"{str(target)!r} is being tidied by another process")


def _lock(folder: Path) -> int | None:
    """Return a lock on a folder; ``None`` if another process has it, or the file system has no locks."""
    if sys.platform == "win32":  # no locks on folders, so nothing counts as left behind
        return None
    lock: int | None = None
    try:
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == folder.stat().st_ino:
            return lock
    except OSError:
        pass
    if lock is not None:
        os.close(lock)
    return None


@contextmanager
def _left(folder: Path) -> Iterator[bool]:
    """Say whether a folder was left by a dead process; it is locked in the block."""
    lock = _lock(folder) if folder.is_dir() and not folder.is_symlink() else None
    try:
        yield lock is not None and all(_MADE.fullmatch(path.name) for path in folder.iterdir())
    finally:
        if lock is not None:
            os.close(lock)


def _holds_something(folder: Path) -> bool:
    with suppress(OSError):
        return any(folder.iterdir())
    return folder.exists()

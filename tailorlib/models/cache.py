"""The cache on disk: folders that are built once, and verified before they are used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout
from rich.markup import escape

from tailorlib.console import say
from tailorlib.exceptions import ModelError
from tailorlib.files import replace_file, sync, sync_tree
from tailorlib.models.reading import Stamp

VARIABLE = "TAILORLIB_CACHE"
"""Environment variable that names another folder for the cache."""
SEAL = "seal.json"
"""File of a cache entry that says the size and SHA-256 checksum of all its others."""

_CHECKSUM = re.compile(r"^[0-9a-f]{64}$")
_SETTLED = 2.0
"""Seconds after which a file that is written again has another time of change, on any file system."""
_verified: dict[Path, dict[str, Stamp]] = {}
"""The files of each entry that this process found whole, in the state that they had then."""


def cache_root() -> Path:
    """Return the folder of the cache: ``$TAILORLIB_CACHE``, or the user's cache folder of this platform."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("tailorlib"))


def build_once(
    target: Path, build: Callable[[Path], None], *, valid: Callable[[Path], bool] = Path.is_dir
) -> Path:
    """Return a folder, and build it first if it isn't there: atomically, and by one process at a time.

    A finished folder is sealed: sizes and checksums of its files are noted, and everything is on the disk before
    the folder gets its name. A process compares both when it first uses a folder. After that it compares sizes and
    times of change, and checksums again only if those are others. What differs is built again.

    Args:
        target: The folder.
        build: Writes the content into the empty folder that it is given. If it fails, nothing is left behind.
        valid: Says whether a folder has all that its reader needs; if not, it is built again.

    Returns:
        ``target``.

    Raises:
        ModelError: If the cache can't be written.
    """
    if is_sealed(target) and valid(target):
        return target
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f".{target.name}.lock")
        lock.acquire()
    try:
        if is_sealed(target) and valid(target):  # another process built it while this one waited
            return target
        if target.is_dir():
            say(f"The cache entry {escape(str(target))} is damaged or incomplete: it is made again")
        with _writing(target):
            _remove_leftovers(target)
            building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            build(building)
            with _writing(target):
                _publish(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    finally:
        lock.release()
    return target


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"The cache entry {str(target)!r} can't be written: {error.strerror or error}. Make room, or set "
            f"{VARIABLE} to another folder."
        ) from error


def _remove_leftovers(target: Path) -> None:
    """Remove what processes that were killed left in the cache; whoever holds an entry's lock works on it."""
    for folder in target.parent.glob(".*.*"):
        name = folder.name[1:].rpartition(".")[0]
        if not folder.is_dir() or folder.is_symlink():
            continue
        lock = FileLock(target.parent / f".{name}.lock")
        try:
            if name != target.name:  # that one is held already
                lock.acquire(timeout=0)
            shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            continue
        finally:
            lock.release()


def _publish(building: Path, target: Path) -> None:
    seal(building)
    building.chmod(0o755)  # mkdtemp makes it private
    sync_tree(building)
    if target.exists():
        shutil.rmtree(target)
    building.replace(target)
    sync(target.parent)


def seal(folder: Path) -> None:
    """Note the size and checksum of every file of a folder, in its file :data:`SEAL`.

    Raises:
        OSError: If a file can't be read or the note can't be written.
    """
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    files.pop(SEAL, None)
    content = {name: {"size": file.stat().st_size, "sha256": sha256_of(file)} for name, file in files.items()}
    replace_file(folder / SEAL, json.dumps({"files": content}, indent=1).encode() + b"\n")


def is_sealed(folder: Path) -> bool:
    """Say whether a folder has the files that were sealed, whole and unchanged, and no others."""
    try:
        noted = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() or p.is_symlink()}
        if names - {SEAL} != set(noted):
            return False
        stamps = {name: Stamp.of((folder / name).stat()) for name in noted}
        if any(stamps[name].size != noted[name]["size"] for name in noted):
            return False
        if _verified.get(folder) == stamps:
            return True
        if any(sha256_of(folder / name) != noted[name]["sha256"] for name in noted):
            return False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    _verified[folder] = stamps
    return True


def sha256_of(file: Path) -> str:
    """Return the SHA-256 checksum of a file, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_digest(file: Path) -> str:
    """Return the SHA-256 checksum of a file, hexadecimal, without reading it again as long as it is the same.

    The cache keeps it by path, inode, size and times of change. A large file of a hub's snapshot is a link to one
    that is named by its checksum.

    Raises:
        ModelError: If it can't be read.
    """
    try:
        path = file.resolve(strict=True)
        if path.parent.name == "blobs" and file.is_symlink() and _CHECKSUM.match(path.name):
            return path.name
        state = _state(path)
        note = cache_root() / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
        if (known := _noted(note, state)) is not None:
            return known
        digest = sha256_of(path)
        unchanged = _state(path) == state
    except OSError as error:
        raise ModelError(f"The file {str(file)!r} can't be read: {error.strerror or error}.") from error
    if not unchanged:
        raise ModelError(f"The file {str(file)!r} changes while it is read. Let what writes it finish.")
    if time.time() - max(state[2:]) / 1e9 > _SETTLED:  # else another write could leave the same times
        with suppress(OSError):  # a cache that can't be written costs time alone, and one that is torn, too
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps({"path": str(path), "state": state, "sha256": digest}), encoding="utf-8")
    return digest


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _noted(note: Path, state: list[int]) -> str | None:
    try:
        data = json.loads(note.read_text(encoding="utf-8"))
        return str(data["sha256"]) if data["state"] == state and _CHECKSUM.match(data["sha256"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None

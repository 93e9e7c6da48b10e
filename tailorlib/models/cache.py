"""The cache on disk: folders that are built once and then only read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock

VARIABLE = "TAILORLIB_CACHE"
"""Environment variable that names another folder for the cache."""


def cache_root() -> Path:
    """Return the folder of the cache: ``$TAILORLIB_CACHE``, or the user's cache folder of this platform."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("tailorlib"))


def build_once(
    target: Path, build: Callable[[Path], None], *, valid: Callable[[Path], bool] = Path.is_dir
) -> Path:
    """Return a folder, and build it first if it isn't there: atomically, and by one process at a time.

    Args:
        target: The folder.
        build: Writes the content into the empty folder that it is given. If it fails, nothing is left behind.
        valid: Says whether an existing folder is whole; if not, it is built again.

    Returns:
        ``target``.
    """
    if target.is_dir() and valid(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if target.is_dir() and valid(target):  # another process built it while this one waited
            return target
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            build(building)
            building.chmod(0o755)  # mkdtemp makes it private
            if target.exists():
                shutil.rmtree(target)
            building.replace(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return target

"""The cache: a folder appears whole or not at all, and is built once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tailorlib.exceptions import ModelError
from tailorlib.models.cache import SEAL, build_once, cache_root, is_sealed, sha256_of


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TAILORLIB_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("TAILORLIB_CACHE")
    assert cache_root().name == "tailorlib"


def test_a_folder_is_built_once_by_many(tmp_path):
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.1)
        (folder / "file").write_text("whole")

    target = tmp_path / "deep" / "target"
    threads = [threading.Thread(target=build_once, args=(target, build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (target / "file").read_text() == "whole"
    assert [p.name for p in target.parent.iterdir() if p.is_dir()] == ["target"]


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(folder: Path) -> None:
        (folder / "half").write_text("")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        build_once(tmp_path / "target", build)
    assert not any(p.is_dir() for p in tmp_path.iterdir())


def test_a_folder_that_is_not_whole_is_built_again(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "torn").write_text("")
    build_once(target, lambda f: (f / "new").touch(), valid=lambda f: (f / "new").exists())
    assert sorted(p.name for p in target.iterdir()) == ["new", SEAL]


def build(folder: Path) -> None:
    (folder / "weights").write_bytes(bytes(range(256)) * 64)
    (folder / "deep").mkdir()
    (folder / "deep" / "config").write_text("{}")


def flip(target: Path) -> None:
    content = bytearray((target / "weights").read_bytes())
    content[5000] ^= 1
    (target / "weights").write_bytes(content)


def flip_in_secret(target: Path) -> None:
    """Change a byte as a failing disk does: neither size nor time of change tell."""
    before = (target / "weights").stat()
    flip(target)
    os.utime(target / "weights", ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE = {
    "flipped": flip,
    "flipped in secret": flip_in_secret,
    "cut": lambda t: (t / "weights").write_bytes((t / "weights").read_bytes()[:-1]),
    "emptied": lambda t: (t / "deep" / "config").write_bytes(b""),
    "lost": lambda t: (t / "deep" / "config").unlink(),
    "more": lambda t: (t / "pytorch_model.bin").touch(),
    "no seal": lambda t: (t / SEAL).unlink(),
    "torn seal": lambda t: (t / SEAL).write_text((t / SEAL).read_text()[:40]),
    "other seal": lambda t: (t / SEAL).write_text('{"files": [1]}'),
    "a folder for a file": lambda t: ((t / "weights").unlink(), (t / "weights").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("process", ["this", "another"])
def test_a_damaged_entry_is_made_again(tmp_path, monkeypatch, damage, process):
    target = build_once(tmp_path / "target", build)
    assert build_once(target, never) == target
    DAMAGE[damage](target)
    if process == "another":
        monkeypatch.setattr("tailorlib.models.cache._verified", {})
    elif damage == "flipped in secret":
        assert is_sealed(target)  # what a process verified it trusts until size or time of change are others
        return
    assert not is_sealed(target)
    build_once(target, build)
    assert (target / "weights").read_bytes() == bytes(range(256)) * 64
    assert sorted(p.name for p in target.rglob("*")) == sorted(["weights", "deep", "config", SEAL])


def never(folder: Path) -> None:
    raise AssertionError("it is there")


def test_what_a_killed_process_left_is_no_entry_and_is_removed(tmp_path):
    started = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from tailorlib.models.cache import build_once
        def build(folder):
            (folder / "weights").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        build_once(Path(sys.argv[1]), build)
    """)
    target = tmp_path / "target"
    killed = subprocess.run([sys.executable, "-c", started, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1
    build_once(target, build)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["target"]


def test_checksums_are_computed_once_per_process_and_state(tmp_path, monkeypatch):
    target = build_once(tmp_path / "target", build)
    read = []
    monkeypatch.setattr("tailorlib.models.cache.sha256_of", lambda file: read.append(file.name) or sha256_of(file))
    build_once(target, never)
    first = len(read)
    build_once(target, never)
    assert first == len(read) == 2
    os.utime(target / "weights")
    build_once(target, never)
    assert len(read) == 4


def test_everything_is_on_the_disk_before_the_entry_has_its_name(tmp_path, monkeypatch):
    target, synced, real = tmp_path / "target", [], os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, target.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    build_once(target, build)
    before = {name for name, published in synced if not published}
    assert {"weights", "config", "deep"} <= before and any(name.startswith(".target.") for name in before)
    assert (tmp_path.name, True) in synced


def test_a_cache_that_can_not_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"can't be written: .*set TAILORLIB_CACHE"):
        build_once(tmp_path / "file" / "target", build)

"""The cache: a folder appears whole or not at all, and is built once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tailorlib.models.cache import build_once, cache_root


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
    assert [p.name for p in target.iterdir()] == ["new"]

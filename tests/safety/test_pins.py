"""The pins: every dependency of every extra, and everything that those need, has one exact version."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    stated = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = {}
    for requirement in stated:
        (specifier,) = requirement.specifier
        name = canonicalize_name(requirement.name)
        assert specifier.operator == "==" and not requirement.url and name not in found, requirement
        found[name] = Version(specifier.version)
    return found


def declared() -> dict[str, list[Requirement]]:
    """Return what pyproject.toml asks for, by extra; the empty name is what is always installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(text) for text in texts] for extra, texts in groups.items()}


def test_every_requirement_has_a_pin_that_satisfies_it() -> None:
    pinned = pins()
    for extra, requirements in declared().items():
        for requirement in requirements:
            name = canonicalize_name(requirement.name)
            assert name in pinned, f"{requirement} of the extra {extra!r} has no pin: run make constraints"
            assert requirement.specifier.contains(pinned[name]), f"{requirement} is pinned to {pinned[name]}"


def test_what_the_requirements_need_is_pinned_too() -> None:
    """Follow the metadata of what is installed; a package that isn't installed here has no metadata to follow."""
    pinned, seen = pins(), set[tuple[str, frozenset[str]]]()
    waiting = [
        (canonicalize_name(r.name), frozenset(r.extras))
        for requirements in declared().values()
        for r in requirements
    ]
    followed = 0
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needs = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        followed += 1
        for need in needs:
            markers = ({"extra": extra} for extra in extras or {""})
            if need.marker is not None and not any(need.marker.evaluate(m) for m in markers):
                continue
            inner = canonicalize_name(need.name)
            if inner.startswith("nvidia-") or inner in ("triton", "cuda-bindings", "setuptools", "cuda-toolkit"):
                continue  # which of them torch needs depends on its build; pip freeze leaves setuptools out
            assert inner in pinned, f"{inner}, which {name} needs, has no pin: run make constraints"
            waiting.append((inner, frozenset(need.extras)))
    assert followed > 100

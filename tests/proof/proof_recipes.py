"""Recipes with one thing wrong: one message, exit status 2, and nothing written."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from proof_bench import tell
from proof_cases import Case, FaultClass

ROOT = Path(__file__).parents[2]
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        10**30,
        1e308,
        float("nan"),
        float("inf"),
        "",
        " ",
        "\0",
        "\ud800",
        "\x1b[31mx",
        "x" * 3000,
    ),
    *("../../x", "/dev/zero", "~nobody-at-all/x", "os.system", "{", "[x", "a: b: c", "!!python/name:os.system"),
    *([], {}, [[]], [None], {"class_path": "os.system"}, {"class_path": 3}, {"init_args": {}}, {1: 2}, {"": ""}),
)
Way = tuple[Any, ...]


class Recipes(FaultClass):
    """The shipped recipes, each entry misspelt, taken away and given another value."""

    name = "recipes"
    checked = "one message that names what is misspelt, exit status 2, no traceback, nothing written"

    def cases(self) -> Sequence[Case]:
        """Return the cases."""
        found = []
        for file in sorted(ROOT.glob("recipes/*.yaml")):
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
            for i, way in enumerate([*_ways(data)][::6]):  # recipes have much in common
                where = ".".join(map(str, way))
                found.append(Case(f"{file.stem} {where}", partial(self._changed, file, way, i)))
            found.append(Case(f"{file.stem} text", partial(self._text, file), 12))
        return found

    def _changed(self, file: Path, way: Way, seed: int, folder: Path) -> None:
        rng = random.Random(f"{file.stem}{seed}")
        key, misspelt = way[-1], _misspelt(str(way[-1]), rng)
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        _nowhere(data, folder)
        inner = data
        for outer in way[:-1]:
            inner = inner[outer]
        named = None
        if seed % 3 == 0 and isinstance(key, str):
            what, named = f"misspelt {misspelt!r}", misspelt if _is_setting(way) else None
            inner[misspelt] = inner.pop(key)
        elif seed % 3 == 1:
            what = "taken away"
            inner.pop(key)
        else:
            inner[key] = rng.choice(VALUES)
            what = f"{inner[key]!r:.60}"
        self._judge(folder, _dump(data), what, named)

    def _text(self, file: Path, folder: Path) -> None:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        _nowhere(data, folder)
        text, rng = _dump(data), random.Random(file.stem)
        for _ in range(12):
            i = rng.randrange(len(text))
            more = rng.choice(
                [b"\t", b"\0", b"\xff", b"{", b"]", b":", b"- ", b"&a *a", b"\n\n  x", b"'", b"<<: 3\n", b"%"]
            )
            self._judge(folder, text[:i] + more + text[i:], f"{more!r} at {i}", None)

    def _judge(self, folder: Path, content: bytes, what: str, named: str | None) -> None:
        recipe = folder / "recipe.yaml"
        recipe.write_bytes(content)
        told = tell(["search", "--config", str(recipe), "--trainer.accelerator", "cpu"], folder)
        try:
            told.check_message(2)
            assert "\x1b" not in told.text, f"ESC: {told.text!r:.2000}"
            assert named is None or named in told.text, f"{named!r} is not named: {told.text[:2000]}"
            others = [p.name for p in folder.iterdir() if p.name != "recipe.yaml"]
            assert not others, f"written: {others}"
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from error


def _nowhere(data: Any, folder: Path) -> None:
    """Let every recipe end at its models: they lie where nothing is."""
    family = data.get("family")
    settings = family.get("init_args") if isinstance(family, dict) else None
    if settings is not None:
        settings["base"] = "./nowhere/base"
        for kind in ("candidates",):
            if kind in settings:
                settings[kind] = dict.fromkeys(settings[kind], "./nowhere/other")
    data.setdefault("study", {})["directory"] = str(folder / "run")


def _dump(data: Any) -> bytes:
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


def _ways(data: Any, way: Way = ()) -> Iterator[Way]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*way, key)
        yield from _ways(value, (*way, key))


def _misspelt(word: str, rng: random.Random) -> str:
    i = rng.randrange(max(1, len(word) - 1))
    return word[:i] + "q" + word[i + 1 :] if rng.random() < 0.5 else word[:i] + "zx" + word[i:]


def _is_setting(way: Way) -> bool:
    """Say whether a key is a name of tailorlib's own, and not the user's."""
    return len(way) == 1 or way[-2] in ("init_args", "study")

"""Strings of models, tasks and users in every place that is shown: plain text there, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from proof_bench import Told, tell
from proof_cases import Case, FaultClass

STRINGS = (
    *(
        "<inj>INJ</inj>",
        "<img src=x onerror=INJ>",
        "[bold red]INJ[/]",
        "[/]INJ[/nothing]",
        "\x1b[31mINJ",
        "\x1b]0;INJ\x07",
    ),
    *(
        "x\n\n# INJ\n",
        "| INJ | x |",
        "![INJ](http://e.vil/x.png)",
        "\u202eINJ",
        "`</code><inj>INJ`",
        "&lt;inj&gt;INJ",
    ),
    *(
        '"><inj>INJ',
        "{{INJ}} ${INJ} %s {0}",
        "</script><inj>INJ",
        "\u2028# INJ",
        "]]><inj>INJ",
        "\r# INJ",
        "\x9b31mINJ",
    ),
)
CONTROLS = {chr(i) for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t\r"} | set("\u202e\u2028\u2029")
PLUGIN = """
from tailorlib import Fitness, Measurement, WarmStart
from tailorlib_strategies.fitness import Perplexity

class Own(Perplexity):
    calls = 0
    def _summarise(self, results):
        Own.calls += 1
        if Own.calls == 3:
            raise ValueError(STRING)
        found = super()._summarise(results)
        return Measurement(found.score, {**found.metrics, STRING: 0.5}, found.chance, {STRING: 0.5})
"""


class _Elements(HTMLParser):
    """Notes elements and attributes that no page of tailorlib has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        named = [f"{name}={value}" for name, value in attrs if name == "onerror" or name.startswith("on")]
        if tag == "inj" or (tag == "img" and dict(attrs).get("src") == "x") or named:
            self.found.append(f"<{tag} {named}>")


class Injections(FaultClass):
    """Markup, HTML and control characters in names and values."""

    name = "injections"
    checked = "terminal, model card, reports: no control character, no element, heading, image or markup of theirs"

    def cases(self) -> Sequence[Case]:
        """Return the cases."""
        places = ("candidate", "part", "plugin", "config", "license", "directory")
        verbs = {"import": self._import, "words": self._words, "recipe": self._recipe, "init": self._init}
        found = [
            Case(f"{place} {i}", partial(self._study, place, text))
            for place in places
            for i, text in enumerate(STRINGS)
        ]
        return found + [
            Case(f"{verb} {i}", partial(check, text))
            for verb, check in verbs.items()
            for i, text in enumerate(STRINGS)
        ]

    def _study(self, place: str, text: str, folder: Path) -> None:
        recipe = self.bench.recipe("run", trials=4)
        del recipe["scheduler"]
        settings = recipe["family"]["init_args"]
        run = "run"
        if place == "candidate":
            settings["candidates"][text] = settings["candidates"].pop("a")
        elif place == "part":
            parts = {text: recipe["fitness"], "other": recipe["fitness"]}
            recipe["fitness"] = {"class_path": "WeightedMean", "init_args": {"parts": parts}}
        elif place == "plugin":
            (folder / "own.py").write_text(PLUGIN.replace("STRING", ascii(text)))
            recipe["plugins"] = ["own.py"]
            recipe["fitness"]["class_path"] = "Own"
        elif place == "directory":
            run = text.replace("/", "-").replace("\0", "")
            recipe["study"]["directory"] = run
        else:
            self._model(place, text, folder, settings)
        self.bench.write(folder, recipe)
        for argv in (
            ["plan", "--config", "recipe.yaml"],
            ["search", "--config", "recipe.yaml"],
            ["show", run],
            ["list", "."],
            ["report", run],
            ["export", run, "--output", "out"],
        ):
            check_plain(tell(argv, folder), " ".join(argv))
        check_files(folder)

    def _model(self, place: str, text: str, folder: Path, settings: dict[str, Any]) -> None:
        shutil.copytree(self.bench.family / "base", folder / "base")
        settings["base"] = str(folder / "base")
        if place == "license":
            (folder / "base" / "README.md").write_text(f"---\nlicense: {json.dumps(text)}\n---\n# {text}\n")
        else:
            file = folder / "base" / "config.json"
            config = json.loads(file.read_text())
            shown = {"architectures": [text], "_name_or_path": text, "license": text, "note": text}
            file.write_text(json.dumps({**config, **shown}))

    def _import(self, text: str, folder: Path) -> None:
        for data in (
            {"merge_method": text, "models": [{"model": "a"}]},
            {"merge_method": "linear", "models": [{"model": text, "parameters": {"weight": 1}}]},
            {
                "merge_method": "ties",
                "base_model": text,
                "slices": [{"sources": [{"model": text, "layer_range": [0, 2]}]}],
            },
            {"merge_method": "linear", text: 1, "models": []},
        ):
            (folder / "config.yaml").write_text(json.dumps(data))
            check_plain(tell(["import", "config.yaml", "--output", "imported"], folder), "import")
        check_files(folder)

    def _words(self, text: str, folder: Path) -> None:
        for argv in (
            [text],
            ["show", text],
            ["list", text],
            ["search", "--config", text],
            ["search", f"--{text}"],
            ["export", text, "--output", "out"],
            ["search", "--config", str(self.bench.folder / "run" / "recipe.yaml"), "--study.trials", text],
        ):
            check_plain(tell(argv, folder), f"{argv!r}")

    def _recipe(self, text: str, folder: Path) -> None:
        for section, value in (
            ("optimizer", text),
            ("optimizer", {"class_path": "Evolution", "init_args": {text: 1}}),
            (text, 1),
            ("plugins", [text]),
            ("study", {"directory": "run", "trials": text}),
            ("fitness", {"class_path": "LMEval", "init_args": {"tasks": [text]}}),
        ):
            recipe = self.bench.recipe("run")
            recipe[section] = value
            self.bench.write(folder, recipe)
            check_plain(tell(["search", "--config", "recipe.yaml"], folder), f"{section}: {value!r}")

    def _init(self, text: str, folder: Path) -> None:
        check_plain(tell(["init", str(self.bench.family / "base"), text], folder), "init")
        check_files(folder)


def check_plain(told: Told, what: str) -> None:
    """Check that what a terminal is told has no control characters, and no markup that was taken for some."""
    assert "Traceback (most recent call last)" not in told.text, f"{what}:\n{told.text[-3000:]}"
    controls = sorted(set(told.text) & CONTROLS)
    assert not controls, f"{what} shows {controls}: {told.text[-2000:]!r}"
    flat = told.text.replace("\\[", "[")
    for markup in ("[bold red]INJ[/]", "[/]INJ[/nothing]"):
        if markup.replace("INJ", "") in what.replace("INJ", "") and "INJ" in flat:
            assert markup[: markup.index("INJ") + 3] in flat, (
                f"{what}: markup was taken for markup: {flat[-2000:]}"
            )


def check_files(folder: Path) -> None:
    """Check pages and Markdown that a command wrote."""
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table"])
    for file in (p for p in folder.rglob("*") if p.suffix in (".html", ".md", ".svg") and p.is_file()):
        if file.parent.name == "base":
            continue
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".md":
            body = text.split("\n---\n", 1)[1] if text.startswith("---\n") else text
            tokens = markdown.parse(body)
            headings = [b for a, b in pairwise(tokens) if a.type == "heading_open"]
            bad = [h.content for h in headings if h.content.strip() == "INJ"]
            assert not bad, f"{file}: a heading {bad}"
            text = markdown.render(body)
            assert "e.vil" not in text or 'src="http://e.vil' not in text, f"{file}: an image"
        elements = _Elements()
        elements.feed(text)
        assert not elements.found, f"{file}: {elements.found}"
        assert not set(text) & CONTROLS, f"{file}: control characters {sorted(set(text) & CONTROLS)}"

"""Shell commands on the pages: the real command line takes every ``tailor ...`` that the documentation shows.

Each command goes through ``tailorlib.cli.main`` up to the point where it would begin to work: verbs, options and
values are parsed, nothing runs. A small recipe stands for the one that a command names, and a folder with it for a
run: recipes themselves are parsed in tests/recipes. What lies in recipes/ and docs/ has to exist.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

import tailorlib.cli
import tailorlib.lightning_cli
from tailorlib.cli import main
from tailorlib.light import LIGHT, light_parser

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
OPERATORS = {"|", "&&", "||", ";", ">", "2>", "&"}
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


class ParsedError(Exception):
    """The command line was accepted."""


def lines(page: Path) -> list[str]:
    """Return the shell lines of a page, continued lines joined."""
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    text = "\n".join(block for language, block in blocks if language in ("", "sh", "bash"))
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def tailor_commands() -> dict[str, list[str]]:
    """Return the arguments of each command, by where it stands."""
    found = {}
    for page in PAGES:
        for line in lines(page):
            words = shlex.split(line, comments=True)
            for start in (i for i, word in enumerate(words) if word == "tailor"):
                end = next((i for i in range(start, len(words)) if words[i] in OPERATORS), len(words))
                found[f"{page.relative_to(ROOT)}: {line}"] = words[start + 1 : end]
    return found


COMMANDS = tailor_commands()


def test_there_are_commands_of_every_verb() -> None:
    assert {args[0] for args in COMMANDS.values()} >= {*tailorlib.lightning_cli.VERBS, *LIGHT}


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch, generated: ModuleType) -> None:
    def lightning(args: list[str]) -> None:
        generated.command_line().parse_args(args)
        raise ParsedError

    def light(verb: str, args: list[str]) -> None:
        light_parser(verb)[0].parse_args(list(args))
        raise ParsedError

    monkeypatch.setattr(tailorlib.lightning_cli, "TailorCLI", lightning)
    monkeypatch.setattr(tailorlib.cli, "run_light", light)
    monkeypatch.setattr(tailorlib.cli, "export_command", lambda args: False)
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(
        "family: {class_path: ModelFamily, init_args: {base: models/base, candidates: {a: models/a}}}\n"
        "search_space: {class_path: PruningSpace, init_args: {removal: {class_path: LayerRemoval}}}\n"
        "optimizer: {class_path: Nevergrad}\n"
        "fitness: {class_path: LMEval, init_args: {tasks: [piqa]}}\n"
    )
    return folder


def with_real_files(args: list[str], run: Path) -> list[str]:
    """Put files that exist in the place of names that a reader replaces."""
    words = list(args)
    for i, word in enumerate(words[:-1]):
        named = ROOT / words[i + 1]
        if word in ("--config", "-c", "--resume", "--plugins"):
            assert named.is_file() or words[i + 1].split("/")[0] not in ("recipes", "docs"), f"no file {named}"
        if word in ("--config", "-c"):
            words[i + 1] = str(run / "recipe.yaml")
        elif word == "--resume":
            words[i + 1] = str(run)
        elif word == "--plugins" and not named.is_file():
            words[i + 1] = "docs/plugins/median_merge.py"
    if words[0] in ("evaluate", "compensate", "export") and len(words) > 1 and not words[1].startswith("-"):
        words[1] = str(run)
    return words


@pytest.mark.parametrize("where", COMMANDS)
def test_the_command_line_takes_it(
    where: str, run_folder: Path, parse_only: None, capsys: pytest.CaptureFixture[str]
) -> None:
    args = with_real_files(COMMANDS[where], run_folder)
    try:
        status: int | None = main(args)
    except ParsedError:
        return
    except SystemExit as ended:  # --help and --print_config
        status = 0 if not ended.code else 1
    assert status == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["search", "--resume", "RUN", "--study.trails", "3"], ["export", "RUN", "--verfy"]]
)
def test_a_misspelt_option_is_noticed(wrong: list[str], run_folder: Path, parse_only: None) -> None:
    assert main([str(run_folder) if word == "RUN" else word for word in wrong]) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_scripts_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"python (tests/[\w/]+\.py)", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).is_file()] == []

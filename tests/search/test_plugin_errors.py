"""A plugin that raises outside of a trial: one message with class, method, error and place; no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tailorlib_strategies.optimizers import RandomSearch
from tailorlib_strategies.search_spaces import PruningSpace

from tailorlib.cli import main
from tailorlib.journal import Journal

PLUGIN = """
from tailorlib import MergeOperation
from tailorlib_strategies.operations import LayerRemoval
from tailorlib_strategies.optimizers import RandomSearch
from tailorlib_strategies.search_spaces import PruningSpace
from tailorlib_strategies.texts import PlainText

class Shy(BaseException):
    pass

class Mute(Exception):
    def __str__(self):
        return 1 / 0

class NAME(KIND):
    def METHOD:
        BODY
"""
OPTIMIZER, SPACE, TEXT = ("optimizer", "RandomSearch"), ("search_space", "PruningSpace"), ("text", "PlainText")
CASES = [
    (
        OPTIMIZER,
        "_ask(self)",
        "raise ValueError('own fault')",
        "NAME._ask raised ValueError: own fault (own.py, line 17",
    ),
    (
        OPTIMIZER,
        "_tell(self, trial)",
        "raise KeyError(trial.number)",
        "NAME._tell raised KeyError: 0 (own.py, line 17",
    ),
    (OPTIMIZER, "_setup(self, space, seed)", "open('nowhere.txt')", "NAME._setup raised FileNotFoundError: "),
    (OPTIMIZER, "_ask(self)", "raise Mute", "NAME._ask raised Mute: (the message of this Mute can't be shown"),
    (OPTIMIZER, "_ask(self)", "return self._ask()", "NAME._ask raised RecursionError: maximum recursion"),
    (
        OPTIMIZER,
        "_ask(self)",
        "raise GeneratorExit",
        "does not end the program, as GeneratorExit() does, in line 17",
    ),
    (OPTIMIZER, "_setup(self, space, seed)", "raise Shy(3)", "as Shy(3) does, in line 17"),
    (OPTIMIZER, "__init__(self)", "raise TypeError('own fault')", "NAME.__init__ raised TypeError: own fault"),
    (
        OPTIMIZER,
        "__init__(self, scale)",
        "self.scale = scale",
        "gives each of its settings a type; 'scale' of NAME.__init__ has none. Write scale: float",
    ),
    (
        SPACE,
        "__init__(self, removal: LayerRemoval, merges: list[MergeOperation])",
        "pass",
        "NAME.__init__ has to call super().__init__().",
    ),
    (SPACE, "distributions(self)", "return None", "NAME.distributions gives a mapping of names to Float"),
    (SPACE, "distributions(self)", "return self.no_such_thing", "NAME.distributions raised AttributeError: "),
    (TEXT, "documents(self)", "raise RuntimeError('own fault')", "NAME.documents raised RuntimeError: own fault"),
]


@pytest.fixture
def short(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe of two trials, with a plugin of the user's."""
    del recipe["benchmark"], recipe["warm_starts"]
    recipe["optimizer"], recipe["plugins"] = "RandomSearch", ["own.py"]
    recipe["study"] |= {"trials": 2, "export": False}
    recipe["trainer"]["logger"] = False
    return recipe


@pytest.mark.parametrize(("place", "method", "body", "said"), CASES)
def test_an_error_of_a_plugin_is_one_message(
    place: tuple[str, str],
    method: str,
    body: str,
    said: str,
    short: dict[str, Any],
    write: Callable[[dict[str, Any]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    section, kind = place
    name = f"Own{CASES.index((place, method, body, said))}"  # of its own: classes live as long as the process
    source = PLUGIN.replace("NAME", name).replace("KIND", kind).replace("METHOD", method).replace("BODY", body)
    Path("own.py").write_text(source, encoding="utf-8")
    if section == "text":
        short["fitness"]["init_args"]["parts"]["text"]["init_args"]["text"]["class_path"] = name
    elif section == "search_space":
        short[section]["class_path"] = name
    else:
        short[section] = name
    assert main(["search", "--config", write(short)]) == 2
    shown = capsys.readouterr()
    told = " ".join(shown.err.split())
    assert (
        said.replace("NAME", name) in told
        and told.count("tailor: error:") == 1
        and "Traceback" not in told + shown.out
    )
    if "_tell" in method:  # what was measured is on disk
        assert len(Journal.read(tmp_path / "run").trials) == 1
        assert "--resume" in told


def test_an_error_of_our_own_stays_a_traceback(
    short: dict[str, Any], write: Callable[[dict[str, Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(PruningSpace, "_setup", defect)
    del short["plugins"]
    with pytest.raises(ZeroDivisionError):
        main(["search", "--config", write(short)])


def test_an_optimizer_that_repeats_itself_is_named_and_no_success(
    short: dict[str, Any],
    write: Callable[[dict[str, Any]], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(RandomSearch, "_ask", lambda self: self.space.complete({}))
    del short["plugins"]
    short["study"]["trials"] = 5
    assert main(["search", "--config", write(short)]) == 1
    assert "RandomSearch proposes nothing new after 1 trials: only" in " ".join(capsys.readouterr().out.split())

"""The scripts that compare searches: a user's plugin takes part by its name, faults are told at once."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import family_lab
import pocket_searches
from family_lab import FITNESSES, Place, SpaceName, meant, pooled, search_fitness
from family_searches import read_settings
from searches import Found, Record, Setting, Step, check_plugins

from tailorlib import LayerPlan, LayerSource, Tailoring

HERE = Path(__file__).parent
MINE = """
from tailorlib_strategies.optimizers import RandomSearch

class Mine(RandomSearch):
    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        print("made with", extra)
"""


# -- Plugins ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["optimizers_synthetic.py", "--landscapes", "additive", "--trials", "6", "--seeds", "1"],
        ["surrogate.py", "search", str(HERE / "surrogates" / "pocket.json"), "--budget", "6", "--seeds", "1"],
    ],
    ids=["synthetic", "surrogate"],
)
def test_an_optimizer_of_the_users_own_takes_part_by_its_name(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    script, *options = command
    names = ["--names", "Mine:extra=7", "RandomSearch"]
    done = subprocess.run(
        [sys.executable, str(HERE / script), *options, "--plugins", str(tmp_path / "mine.py"), *names],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line for line in done.stdout.splitlines() if "±" in line and not line.endswith("deviation")]
    assert [[name in row for name in names[1:]] for row in rows] == [[True, False], [False, True]]
    assert "made with 7" in done.stdout


@pytest.mark.parametrize(
    ("optimizers", "schedulers", "message"),
    [
        (["StructuredBays"], [], "Did you mean 'StructuredBayes'"),
        (["!SMACC"], [], "SMAC"),
        (["Nevergrad:optimiser=DE"], [], "optimiser"),
        (["RandomSearch"], ["", "Hyperbend"], "Did you mean 'Hyperband'"),
        (["RandomSearch"], ["Hyperband:eta=0.5"], "eta"),
    ],
)
def test_what_can_not_be_made_is_said_at_once(
    optimizers: list[str], schedulers: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        check_plugins(argparse.ArgumentParser(), [], optimizers, schedulers)
    assert message in capsys.readouterr().err


# -- Settings and spaces ----------------------------------------------------------------------------------------


def test_settings_are_read_the_first_seed_of_all_kinds_first(tmp_path: Path) -> None:
    path = tmp_path / "settings.txt"
    path.write_text(
        "# a remark\nEvolution | | cold | select@0.25 | 30 # another\n\nSMAC|ASHA|designed|merge@0.1|4.5\n"
    )
    one = Setting("Evolution", "", "cold", "select@0.25", 0, 30.0)
    other = Setting("SMAC", "ASHA", "designed", "merge@0.1", 0, 4.5)
    settings = read_settings(path, 2)
    assert settings[:2] == [one, other]
    assert [(s.optimizer, s.seed) for s in settings[2:]] == [("Evolution", 1), ("SMAC", 1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("SMAC | cold | merge@0.1 | 30", "line 2: a setting is optimizer | scheduler"),
        ("SMAC | | cold | merge@0.1 | many", "line 2: a setting is"),
        ("SMAC | | cold | marge@0.1 | 30", "A space is merge, select"),
        ("SMAC | | cold | merge:poll=a@0.1 | 30", "has the options operation and pool"),
    ],
)
def test_a_line_that_is_no_setting_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.txt"
    path.write_text(f"Evolution | | cold | select@0.25 | 30\n{line}\n")
    with pytest.raises(SystemExit, match=message.replace("|", r"\|")):
        read_settings(path, 1)


PLACE = Place("base", (("math", "m"), ("code", "c"), ("prose", "p")), Path("data"), Path("record"), 500)


def test_a_space_may_name_a_pool_and_an_operation() -> None:
    name = SpaceName.of("merge:operation=DARELinear,pool=math+prose@0.25")
    assert (name.kind, name.share, name.operation, name.pool) == ("merge", "0.25", "DARELinear", ("math", "prose"))
    assert name.scaled and not SpaceName.of("merge:operation=ModelStock@0.1").scaled
    assert pooled(PLACE, "merge:pool=math+prose@0.25").candidates == (("math", "m"), ("prose", "p"))
    assert pooled(PLACE, "merge@0.25") == PLACE
    with pytest.raises(SystemExit, match="nobody"):
        pooled(PLACE, "merge:pool=nobody@0.25")


def test_only_a_variant_means_its_layers() -> None:
    tailoring = Tailoring(tuple(LayerPlan((LayerSource("base", i),)) for i in (0, 2)))
    assert [plan.sources for plan in meant("only-code@0.3", tailoring).layers] == [
        (LayerSource("code", 0),),
        (LayerSource("code", 2),),
    ]
    assert meant("merge@0.3", tailoring) is tailoring


def test_a_place_says_how_much_searches_see_and_whether_questions_are_asked() -> None:
    few, many = (family_lab.search_fitness(Place("b", (), Path("d"), Path("r"), 0, n)).parts for n in (16, 64))
    assert [vars(few[name])["max_tokens"] for name in family_lab.SEARCHED] == [512] * 3
    assert [vars(many[name])["max_tokens"] for name in family_lab.SEARCHED] == [2048] * 3
    assert set(family_lab.test_fitness(Place("b", (), Path("d"), Path("r"), 0)).parts) == set(family_lab.TESTED)
    asked = family_lab.test_fitness(PLACE).parts
    assert set(asked) == {*family_lab.TESTED, *family_lab.QUESTIONS}


def test_searches_can_maximise_likelihood_or_divergence_or_accuracy() -> None:
    place = Place("b", (), Path("d"), Path("r"), 0, samples=16)
    kinds = {
        name: {
            part: type(one).__name__ for part, one in search_fitness(replace(place, fitness=name)).parts.items()
        }
        for name in FITNESSES
    }
    texts = dict.fromkeys(family_lab.SEARCHED, "Perplexity")
    assert kinds["likelihood"] == {**texts, "questions": "LMEval"}
    assert kinds["divergence"] == {**dict.fromkeys(texts, "KLDivergence"), "questions": "LMEval"}
    assert kinds["accuracy"] == {"questions": "LMEval"}
    asked = search_fitness(replace(place, fitness="accuracy")).parts["questions"]
    assert (vars(asked)["signal"], vars(asked)["metric"]) == ("metric", "acc")


# -- Tables and pictures ----------------------------------------------------------------------------------------


def outcome(
    optimizer: str, start: str, space: str, seed: int, steps: list[tuple[float, float]], budget: float
) -> Found:
    setting = Setting(optimizer, "", start, space, seed, budget)
    return Found(setting, [Step(spent, score, {"score": score}) for spent, score in steps], 10, 1.0)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    made = Record(tmp_path / "searches.jsonl")
    for space in ("0.1", "0.25"):
        for seed in (0, 1):
            made.add(outcome("Good", "cold", space, seed, [(1.0, 0.5), (20.0, 0.7 + 0.2 * seed)], 50))
    made.add(outcome("Bad", "cold", "0.25", 0, [(2.0, 0.1), (30.0, 0.3)], 50))
    made.add(outcome("Good", "cold", "0.25", 0, [(1.0, 0.9)], 100))  # of another budget
    return made


def test_the_table_has_means_errors_and_the_best_first(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    groups = pocket_searches.grouped(record, 50)
    pocket_searches.show(groups, [10, 50], lambda space, step: step.score / 2)
    _, table = capsys.readouterr().out.split("0.25 of the layers")
    good, bad = table.splitlines()[2:4]
    assert good.split()[:2] == ["cold", "Good"] and bad.split()[:2] == ["cold", "Bad"]
    # 0.5 after 10; 0.7 and 0.9 after 50, whose standard error is half their distance; half of that on other text
    assert good.split()[2:] == ["0.5000", "±0.0000", "0.8000", "±0.1000", "0.4000", "±0.0500", "2", "0.100"]
    assert bad.split()[2] == "0.1000" and bad.split()[-2] == "1"


def test_the_picture_has_a_panel_for_each_space_and_one_colour_for_each_optimizer(
    record: Record, tmp_path: Path
) -> None:
    from matplotlib import pyplot as plt

    pocket_searches.plot(pocket_searches.grouped(record, 50), tmp_path / "a" / "plot.png", 50)
    panels = {axis.get_title().split()[0]: axis for axis in plt.gcf().axes}
    lines = {space: {line.get_label(): line for line in axis.get_lines()} for space, axis in panels.items()}
    plt.close("all")
    assert {space: set(own) for space, own in lines.items()} == {"0.1": {"Good"}, "0.25": {"Good", "Bad"}}
    assert lines["0.1"]["Good"].get_color() == lines["0.25"]["Good"].get_color()
    ends = np.asarray(lines["0.25"]["Good"].get_ydata())
    assert ends[0] == pytest.approx(0.5) and ends[-1] == pytest.approx(0.8)
    assert (tmp_path / "a" / "plot.png").read_bytes()[:4] == b"\x89PNG"

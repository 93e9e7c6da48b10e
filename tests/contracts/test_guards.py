"""What a plugin gives is checked in its base class: the message names class, parameter, value and range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
import torch

from tailorlib import (
    Candidate,
    Categorical,
    Distribution,
    FamilyLayout,
    Fitness,
    Float,
    Integer,
    LayerPlan,
    LayerSource,
    Measurement,
    MergeOperation,
    Objective,
    Optimizer,
    Params,
    Promotion,
    Scheduler,
    SearchSpace,
    SpaceSize,
    Subset,
    Tailoring,
    TextSource,
    WarmStart,
)
from tailorlib.exceptions import PluginError
from tailorlib.models.family import ModelFamily
from tailorlib.search.campaign import Campaign
from tailorlib.testing import check_optimizer, fake_trial

ANY = cast(Any, None)


class Space(SearchSpace):
    """One of each kind of parameter; ``only_b`` is active where ``kind`` is "b"."""

    def distributions(self) -> Mapping[str, Distribution]:
        return {
            "cut": Subset(4, 2),
            "count": Integer(1, 3),
            "scale": Float(0.0, 1.0),
            "kind": Categorical(("a", "b")),
            "only_b": Float(0.0, 1.0),
        }

    def active(self, params: Params) -> Params:
        return {name: value for name, value in params.items() if name != "only_b" or params["kind"] == "b"}

    def decode(self, params: Params, *, seed: int = 0) -> Tailoring:
        return Tailoring((LayerPlan((LayerSource("base", int(cast(int, params["count"]))),)),), seed=seed)

    def encode(self, tailoring: Tailoring) -> Params:
        return {}

    def size(self) -> SpaceSize:
        return SpaceSize(1, 1)


GOOD: dict[str, Any] = {"cut": (0, 1), "count": 1, "scale": 0.5, "kind": "a"}


class Proposes(Optimizer):
    def __init__(self, proposal: Any) -> None:
        self.proposal = proposal

    def _ask(self) -> Any:
        return self.proposal


def asked(proposal: Any) -> Params:
    optimizer = Proposes(proposal)
    optimizer.setup(Space(), 0)
    return optimizer.ask()


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        ({**GOOD, "coutn": 1}, r"'coutn' is no parameter of the space\. Did you mean 'count'"),
        ({**GOOD, "count": 4}, "count=4 is not a whole number from 1 to 3"),
        ({**GOOD, "count": 1.0}, "count=1.0 is not a whole number from 1 to 3"),
        ({**GOOD, "count": True}, "count=True is not a whole number"),
        ({**GOOD, "scale": float("nan")}, "scale=nan is not a number from 0.0 to 1.0"),
        ({**GOOD, "scale": "0.5"}, "scale='0.5' is not a number"),
        ({**GOOD, "scale": None}, "scale=None is not a number"),
        ({**GOOD, "kind": "c"}, r"kind='c' is not one of \('a', 'b'\)"),
        ({**GOOD, "cut": (0, 9)}, r"cut=\(0, 9\) is not 2 of the numbers 0 to 3, as an increasing tuple"),
        ({**GOOD, "cut": 1}, "cut=1 is not 2 of the numbers 0 to 3"),
        ({**GOOD, "only_b": 7.0}, "only_b=7.0 is not a number from 0.0 to 1.0"),  # though it is inactive
        ({**GOOD, "kind": "b"}, "gives every active parameter, and left out only_b"),
        ({}, "gives every active parameter, and left out cut, count, scale, kind"),
        ({**GOOD, 3: 4}, "3 is no parameter of the space"),
        (None, r"gives a mapping of parameters, such as self\.space\.sample\(self\.rng\), got None"),
        ([0.5, 1], "gives a mapping of parameters"),
    ],
)
def test_a_proposal_outside_of_the_space_is_named(proposal: Any, message: str) -> None:
    with pytest.raises(PluginError, match=rf"Proposes\._ask .*{message}"):
        asked(proposal)
    with pytest.raises((PluginError, AssertionError), match=message):
        check_optimizer(lambda: Proposes(proposal), Space())


def test_all_of_a_proposal_is_named_at_once() -> None:
    with pytest.raises(PluginError, match=r"count=9 .*; scale=2 "):
        asked({**GOOD, "count": 9, "scale": 2})


def test_scalars_of_numpy_and_torch_are_numbers() -> None:
    found = asked(
        {
            "cut": np.array([0, 2]),
            "count": np.int64(2),
            "scale": torch.tensor(0.25),
            "kind": np.str_("b"),
            "only_b": np.float32(0.5),
        }
    )
    assert found == {"cut": (0, 2), "count": 2, "scale": 0.25, "kind": "b", "only_b": 0.5}
    assert [type(value) for value in found.values()] == [tuple, int, float, str, float]


def test_inactive_parameters_may_be_left_out_or_given() -> None:
    assert asked(GOOD) == asked({**GOOD, "only_b": 0.5}) == GOOD


@pytest.mark.parametrize("found", [0, 9, 2.5, "2", None, True])
def test_a_scheduler_gives_numbers_of_samples(found: Any) -> None:
    scheduler = type("Own", (Starts,), {"_start": lambda self: found})()
    scheduler.setup(8, 1, 10.0)
    with pytest.raises(
        PluginError, match=r"Own\._start scores candidates on 1 to 8 samples, a whole number; got "
    ):
        scheduler.start()


class Starts(Scheduler):
    promoted: Any = ()

    def _start(self) -> int:
        return cast(int, np.int64(2))

    def _promote(self, count: int) -> Any:
        return self.promoted

    def _tell(self, trial: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("promoted", "message"),
    [
        (["abc"], r"gives a list of Promotion\(digest, samples\), got \['abc'\]"),
        (None, "gives a list of Promotion"),
        ([Promotion("a", 4), Promotion("a", 8)], "promotes each candidate once, got 'a' twice"),
        ([Promotion("a", 99)], "1 to 8 samples, a whole number; got 99"),
    ],
)
def test_a_scheduler_gives_promotions(promoted: Any, message: str) -> None:
    scheduler = Starts()
    scheduler.setup(8, 1, 10.0)
    assert scheduler.start() == 2 and type(scheduler.start()) is int
    scheduler.promoted = promoted
    with pytest.raises(PluginError, match=rf"Starts\._promote .*{message}"):
        scheduler.promote(4)


def test_a_scheduler_promotes_known_candidates_to_more_samples() -> None:
    scheduler, optimizer = Starts(), Proposes(GOOD)
    scheduler.setup(8, 1, 10.0)
    optimizer.setup(Space(), 0)
    campaign = Campaign(Space(), optimizer, 10.0, 8, scheduler)
    scheduler.promoted = [Promotion("nobody", 4)]
    with pytest.raises(PluginError, match=r"Starts\._promote .* for 'nobody', which was never scored"):
        campaign.jobs(1)
    scheduler.promoted = []
    (job,) = campaign.jobs(1)
    trial = fake_trial(Space(), job.proposal.params, number=0)
    campaign.tell([cast(Any, trial.__class__)(**{**trial.__dict__, "samples": 2, "fidelity": 0.25})])
    scheduler.promoted = [Promotion(job.proposal.tailoring.digest, 2)]
    with pytest.raises(PluginError, match="which was scored on 2"):
        campaign.jobs(1)


@pytest.mark.parametrize(
    ("method", "found", "message"),
    [
        (
            "distributions",
            ["a"],
            r"gives a mapping of names to Float, Integer, Categorical or Subset, got \['a'\]",
        ),
        ("distributions", {"a": (0, 1)}, r"got \{'a': \(0, 1\)\}"),
        ("active", None, "gives a mapping of parameters, got None"),
        ("decode", {"layers": []}, "gives a Tailoring, got "),
        ("encode", (1, 2), "gives a mapping of parameters"),
        ("size", 12, "gives a SpaceSize, got 12"),
        ("operations", ["TIES"], "gives a list of merge operations, got 'TIES'"),
    ],
)
def test_a_space_gives_what_its_methods_say(method: str, found: Any, message: str) -> None:
    space = type("Own", (Space,), {method: lambda self, *_, **__: found})()
    arguments = {"active": ({},), "decode": ({},), "encode": (None,)}.get(method, ())
    with pytest.raises(PluginError, match=rf"Own\.{method} .*{message}"):
        getattr(space, method)(*arguments)


class Own(Fitness):
    num_samples = 3  # type: ignore[assignment]

    def __init__(self, summary: Any = None, results: Any = None) -> None:
        self.summary, self.results = summary, results

    def _score_samples(self, model: Any, samples: Any) -> Any:
        return [0.0] * len(samples) if self.results is None else self.results

    def _summarise(self, results: Any) -> Any:
        return self.summary


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        (0.5, r"gives a Measurement, got 0\.5\. Write: return Measurement\(0\.5\)"),
        (None, "gives a Measurement, got None"),
    ],
)
def test_a_fitness_gives_a_measurement(summary: Any, message: str) -> None:
    with pytest.raises(PluginError, match=rf"Own\._summarise.*{message}"):
        Own(summary).evaluate(ANY)


def test_a_fitness_of_the_whole_model_gives_a_measurement() -> None:
    whole = type("Whole", (Fitness,), {"_evaluate": lambda self, model: 0.5})
    with pytest.raises(PluginError, match=r"Whole\._evaluate gives a Measurement, .*return Measurement\(0\.5\)"):
        whole().evaluate(ANY)


def test_figures_become_plain_numbers() -> None:
    found = Own(Measurement(cast(float, np.float32(0.5)), {"a": cast(float, torch.tensor(2.0))})).evaluate(ANY)
    assert found == Measurement(0.5, {"a": 2.0})
    assert type(found.score) is float and type(found.metrics["a"]) is float


@pytest.mark.parametrize("results", [[1.0], None.__class__, "abc"])
def test_a_fitness_gives_a_result_for_each_sample(results: Any) -> None:
    with pytest.raises(
        PluginError, match=r"Own\._score_samples gives a list of one result for each of the 3 samples"
    ):
        Own(Measurement(0.5), results).score_samples(ANY, range(3))


@pytest.mark.parametrize("found", [None, "high", (1.0, 2.0)])
def test_an_objective_gives_a_number(found: Any) -> None:
    objective = type("Goal", (Objective,), {"score": lambda self, candidate: found})()
    with pytest.raises(PluginError, match=r"Goal\.score is a number, got "):
        objective.score(cast(Candidate, None))


@pytest.mark.parametrize(("found", "given"), [("one text", "'one text'"), ([1], "1"), (None, "None")])
def test_a_text_source_gives_a_list_of_texts(found: Any, given: str) -> None:
    source = type("Texts", (TextSource,), {"documents": lambda self: found})()
    with pytest.raises(PluginError, match=rf"Texts\.documents gives a list of texts, got {given}"):
        source.documents()


@pytest.mark.parametrize("found", [None, Tailoring.whole("base", 2), ["base"]])
def test_a_warm_start_gives_a_list_of_tailorings(found: Any) -> None:
    start = type("Start", (WarmStart,), {"propose": lambda self, context: found})()
    with pytest.raises(PluginError, match=r"Start\.propose gives a list of tailorings, got "):
        start.starts(ANY)


@pytest.mark.parametrize("found", ["base", ("base", ["a"]), None, ("base", {"a": 1})])
def test_a_family_gives_references_of_models(found: Any) -> None:
    family = type("Models", (ModelFamily,), {"_sources": lambda self: found})("base")
    with pytest.raises(PluginError, match=r"Models\._sources gives \(base, \{name: candidate\}\)"):
        family.prepare()


def test_an_operation_gives_ranges_and_tensors_of_floats() -> None:
    ranges = type("Ranges", (MergeOperation,), {"distributions": lambda self: {"t": (0, 1)}, "merge": None})()
    with pytest.raises(PluginError, match=r"Ranges\.distributions gives a mapping of names to Float, Integer"):
        ranges.distributions()
    whole = type("Whole", (MergeOperation,), {"merge": lambda self, tensors, **_: tensors[0].long()})()
    with pytest.raises(PluginError, match=r"Whole\.merge must return a float32 tensor, got torch\.int64"):
        whole.apply([torch.ones(2), torch.ones(2)], base=None, params={}, generators=[ANY, ANY])


def test_a_layout_is_needed_first() -> None:
    with pytest.raises(PluginError, match="before setup"):
        Space().layout  # noqa: B018
    assert FamilyLayout(("a",), 1, ("full_attention",)).models == ("base", "a")

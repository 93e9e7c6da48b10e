"""lm-eval's documents as samples: scored a few at a time, measured on the first ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from tailorlib.evaluation.requests import TaskRequests, TaskScores
from tailorlib.evaluation.samples import SampledRequests, cut, interleaved, joined
from tailorlib.seeding import numpy_generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailorlib.evaluation.engine import Engine


class TaskSamples:
    """The documents of all tasks in one order: each task's own in a seeded order, the tasks mixed in proportion.

    Args:
        tasks: The tasks.
        engine: Scores the requests.
        seed: Seed of the order.
    """

    def __init__(self, tasks: TaskRequests, engine: Engine, seed: int) -> None:
        self.tasks = tasks
        orders = []
        for name in tasks.tasks:
            own = tasks.documents_of(name)
            order = numpy_generator(seed, "samples", name).permutation(len(own))
            orders.append([(name, own[int(i)]) for i in order])
        self.documents = [orders[task][j] for task, j in interleaved([len(order) for order in orders])]
        self._scored = SampledRequests(engine, [self._requests(*document) for document in self.documents])

    @property
    def tokens(self) -> int:
        """Number of tokens that scoring all samples at once runs, generated texts at their longest."""
        return self._scored.tokens + self.tasks.generated_tokens

    def least(self, counts: Callable[[str, int], bool]) -> int:
        """Return the least number of first samples among which each task has one that counts; all if none does."""
        waiting = set(self.tasks.tasks)
        for number, (task, document) in enumerate(self.documents, start=1):
            if counts(task, document):
                waiting.discard(task)
            if not waiting:
                return number
        return len(self.documents)

    def score(self, model: PreTrainedModel, samples: Sequence[int]) -> list[list[Any]]:
        """Score some samples.

        Returns:
            For each sample an answer of each instance: log-likelihood (nats) and greedy flag, or texts.

        Raises:
            EvaluationError: If the model gives NaN, or memory runs out.
        """
        found: dict[int, list[Any]] = {}
        scored = [i for i in samples if not self._generates(i)]
        for i, answers in zip(scored, self._scored.score(model, scored), strict=True):
            left = iter(answers)
            own = [[next(left) for _ in self.tasks.requests_of(x)] for x in self._instances(i)]
            found[i] = [[sum(value for value, _ in one), all(greedy for _, greedy in one)] for one in own]
        written = [i for i in samples if self._generates(i)]
        texts = self.tasks.generate(model, self._by_task(written)) if written else {}
        found |= {i: [list(texts[id(x)]) for x in self._instances(i)] for i in written}
        return [found[i] for i in samples]

    def measure(self, results: Sequence[Sequence[Any]]) -> TaskScores:
        """Make metrics of the results of the first samples, at least one document of each task.

        Raises:
            EvaluationError: If a task's own metric fails.
        """
        answers: dict[int, tuple[float, bool]] = {}
        texts: dict[int, list[str]] = {}
        for i, result in enumerate(results):
            for instance, answer in zip(self._instances(i), result, strict=True):
                if self._generates(i):
                    texts[id(instance)] = answer
                else:
                    answers[id(instance)] = (answer[0], answer[1])
        return self.tasks.measure(answers, texts, self._by_task(range(len(results))))

    def shards(self, samples: Sequence[int], number: int) -> list[list[int]]:
        """Share samples out; those that are generated, which takes longest, are shared out evenly too."""
        written = [i for i in samples if self._generates(i)]
        costs = [self.tasks.generated_tokens_of(*self.documents[i]) for i in written]
        parts = [[written[k] for k in part] for part in cut(costs, number)]
        scored = [i for i in samples if not self._generates(i)]
        return joined([self._scored.shards(scored, number), parts], number)

    def _requests(self, task: str, document: int) -> list[Any]:
        if self.tasks.generates(task):
            return []
        instances = self.tasks.instances_of(task, document)
        return [self.tasks.requests[i] for instance in instances for i in self.tasks.requests_of(instance)]

    def _generates(self, sample: int) -> bool:
        return self.tasks.generates(self.documents[sample][0])

    def _instances(self, sample: int) -> Sequence[Any]:
        return self.tasks.instances_of(*self.documents[sample])

    def _by_task(self, samples: Sequence[int]) -> dict[str, Collection[int]]:
        found: dict[str, set[int]] = {}
        for i in samples:
            task, document = self.documents[i]
            found.setdefault(task, set()).add(document)
        return dict(found)

"""An optimizer of one's own: change the best candidate a little, and never try the same one twice."""

from tailorlib import Optimizer, Params, SearchSpace, Trial


class TabuSearch(Optimizer):
    """Mutate one or two parameters of the best candidate so far, avoiding whatever was tried before."""

    supports = frozenset({"conditional", "subset", "batch"})

    def __init__(self, tries: int = 20) -> None:
        self.tries = tries

    def _setup(self, space: SearchSpace, seed: int) -> None:
        self.best: Trial | None = None
        self.tabu: set[frozenset[object]] = set()

    def _ask(self) -> Params:
        for _ in range(self.tries):
            params = self.space.sample(self.rng) if self.best is None else self._neighbour(self.best.params)
            if frozenset(params.items()) not in self.tabu:
                break
        self.tabu.add(frozenset(params.items()))
        return params

    def _tell(self, trial: Trial) -> None:
        self.tabu.add(frozenset(trial.params.items()))
        if self.best is None or trial.loss < self.best.loss:
            self.best = trial

    def _neighbour(self, params: Params) -> Params:
        changed = dict(self.space.complete(params))
        for name in self.rng.choice(sorted(params), size=self.rng.integers(1, 3)):
            changed[str(name)] = self.space.distributions()[name].mutate(changed[name], self.rng)
        return self.space.active(changed)

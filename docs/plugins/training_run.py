"""A family of one's own: the checkpoints of one training run as candidates."""

from pathlib import Path

from tailorlib.models.family import ModelFamily


class TrainingRun(ModelFamily):
    """A base, and every ``checkpoint-*`` folder of a training run that began with it."""

    def __init__(self, base: str, run: str) -> None:
        super().__init__(base)
        self.run = run

    def _sources(self) -> tuple[str, dict[str, str]]:
        folders = sorted(Path(self.run).glob("checkpoint-*"), key=lambda f: int(f.name.rpartition("-")[2]))
        return self.base, {f"step{folder.name.rpartition('-')[2]}": str(folder) for folder in folders}

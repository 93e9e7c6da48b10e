"""The plan of a study: its size before anything is loaded."""

from __future__ import annotations

from rich.table import Table

from tailorlib.search.study import Study
from tailorlib.seeding import numpy_generator
from tailorlib.tailoring import BASE, Tailoring


def plan_table(study: Study) -> Table:
    """Return models, layers, parameters, size of the space and cost of a trial as a table."""
    family, layout, size = study.family, study.family.layout, study.space.size()
    dense = family.num_parameters(Tailoring.whole(BASE, layout.num_layers))
    example = study.space.decode(study.space.sample(numpy_generator("plan")), seed=study.settings.seed)
    table = Table(show_header=False, title="Plan", title_justify="left")
    table.add_row("models", f"{len(layout.models)}: {', '.join(layout.models)}")
    table.add_row("layers", f"{layout.num_layers}, of which {len(example.layers)} are kept")
    table.add_row(
        "parameters", f"{dense / 1e6:.1f} M dense, {family.num_parameters(example) / 1e6:.1f} M tailored"
    )
    continuous = f", each with up to {size.continuous} continuous hyperparameters" if size.continuous else ""
    table.add_row("search space", f"{big_number(size.discrete)} tailorings{continuous}")
    table.add_row("trials", str(study.settings.trials))
    table.add_row("tokens per trial", f"{study.fitness.tokens:,}" if study.fitness.tokens else "unknown")
    return table


def big_number(number: int) -> str:
    """Return a whole number of any size in a readable form, such as ``1.83e+21``."""
    if number < 10**6:
        return f"{number:,}"
    digits = str(number)
    return f"{digits[0]}.{digits[1:3]}e+{len(digits) - 1}"

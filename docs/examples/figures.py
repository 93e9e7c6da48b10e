"""Draw the figures of a study from Python."""

from tailorlib.report.figures import history_figure, layer_map_figure
from tailorlib.report.run import read_run

run = read_run("runs/first")
history_figure(run.trials, run.layout, dense_fitness=run.dense_fitness).savefig("history.png")
layer_map_figure(run.trials, run.layout, trial=run.best).savefig("map.svg")

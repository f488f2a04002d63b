"""A search as a picture: size and speed against the metric."""

from __future__ import annotations

from pathlib import Path

from tfx.extras import need
from tfx.runtime.accuracy.metrics import Direction, find_metric

from .search import SearchReport

FILE_NAME = "search.svg"


def plot_search(report: SearchReport, parent_bytes: int, path: Path) -> None:
    """Draw each trial of a search as a point: size left, speed right, the budget as a line.

    Args:
        report: With at least one trial.
        parent_bytes: Size of the parent's graph and weights.
        path: An SVG file.

    Raises:
        BackendError: If matplotlib is not installed.
    """
    need("matplotlib").use("svg")
    pyplot = need("matplotlib.pyplot")
    trials = sorted(report.trials, key=lambda trial: trial.kept)
    metric, parent = trials[0].accuracy.metric, trials[0].accuracy.parent
    falls = find_metric(metric).direction is Direction.HIGHER
    budget = parent - report.max_drop if falls else parent + report.max_drop
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    sides = (
        ("graph and weights, MB", [trial.size_bytes / 1e6 for trial in trials], parent_bytes / 1e6),
        ("times as fast as float32", [trial.speedup for trial in trials], 1.0),
    )
    for axis, (title, xs, own) in zip(axes, sides, strict=True):
        ys = [trial.accuracy.value for trial in trials]
        axis.plot(xs, ys, "o", color="#3b6ea8", label="tried")
        axis.plot([own], [parent], "s", color="#555555", label="float32")
        axis.axhline(budget, color="#b0503a", linewidth=1, linestyle="--", label="budget")
        for number, (trial, x, y) in enumerate(zip(trials, xs, ys, strict=True)):
            chosen = trial.kept == report.chosen
            if chosen:
                axis.plot([x], [y], "o", color="#2c8a4b", markersize=9, label="chosen")
            place = (5, 5) if number % 2 else (5, -11)  # neighbours are often close
            axis.annotate(
                f"{trial.kept} kept", (x, y), textcoords="offset points", xytext=place, fontsize=8
            )
        axis.set_xlabel(title)
        axis.margins(0.15)
    first = trials[0].accuracy
    figure.suptitle(
        f"{first.samples:,} samples of {first.data}, by groups of layers kept in floats", fontsize=9
    )
    axes[0].set_ylabel(metric)
    axes[0].legend(fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)

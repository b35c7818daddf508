"""The pictures of an evaluation as PNG files, for slides and papers: curves and bars of each benchmark.

RUN/<benchmark>-curves.png     accuracy against votes, tokens and seconds
RUN/<benchmark>-subsets.png    accuracy of each subset with its interval
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from opengrm.reports.curves import draw_line, log_axes
from opengrm.reports.eval_charts import AXES, log_ticks, short
from opengrm.reports.eval_run import EvalRun, interval, number, read_runs, rows, text
from opengrm.reports.page import cut, visible


def write_pictures(folder: str | Path) -> list[Path]:
    """Write the pictures of a run into its folder; none where matplotlib is not installed.

    Returns:
        What was written.

    Raises:
        UsageError: the folder holds no run.
    """
    (run,) = read_runs([Path(folder)])
    if importlib.util.find_spec("matplotlib") is None:
        return []
    written = []
    for name in run.benchmarks:
        for kind, drawn in (("curves", _curves(run, name)), ("subsets", _subsets(run, name))):
            if drawn is not None:
                path = run.folder / f"{run.file(name, '').name}-{kind}.png"
                # No library version in the file: the same numbers give the same bytes.
                drawn.savefig(path, dpi=150, metadata={"Software": None})
                written.append(path)
    return written


def _curves(run: EvalRun, name: str) -> Any:
    """The figure of a benchmark's curves; None without any."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in rows(run.benchmarks[name].get("by_k")):
        y = interval(row.get("accuracy"))
        for key in AXES:
            cost = number(row.get(key))
            if cost is not None and cost > 0 and y is not None:
                found.setdefault(key, []).append((cost, y["mean"], y["low"], y["high"]))
    found = {key: points for key, points in found.items() if len({point[0] for point in points}) > 1}
    if not found:
        return None
    figure = _figure(3.6 * len(found) + 0.4, 3.4)
    for axes, (key, points) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        x = sorted(point[0] for point in points)
        draw_line(axes, x, *([100 * point[i] for point in sorted(points)] for i in (1, 2, 3)))
        ticks = {k: f"{k:g}" for k in x} if key == "k" else {at: short(at) for at in log_ticks(x[0], x[-1])}
        log_axes(axes, ticks, AXES[key], "accuracy (%)")
    figure.suptitle(_plain(name))
    return figure


def _subsets(run: EvalRun, name: str) -> Any:
    """The figure of a benchmark's bars; None without any."""
    found = [
        (text(row.get("subset")), interval(row.get("accuracy"))) for row in rows(run.benchmarks[name].get("subsets"))
    ]
    bars = [(_plain(subset), y) for subset, y in found if y is not None]
    if not bars:
        return None
    figure = _figure(7, 1.1 + 0.3 * len(bars))
    axes, places = figure.subplots(), range(len(bars))
    mean, low, high = ([100 * y[part] for _, y in bars] for part in ("mean", "low", "high"))
    reach = [[m - lo for m, lo in zip(mean, low, strict=True)], [hi - m for m, hi in zip(mean, high, strict=True)]]
    axes.barh(places, mean, xerr=reach, height=0.7, alpha=0.6, error_kw={"linewidth": 1, "capsize": 2})
    axes.set_yticks(places, [subset for subset, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy (%), 95 % intervals")
    axes.grid(alpha=0.3, axis="x")
    axes.set_title(_plain(name))
    return figure


def _plain(name: str) -> str:
    """A name as matplotlib draws it: a dollar sign would begin a formula."""
    return cut(" ".join(visible(name).split()), 60).replace("$", r"\$")


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure

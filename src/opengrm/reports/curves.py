"""Pictures: accuracy against the number of votes, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opengrm.errors import MissingExtra, UsageError

Rows = Sequence[Mapping[str, Any]]


def plot_curves(
    path: str | Path,
    series: Mapping[str, Rows],
    *,
    metric: str = "accuracy",
    levels: Mapping[str, Mapping[str, float]] | None = None,
    title: str | None = None,
) -> Path:
    """Draw one line for each series, k on a logarithmic axis, its 95 % interval as a band, and write the picture.

    Args:
        path: where to write; its ending names the format (.png, .svg, .pdf).
        series: rows with `k` and an interval (`mean`, `low`, `high`) under `metric`, by name. Rows without one are
            left out.
        metric: `accuracy`, `strict`, `auc` or another share (drawn in percent), `pearson` or `spearman`.
        levels: dashed horizontal lines (greedy decoding, another system), an interval by name.
        title: of the picture.

    Raises:
        MissingExtra: matplotlib is not installed.
        UsageError: there is nothing to draw, or the ending names no format.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("drawing a picture", "plots") from None
    drawn = {name: kept for name, rows in series.items() if (kept := [r for r in rows if r.get(metric)])}
    if not drawn:
        raise UsageError(f"there is no {metric} to draw: are there labels?")
    share = metric not in ("pearson", "spearman")
    unit = 100 if share else 1
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, rows in drawn.items():
        k = [row["k"] for row in rows]
        mean, low, high = ([unit * row[metric][part] for row in rows] for part in ("mean", "low", "high"))
        (line,) = axes.plot(k, mean, marker="o", markersize=4, label=name)
        axes.fill_between(k, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    for name, level in (levels or {}).items():
        axes.axhline(unit * level["mean"], linestyle="--", linewidth=1, color="0.4")
        axes.annotate(name, (1, unit * level["mean"]), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    ticks = sorted({row["k"] for rows in drawn.values() for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("votes k")
    axes.set_ylabel(f"{metric} (%)" if share else metric)
    axes.grid(alpha=0.3)
    if title:
        axes.set_title(title)
    if len(drawn) > 1:
        figure.legend(loc="outside lower center", frameon=False)
    path = Path(path)
    if path.suffix.lstrip(".").lower() not in canvas.get_supported_filetypes():
        raise UsageError(f"{path}: the ending names no picture format, expected .png, .svg or .pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date and no library version in the file: the same numbers give the same bytes.
    figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix.lower() == ".png" else None)
    return path

"""Pictures: accuracy against the number of votes, with intervals; a number of each training step.

`plot_curves` writes a file; the functions that end in `_svg` give a picture to put into a page, in the page's own font
and text colour.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opengrm.errors import MissingExtra, UsageError

Rows = Sequence[Mapping[str, Any]]
_INK = "#010203"  # stands for the page's text colour until the picture is drawn
_REACH = 15  # most points on either side that a moving average takes in


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
        series: rows with `k` (a number of votes, or a mean of them) and an interval (`mean`, `low`, `high`) under
            `metric`, by name. Rows without one are left out.
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
    unit = _unit(metric)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_votes(axes, drawn, metric)
    for name, level in (levels or {}).items():
        axes.axhline(unit * level["mean"], linestyle="--", linewidth=1, color="0.4")
        axes.annotate(name, (1, unit * level["mean"]), xycoords=("axes fraction", "data"), ha="right", va="bottom")
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


def votes_svg(
    name: str,
    series: Mapping[str, Rows],
    *,
    metric: str,
    styles: Mapping[str, Mapping[str, Any]],
    levels: Sequence[tuple[float, str]] = (),
    alt: str = "",
) -> str:
    """The picture of `plot_curves` for a page.

    Args:
        name: sets the picture's ids apart from others' on the page.
        series, metric: as in `plot_curves`; every row has its interval.
        styles: matplotlib's properties of a line, by name.
        levels: dotted horizontal lines, each a mean and a colour.
        alt: what the picture shows, in words.
    """
    with _page_figure(5.0, 3.5) as figure:
        axes = figure.add_subplot()
        _draw_votes(axes, series, metric, styles)
        for mean, colour in levels:
            axes.axhline(_unit(metric) * mean, linestyle=":", linewidth=1.3, color=colour)
        axes.grid(alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", frameon=False, ncols=2)
        return _svg(figure, name, alt)


def steps_svg(name: str, points: Sequence[tuple[float, float]], *, colour: str, alt: str = "") -> str:
    """One number of a training run against its steps, for a page: faint as it was, and a moving average over it.

    Args:
        name, alt: as in `votes_svg`.
        points: a step and its value each, in order.
        colour: of the line.
    """
    import numpy as np

    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    half = min(len(y) // 20, _REACH)
    with _page_figure(3.3, 2.0) as figure:
        axes = figure.add_subplot()
        if half:
            axes.plot(x, y, color=colour, alpha=0.35, linewidth=0.8)
            # Only where the whole window lies in the run: a shorter one would follow the noise of the last steps.
            smooth = [y[i - half : i + half + 1].mean() for i in range(half, len(y) - half)]
            axes.plot(x[half : len(y) - half], smooth, color=colour, linewidth=1.8)
        else:
            axes.plot(x, y, color=colour, linewidth=1.5, marker="o", markersize=3 if len(y) < 20 else 0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.15)
        axes.set_xlabel("step")
        if len(x) > 1:
            axes.locator_params(axis="x", nbins=5, integer=True)
        else:
            axes.set_xticks(x)
        axes.locator_params(axis="y", nbins=5)
        axes.ticklabel_format(useOffset=False)
        return _svg(figure, name, alt)


def _unit(metric: str) -> int:
    """100 for shares, which are drawn in percent."""
    return 1 if metric in ("pearson", "spearman") else 100


def _draw_votes(
    axes: Any, drawn: Mapping[str, Rows], metric: str, styles: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """The lines, their bands, and the axes."""
    unit = _unit(metric)
    for name, rows in drawn.items():
        k = [row["k"] for row in rows]
        mean, low, high = ([unit * row[metric][part] for row in rows] for part in ("mean", "low", "high"))
        draw_line(axes, k, mean, low, high, label=name, **(styles or {}).get(name, {}))
    # A mean number of votes is no tick.
    ticks = sorted({int(row["k"]) for rows in drawn.values() for row in rows if row["k"] == int(row["k"])})
    log_axes(axes, {k: str(k) for k in ticks}, "votes k", f"{metric} (%)" if unit == 100 else metric)


def draw_line(
    axes: Any, x: Sequence[float], mean: Sequence[float], low: Sequence[float], high: Sequence[float], **style: Any
) -> None:
    """One curve of matplotlib's with its intervals as a band; `style` are properties of the line."""
    (line,) = axes.plot(x, mean, marker="o", markersize=4, **style)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def log_axes(axes: Any, ticks: Mapping[float, str], x_label: str, y_label: str) -> None:
    """A logarithmic x axis with these ticks and no others."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)


@contextmanager
def _page_figure(width: float, height: float) -> Iterator[Any]:
    """A figure in inches whose text is text, in the page's colour and free of matplotlib's own markup."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("drawing a picture", "plots") from None
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings: dict[Any, Any] = dict.fromkeys(ink, _INK)
    settings |= {"svg.fonttype": "none", "svg.hashsalt": "opengrm", "text.parse_math": False, "font.size": 9}
    with matplotlib.rc_context(settings):
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any, name: str, alt: str) -> str:
    """The figure as an <svg> element: nothing outside is referred to, and its ids are its own."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].replace("xlink:href=", "href=").replace(_INK, "currentColor")
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"', "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'( id="| href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)

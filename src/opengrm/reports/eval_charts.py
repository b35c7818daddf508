"""Pictures of an evaluation as plain SVG, drawn without a library: curves with intervals, bars, a table of shades.

Colours are classes c0 ... c7 of the page's style, one for each run, so that a picture follows the page into the dark.
Every run has a marker of its own shape too. What a point stands for is said where the pointer rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from opengrm.reports.page import Html, cell, cut, visible

COLOURS = 8  # classes c0 ... c7
AXES = {"k": "votes k", "tokens": "tokens read and written, an item", "seconds": "seconds, an item"}  # of `by_k`
_WIDTH, _HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 10, 42


class Point(NamedTuple):
    """A place on a curve: x, and a share in [0, 1] with its interval."""

    x: float
    mean: float
    low: float
    high: float
    said: str  # what the point stands for


def curves_svg(series: Sequence[tuple[int, Sequence[Point]]], *, x_label: str, alt: str, whole: bool = False) -> Html:
    """Shares in percent against x on a logarithmic axis, one curve a run, intervals as bands.

    Args:
        series: the number of the run, and its points; x > 0.
        x_label: what x is.
        alt: what the picture shows, in words.
        whole: x is a small whole number: ticks stand where points do.
    """
    points = [point for _, curve in series for point in curve]
    low, high, step = _percent_axis(min(p.low for p in points), max(p.high for p in points))
    values = sorted({p.x for p in points})
    ticks = values if whole and len(values) <= 8 else log_ticks(values[0], values[-1])
    first, last = math.log(values[0]), math.log(values[-1])

    def x_of(x: float) -> float:
        across = 0.5 if first == last else (math.log(x) - first) / (last - first)
        return _LEFT + 8 + across * (_WIDTH - _LEFT - _RIGHT - 16)

    def y_of(share: float) -> float:
        return _TOP + (high - 100 * share) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for value in range(low, high + 1, step):
        y = y_of(value / 100)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    floor = _HEIGHT - _BOTTOM
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{floor}H{_WIDTH - _RIGHT}"/>')
    for tick in ticks:
        parts.append(f'<path class="axis" d="M{x_of(tick):.1f} {floor}v4"/>')
        parts.append(f'<text x="{x_of(tick):.1f}" y="{floor + 17}" text-anchor="middle">{short(tick)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    for run, curve in series:
        ordered = sorted(curve)
        over = " ".join(f"{x_of(p.x):.1f},{y_of(p.high):.1f}" for p in ordered)
        under = " ".join(f"{x_of(p.x):.1f},{y_of(p.low):.1f}" for p in reversed(ordered))
        line = " ".join(f"{x_of(p.x):.1f},{y_of(p.mean):.1f}" for p in ordered)
        marks = "".join(
            f"{_marker(run, x_of(p.x), y_of(p.mean))}<title>{escape(visible(p.said))}</title></path>" for p in ordered
        )
        bars = "".join(f"M{x_of(p.x):.1f} {y_of(p.low):.1f}V{y_of(p.high):.1f}" for p in ordered)
        parts.append(
            f'<g class="c{run % COLOURS}"><polygon class="band" points="{over} {under}"/>'
            f'<path class="whisker" d="{bars}"/><polyline class="curve" points="{line}"/>{marks}</g>'
        )
    return _svg(_WIDTH, _HEIGHT, alt, "".join(parts))


def bar_svg(run: int, mean: float, low: float, high: float, chance: float | None = None) -> Html:
    """A share in [0, 1] as a bar with its interval, as wide as its place; a tick where a blind guess stands."""
    left, right = f"{100 * low:.2f}", f"{100 * high:.2f}"
    guess = "" if chance is None else f'<path class="chance" d="M{100 * chance:.2f} 0V12"/>'
    return Html(
        f'<svg class="share c{run % COLOURS}" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="back" width="100" height="12"/><rect class="fill" y="2" width="{100 * mean:.2f}" height="8"/>'
        f'{guess}<path class="whisker" d="M{left} 6H{right}M{left} 3V9M{right} 3V9"/></svg>'
    )


def shades(heads: Sequence[str], names: Sequence[str], counts: Sequence[Sequence[float]]) -> Html:
    """A table of counts whose cells are shaded by their share of the row."""
    lines = []
    for name, row in zip(names, counts, strict=True):
        whole = sum(row)
        cells = "".join(
            f'<td class="s{round(10 * value / whole) if whole else 0}">'
            f"{100 * value / whole if whole else 0:.1f} <small>{value:,.0f}</small></td>"
            for value in row
        )
        lines.append(f'<tr><th class="w" scope="row">{cell(name)}</th>{cells}</tr>')
    head = "".join(f"<th{' class=w' if i == 0 else ''}>{cell(name)}</th>" for i, name in enumerate(heads))
    return Html(
        f'<div class="scroll" tabindex="0"><table class="shades"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def legend(labels: Sequence[str]) -> Html:
    """Which colour and marker is whose; nothing for one run."""
    if len(labels) < 2:
        return Html("")
    entries = "".join(
        f'<li class="c{run % COLOURS}"><svg viewBox="0 0 12 12" aria-hidden="true">{_marker(run, 6, 6)}</path></svg>'
        f"{cell(cut(label, 60))}</li>"
        for run, label in enumerate(labels)
    )
    return Html(f'<ul class="legend">{entries}</ul>')


def _svg(width: int, height: int, alt: str, inside: str) -> Html:
    said = escape(visible(alt))
    return Html(f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{said}">{inside}</svg>')


def _marker(run: int, x: float, y: float) -> str:
    """The opening tag of a run's marker: circle, square, triangle, diamond, and again."""
    shapes = (
        f"M{x - 3.5:.1f} {y:.1f}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
        f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z",
        f"M{x:.1f} {y - 4:.1f}l4 7h-8z",
        f"M{x:.1f} {y - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5-4.5z",
    )
    return f'<path class="marker" d="{shapes[run % len(shapes)]}">'


def _percent_axis(low: float, high: float) -> tuple[int, int, int]:
    """The ends of an axis in percent that holds both shares, and the step of its ticks: at most six of them."""
    low, high = 100 * low, 100 * high
    for step in (1, 2, 5, 10, 20):
        bottom, top = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
        if bottom == top:
            bottom, top = (bottom - step, top) if top >= 100 else (bottom, top + step)
        if (top - bottom) / step <= 5:
            break
    return max(0, bottom), top, step


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks 1, 2, 5, 10, ... between two numbers above 0: at most about eight; the numbers themselves if none fits."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        inside = [x for power in powers for factor in factors if low <= (x := factor * 10.0**power) <= high]
        if len(inside) <= 8:
            break
    return inside if len(inside) > 1 else sorted({low, high})


def short(value: float) -> str:
    """A number in a few characters: 1.5, 20, 3k, 2M."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}"

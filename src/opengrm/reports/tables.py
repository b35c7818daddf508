"""Tables of numbers as text: cells for a terminal, and Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Cells = list[dict[str, str]]


def percent(interval: Mapping[str, float] | None) -> str:
    """A share with its interval: "77.8 [72.1, 82.6]", in percent; "-" for None."""
    if interval is None:
        return "-"
    return f"{100 * interval['mean']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def number(interval: Mapping[str, float] | None) -> str:
    """A number with its interval, two decimals: "0.84 [0.80, 0.87]"; "-" for None."""
    if interval is None:
        return "-"
    mean, low, high = (_decimal(interval[part]) for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _decimal(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e6 else f"{value:.3g}"


def share(value: float | None) -> str:
    """A share in percent without an interval; "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def bare_percent(interval: Mapping[str, float] | None) -> str:
    """A share in percent, its interval left out; "-" for None."""
    return share(None if interval is None else interval["mean"])


def count(value: float | None) -> str:
    """A whole number with separators; "-" for None."""
    return "-" if value is None else f"{value:,.0f}"


def decimals(value: float | None, places: int) -> str:
    """A number with so many decimals; "-" for None."""
    return "-" if value is None else f"{value:,.{places}f}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: "12.3 s", "45 min", "2 h 05 min"; "-" for None."""
    if seconds is None or seconds < 100:
        return "-" if seconds is None else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def flat(name: str, value: Any) -> list[list[str]]:
    """A value as people write it, or all values of a nested table, each with its dotted name."""
    if isinstance(value, Mapping) and value:
        return [line for key, part in value.items() for line in flat(f"{name}.{key}" if name else str(key), part)]
    plain = value or "-" if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [[name, plain]]


def vote_cells(rows: Sequence[Mapping[str, Any]]) -> Cells:
    """Cells of the rows of one source and group of a re-vote (`voting.revote.Report.rows`), one line for each k.

    The leading figure of a kind has its interval; the others (missing verdicts left out, ties wrong) are bare, for
    width: their intervals, and the one with both, are in the rows.
    """
    shown: dict[str, tuple[str, Callable[[Any], str]]] = {
        "accuracy": ("accuracy %\n[95 %]", percent),
        "accuracy_valid": ("valid\nonly", bare_percent),
        "strict": ("ties\nwrong", bare_percent),
        "auc": ("ROC-AUC %\n[95 %]", percent),
        "auc_valid": ("AUC\nvalid", bare_percent),
        "pearson": ("Pearson\n[95 %]", number),
        "spearman": ("Spearman\n[95 %]", number),
        "ties": ("tied\n%", share),
        "no_verdict": ("none\n%", share),
        "parse_rate": ("parsed\n%", share),
        "prompt_tokens": ("tokens\nin", count),
        "completion_tokens": ("tokens\nout", count),
    }
    return _cells(rows, "k", shown)


def adaptive_cells(rows: Sequence[Mapping[str, Any]]) -> Cells:
    """Cells of plans of adaptive voting (`voting.replay.adaptive_rows`), one line for each plan."""
    shown: dict[str, tuple[str, Callable[[Any], str]]] = {
        "votes": ("votes\n[95 %]", number),
        "votes_share": ("of all\n%", share),
        "agreement": ("agrees with all %\n[95 %]", percent),
        "accuracy": ("accuracy %\n[95 %]", percent),
        "accuracy_loss": ("lost %\n[95 %]", _points),
        "tokens": ("tokens", count),
        "seconds": ("seconds", _decimal),
    }
    return _cells(rows, "plan", shown)


def _cells(
    rows: Sequence[Mapping[str, Any]], first: str, shown: Mapping[str, tuple[str, Callable[[Any], str]]]
) -> Cells:
    """A line for each row: what it is called, its items, and those of the figures that some row has."""
    filled = {name: form for name, form in shown.items() if any(row.get(name) is not None for row in rows)}
    return [
        {first: str(row[first]), "items": count(row["items"])}
        | {heading: "-" if row.get(name) is None else text(row[name]) for name, (heading, text) in filled.items()}
        for row in rows
    ]


def _points(interval: Mapping[str, float]) -> str:
    """A difference of shares with its interval, in points, two decimals."""
    return number({part: 100 * value for part, value in interval.items()})


def position_cells(found: Mapping[str, Any]) -> Cells:
    """Cells of one entry of `voting.bias.position_bias`, one line for each position."""
    return [
        {
            "position": str(row["position"] + 1),
            "top stood\nhere %": percent(row["share"]),
            "expected\n%": share(row["expected"]),
            "shift %": percent(row["shift"]),
            "mean\nscore": _decimal(row["score"]["mean"]),
            "score shift": number(row["score_shift"]),
        }
        for row in found["positions"]
    ]


def agreement_cells(rows: Sequence[Mapping[str, Any]]) -> Cells:
    """Cells of agreement statistics (`voting.agreement.agreement`), one line for each group."""
    return [
        {
            "group": str(row["group"]),
            "items": f"{row['items']:,}",
            "judgments": f"{row['judgments']:,}",
            "valid %": share(row["parse_rate"]),
            "pairs\nagree %": percent(row["pair_agreement"]),
            "self-\nconsistency %": percent(row["self_consistency"]),
            "split-half\ncorrelation": number(row["split_half"]),
        }
        for row in rows
    ]


def markdown(cells: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table; the first row's keys are the heading. Empty for no rows."""
    if not cells:
        return ""
    heads = list(cells[0])
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *([str(c) for c in row.values()] for row in cells)]
    return (
        "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
        )
        + "\n"
    )

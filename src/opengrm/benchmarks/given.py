"""Judgments and scores that somebody else made, and RewardBench's own result files, as judgments.

Read are, told apart by their keys:

    {"item": "alpacaeval-easy/30", "scores": [2.5, -1.0]}   judgments or scores; also "id" for "item"; null is missing
    {"id": "i", "score": 0.7}                               the score of a single response
    {"subset": [..], "id": [..], "scores_chosen": [..], "scores_rejected": [..]}   RewardBench 1, a scalar model
    {"subset": [..], "id": [..], "results": [..]}                    RewardBench 1, a generative one: 1, 0.5 or 0
    {"subset": [..], "id": [..], "scores": [[..], ..]}               RewardBench 2: one list a prompt
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opengrm.errors import BadRow
from opengrm.items import is_number
from opengrm.jsonl import OnBad, Row, read_rows
from opengrm.judgments import Judgment, judgment_from_json


def given_judgments(path: str | Path, on_bad: OnBad | None = None) -> Iterator[Judgment]:
    """The judgments of a file, in any of the forms of the module's text; samples are numbered as they come.

    Raises:
        BadRow: a row fits none of them (only with `on_bad=None`).
    """
    counts: Counter[str] = Counter()
    for where, row in read_rows(path, on_bad):
        try:
            own = list(_columns(row)) if isinstance(row.get("id"), list) else [_plain(row)]
            for one in own:
                name = str(one["item"])
                judgment = judgment_from_json(one, sample=counts[name])
                counts[name] += 1
                yield judgment
        except ValueError as error:
            bad = BadRow(where, str(error))
            if on_bad is None:
                raise bad from error
            on_bad(bad)


def _plain(row: Row) -> Mapping[str, Any]:
    name = row.get("item", row.get("id"))
    if name is None:
        raise ValueError("needs 'item' (or 'id') and 'scores'")
    scores = row["scores"] if "scores" in row else [row["score"]] if "score" in row else ...
    if scores is ...:
        raise ValueError("needs 'scores', a list, or 'score', a number")
    if scores == [None]:
        scores = None
    return {**{key: value for key, value in row.items() if key not in ("id", "score")}, "item": name, "scores": scores}


def _columns(row: Row) -> Iterator[Mapping[str, Any]]:
    """The rows of RewardBench's files of columns."""
    ids, subsets = row["id"], row.get("subset")
    if not isinstance(subsets, list) or len(subsets) != len(ids):
        raise ValueError("'subset' must be a column as long as 'id'")
    columns = {name: row[name] for name in ("scores_chosen", "scores_rejected", "scores", "results") if name in row}
    for name, values in columns.items():
        if not isinstance(values, list) or len(values) != len(ids):
            raise ValueError(f"'{name}' must be a column as long as 'id'")
    for i, (name, subset) in enumerate(zip(ids, subsets, strict=True)):
        yield {"item": f"{subset}/{name}", "scores": _scores({key: values[i] for key, values in columns.items()})}


def _scores(cell: Mapping[str, Any]) -> list[float] | None:
    """The scores of one line; None where it has none."""
    if "scores_chosen" in cell and "scores_rejected" in cell:
        pair = [_number(cell["scores_chosen"]), _number(cell["scores_rejected"])]
        return None if None in pair else [value for value in pair if value is not None]
    if isinstance(cell.get("scores"), list):
        found = [_number(score) for score in cell["scores"]]
        return None if None in found else [value for value in found if value is not None]
    result = _number(cell.get("results"))
    return None if result is None else [result, 1 - result]


def _number(value: object) -> float | None:
    """A number, also as the only one of a list, as some of the files have it."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return float(value) if is_number(value) else float(value) if isinstance(value, bool) else None  # type: ignore[arg-type]

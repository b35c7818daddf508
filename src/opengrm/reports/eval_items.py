"""The items that the page of an evaluation shows: which, what of them, and their judgments.

    keep_shown(folder, name, items)   at the end of a benchmark: choose, and write folder/name/shown.jsonl
    embedded(runs, most)              what the page embeds: JSON that is safe inside of <script>

A page cannot hold a whole benchmark. Of each, one half of the places goes in turn to items without a verdict, tied and
wrong ones of every subset, the other half to a draw of all items; among equals a hash of the id decides, so that the
choice is the same for the same run. Long texts are cut in the middle, with a note.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opengrm.errors import OpenGRMError
from opengrm.items import Item
from opengrm.jsonl import read_rows, write_rows
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reports.eval_run import ITEMS, LEDGER, SHOWN, EvalRun, Row, number, place, text
from opengrm.reports.page import visible

MOST_ITEMS = 400  # on a page, where nothing else is said
MOST_KEPT = 1_000  # of a benchmark, for pages to come
MOST_BYTES = 14_000_000  # of their JSON
MOST_TEXT = 8_000  # characters of one text
MOST_RESPONSES = 32  # of an item
MOST_MESSAGES = 40  # of a conversation
MOST_VOTES = 64  # of an item and run, in its table
MOST_TEXTS = 8  # of these with what the judge wrote


@dataclass(frozen=True)
class Embedded:
    """What the page embeds.

    Attributes:
        data: JSON {"runs", "benchmarks", "items"} without "<", ">" and "&".
        shown: number of items in it.
        total: number of items that the runs have.
    """

    data: str
    shown: int
    total: int


def keep_shown(folder: Path, benchmark: str, items: Iterable[Item], most: int = MOST_KEPT) -> int:
    """Write `folder`/`benchmark`/shown.jsonl: the items that a page can show, texts cut, in the order of their choice.

    Args:
        folder: of the run; `benchmark`/items.jsonl is there already.
        benchmark: its name.
        items: all of the benchmark's, read once.
        most: how many to keep.

    Returns:
        How many were kept.
    """
    chosen = choose((row for _, row in read_rows(place(folder, benchmark, ITEMS))), most)
    places = {name: rank for rank, name in enumerate(chosen)}
    found = {places[item.id]: _item_row(item) for item in items if item.id in places}
    return write_rows(place(folder, benchmark, SHOWN), (found[rank] for rank in sorted(found)))


def choose(rows: Iterable[Row], most: int) -> list[str]:
    """The ids of at most `most` of these lines of items.jsonl; every beginning of the list is such a choice too."""
    trouble: dict[tuple[str, str], list[tuple[bytes, str]]] = {}
    everything: list[tuple[bytes, str]] = []
    for row in rows:
        name = text(row.get("item"))
        entry = (hashlib.blake2b(name.encode(errors="replace"), digest_size=8).digest(), name)
        everything.append(entry)
        if outcome(row) != "right":
            trouble.setdefault((outcome(row), text(row.get("subset"))), []).append(entry)
    first = (name for _, name in _in_turn([sorted(pool) for _, pool in sorted(trouble.items())]))
    # More than are needed, since some may be among the first half too.
    second = (name for _, name in heapq.nsmallest(most, everything))
    chosen: dict[str, None] = {}
    for name in _in_turn([first, second]):
        if len(chosen) >= most:
            break
        chosen[name] = None
    return list(chosen)


def outcome(row: Row) -> str:
    """What became of an item: "missing" (no verdict), "tied", "wrong" (less than full credit) or "right"."""
    credit, tied = number(row.get("credit")), row.get("tied")
    if credit is None:
        return "missing"
    if isinstance(tied, list) and len(tied) > 1 and credit < 1:
        return "tied"
    return "right" if credit >= 1 else "wrong"


def embedded(runs: Sequence[EvalRun], most: int = MOST_ITEMS, most_bytes: int = MOST_BYTES) -> Embedded:
    """The items of these runs with their verdicts and judgments, at most so many and so many bytes."""
    names = list(dict.fromkeys(name for run in runs for name in run.benchmarks))
    parts = [_of_benchmark(runs, name, most // max(1, len(names)) or 1) for name in names]
    ledgers = [_ledger(run) for run in runs]
    items, size = list[tuple[bool, str]](), 0
    try:
        for row in _in_turn([iter(part.rows.values()) for part in parts]):
            judged = zip(runs, ledgers, row["runs"], strict=True)
            row["runs"] = [_with_votes(run, ledger, found) for run, ledger, found in judged]
            line = _safe_json({**row, "benchmark": names.index(row["benchmark"])})
            size += len(line.encode())
            if size > most_bytes or len(items) >= most:
                break
            right = all(found is None or found["outcome"] == "right" for found in row["runs"])
            items.append((right, line))
    finally:
        for ledger in ledgers:
            if ledger is not None:
                ledger.close()
    about = _safe_json({"runs": [visible(run.label) for run in runs], "benchmarks": [visible(name) for name in names]})
    items.sort(key=lambda item: item[0])  # what went wrong is read first
    data = f'{about[:-1]},"items":[\n' + ",\n".join(line for _, line in items) + "\n]}"
    return Embedded(data, len(items), sum(part.total for part in parts))


# --- one benchmark ----------------------------------------------------------------------------------------------


@dataclass
class _Part:
    """The items of one benchmark that are to be shown, by id, in the order of their choice; and how many there are."""

    rows: dict[str, dict[str, Any]]
    total: int


def _of_benchmark(runs: Sequence[EvalRun], name: str, most: int) -> _Part:
    texts: dict[str, Row] = {}
    chosen = []
    for run in runs:
        if name not in run.benchmarks:
            continue
        kept = list(run.lines(name, SHOWN))
        texts.update((text(row.get("id")), row) for row in kept)
        # Verdicts and votes are worth showing without the texts.
        chosen.append(iter([text(row.get("id")) for row in kept] or choose(run.items(name), most)))
    wanted: dict[str, None] = {}
    for item in _in_turn(chosen):
        if len(wanted) >= most:
            break
        wanted[item] = None
    none = [None] * len(runs)
    rows = {
        item: {"benchmark": name, "id": _short(item, 200), "subset": "", **_shown(texts.get(item)), "runs": [*none]}
        for item in wanted
    }
    total: set[str] = set()
    for at, run in enumerate(runs):
        for row in run.items(name) if name in run.benchmarks else ():
            item = text(row.get("item"))
            total.add(item)
            if item in rows:
                rows[item]["runs"][at] = row
                rows[item]["subset"] = _short(text(row.get("subset")), 200)
    return _Part({item: row for item, row in rows.items() if any(row["runs"])}, len(total))


def _item_row(item: Item) -> dict[str, Any]:
    """An item in its own form, as much of it as a page shows."""
    row: dict[str, Any] = {"id": item.id, "prompt": [m.to_json() for m in _ends(item.prompt)]}
    for message in row["prompt"]:
        message["content"] = _short(message["content"])
    if len(item.prompt) > len(row["prompt"]):
        row["messages"] = len(item.prompt)
    row["responses"] = [_short(response) for response in item.responses[:MOST_RESPONSES]]
    row["n"], row["best"] = item.n, item.label
    if item.rewards is not None:
        row["rewards"] = list(item.rewards[:MOST_RESPONSES])
    if item.reference is not None:
        row["reference"] = _short(item.reference)
    return row


def _ends(messages: Sequence[Any]) -> Sequence[Any]:
    """The last messages of a very long conversation."""
    return messages[-MOST_MESSAGES:]


def _shown(row: Row | None) -> dict[str, Any]:
    """A line of shown.jsonl as the page embeds it; nothing where it is not there."""
    if row is None:
        return {}
    prompt, responses = row.get("prompt"), row.get("responses")
    messages = [m for m in prompt if isinstance(m, Mapping)] if isinstance(prompt, list) else []
    return {
        "prompt": [[_short(text(m.get("role")), 40), _short(text(m.get("content")))] for m in _ends(messages)],
        "messages": row.get("messages"),
        "responses": [_short(text(r)) for r in responses[:MOST_RESPONSES]] if isinstance(responses, list) else [],
        "n": number(row.get("n")),
        "best": number(row.get("best")),
        "rewards": _numbers(row.get("rewards")),
        "reference": _short(text(row.get("reference"))) or None,
    }


# --- one item of one run ----------------------------------------------------------------------------------------


def _ledger(run: EvalRun) -> Ledger | None:
    try:
        return Ledger(run.ledger, create=False)
    except OpenGRMError as error:
        # A run of scores that were there has none, and names none.
        if run.ledger.exists() or run.ledger.name != LEDGER or run.ledger.parent != run.folder:
            run.damaged.append(f"the ledger, so no votes are shown ({error})")
        return None


def _with_votes(run: EvalRun, ledger: Ledger | None, row: Row | None) -> dict[str, Any] | None:
    """A line of items.jsonl as the page embeds it, with the item's judgments."""
    if row is None:
        return None
    names = ("credit", "chance", "valid", "asked", "prompt_tokens", "completion_tokens", "seconds")
    shown: dict[str, Any] = {key: number(row.get(key)) for key in names}
    shown["outcome"], shown["scores"] = outcome(row), _numbers(row.get("scores"))
    shown["tied"] = _numbers(row.get("tied")) or []
    judgments: list[Judgment] = []
    if ledger is not None:
        try:
            judgments = run.own(ledger.judgments(text(row.get("item"))))
        except OpenGRMError as error:
            run.damaged.append(str(error))
    shown["judgments"] = len(judgments)
    shown["votes"] = [_vote(judgment, at < MOST_TEXTS) for at, judgment in enumerate(judgments[:MOST_VOTES])]
    return shown


def _vote(judgment: Judgment, with_text: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "sample": judgment.sample,
        "order": judgment.order,
        "scores": judgment.scores[:MOST_RESPONSES] if judgment.scores else None,
        "error": _short(judgment.error or "", 300) or None,
        "meta": judgment.meta,
        "tokens": judgment.completion_tokens,
        "by": visible(" · ".join(part[:100] for part in (judgment.model, judgment.template) if part)),
    }
    if with_text:
        shown["said"] = [[kind, _short(part.strip("\n"))] for kind, part in said(judgment) if part.strip()]
    return {key: value for key, value in shown.items() if value is not None}


def said(judgment: Judgment) -> Iterator[tuple[str, str]]:
    """What the judge wrote, whole and in its order, as ("principles" | "critique" | "text", words).

    Parts that are not found in the text stand before it.
    """
    whole, at, spans = judgment.text or "", 0, []
    for kind, part in (("principles", judgment.principles), ("critique", judgment.critique)):
        if not part:
            continue
        begin = whole.find(part, at)
        if begin < 0:
            yield kind, part
            continue
        spans.append((begin, begin + len(part), kind))
        at = begin + len(part)
    at = 0
    for begin, end, kind in spans:
        yield "text", whole[at:begin]
        yield kind, whole[begin:end]
        at = end
    yield "text", whole[at:]


def _short(words: str, most: int = MOST_TEXT) -> str:
    """The text with nothing unseen in it, its middle left out where it is longer than `most` characters."""
    if len(words) <= most and len(words := visible(words)) <= most:
        return words
    tail = most // 4
    head = most - tail - 60  # room for the note: what was cut once stays as it is
    begin, end = visible(words[:head])[:head], visible(words[-tail:])[-tail:]  # before all of a huge text is looked at
    return f"{begin}\n⟦ {len(words) - head - tail:,} characters left out ⟧\n{end}"


def _numbers(values: object) -> list[float | None] | None:
    return [number(value) for value in values[:MOST_RESPONSES]] if isinstance(values, list) else None


def _in_turn(lists: Sequence[Iterable[Any]]) -> Iterator[Any]:
    """One of each, then the next of each, until all are empty."""
    running = [iter(values) for values in lists]
    while running:
        still = []
        for values in running:
            for value in values:
                yield value
                still.append(values)
                break
        running = still


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _safe_json(value: object) -> str:
    """JSON that cannot end, or open, anything in HTML."""
    return _encode(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

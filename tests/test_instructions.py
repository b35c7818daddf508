"""Instruction data of RubricWorld: the three tasks, their truth, and that none of them is a judgment."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from opengrm.templates.compact import Compact
from opengrm.worlds.english import CRITERIA, TOPICS, meets
from opengrm.worlds.instructions import SHARES, generate_instructions
from opengrm.worlds.rubric import AUDIENCES, KINDS, Query

ROWS = list(generate_instructions(600))


def query_in(prompt: str) -> Query:
    """The query that a prompt names, found by its words."""
    words = prompt.split("\n")[0].replace(",", " ").replace(".", " ").replace("?", " ").split()
    (kind,) = set(words) & set(KINDS)
    (topic,) = set(words) & set(TOPICS)
    (audience,) = set(words) & set(AUDIENCES)
    return Query(kind, topic, audience)


def test_naming_gives_the_hidden_criteria() -> None:
    rows = [r for r in ROWS if r["task"] == "name"]
    for row in rows:
        first, last = row["prompt"].split("\n")
        assert first.startswith("Query: ")
        assert last == "Name criteria."
        assert row["completion"] == ", ".join(f"{c} {w}" for c, w in query_in(row["prompt"]).criteria)


def test_checking_says_what_code_reads() -> None:
    for row in (r for r in ROWS if r["task"] == "check"):
        query, *texts, last = row["prompt"].split("\n")
        names = last.removeprefix("Check ").removesuffix(".").split(", ")
        assert 5 <= len(names) == len(set(names)) <= len(CRITERIA)
        topic = query_in(query).topic
        lines = row["completion"].split("\n")
        assert len(lines) == len(texts) in (1, 2)
        for position, (text, line) in enumerate(zip(texts, lines, strict=True), 1):
            shown = text.removeprefix(f"[{position}] ")
            found = [f"{c} {'yes' if meets(c, shown, topic) else 'no'}" for c in names]
            assert line == f"[{position}] " + ", ".join(found)


def test_what_is_written_has_full_reward() -> None:
    for row in (r for r in ROWS if r["task"] == "write"):
        query = query_in(row["prompt"])
        assert row["prompt"].endswith("\nWrite a response.")
        assert all(meets(name, row["completion"], query.topic) for name, _ in query.criteria)


def test_no_row_is_a_judgment() -> None:
    for row in ROWS:
        assert "Judge" not in row["prompt"]
        assert "boxed" not in row["completion"]
        assert Compact().parse(row["completion"], 1).scores is None


def test_shares_splits_and_prefixes() -> None:
    counts = Counter(r["task"] for r in ROWS)
    for task, share in SHARES.items():
        assert counts[task] / len(ROWS) == pytest.approx(share, abs=0.06)
    assert ROWS[:50] == list(generate_instructions(50))
    assert ROWS[:50] != list(generate_instructions(50, seed=1))
    assert all(query_in(r["prompt"]).split == "train" for r in ROWS)
    assert all(query_in(r["prompt"]).split == "dev" for r in islice(generate_instructions(50, split="dev"), 50))


def test_tasks_can_be_chosen() -> None:
    assert {r["task"] for r in generate_instructions(50, tasks=("name", "check"))} == {"name", "check"}
    for tasks in ((), ("judge",)):
        with pytest.raises(ValueError, match="expected some of name, check, write"):
            next(generate_instructions(1, tasks=tasks))

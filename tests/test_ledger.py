from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from opengrm.errors import OpenGRMError, UsageError
from opengrm.judgments import Judgment
from opengrm.ledger import Added, Ledger

ONE = Judgment(
    item="q1", scores=(7.0, 3.0), sample=0, key="k0", order=(1, 0), text="Scores: \\boxed{3, 7}", principles="p",
    critique="c", model="m", template="grm@1", temperature=0.5, seed=5, prompt_tokens=11, completion_tokens=7,
    extra={"note": "kept"},
)  # fmt: skip
MISSING = Judgment(item="q1", scores=None, error="wrong_count: 1 score for 2 responses", sample=1, key="k1", model="m")
LATE = Judgment(item="q1", scores=None, error="timeout: no answer in 5 s", sample=2, key="k2", model="m")


def test_a_new_ledger_opened_by_several_processes_at_once(tmp_path: Path) -> None:
    code = "import sys; from opengrm.ledger import Ledger; sys.stdin.read(); Ledger(sys.argv[1]).close()"
    words = [sys.executable, "-c", code, str(tmp_path / "l.db")]
    openers = [subprocess.Popen(words, stdin=subprocess.PIPE) for _ in range(4)]
    for opener in openers:  # all wait for the end of their input, which comes at about the same moment
        assert opener.stdin is not None
        opener.stdin.close()
    assert [opener.wait() for opener in openers] == [0, 0, 0, 0]


def test_what_is_put_comes_back_equal(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        for judgment in (MISSING, ONE):
            ledger.put(judgment, seconds=1.5)
    with Ledger(tmp_path / "l.db", create=False) as ledger:
        kept = list(ledger.judgments())
    assert kept == [MISSING, ONE] or kept == [ONE, MISSING]
    assert {j.key: j.extra for j in kept}["k0"] == {"note": "kept"}


def test_order_of_export_does_not_depend_on_order_of_arrival(tmp_path: Path) -> None:
    judgments = [replace(ONE, item=f"q{i}", key=f"k{i}{s}", sample=s) for i in range(5) for s in range(4)]
    exports = []
    for name, arrival in (("a.db", judgments), ("b.db", judgments[::-1])):
        with Ledger(tmp_path / name) as ledger:
            for judgment in arrival:
                ledger.put(judgment)
            exports.append([j.to_json() for j in ledger.judgments()])
    assert exports[0] == exports[1]
    assert [(r["item"], r["sample"]) for r in exports[0]] == sorted((j.item, j.sample) for j in judgments)


def test_transient_failures_are_asked_again_and_replaced() -> None:
    with Ledger(None) as ledger:
        ledger.put(LATE)
        ledger.put(MISSING)
        assert ledger.get(["k1", "k2"], "q1") == {"k1": MISSING}
        ledger.put(replace(ONE, key="k2", sample=2))
        assert ledger.get(["k2"], "q1")["k2"].scores == (7.0, 3.0)
        assert len(ledger) == 2


def test_same_content_under_another_id_is_copied_not_asked() -> None:
    with Ledger(None) as ledger:
        ledger.put(ONE)
        assert ledger.get(["k0"], "other")["k0"] == replace(ONE, item="other")
        assert [j.item for j in ledger.judgments()] == ["other", "q1"]


def test_more_keys_than_one_query_may_hold() -> None:
    with Ledger(None) as ledger:
        ledger.put_all(replace(ONE, key=f"k{i}", sample=i) for i in range(1203))
        assert len(ledger.get([f"k{i}" for i in range(2000)], "q1")) == 1203


def test_importing_twice_adds_nothing() -> None:
    votes = [Judgment(item="q", scores=(1.0, 0.0), sample=s) for s in range(3)]
    with Ledger(None) as ledger:
        assert ledger.put_all(votes) == Added(new=3, known=0)
        assert ledger.put_all(votes) == Added(new=0, known=3)


def test_equal_votes_of_two_named_runs_are_both_kept() -> None:
    votes = [Judgment(item="q", scores=(1.0, 0.0), sample=s) for s in range(3)]
    with Ledger(None) as ledger:
        assert ledger.put_all(votes) == Added(3, 0)
        assert ledger.put_all(votes, run="second") == Added(3, 0)
        assert ledger.put_all(votes, run="second") == Added(0, 3)
        assert len(ledger) == 6
        assert ledger.put_all([ONE], run="a") == Added(1, 0)
        assert ledger.put_all([ONE], run="b") == Added(0, 1), "a judgment with a key of its own is the same in any run"


def test_a_failing_import_leaves_nothing_behind() -> None:
    def rows():  # type: ignore[no-untyped-def]
        yield ONE
        raise ValueError("broken")

    with Ledger(None) as ledger:
        with pytest.raises(ValueError, match="broken"):
            ledger.put_all(rows())
        assert len(ledger) == 0


def test_info_counts_missing_by_kind() -> None:
    with Ledger(None) as ledger:
        ledger.put(ONE, seconds=2.0)
        ledger.put(replace(ONE, key="x", sample=3, item="q2", scores=None, error="unparsable: nothing"), seconds=1.0)
        (row,) = ledger.info()
    assert (row["items"], row["judgments"], row["missing"]) == (2, 2, {"unparsable": 1})
    assert (row["prompt_tokens"], row["completion_tokens"], row["seconds"]) == (22, 14, 3.0)


def test_files_that_are_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        Ledger(tmp_path)
    with pytest.raises(UsageError, match="no such ledger"):
        Ledger(tmp_path / "none.db", create=False)
    with pytest.raises(UsageError, match="does not exist"):
        Ledger(tmp_path / "no" / "l.db")
    (tmp_path / "text.db").write_text("this is not a database, but it is long enough to be read as one" * 50)
    with pytest.raises(OpenGRMError, match=r"text\.db: file is not a database"):
        Ledger(tmp_path / "text.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t (x)")
    other.commit()
    other.close()
    with pytest.raises(UsageError, match="not a ledger"):
        Ledger(tmp_path / "other.db")


WRITER = """
import sys
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
with Ledger(sys.argv[1]) as ledger:
    for i in range(10**9):
        ledger.put(Judgment(item=f"q{i:09d}", scores=(1.0,), key=f"k{i:09d}"))
        print(i, flush=True)
"""


def test_a_kill_loses_at_most_the_judgment_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(200)]
    time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    said += process.stdout.read().splitlines()
    process.wait()
    with Ledger(path, create=False) as ledger:
        kept = len(ledger)
    reported = len([s for s in said if s.strip()])
    assert reported <= kept <= reported + 1

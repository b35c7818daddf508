"""Rate and time left come from what this run did, not from what was there."""

from __future__ import annotations

import pytest

from opengrm.cli import progress


def test_a_resumed_run_has_the_pace_of_its_new_judgments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 40.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.progress("judging", 2000) as show:
        show(1000, "", 0)
        show(1200, "3 missing", 200)
    assert capsys.readouterr().err.splitlines() == [
        "judging: 1,000 of 2,000, -/s, - left",
        "judging: 1,200 of 2,000, 2.0/s, 0:06:40 left 3 missing",
    ]


def test_quiet_and_a_run_that_resumes_nothing() -> None:
    with progress.progress("judging", 10, quiet=True) as show:
        show(1, "", 1)
    assert progress._pace(10, 5, 5, 2.5) == ("2.0/s", "0:00:02")
    assert progress._pace(10, 5, 5, 0.0) == ("-/s", "-")

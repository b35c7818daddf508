"""`opengrm demo` shows the run that it made, whatever its folder holds of earlier ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from instant_engine import InstantEngine
from test_cli import Run, run

from opengrm.engines.base import Request

__all__ = ["run"]  # fixture


def boxed(request: Request, index: int) -> str:
    draw = random.Random(request.seeds[index])
    return f"\\boxed{{{draw.randint(0, 10)}, {draw.randint(0, 10)}}}"


def test_a_used_folder_does_not_mix_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(model: str) -> Any:
        return lambda *_, **__: InstantEngine(boxed, model=model)

    for model, k in (("first", 4), ("second", 2)):
        monkeypatch.setattr("opengrm.engines.open_engine", engine(model))
        done = run("demo", "-o", tmp_path, "-c", 6, "-k", k, "-q")
        assert done.code == 0, done.err
    table = [line.split()[1] for line in done.out.splitlines() if line.startswith("│") and " 6 │" in line]
    assert table == ["1", "2"]
    assert "6 pairs of RubricWorld" in done.out
    assert "12 judgments in" in done.out
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [v["asked"] for v in verdicts] == [2] * 6

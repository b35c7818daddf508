"""`opengrm demo`: what it shows is what its ledger says, and a run that was stopped goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from instant_engine import InstantEngine
from test_cli import Run, run

from opengrm.cli import demo
from opengrm.engines.base import Completion, Request
from opengrm.errors import MissingExtra
from opengrm.items import Message
from opengrm.judges.meta import MetaRM
from opengrm.ledger import Ledger
from opengrm.reading import read_items
from opengrm.reports.demo_page import mean_reward, step_bar
from opengrm.reports.tables import percent
from opengrm.templates.meta import MetaTemplate
from opengrm.voting.guided import Guide
from opengrm.voting.revote import Labels, revote

__all__ = ["run"]  # fixture

MODELS = ("nano-base", "nano")


def boxed(request: Request, index: int) -> str:
    draw = random.Random(request.seeds[index])
    return f"short 5\n[1] short yes = 5\n[2] short no = 0\n\\boxed{{{draw.randint(0, 10)}, {draw.randint(0, 10)}}}"


class Stopped(InstantEngine):
    """Is interrupted after so many completions."""

    def __init__(self, model: str, after: int | None) -> None:
        super().__init__(boxed, model=model)
        self.after = after

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        for completion in super().generate(requests):
            if self.after is not None and self.asked > self.after:
                raise KeyboardInterrupt
            yield completion


class LengthScorer:
    """A meta RM that likes long judgments."""

    model = "meta@1"

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float | None]:
        return [len(messages[-1].content) % 7 / 7 for messages in conversations]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Engines and a meta RM that answer at once; what was opened, by name, and where to stop ("after")."""
    opened: dict[str, Any] = {"after": None}

    def open_engine(kind: str, model: str) -> Stopped:
        opened[model] = Stopped(model, opened["after"])
        return opened[model]

    def open_meta_rm(model: str, template: object, ledger: Ledger, stack: object) -> MetaRM:
        return MetaRM(LengthScorer(), MetaTemplate("meta-compact"), ledger)

    monkeypatch.setattr("opengrm.engines.open_engine", open_engine)
    monkeypatch.setattr("opengrm.judges.meta.open_meta_rm", open_meta_rm)
    return opened


def cells(page: str, heading: str) -> list[list[str]]:
    """The rows of the page's tables whose heading row begins so, without their headings."""
    found, inside = [], False
    for line in page.splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        inside = bool(row) and (inside or row[0] == heading)
        if inside and row[0] != heading and not row[0].startswith("---"):
            found.append(row)
    return found


def recorded(folder: Path, model: str, temperature: float, ks: Sequence[int], how: Any = "sum") -> list[str]:
    """Accuracy at each k, as tables show it, from nothing but the ledger and the items."""
    with Ledger(folder / "ledger.db") as ledger:
        judgments = [
            j for j in ledger.judgments() if (j.model or "").split("@")[0] == model and j.temperature == temperature
        ]
    report = revote(judgments, Labels.of(read_items(folder / "items.jsonl")), ks=ks, how=how)
    return [percent(row["accuracy"]) for row in report.rows]


def test_the_page_says_what_the_ledger_says(
    run: Run, tmp_path: Path, engines: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a narrow terminal breaks cells over lines
    done = run("demo", "-o", tmp_path, "-c", 8, "-k", 3, "--steps", 0, "-q")
    assert done.code == 0, done.err
    page = (tmp_path / "report.md").read_text()
    assert "proving ground" in page
    assert "proving ground" in done.out
    assert "left out" in page  # the RL run
    assert [row[:3] for row in cells(page, "model")] == [[m, "8", recorded(tmp_path, m, 0.0, [1])[0]] for m in MODELS]
    ks = [1, 2, 3]
    plain = [recorded(tmp_path, m, 1.0, ks) for m in MODELS]
    guided = [recorded(tmp_path, m, 1.0, ks, Guide()) for m in MODELS]
    assert plain != guided
    shown = [[str(k), "8", *accuracies] for k, *accuracies in zip(ks, *plain, strict=True)]
    shown += [[str(k), "8", *accuracies] for k, *accuracies in zip(ks, *plain, *guided, strict=True)]
    assert cells(page, "votes k") == shown
    for row in shown:
        assert all(cell in done.out for cell in row)
    gains = json.loads((tmp_path / "demo.json").read_text())["notes"]["gains"]
    assert [percent(gain["accuracy_after"]) for gain in gains] == [
        recorded(tmp_path, "nano", 0.0, [1])[0],
        plain[1][-1],
    ]
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [v["asked"] for v in verdicts] == [3] * 8


def test_another_run_asks_for_nothing_and_mixes_nothing(run: Run, tmp_path: Path, engines: dict[str, Any]) -> None:
    results = []
    for k in (4, 4, 2):
        done = run("demo", "-o", tmp_path, "-c", 6, "-k", k, "--steps", 0, "-q")
        assert done.code == 0, done.err
        results.append(json.loads((tmp_path / "demo.json").read_text()))
        asked = [engines[model].asked for model in MODELS]
        assert asked == ([6 + 6 * 4] * 2 if len(results) == 1 else [0, 0] if len(results) == 2 else asked)
    assert results[0]["rows"] == results[1]["rows"]
    assert [cost["new"] for cost in results[1]["notes"]["costs"]] == [0] * 4
    assert {row["k"] for row in results[2]["rows"]} == {1, 2}
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [v["asked"] for v in verdicts] == [2] * 6


def test_an_interrupted_run_goes_on(run: Run, tmp_path: Path, engines: dict[str, Any]) -> None:
    words = ("-c", 6, "-k", 4, "--steps", 0, "-q")
    assert run("demo", "-o", tmp_path / "whole", *words).code == 0
    engines["after"] = 15
    assert run("demo", "-o", tmp_path / "parts", *words).code == 130
    with Ledger(tmp_path / "parts" / "ledger.db") as ledger:
        there = len(ledger)
    assert 6 < there < 2 * (6 + 24)
    engines["after"] = None
    assert run("demo", "-o", tmp_path / "parts", *words).code == 0
    assert sum(engines[model].asked for model in MODELS) == 2 * (6 + 24) - there
    whole, parts = (json.loads((tmp_path / name / "demo.json").read_text()) for name in ("whole", "parts"))
    assert whole["rows"] == parts["rows"]


def test_without_the_training_libraries_the_rest_is_shown(
    run: Run, tmp_path: Path, engines: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise MissingExtra("RL (trl)", "train")

    pytest.importorskip("torch")
    monkeypatch.setattr("opengrm.training.rl.train", train)
    done = run("demo", "-o", tmp_path, "-c", 4, "-k", 2, "-q")
    assert done.code == 0, done.err
    for text in (done.out, (tmp_path / "report.md").read_text()):
        assert "pip install" in text
        assert "[train]" in text
    assert len(cells((tmp_path / "report.md").read_text(), "votes k")) == 4


def test_a_bar_shows_the_mean_of_the_newest_steps() -> None:
    steps = [{"step": i, "correct": c, "kl": 0.25} for i, c in enumerate((0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0), 1)]
    line = step_bar(steps, 60, 96, 4)
    assert line.startswith("step   7 of 60  " + "█" * 32 + "·" * 8 + "  reward +0.60 [")  # 4 of 5 right
    assert line.endswith("n 480, kl 0.250")
    wide = mean_reward(steps[-5:], 1)
    assert wide.low < mean_reward(steps[-5:], 24).low < 0.6 < wide.high <= 1


def test_the_live_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the embedded base model and real training; only the meta RM is a stand-in."""
    pytest.importorskip("trl")
    monkeypatch.setattr(
        "opengrm.judges.meta.open_meta_rm",
        lambda model, template, ledger, stack: MetaRM(LengthScorer(), MetaTemplate("meta-compact"), ledger),
    )
    plan = demo.Plan(trained="nano-base", count=4, k=2, steps=2, batch=8)
    results = []
    for _ in range(2):
        demo.run(tmp_path, plan)
        results.append(json.loads((tmp_path / "demo.json").read_text()))
        out = capsys.readouterr().out
        assert out.count("step   1 of 2  ") == out.count("step   2 of 2  ") == 1
    first, second = results
    live = tmp_path / "live-2-steps-seed-0"
    assert (live / "model.safetensors").stat().st_size > 0
    assert [step["step"] for step in first["notes"]["climb"]["rows"]] == [1, 2]
    assert first["notes"]["climb"]["last"]["judgments"] == 16
    assert sum(cost["new"] for cost in first["notes"]["costs"]) == 2 * (4 + 8)  # base and "trained" are one here
    assert sum(cost["new"] for cost in second["notes"]["costs"]) == 0
    assert first["rows"] == second["rows"]
    assert first["notes"]["climb"] == second["notes"]["climb"]
    page = (tmp_path / "report.md").read_text()
    after = recorded(tmp_path, live.name, 1.0, [1, 2])
    assert [row[-1] for row in cells(page, "votes k")[-2:]] == after
    if first["notes"]["missing"] == {}:
        assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("curves.png", "rl.png"))
        assert "(curves.png)" in page
        assert "(rl.png)" in page

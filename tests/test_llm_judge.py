"""LLM-as-a-judge: choices as one-hot scores, votes, what it refuses, and the same RFT and RL data as a GRM's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer
from instant_engine import InstantEngine
from test_cli import Run, lines, run

from opengrm.engines.base import Request, Sampling
from opengrm.errors import UsageError
from opengrm.items import Item, Message
from opengrm.jsonl import write_rows
from opengrm.judges.grm import GRM
from opengrm.judges.llm import LLMJudge
from opengrm.judges.run import verdicts
from opengrm.ledger import Ledger
from opengrm.templates import get_template
from opengrm.templates.forms import forms_of
from opengrm.training.evaluation import EvaluationSettings, evaluate, judge_all
from opengrm.training.rewards import outcome, usable_items
from opengrm.training.trajectories import CollectSettings, collect

__all__ = ["run"]
JUDGE, COMPACT = get_template("judge"), get_template("compact-judge")
HOT = Sampling(temperature=1.0, max_tokens=64)


def item(name: str, n: int = 2, **values: Any) -> Item:
    return Item((Message("user", f"Query {name}"),), tuple(f"answer {name}.{r}" for r in range(n)), id=name, **values)


def names(index: int) -> Any:
    """An engine that names the response with this index, wherever it is shown."""

    def answer(request: Request, _: int) -> str:
        shown = request.messages[-1].content
        places = sorted((shown.index(f".{r}\n"), r) for r in range(9) if f".{r}\n" in shown)
        return f"Scores: \\boxed{{{[r for _, r in places].index(index) + 1}}}"

    return InstantEngine(answer)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_choice_is_one_hot_in_the_items_own_order(n: int) -> None:
    ((_, judgments),) = LLMJudge(names(1), JUDGE, orders="shuffle").judge([item("q", n)], k=6)
    assert len({j.order for j in judgments}) > 1
    assert {j.scores for j in judgments} == {tuple(float(i == 1) for i in range(n))}
    assert {j.template for j in judgments} == {f"judge@{JUDGE.version}"}


@pytest.mark.parametrize("how", ["majority", "sum"])
def test_the_vote_is_the_majority(how: Any) -> None:
    boxes = iter([r"\boxed{2}", r"\boxed{1}", r"\boxed{2}", "no box", r"\boxed{2}"])
    judge = LLMJudge(InstantEngine(lambda *_: f"Scores: {next(boxes)}"), JUDGE, orders="fixed")
    ((_, judgments, verdict),) = verdicts(judge, [item("q")], 5, reduce=how)
    assert verdict.scores == (1.0, 3.0)
    assert (verdict.winner, verdict.asked, verdict.valid) == (1, 5, 4)
    assert [j.error_kind for j in judgments].count("unparsable") == 1


def test_a_single_response_is_missing_and_the_reason_names_the_judges_that_take_it() -> None:
    ((_, (judgment,)),) = LLMJudge(names(0), JUDGE).judge([item("q", 1)], k=1)
    assert judgment.scores is None
    assert judgment.error == (
        "template: judge llm takes items of 2 or more responses, this one has 1; judges that take it: grm, cloud, bt"
    )


@pytest.mark.parametrize("name", ["grm", "compact", "grm-binary", "compact-solo"])
def test_templates_that_rate_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"template {name} rates responses"):
        LLMJudge(InstantEngine(), get_template(name))


def test_the_judgments_are_those_of_a_grm_with_that_template() -> None:
    """So what training and evaluation put into a ledger is found again."""
    pair = item("q")
    ((_, one),) = LLMJudge(names(0), JUDGE, HOT).judge([pair], k=3)
    ((_, other),) = GRM(names(0), JUDGE, HOT).judge([pair], k=3)
    assert one == other


# --- training and evaluation ------------------------------------------------------------------------------------


def by_seed(request: Request, index: int) -> str:
    seed = request.seeds[index]
    return f"short 5\n[1] short yes = 5\n[2] short no = 0\n\\boxed{{{seed % 3 + 1}}}"


def test_rft_keeps_what_is_correct_and_counts_single_responses(tmp_path: Path) -> None:
    pairs = [item(f"q{i}", best=i % 2) for i in range(40)]
    given = [*pairs, item("one", 1, rewards=(1.0,)), item("open")]
    settings = CollectSettings(sampling=HOT)
    with Ledger(tmp_path / "l.db") as ledger:
        found = collect(
            given, InstantEngine(by_seed), forms_of(COMPACT), tmp_path / "kept.jsonl", settings, ledger=ledger
        )
        judgments = list(ledger.judgments())
    assert found.non_hinted.not_sampled == {"single response": 1, "no label": 1}
    assert found.hinted.not_sampled == {"no label": 1}
    assert len(judgments) == 4 * 40

    best, right = {p.id: p.best for p in pairs}, 0
    for name in ("compact-judge@", "compact-judge+hint@"):
        for pair in pairs:
            own = [j for j in judgments if j.item == pair.id and (j.template or "").startswith(name)]
            # \boxed{3} of two is missing; a box is right where it names the place in which the best was shown
            shown = [(j.order or ()).index(best[j.item] or 0) + 1 for j in own]
            good = [(j.text or "").endswith(f"{{{place}}}") for j, place in zip(own, shown, strict=True)]
            assert [j.scores == tuple(float(i == pair.best) for i in range(2)) for j in own] == good
            right += 0 if len(good) == 3 and all(good) else sum(good)
    rows = lines(tmp_path / "kept.jsonl")
    assert found.kept == len(rows) == right > 10
    assert {row["template"] for row in rows} == {f"compact-judge@{COMPACT.version}"}
    assert all(row["prompt"][0]["content"].endswith("\nName the best by criteria.") for row in rows)


def test_rl_drops_and_counts_single_responses() -> None:
    given = [item("q", best=0), item("one", 1, rewards=(1.0,)), item("list", 4, best=3), item("open")]
    found = usable_items(given, forms_of(COMPACT))
    assert found.places == (0, 2)
    assert found.dropped == {"single response": 1, "no label": 1}


@pytest.mark.parametrize(
    ("order", "box", "reward", "parsed"),
    [((0, 1), "1", 1.0, True), ((1, 0), "1", -1.0, True), ((1, 0), "2", 1.0, True), ((0, 1), "3", -1.0, False)],
)
def test_the_outcome_reward(order: tuple[int, ...], box: str, reward: float, parsed: bool) -> None:
    assert outcome(item("q", best=0), COMPACT, order, f"\\boxed{{{box}}}") == (reward, parsed)


def test_evaluation_counts_choices_and_refuses_single_responses(tmp_path: Path) -> None:
    forms, pairs = forms_of(JUDGE), [item("a", best=0), item("b", best=1)]
    settings = EvaluationSettings(k=2, max_tokens=64, models=("base",))
    found = evaluate({"base": "m"}, {"pairs": pairs}, lambda _: names(0), forms, tmp_path, settings)
    assert {row["accuracy"]["mean"] for row in found["rows"]} == {0.5}
    told = "singles: 1 items have one response, template judge compares several: leave them out"
    with pytest.raises(UsageError, match=told):
        evaluate(
            {"base": "m"}, {"pairs": pairs, "singles": [item("c", 1)]}, lambda _: names(0), forms, tmp_path, settings
        )
    with pytest.raises(UsageError, match="1 items have one response"):
        judge_all([item("c", 1)], names(0), forms, HOT, 1, None)


def test_a_run_refuses_held_out_single_responses_before_anything_is_trained(tmp_path: Path) -> None:
    pytest.importorskip("pydantic")
    from opengrm.training import spct
    from opengrm.training.spct_config import read_config

    path = tmp_path / "r.toml"
    path.write_text(
        'base = "nano-base"\ntemplate = "compact-judge"\n[data]\nrft = { count = 2 }\nrl = { count = 2, seed = 1 }\n'
        '[data.test]\nsome = { count = 30, responses = "mixed", split = "test" }\n',
        encoding="utf-8",
    )
    with pytest.raises(
        UsageError, match=r"data.test.some, .*: \d+ items have one response, template compact-judge comp"
    ):
        spct.run(read_config(path), tmp_path / "run", stages=["data"], say=lambda line: None)


# --- the command line -------------------------------------------------------------------------------------------


def second(body: dict[str, Any], index: int) -> str:
    return "Specific Criteria: a (100%).\nAnalysis: the second.\nScores: \\boxed{2}"


def test_command_line(run: Run, tmp_path: Path) -> None:
    items, out = tmp_path / "items.jsonl", tmp_path / "v.jsonl"
    write_rows(items, [item(f"q{i}", best=0).to_json() for i in range(3)])
    with FakeServer(text=second) as server:
        words = ("--engine", "openai", "--base-url", server.base_url, "--model", "m", "-q", "--judge", "llm")
        done = run("judge", items, "-o", out, "-k", 4, "--orders", "fixed", *words, "--json")
        assert done.code == 0, done.err
        assert "select the best response among all candidates" in server.bodies[0]["messages"][0]["content"]
        assert [v["scores"] for v in lines(out)] == [[0.0, 4.0]] * 3
        assert done.json["accuracy"]["mean"] == 0.0

        asked = server.asked
        items.write_text(items.read_text() + json.dumps({"prompt": "q", "responses": ["one"]}) + "\n")
        refused = run("judge", items, "-o", tmp_path / "w.jsonl", *words)
        assert refused.code == 1
        assert (
            f"{items}:4: template judge: judge llm takes items of 2 or more responses, this one has 1; "
            "judges that take it: grm, cloud, bt"
        ) in refused.err
        assert server.asked == asked
        alone = run("judge", "--prompt", "q", "--response", "one", *words)
        assert (alone.code, "judges that take it: grm" in alone.err) == (2, True)
        wrong = run("judge", items, "-o", tmp_path / "w.jsonl", *words, "--template", "grm")
        assert (wrong.code, "template grm rates responses" in wrong.err) == (2, True)
        assert server.asked == asked
        skipped = run("judge", items, "-o", tmp_path / "w.jsonl", "-k", 1, *words, "--on-bad", "skip")
        assert (skipped.code, len(lines(tmp_path / "w.jsonl"))) == (0, 3)

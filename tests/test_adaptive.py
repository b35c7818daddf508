"""Judges that stop early, budgets, and recorded votes read again: against full runs and plain loops."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from instant_engine import InstantEngine
from test_cloud_judge import LengthHead

from opengrm.cli.judges import Options, choose_judge
from opengrm.cli.main import main
from opengrm.engines.base import Request, Sampling
from opengrm.errors import UsageError
from opengrm.items import Item, Message
from opengrm.judges.adaptive import AdaptiveJudge, Budget
from opengrm.judges.cloud import CLoud
from opengrm.judges.grm import GRM
from opengrm.judges.run import Summary, verdicts
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reading import write_items, write_judgments
from opengrm.templates import get_template
from opengrm.templates.cloud import CloudTemplate
from opengrm.voting import vote
from opengrm.voting.decision import earliest
from opengrm.voting.guided import PAPER
from opengrm.voting.recorded import collect
from opengrm.voting.replay import adaptive_rows, cheapest, cycle_of, draw_orders, replay
from opengrm.voting.revote import verdicts as recorded_verdicts
from opengrm.voting.stopping import Stop

K = 12
POSTERIOR = Stop("posterior", 0.1, 1, 10)


def make_items(count: int, n: int = 2) -> list[Item]:
    return [
        Item((Message("user", f"Query {i}"),), tuple(f"answer {i}.{r}" for r in range(n)), best=0, id=f"q{i}")
        for i in range(count)
    ]


def unsure(request: Request, index: int) -> str:
    """Response 0 is better, in every third item by little; some answers cannot be read."""
    draw, shown = random.Random(request.seeds[index]), request.messages[-1].content
    if draw.random() < 0.1:
        return "no scores"
    item = int(shown.split("Query ")[1].split("\n")[0])
    lead = 0.3 if item % 3 == 0 else 4
    places = sorted((shown.index(f".{r}\n"), r) for r in range(4) if f".{r}\n" in shown)
    scores = [min(10, max(1, round(draw.gauss(5 + lead * (r == 0), 2)))) for _, r in places]
    return "Scores: \\boxed{" + ", ".join(map(str, scores)) + "}"


def judge(ledger: Ledger | None = None, shuffle: int | None = None) -> GRM:
    engine = InstantEngine(unsure, shuffle=shuffle)
    return GRM(
        engine, get_template("grm"), Sampling(temperature=1.0), ledger=Ledger(None) if ledger is None else ledger
    )


@pytest.mark.parametrize(("n", "shuffle", "window"), [(2, None, 1024), (2, 3, 1024), (2, 1, 4), (3, 2, 5)])
def test_votes_are_the_first_of_the_full_run_and_stop_where_the_rule_says(n: int, shuffle: int, window: int) -> None:
    items = make_items(20, n)
    full = {item.id: judgments for item, judgments in judge().judge(items, K)}
    adaptive = AdaptiveJudge(judge(shuffle=shuffle), POSTERIOR, growth=1, window=window)
    found = list(adaptive.judge(iter(items), K))
    assert [item.id for item, _ in found] == [item.id for item in items]
    spent = Counter(len(judgments) for _, judgments in found)
    assert len(spent) > 2
    for item, judgments in found:
        assert judgments == full[item.id][: len(judgments)]
        assert len(judgments) % n == 0
        for t in range(n, len(judgments) + 1, n):  # the first cycle after which the rule stops, and no other
            assert adaptive.decide(item, judgments[:t], K).stopped == (t == len(judgments))
        places = Counter((i, p) for j in judgments for p, i in enumerate(j.order or ()))
        assert set(places.values()) == {len(judgments) // n}  # every response in every place equally often


def test_the_first_request_is_for_what_the_rule_needs() -> None:
    # Votes of one size that agree: 1 - 2^-(t + 1) at 0.95 is reached by four votes, at 0.9 by three.
    assert earliest(2, 10_000, Stop("posterior", 0.05, 1, 10)) == 4
    assert earliest(2, 10_000, Stop("posterior", 0.1, 1, 10), block=2) == 4
    assert earliest(2, 32, Stop("exact", 0.05, 1, 10)) == 17
    assert earliest(2, 32, Stop("exact", 0.05, 1, 10), PAPER, block=2) == 2
    assert earliest(1, 10, Stop("exact", 0.05, 1, 10, width=1.5)) == 7
    assert earliest(3, 2, Stop("posterior"), block=3) == 2


def test_growing_requests_stop_at_their_ends() -> None:
    found = list(AdaptiveJudge(judge(), Stop("exact", 0.05, 1, 10)).judge(make_items(6), K))
    assert {len(judgments) for _, judgments in found} <= {8, 12}


def test_a_resumed_run_asks_for_nothing_and_says_the_same(tmp_path: Path) -> None:
    items = make_items(12)

    def run() -> tuple[list, int]:
        with Ledger(tmp_path / "l.db") as ledger:
            base = judge(ledger)
            adaptive = AdaptiveJudge(base, POSTERIOR)
            rows = [
                v.verdict.to_json()
                for v in verdicts(adaptive, items, K, explain=lambda i, js: adaptive.explain(i, js, K))
            ]
            return rows, base.engine.asked

    first, asked = run()
    assert asked == sum(row["asked"] for row in first) < K * len(items)
    assert run() == (first, 0)
    # Interrupted after five items, and taken up again.
    with Ledger(tmp_path / "other.db") as ledger:
        adaptive = AdaptiveJudge(judge(ledger), POSTERIOR)
        run_again = adaptive.judge(items, K)
        list(itertools.islice(run_again, 5))
        run_again.close()
        assert [len(js) for _, js in AdaptiveJudge(judge(ledger), POSTERIOR).judge(items, K)] == [
            row["asked"] for row in first
        ]
    assert {row["stop"]["reason"] for row in first} == {"sure", "all votes"}
    for row in first:
        assert row["stop"]["of"] == K
        assert row["stop"]["sure"] >= 0.9
        assert (row["stop"]["reason"] == "all votes") == (row["asked"] == K)


def test_a_budget_goes_to_open_items_and_is_kept() -> None:
    items = make_items(15)
    free = [len(js) for _, js in AdaptiveJudge(judge(), POSTERIOR).judge(items, K)]
    budget = Budget(votes=sum(free) - 20)
    adaptive = AdaptiveJudge(judge(), POSTERIOR, budget=budget)
    found = list(adaptive.judge(items, K))
    spent = [len(js) for _, js in found]
    assert sum(free) - 30 < sum(spent) <= sum(free) - 20
    assert min(spent) >= 2
    assert all(s <= f for s, f in zip(spent, free, strict=True))
    reasons = Counter(adaptive.explain(i, js, K)["stop"]["reason"] for i, js in found)
    assert reasons["budget"] > 0
    assert [len(js) for _, js in AdaptiveJudge(judge(shuffle=5), POSTERIOR, budget=budget).judge(items, K)] == spent
    enough = AdaptiveJudge(judge(), POSTERIOR, budget=Budget(votes=1000, tokens=10**9))
    assert [len(js) for _, js in enough.judge(items, K)] == free
    with pytest.raises(UsageError, match="one cycle of the orders of each is 30 votes"):
        list(AdaptiveJudge(judge(), POSTERIOR, budget=Budget(votes=29)).judge(items, K))


def test_a_budget_of_tokens_is_kept_from_the_first_round_on() -> None:
    items = make_items(15)
    (_, one), *_ = judge().judge(items[:1], 1)
    each = sum((j.prompt_tokens or 0) + (j.completion_tokens or 0) for j in one)

    for tokens, asked in (
        (1, 2),  # one item's cycle, which says what a judgment costs
        (7 * each, 4),  # the next two items' would make it eight
        (int(29.5 * each), 16),  # eight items say that thirty are not to be had
    ):
        base = judge()
        with pytest.raises(UsageError, match=f"budget of {tokens:,} tokens does not reach for 15 items"):
            list(AdaptiveJudge(base, POSTERIOR, budget=Budget(tokens=tokens)).judge(items, K))
        assert base.engine.asked == asked
    enough = AdaptiveJudge(judge(), POSTERIOR, budget=Budget(tokens=int(31 * each)))
    assert {len(js) for _, js in enough.judge(items, K)} == {2}


def test_a_judge_without_planned_orders_may_stop_after_any_vote(tmp_path: Path) -> None:
    for name in ("critic", "head"):
        (tmp_path / name).mkdir()
    chosen = choose_judge("cloud", Options(str(tmp_path), "compact-cloud"))
    assert not chosen.ordered
    assert not choose_judge("grm", Options("nano", "compact-solo")).ordered
    assert choose_judge("grm", Options("nano", "compact")).ordered
    assert choose_judge("llm", Options("nano")).ordered

    def length(request: Request, index: int) -> str:
        return "good" * (1 + 9 * (".0\n" in request.messages[0].content)) + "!" * (request.seeds[index] % 9)

    cloud = CLoud(
        InstantEngine(length), LengthHead(), CloudTemplate("compact-cloud"), Sampling(temperature=1.0), Ledger(None)
    )  # fmt: skip
    adaptive = AdaptiveJudge(cloud, Stop("posterior", 0.05, -1e99, 1e99), "majority", chosen.ordered)
    # Four votes for one response leave it 1 - 2 / 2^5 against two rivals, five 1 - 2 / 2^6; a cycle would be three.
    assert {len(js) for _, js in adaptive.judge(make_items(4, 3), 1000)} == {5}


def test_a_judge_without_a_ledger_is_refused_and_the_summary_counts() -> None:
    with pytest.raises(UsageError, match="needs a ledger"):
        AdaptiveJudge(GRM(InstantEngine(unsure), get_template("grm")), POSTERIOR)
    summary, done = Summary(), []
    adaptive = AdaptiveJudge(judge(), POSTERIOR)
    list(verdicts(adaptive, make_items(9), K, summary=summary, on_progress=lambda there, _: done.append(there),
                  explain=lambda i, js: adaptive.explain(i, js, K)))  # fmt: skip
    assert done[-1] == 9 * K  # what is not asked for counts as done
    assert sum(summary.to_json()["stops"].values()) == 9
    assert summary.judgments == summary.new < 9 * K


# --- recorded votes -----------------------------------------------------------------------------------------------


def recorded(n: int = 2, count: int = 12) -> tuple[list[Judgment], dict[str, float]]:
    return [j for _, js in judge().judge(make_items(count, n), K) for j in js], dict.fromkeys(
        (f"q{i}" for i in range(count)), 0.0
    )


def test_orders_keep_the_plan() -> None:
    (source,) = collect(recorded(3)[0])
    (block,) = source.blocks
    assert cycle_of(block) == 3
    orders = draw_orders(block, 5, 3)
    assert orders[:, 0].tolist() == [list(range(K))] * 12
    assert (np.sort(orders, axis=2) == np.arange(K)).all()
    shown = block.order_IK[np.arange(12)[:, None, None], orders]
    assert (shown == block.order_IK[:, None, :]).all()
    assert len({tuple(row) for row in orders[:, 1:].reshape(-1, K).tolist()}) > 40


def test_replay_is_a_loop_over_votes() -> None:
    judgments, labels = recorded()
    (source,) = collect(judgments)
    (block,) = source.blocks
    plans = [4, POSTERIOR, Stop("exact", 0.05, 1, 10)]
    paths = replay(block, plans, labels=labels, draws=3)
    orders = draw_orders(block, 3, 2)
    for i, item in enumerate(block.items):
        own = sorted((j for j in judgments if j.item == item), key=lambda j: j.sample)
        for r in range(3):
            drawn = [own[s] for s in orders[i, r]]
            assert paths[0].votes_IR[i, r] == 4
            for path in paths:
                t = int(path.votes_IR[i, r])
                part, whole = vote(item, drawn[:t], 2), vote(item, own, 2)
                assert path.agrees_IR[i, r] == (part.winner == whole.winner)
                assert path.credit_IR[i, r] == (0.5 if part.winner is None else part.winner == 0)
                assert path.tokens_IR[i, r] == part.prompt_tokens + part.completion_tokens
    assert paths[2].agrees_IR.all()
    rows = adaptive_rows([block], plans, labels=labels, draws=3)
    assert [row["plan"] for row in rows] == ["4 votes", "posterior 0.1", "exact"]
    assert rows[1]["votes"]["mean"] == pytest.approx(paths[1].votes_IR.mean())
    assert rows[1]["votes_share"] == pytest.approx(paths[1].votes_IR.mean() / K)
    assert rows[1]["accuracy_loss"]["mean"] == pytest.approx((paths[1].full_IR - paths[1].credit_IR).mean())
    assert rows[2]["agreement"]["mean"] == 1
    assert 0.2 < rows[2]["disagreement_bound"] < 0.3  # twelve items without one: Wilson's bound
    assert cheapest(rows, 0.25) in ("exact", None)
    assert cheapest(rows, 0.01) is None


def test_verdicts_of_recorded_votes_stop_as_the_judge_does() -> None:
    judgments, _ = recorded()
    adaptive = AdaptiveJudge(judge(), POSTERIOR, growth=1)
    online = {item.id: len(js) for item, js in adaptive.judge(make_items(12), K)}
    found = {v.item: v for v in recorded_verdicts(collect(judgments), stop=POSTERIOR)}
    assert {item: v.asked for item, v in found.items()} == online
    for verdict in found.values():
        own = [j for j in judgments if j.item == verdict.item][: verdict.asked]
        assert verdict.scores == vote(verdict.item, own, 2).scores
        assert verdict.extra["stop"]["reason"] == ("all votes" if verdict.asked == K else "sure")


def test_singles_stop_by_width() -> None:
    judgments = [Judgment(f"s{i}", (float(5 + (j % 2) * (i % 3)),), sample=j) for i in range(6) for j in range(10)]
    (source,) = collect(judgments)
    stop = Stop("exact", 0.05, 1, 10, width=1.5)
    found = {v.item: v for v in recorded_verdicts([source], "mean", stop=stop)}
    assert found["s0"].asked == 7  # 5 at every vote; three to come can move the mean by 1.5 at most
    assert found["s0"].extra["stop"]["interval"] == pytest.approx([3.8, 6.5])
    (row,) = adaptive_rows(source.blocks, [stop], "mean", draws=4)
    assert row["agreement"]["mean"] == 1


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    judgments, _ = recorded()
    write_judgments(tmp_path / "j.jsonl", judgments)
    write_items(tmp_path / "items.jsonl", make_items(12))

    def run(*words: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["opengrm", *map(str, words)])
        try:
            main()
        except SystemExit as done:
            capfd_err = capfd.readouterr().err if done.code else None
            if capfd_err is not None:
                return "", capfd_err
        sys.stdout.flush()
        return capfd.readouterr()

    out, _ = run("vote", tmp_path / "j.jsonl", "--items", tmp_path / "items.jsonl", "--stop", "posterior", "--alpha",
                 "0.1", "--range", "1,10", "-o", tmp_path / "v.jsonl", "--json")  # fmt: skip
    (row,) = json.loads(out)["adaptive"]
    assert row["plan"] == "posterior 0.1"
    assert 2 <= row["votes"]["mean"] < K
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert {r["stop"]["rule"] for r in rows} == {"posterior"}
    assert f"-k 1,99: at most {K} samples are recorded" in run("vote", tmp_path / "j.jsonl", "-k", "1,99")[1]
    out, _ = run("plan", tmp_path / "j.jsonl", "--items", tmp_path / "items.jsonl", "--draws", 3, "--json")
    (found,) = json.loads(out)["plans"]
    assert [r["plan"] for r in found["rows"]][:5] == ["1 votes", "2 votes", "4 votes", "8 votes", "12 votes"]
    assert all(r["seconds"] is None for r in found["rows"])
    out, _ = run("plan", tmp_path / "j.jsonl", "--draws", 3, "--aim", 0.5, "--count", 1000)
    assert "For 1,000 items:" in out
    write_judgments(tmp_path / "meta.jsonl", [replace(j, meta=(i % 10) / 10) for i, j in enumerate(judgments)])
    out, _ = run("plan", tmp_path / "meta.jsonl", "--draws", 2, "-k", "2,64", "--reduce", "meta")
    assert "No line for k = 64: of some item only 12 judgments are recorded." in out
    assert "anytime is left out" in out
    write_items(tmp_path / "others.jsonl", [replace(item, id=f"other-{item.id}") for item in make_items(2)])
    for words, said in (
        (["plan", tmp_path / "j.jsonl", "--reduce", "meta"], "no judgment has a meta score"),
        (["plan", tmp_path / "j.jsonl", "--items", tmp_path / "others.jsonl"], "no item of the pilot; ids are like"),
        (["vote", tmp_path / "j.jsonl", "--stop", "exact", "--alpha", "0.1"], "--alpha has no effect"),
        (["vote", tmp_path / "j.jsonl", "--alpha", "0.1"], "go with --stop"),
        (["vote", tmp_path / "j.jsonl", "--stop", "exact", "--range", "5"], "expected two numbers"),
        (["vote", tmp_path / "j.jsonl", "--range", "1,10"], "--range goes with --stop"),
        (["vote", tmp_path / "j.jsonl", "--stop", "exact", "--range", "4,6"], "outside of 4 to 6"),
        (
            ["vote", tmp_path / "j.jsonl", "--stop", "exact", "--width", "1", "--reduce", "majority"],
            "the vote 'majority'",
        ),
        (["plan", tmp_path / "j.jsonl", "--width", "1", "--reduce", "meta"], "the vote 'meta'"),
        (
            ["judge", tmp_path / "items.jsonl", "--stop", "exact", "--width", "1", "--reduce", "majority"],
            "not for the vote",
        ),
        (["judge", tmp_path / "items.jsonl", "--budget-votes", "9"], "go with --stop"),
        (["judge", tmp_path / "items.jsonl", "--stop", "posterior", "--alpha", "3"], "between 0 and 1"),
        (["judge", tmp_path / "items.jsonl", "--judge", "bt", "--model", "x", "--stop", "exact"], "same scores"),
    ):
        assert said in run(*words)[1]


def test_a_range_that_is_not_recorded_is_assumed_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def vote_early(judgments: list[Judgment]) -> str:
        write_judgments(tmp_path / "j.jsonl", judgments)
        monkeypatch.setattr(sys, "argv", ["opengrm", "vote", str(tmp_path / "j.jsonl"), "--stop", "posterior"])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        return capsys.readouterr().out

    equal = vote_early([Judgment("one", (3.0,), sample=j) for j in range(4)])
    assert "scores from 0 to 3, assumed, since all recorded scores are equal" in equal
    assert "Single responses never stop early without --width" in equal
    none = vote_early([Judgment("one", None, sample=j, error="unparsable: nothing") for j in range(4)])
    assert "stopping early" not in none
    assert "scores from" not in none

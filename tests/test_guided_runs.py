"""Guided votes in a run and in a re-vote: the same verdicts, accuracy at each k by hand, and the command line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from instant_engine import InstantEngine
from typer.testing import CliRunner

from opengrm.cli.main import app
from opengrm.engines.base import Sampling
from opengrm.errors import UsageError
from opengrm.items import Item, Message
from opengrm.judges.grm import GRM
from opengrm.judges.meta import MetaRM
from opengrm.judges.run import Summary, verdicts
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reading import write_items, write_judgments
from opengrm.templates import get_template
from opengrm.templates.meta import MetaTemplate
from opengrm.voting.correctness import credit
from opengrm.voting.guided import Guide, guided_vote
from opengrm.voting.revote import Labels, revote
from opengrm.voting.revote import verdicts as revoted

PAIRS = [Item((Message("user", f"Q{i}"),), ("a", "b"), best=i % 2, id=f"q{i}") for i in range(4)]


def recorded(items: Sequence[Item], samples: int = 4) -> list[Judgment]:
    """Whole scores and meta scores that look random, one in seven missing."""
    judgments = []
    for i, item in enumerate(items):
        for j in range(samples):
            draw = (7 * i + 5 * j + 3) % 11
            scores = None if (i + 3 * j) % 7 == 0 else tuple(float((draw * (r + 2)) % 9) for r in range(item.n))
            error = None if scores else "unparsable: no box"
            order = tuple(range(item.n)) if j % 2 == 0 else tuple(range(item.n))[::-1]
            judgments.append(Judgment(item.id, scores, error, j, order=order, meta=float((draw * 4) % 5)))
    return judgments


@pytest.mark.parametrize("guide", [Guide(), Guide(k_meta=1), Guide(threshold=2.0), Guide(weights=True)])
def test_accuracy_at_each_k_is_the_mean_over_all_subsets(guide: Guide) -> None:
    judgments = recorded(PAIRS)
    report = revote(judgments, Labels.of(PAIRS), how=guide, subsets="all")
    for row in report.rows:
        by_hand = []
        for item in PAIRS:
            own = [j for j in judgments if j.item == item.id]
            earned = []
            for chosen in itertools.combinations(own, row["k"]):
                verdict = guided_vote(item.id, chosen, 2, guide)
                assert item.best is not None
                earned.append(0.5 if verdict.scores is None else credit(verdict.scores, item.best))
            by_hand.append(sum(earned) / len(earned))
        assert row["accuracy"]["mean"] == pytest.approx(sum(by_hand) / len(by_hand))
        assert row["reduce"].startswith("meta")
    assert [row["k"] for row in report.rows] == [1, 2, 3, 4]
    for verdict in revoted(report.recorded, guide):
        assert verdict == guided_vote(verdict.item, [j for j in judgments if j.item == verdict.item], 2, guide)


def test_single_responses_by_the_weighted_mean() -> None:
    item = Item((Message("user", "Q"),), ("a",), rewards=(1.0,), id="s")
    judgments = [
        Judgment("s", (score,), sample=j, meta=meta)
        for j, (score, meta) in enumerate([(0.0, -1.0), (0.0, -2.0), (1.0, 3.0), (1.0, 0.0)])
    ]
    labels = Labels.of([item])
    (plain,) = revote(judgments, labels, ks=[4]).rows
    (guided,) = revote(judgments, labels, ks=[4], how=Guide()).rows
    (one,) = revote(judgments, labels, ks=[1], how=Guide()).rows
    assert (plain["accuracy"]["mean"], guided["accuracy"]["mean"], one["accuracy"]["mean"]) == (0.5, 1.0, 0.5)


def test_no_meta_score_at_all_is_said() -> None:
    bare = [Judgment("q0", (1.0, 2.0), sample=j) for j in range(2)]
    with pytest.raises(UsageError, match="no judgment has a meta score"):
        revote(bare, how=Guide())
    some = [bare[0], Judgment("q0", (1.0, 2.0), sample=1, meta=1.0)]
    assert revote(some, how=Guide()).counts["without_meta"] == 1


class Trusting:
    """Trusts judgments that put the first response of the item ahead, by the text alone."""

    model = "trusting@1"

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float | None]:
        return [float(messages[-1].content.count("9")) for messages in conversations]


def test_a_run_with_a_meta_rm_resumes_and_votes_the_same(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        grm = GRM(InstantEngine(), get_template("grm"), Sampling(), ledger=ledger)
        meta = MetaRM(Trusting(), MetaTemplate(), ledger, window=3)
        summary = Summary()
        first = list(verdicts(grm, PAIRS, 4, reduce=Guide(), meta=meta, summary=summary))
        assert summary.new == 16
        for item, judgments, verdict in first:
            assert all(j.meta is not None for j in judgments)
            assert verdict == guided_vote(item.id, judgments, 2)
        again = Summary()
        assert list(verdicts(grm, PAIRS, 4, reduce=Guide(), meta=meta, summary=again)) == first
        assert again.new == 0
        # What stands in the ledger votes the same.
        report = revote(ledger.judgments(), Labels.of(PAIRS), how=Guide())
        assert {v.item: v.scores for v in revoted(report.recorded, Guide())} == {
            v.item: v.scores for _, _, v in first
        }  # fmt: skip


def test_command_line(tmp_path: Path) -> None:
    judgments, items, out = tmp_path / "j.jsonl", tmp_path / "i.jsonl", tmp_path / "v.jsonl"
    write_judgments(judgments, recorded(PAIRS))
    write_items(items, PAIRS)
    run = CliRunner().invoke
    options = ["vote", str(judgments), "--items", str(items), "-k", "4", "-o", str(out), "--json"]
    done = run(app, [*options, "--reduce", "meta", "--k-meta", "1"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"][0]["reduce"] == "meta top 1"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = [guided_vote(p.id, [j for j in recorded(PAIRS) if j.item == p.id], 2, Guide(k_meta=1)) for p in PAIRS]
    assert [r["scores"] for r in rows] == [list(v.scores or ()) for v in wanted]
    assert [r["used"] for r in rows] == [v.used for v in wanted]
    for wrong, said in (
        (["--k-meta", "2"], "go with --reduce meta"),
        (["--meta-weights"], "go with --reduce meta"),
    ):
        failed = run(app, [*options, *wrong])
        assert failed.exit_code != 0
        assert said in str(failed.exception)
    failed = run(app, ["judge", str(items), "--reduce", "meta"])
    assert "--reduce meta needs --meta" in str(failed.exception)

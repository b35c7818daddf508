"""The meta RM as a judge: fills `meta`, keeps it in the ledger, asks once for the same text, streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from opengrm.items import Item, Message
from opengrm.judges.meta import MetaRM
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.templates.meta import MetaTemplate


class LengthScorer:
    """A logit for each conversation: the length of the judgment's text; None over 100 characters."""

    def __init__(self, model: str = "meta@1") -> None:
        self.model = model
        self.asked: list[str] = []

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float | None]:
        texts = [messages[-1].content for messages in conversations]
        self.asked += texts
        return [float(len(t)) if len(t) <= 100 else None for t in texts]


ITEM = Item((Message("user", "Q"),), ("a", "b"), id="q")


def judgment(text: str | None, sample: int = 0, scores: tuple[float, ...] | None = (1.0, 2.0)) -> Judgment:
    error = None if scores else "unparsable: no box"
    return Judgment("q", scores, error, sample, key=f"k{sample}", order=(0, 1), text=text)


def test_fills_meta_and_leaves_missing_alone() -> None:
    scorer = LengthScorer()
    judgments = [judgment("four", 0), judgment("x" * 101, 1), judgment(None, 2), judgment("four", 3, None)]
    ((item, found),) = MetaRM(scorer, MetaTemplate()).score([(ITEM, judgments)])
    assert item is ITEM
    assert [j.meta for j in found] == [4.0, None, None, None]
    assert [j.extra.get("meta_model") for j in found] == ["meta@1", None, None, None]
    assert scorer.asked == ["four", "x" * 101]


def test_kept_in_the_ledger_and_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    with Ledger(path) as ledger:
        ledger.put_all([judgment("four", 0), judgment("three", 1)])
        first = LengthScorer()
        list(MetaRM(first, MetaTemplate(), ledger).score([(ITEM, list(ledger.judgments()))]))
        assert first.asked == ["four", "three"]
    with Ledger(path) as ledger:
        kept = list(ledger.judgments())
        assert [(j.meta, j.extra["meta_model"]) for j in kept] == [(4.0, "meta@1"), (5.0, "meta@1")]
        again = LengthScorer()
        ((_, found),) = MetaRM(again, MetaTemplate(), ledger).score([(ITEM, kept)])
        assert (again.asked, found) == ([], kept)
        # Another meta RM or template has keys of its own; the rows carry the latest.
        other = LengthScorer("meta@2")
        list(MetaRM(other, MetaTemplate(), ledger).score([(ITEM, kept)]))
        assert other.asked == ["four", "three"]
        assert {j.extra["meta_model"] for j in ledger.judgments()} == {"meta@2"}
        back = LengthScorer()
        list(MetaRM(back, MetaTemplate(), ledger).score([(ITEM, kept)]))
        assert back.asked == []
        assert {j.extra["meta_model"] for j in ledger.judgments()} == {"meta@1"}


def test_the_same_text_is_asked_once() -> None:
    scorer = LengthScorer()
    ((_, found),) = MetaRM(scorer, MetaTemplate()).score([(ITEM, [judgment("same", 0), judgment("same", 1)])])
    assert (scorer.asked, [j.meta for j in found]) == (["same"], [4.0, 4.0])


def test_streams_in_order_window_by_window() -> None:
    pulled = 0

    def feed() -> Iterator[tuple[Item, list[Judgment]]]:
        nonlocal pulled
        for i in range(10):
            pulled += 1
            yield Item((Message("user", f"Q{i}"),), ("a", "b"), id=f"q{i}"), [judgment("t" * (i + 1))]

    run = MetaRM(LengthScorer(), MetaTemplate(), window=4).score(feed())
    assert next(run)[1][0].meta == 1.0
    assert pulled == 4
    assert [item.id for item, _ in run] == [f"q{i}" for i in range(1, 10)]

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from instant_engine import InstantEngine, boxed_scores_by_seed

from opengrm.engines.base import Completion, Request, Sampling
from opengrm.errors import EngineError
from opengrm.items import Item, Message
from opengrm.judges.grm import GRM
from opengrm.judges.run import Summary, verdicts
from opengrm.judgments import judgment_from_json
from opengrm.ledger import Ledger
from opengrm.templates import get_template
from opengrm.templates.grm import GRMTemplate
from opengrm.voting.orders import ORDER_KINDS


def make_items(count: int, n: int = 2) -> list[Item]:
    return [
        Item((Message("user", f"Query {i}"),), tuple(f"answer {i}.{r}" for r in range(n)), best=i % n, id=f"q{i}")
        for i in range(count)
    ]


def by_content(request: Request, index: int) -> str:
    """Scores that follow the response shown, so that the mapping back to the item's own order can be checked."""
    shown = request.messages[-1].content
    places = sorted((shown.index(f".{r}\n"), r) for r in range(9) if f".{r}\n" in shown)
    return "Scores: \\boxed{" + ", ".join(str(r + 1) for _, r in places) + "}"


def test_scores_come_back_in_the_items_own_order() -> None:
    judge = GRM(InstantEngine(by_content), get_template("grm"), orders="shuffle")
    for n in (2, 3, 5):
        for _, judgments in judge.judge(make_items(4, n), k=6):
            assert [j.sample for j in judgments] == list(range(6))
            assert len({j.order for j in judgments}) > 1
            for judgment in judgments:
                assert judgment.scores == tuple(float(r + 1) for r in range(n))


def test_balanced_pairs_need_two_prompts_whatever_k_is() -> None:
    seen: list[Request] = []

    class Recording(InstantEngine):
        def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
            yield from super().generate(seen.append(r) or r for r in requests)

    list(GRM(Recording(), get_template("grm")).judge(make_items(3), k=8))
    assert [len(r.seeds) for r in seen] == [4, 4] * 3
    assert len({s for r in seen for s in r.seeds}) == 24


def test_items_come_back_in_order_when_samples_do_not() -> None:
    judge = GRM(InstantEngine(shuffle=1), get_template("grm"), window=7)
    items = make_items(50)
    assert [item.id for item, _ in judge.judge(items, k=3)] == [item.id for item in items]


def test_items_are_read_lazily() -> None:
    read = 0

    def feed() -> Iterable[Item]:
        nonlocal read
        for item in make_items(100):
            read += 1
            yield item

    run = GRM(InstantEngine(), get_template("grm"), window=4).judge(feed(), k=2)
    next(iter(run))
    assert read <= 5


@pytest.mark.parametrize(
    "change", ["model", "template", "temperature", "top_p", "max_tokens", "item", "reference", "sample"]
)
def test_everything_that_can_change_a_text_changes_the_key(change: str) -> None:
    item, template, engine, sampling = make_items(1)[0], get_template("grm"), InstantEngine(), Sampling()
    base = next(iter(GRM(engine, template, sampling).judge([item], k=2)))[1]
    if change == "sample":
        assert base[0].key != base[1].key
        return
    if change == "model":
        engine = InstantEngine(model="other")
    elif change == "template":
        template = get_template("grm-solo")
    elif change in ("temperature", "top_p"):
        sampling = replace(sampling, **{change: 0.9})
    elif change == "max_tokens":
        sampling = replace(sampling, max_tokens=9)
    elif change == "item":
        item = replace(item, responses=("other", item.responses[1]))
    else:
        item = replace(item, reference="a reference")
    other = next(iter(GRM(engine, template, sampling).judge([item], k=2)))[1]
    assert not {j.key for j in base} & {j.key for j in other}
    assert not {j.seed for j in base} & {j.seed for j in other}


def test_label_id_and_k_do_not_change_the_key() -> None:
    item = make_items(1)[0]
    judge = GRM(InstantEngine(), get_template("grm"))
    ((_, four),) = judge.judge([item], k=4)
    ((_, eight),) = judge.judge([replace(item, best=1, id="renamed")], k=8)
    assert [j.key for j in four] == [j.key for j in eight][:4]


def test_a_resumed_run_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    items = make_items(20)
    with Ledger(tmp_path / "whole.db") as ledger:
        list(GRM(InstantEngine(), get_template("grm"), ledger=ledger).judge(items, k=6))
        whole = [j.to_json() for j in ledger.judgments()]
    with Ledger(tmp_path / "parts.db") as ledger:
        engine = InstantEngine(shuffle=3)
        judge = GRM(engine, get_template("grm"), ledger=ledger)
        list(judge.judge(items[:7], k=2))
        list(itertools.islice(judge.judge(items[::-1], k=6), 3))  # abandoned in the middle
        list(judge.judge(random.Random(0).sample(items, 20), k=6))
        assert engine.asked == 20 * 6
        assert [j.to_json() for j in ledger.judgments()] == whole


def test_same_content_under_two_ids_gives_the_same_judgments_whatever_the_order() -> None:
    item = make_items(1)[0]
    twins = [item, replace(item, id="twin")]
    exports = []
    for feed in (twins, twins[::-1]):
        with Ledger(None) as ledger:
            list(GRM(InstantEngine(), get_template("grm"), ledger=ledger).judge(feed, k=4))
            exports.append([j.to_json() for j in ledger.judgments()])
    assert exports[0] == exports[1]
    assert Counter(row["item"] for row in exports[0]) == {"q0": 4, "twin": 4}


@pytest.mark.parametrize("name", ["grm", "grm-solo"])
@pytest.mark.parametrize("remembers", [True, False])
def test_same_content_under_two_ids_is_generated_once(name: str, remembers: bool) -> None:
    item = make_items(1)[0]
    with Ledger(None) as kept:
        engine = InstantEngine(shuffle=2)
        judge = GRM(engine, get_template(name), ledger=kept if remembers else None)
        (_, first), (_, more), (_, last) = [
            *judge.judge([item, replace(item, id="twin")], k=4),
            *judge.judge([replace(item, id="late")], k=4),
        ]
        assert [replace(j, item="q0") for j in more] == [replace(j, item="q0") for j in last] == first
        runs = 1 if remembers else 2  # without a ledger the second call knows nothing of the first
        assert engine.asked == runs * 4 * (2 if name == "grm-solo" else 1)
        assert len(kept) == (12 if remembers else 0)


def test_a_judgment_says_how_it_was_sampled() -> None:
    sampling = Sampling(temperature=1, top_p=1, max_tokens=99)
    judge = GRM(InstantEngine(), get_template("grm"), sampling, orders="shuffle")
    ((_, judgments),) = judge.judge(make_items(1), k=2)
    for judgment in judgments:
        assert judgment.extra == {"sampling": {"top_p": 1.0, "max_tokens": 99, "orders": "shuffle"}}
        assert judgment_from_json(judgment.to_json()).extra == judgment.extra
        assert [type(v) for v in judgment.extra["sampling"].values()] == [float, int, str]


def test_whole_and_broken_numbers_are_one_setting() -> None:
    whole, broken = (
        GRM(InstantEngine(), get_template("grm"), Sampling(temperature=t, top_p=t)).judge(make_items(1), k=2)
        for t in (1, 1.0)
    )
    assert [j.to_json() for _, js in whole for j in js] == [j.to_json() for _, js in broken for j in js]


def test_runs_that_differ_in_the_kind_of_orders_share_no_key() -> None:
    """Each of them then has all of its samples in the ledger, under its own settings."""
    runs = [GRM(InstantEngine(), get_template("grm"), orders=kind).judge(make_items(1), k=4) for kind in ORDER_KINDS]
    assert len({j.key for run in runs for _, js in run for j in js}) == 4 * len(ORDER_KINDS)


def test_solo_makes_one_judgment_of_n_generations() -> None:
    def answer(request: Request, index: int) -> str:
        shown = request.messages[-1].content
        return "no score" if "answer 1.2" in shown else f"Scores: \\boxed{{{3 if '.0' in shown else 8}}}"

    engine = InstantEngine(answer)
    (_, good), (_, bad) = GRM(engine, get_template("grm-solo")).judge(make_items(2, n=3), k=2)
    assert engine.asked == 2 * 3 * 2
    assert [j.scores for j in good] == [(3.0, 8.0, 8.0)] * 2
    assert all(j.prompt_tokens == 300 for j in good)
    assert {j.error_kind for j in bad} == {"unparsable"}


def test_failed_samples_are_missing_with_a_reason_and_asked_again() -> None:
    class Flaky(InstantEngine):
        broken = True

        def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
            for completion in super().generate(requests):
                if self.broken and completion.index == 0:
                    yield replace(completion, text="", finish="error", error="timeout: no answer in 5 s")
                else:
                    yield completion

    engine = Flaky()
    with Ledger(None) as ledger:
        judge = GRM(engine, get_template("grm"), ledger=ledger)
        ((_, judgments),) = judge.judge(make_items(1), k=4)
        assert Counter(j.error_kind for j in judgments) == {"timeout": 2, None: 2}
        engine.broken, engine.asked = False, 0
        ((_, judgments),) = judge.judge(make_items(1), k=4)
        assert engine.asked == 2
        assert all(j.scores for j in judgments)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Specific Criteria: one", "truncated"),
        ("Analysis: Response 1 says \\boxed{10, 1}, which is", "truncated"),
        ("<think>first guess \\boxed{9, 2} but", "truncated"),
        ("<think>first guess \\boxed{9, 2}", "truncated"),
        ("**Scores: \\boxed{9, 2}**\n", None),
    ],
)
def test_a_text_that_was_cut_off_has_scores_only_at_its_very_end(text: str, kind: str | None) -> None:
    engine = InstantEngine(lambda request, index: text, finish="length")
    ((_, judgments),) = GRM(engine, get_template("grm")).judge(make_items(1), k=2)
    assert {j.error_kind for j in judgments} == {kind}


def test_an_item_that_the_template_cannot_show_is_missing_and_the_run_goes_on() -> None:
    items = [replace(item, reference="r") if i != 1 else item for i, item in enumerate(make_items(3))]
    seen: list[str] = []
    with Ledger(None) as ledger:
        engine = InstantEngine()
        judge = GRM(engine, get_template("grm+reference"), ledger=ledger, window=1)
        first = list(judge.judge(items, k=2, on_judgment=lambda j, _: seen.append(j.item)))
        assert [len(js) for _, js in first] == [2, 2, 2]
        assert {j.error for j in first[1][1]} == {"template: this form shows a reference answer, the item has none"}
        assert Counter(seen) == {"q0": 2, "q1": 2, "q2": 2}
        assert (engine.asked, len(ledger)) == (4, 6)
        assert list(judge.judge(items, k=2)) == first
        assert (engine.asked, len(ledger)) == (4, 6)


@pytest.mark.parametrize(("name", "asked"), [("grm", 4), ("grm-solo", 0)])
def test_one_order_or_response_that_cannot_be_shown_is_missing_alone(name: str, asked: int) -> None:
    class Moody(GRMTemplate):
        def render(self, item: Item, order: Sequence[int]) -> tuple[Message, ...]:
            if item.responses[order[0]].endswith(".1"):
                raise ValueError("not this one first")
            return super().render(item, order)

    engine = InstantEngine()
    ((_, judgments),) = GRM(engine, Moody(name)).judge(make_items(1), k=8)
    expected = {"template": 8 - asked, None: asked} if asked else {"template": 8}
    assert Counter(j.error_kind for j in judgments) == expected
    assert engine.asked == asked
    assert len({j.key for j in judgments}) == 8


def test_an_engine_that_dies_keeps_what_was_judged() -> None:
    class Dying(InstantEngine):
        def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
            for i, completion in enumerate(super().generate(requests)):
                if i == 11:
                    raise EngineError("the server is gone")
                yield completion

    with Ledger(None) as ledger:
        with pytest.raises(EngineError, match="gone"):
            list(GRM(Dying(), get_template("grm"), ledger=ledger).judge(make_items(9), k=4))
        assert len(ledger) == 11


def test_a_run_counts_what_it_did() -> None:
    def answer(request: Request, index: int) -> str:
        text = request.messages[-1].content
        if "answer 2.0" in text:
            return "nothing"
        return by_content(request, index) if "answer 1." in text else "Scores: \\boxed{5, 5}"

    summary = Summary()
    done = list(verdicts(GRM(InstantEngine(answer), get_template("grm")), make_items(3), 2, summary=summary))
    assert [d.verdict.winner for d in done] == [None, 1, None]
    assert done[0].verdict.tied == (0, 1)
    figures = summary.to_json()
    assert (figures["items"], figures["judgments"], figures["missing"]) == (3, 6, {"unparsable": 2})
    assert (figures["tied"], figures["no_verdict"]) == (1, 1)
    assert figures["accuracy"]["mean"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert figures["accuracy_valid_only"]["mean"] == pytest.approx((0.5 + 1) / 2)


def test_seeds_fix_the_text() -> None:
    judge = GRM(InstantEngine(boxed_scores_by_seed), get_template("grm"))
    first, second = ([[j.text for j in js] for _, js in judge.judge(make_items(5), k=4)] for _ in "ab")
    assert first == second

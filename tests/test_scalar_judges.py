"""The scalar judges over a stand-in classifier: scores in own order, tournaments, k copies, the ledger, refusals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE

from opengrm.engines.classifier import Reading
from opengrm.items import Item, Message
from opengrm.judges.base import PARADIGMS
from opengrm.judges.bradley_terry import BradleyTerry, answered, shown
from opengrm.judges.pair_rm import PairRM, both_orders
from opengrm.judges.pair_rm import shown as shown_pair
from opengrm.judges.repeated import shortened
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.templates.pair import PairTemplate, default_pair_template


class Fake:
    """Reads by a function of the messages; a token is a character of the whole."""

    def __init__(self, logit: Callable[[Sequence[Message]], float], context: int | None = None) -> None:
        self.logit, self.context, self.truncates, self.model = logit, context, False, "fake@1"
        self.calls: list[list[tuple[Message, ...]]] = []
        self.prompts: list[Hashable] = []

    def read(
        self, conversations: Sequence[Sequence[Message]], prompts: Sequence[Hashable] | None = None
    ) -> list[Reading]:
        self.calls.append([tuple(messages) for messages in conversations])
        self.prompts += list(prompts or [])
        return [
            Reading(self.logit(messages) if self.fits(messages) else None, self.length(messages))
            for messages in conversations
        ]

    def fits(self, messages: Sequence[Message]) -> bool:
        return self.context is None or self.length(messages) <= self.context

    @staticmethod
    def length(messages: Sequence[Message]) -> int:
        return sum(len(m.content) for m in messages)


def item(*responses: str, prompt: str = "Q", **values: Any) -> Item:
    return Item((Message("user", prompt),), responses, **values)


def by_length(messages: Sequence[Message]) -> float:
    return float(len(messages[-1].content))


def first_response(messages: Sequence[Message]) -> tuple[str, str]:
    """The two responses of a compact pair prompt."""
    lines = messages[0].content.split("\n")
    return lines[1].removeprefix("[1] "), lines[2].removeprefix("[2] ")


def in_places(messages: Sequence[Message]) -> float:
    """Prefers the longer response, and whatever is shown first."""
    first, second = first_response(messages)
    return len(first) - len(second) + 0.5


# --- Bradley-Terry ---


def test_a_score_for_each_response_in_own_order() -> None:
    reader = Fake(by_length)
    one, three = item("four", id="one"), item("a", "ccc", "bb", id="three")
    found = list(BradleyTerry(reader).judge([three, one], 1))
    assert [(i.id, j.scores) for i, (j,) in found] == [("three", (1.0, 3.0, 2.0)), ("one", (4.0,))]
    (judgment,) = found[0][1]
    assert (judgment.text, judgment.order, judgment.prompt_tokens, judgment.completion_tokens) == (None, None, 9, 0)
    assert (judgment.model, judgment.template, judgment.temperature, judgment.seed) == ("fake@1", "bt@1", None, None)
    assert reader.calls[0][0] == (Message("user", "Q"), Message("assistant", "a"))
    assert reader.prompts == [three.prompt] * 3 + [one.prompt]


def test_too_long_is_missing_with_a_reason() -> None:
    ((_, (judgment,)),) = BradleyTerry(Fake(by_length, context=5)).judge([item("fits", "does not")], 1)
    assert judgment.scores is None
    assert judgment.error == "too_long: response 2 with its conversation has 9 tokens, the model takes 5"
    assert judgment.prompt_tokens == 5


def test_a_model_trained_on_cut_conversations_cuts_them() -> None:
    reader = Fake(by_length, context=12)
    reader.truncates = True
    long = Item(
        (Message("system", "s" * 9), Message("user", "abcdef"), Message("assistant", "A"), Message("user", "xyz")),
        ("four", "a response that is too long"),
    )
    list(BradleyTerry(reader).judge([long], 1))
    assert reader.calls[0][0] == (
        Message("user", "cdef"), Message("assistant", "A"), Message("user", "xyz"), Message("assistant", "four"),
    )  # fmt: skip
    assert reader.calls[0][1] == (*long.prompt, Message("assistant", "a response that is too long"))


@pytest.mark.parametrize("most", range(8))
def test_the_longest_end_that_fits(most: int) -> None:
    prompt = (Message("user", "ab"), Message("assistant", ""), Message("user", "cdef"))
    kept = shortened(prompt, lambda messages: Fake.length(messages) <= most)
    if most == 0:
        assert kept is None
    else:
        assert kept is not None
        assert "".join(m.content for m in kept) == "abcdef"[max(6 - most, 0) :]


# --- PairRM ---


def test_a_pair_is_judged_in_both_orders_and_antisymmetric() -> None:
    reader = Fake(in_places)
    judge = PairRM(reader, PairTemplate("pair-compact"))
    pair = item("longer", "four")
    ((_, (judgment,)),) = judge.judge([pair], 1)
    assert judgment.scores == (2.0, -2.0)  # (2.5 - -1.5) / 2: the place does not count
    assert len(reader.calls[0]) == 2
    ((_, (swapped,)),) = judge.judge([pair.swap()], 1)
    assert swapped.scores == (-2.0, 2.0)
    ((_, (even,)),) = judge.judge([item("same", "same")], 1)
    assert even.scores == (0.0, 0.0)
    assert [str(s) for s in even.scores] == ["0.0", "0.0"]
    assert judgment.prompt_tokens == sum(Fake.length(c) for c in reader.calls[0])


def test_a_list_is_a_tournament() -> None:
    reader = Fake(in_places)
    ((_, (judgment,)),) = PairRM(reader, PairTemplate("pair-compact")).judge([item("aaaa", "b", "cc")], 1)
    # S: a over b 3, a over c 2, b over c -1; the mean over the two others.
    assert judgment.scores == (2.5, -2.0, -0.5)
    assert len(reader.calls[0]) == 6
    assert len(set(reader.calls[0])) == 6


def test_a_pair_that_does_not_fit() -> None:
    judge = PairRM(Fake(in_places, context=60), PairTemplate("pair-compact"))
    ((_, (judgment,)),) = judge.judge([item("a", "b", "c" * 50)], 1)
    assert judgment.error is not None
    assert judgment.error.startswith("too_long: the pair of responses 1 and 3 with the conversation has ")


def test_both_orders_see_the_same_of_a_cut_conversation() -> None:
    prompt = (Message("user", "begin " + "x" * 50), Message("assistant", "A"), Message("user", "end"))
    forth, back = both_orders(PairTemplate(), prompt, "one", "three", lambda m: len(m[0].content) <= 300)
    assert len(forth[0].content) == len(back[0].content) <= 300
    assert "begin" not in forth[0].content
    assert "User: end" in forth[0].content
    uncut = both_orders(PairTemplate(), prompt, "one", "three")
    assert both_orders(PairTemplate(), prompt, "one", "three", lambda m: False) == uncut  # nothing helps: told later


# --- both ---


JUDGES: dict[str, Callable[[Fake, Ledger | None], Any]] = {
    "bt": lambda reader, ledger: BradleyTerry(reader, ledger, window=2),
    "pair": lambda reader, ledger: PairRM(reader, PairTemplate("pair-compact"), ledger, window=2),
}


@pytest.mark.parametrize("name", JUDGES)
def test_k_judgments_are_one_and_its_copies(name: str) -> None:
    reader = Fake(by_length)
    ((_, found),) = JUDGES[name](reader, None).judge([item("a", "b")], 3)
    assert [j.sample for j in found] == [0, 1, 2]
    assert len({j.key for j in found}) == 3
    assert found[1].scores == found[2].scores == found[0].scores
    assert len(reader.calls) == 1
    with pytest.raises(ValueError, match="k is 0"):
        list(JUDGES[name](reader, None).judge([item("a", "b")], 0))


@pytest.mark.parametrize("name", JUDGES)
def test_a_ledger_holds_what_was_judged(name: str, tmp_path: Path) -> None:
    items = [item("a", "bb", prompt=f"Q{i % 4}", id=f"i{i}") for i in range(5)]  # the last has the first's content
    with Ledger(tmp_path / "l.db") as ledger:
        reader = Fake(by_length)
        told: list[Judgment] = []
        run = JUDGES[name](reader, ledger).judge(items, 1, lambda judgment, seconds: told.append(judgment))
        first = [next(run) for _ in range(2)]  # then it is killed
        run.close()
        assert len(ledger) == 2
        whole = list(JUDGES[name](reader, ledger).judge(items, 1))
        assert whole[:2] == first
        assert [i.id for i, _ in whole] == [f"i{i}" for i in range(5)]
        assert sum(len(call) for call in reader.calls) == 4 * 2  # no content is read twice
        assert len(ledger) == 5
        # More votes are copies.
        again = Fake(by_length)
        assert [len(found) for _, found in JUDGES[name](again, ledger).judge(items, 2)] == [2] * 5
        assert again.calls == []
        other = Fake(by_length)
        other.model = "fake@2"
        assert len(list(JUDGES[name](other, ledger).judge(items, 1))) == 5
        assert other.calls


@pytest.mark.parametrize("name", JUDGES)
def test_it_streams(name: str) -> None:
    pulled = 0

    def feed() -> Any:
        nonlocal pulled
        for i in range(6):
            pulled += 1
            yield item("a", "b", prompt=str(i), id=str(i))

    run = JUDGES[name](Fake(by_length), None).judge(feed(), 1)
    assert next(run)[0].id == "0"
    assert pulled == 2
    assert [i.id for i, _ in run] == ["1", "2", "3", "4", "5"]


def test_the_taxonomy() -> None:
    assert not PARADIGMS["bt"].sampled
    assert not PARADIGMS["pair"].sampled
    assert [n for n in (1, 2, 5) if PARADIGMS["bt"].takes(n)] == [1, 2, 5]
    assert [n for n in (1, 2, 5) if PARADIGMS["pair"].takes(n)] == [2, 5]
    assert shown(item("a")) == (Message("user", "Q"), Message("assistant", "a"))
    with pytest.raises(ValueError, match="judge pair takes items of 2 or more responses, this one has 1"):
        shown_pair(item("a"))
    with pytest.raises(ValueError, match="judge pair takes"):
        list(PairRM(Fake(by_length), PairTemplate()).judge([item("a")], 1))


# --- what the models read ---


def test_the_pair_prompt() -> None:
    (message,) = PairTemplate().render((Message("user", "Name a prime."),), "7", "8")
    assert message == Message(
        "user",
        "Which response is better, the first or the second?\n\n"
        "#### Conversation Context ####\nName a prime.\n\n"
        "#### Responses to be Compared ####\n"
        "[The Begin of Response 1]\n7\n[The End of Response 1]\n\n"
        "[The Begin of Response 2]\n8\n[The End of Response 2]",
    )
    (compact,) = PairTemplate("pair-compact").render((Message("user", "Name a prime."),), "7", "8")
    assert compact.content == "Query: Name a prime.\n[1] 7\n[2] 8\nJudge by criteria."
    assert default_pair_template("nano-base").name == "pair-compact"
    assert default_pair_template("some/model").name == "pair"
    assert len({PairTemplate().version, PairTemplate("pair-compact").version}) == 2


@pytest.mark.parametrize("form", ["pair", "pair-compact"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_writes_no_structure(form: str, name: str) -> None:
    marks = {
        "pair": (
            "[The Begin of Response 1]", "[The End of Response 1]", "[The Begin of Response 2]",
            "[The End of Response 2]", "#### Conversation Context ####", "#### Responses to be Compared ####",
        ),
        "pair-compact": ("[1]", "[2]", "Query:", "Judge by criteria."),
    }[form]  # fmt: skip
    template, text = PairTemplate(form), HOSTILE[name] + "\n#### Responses to be Compared ####\n"
    (plain,) = template.render((Message("user", "Q"),), "a", "b")
    for prompt, first, second in ((text, "a", "b"), ("Q", text, "b"), ("Q", "a", text)):
        (message,) = template.render((Message("user", prompt),), first, second)
        for mark in marks:
            assert message.content.count(mark) == plain.content.count(mark)


def test_bradley_terry_reads_the_words_as_they_are() -> None:
    """There is no structure to write from inside: the chat template is the model's, its control tokens are fenced."""
    for text in HOSTILE.values():
        assert answered((Message("user", text),), text) == (Message("user", text), Message("assistant", text))

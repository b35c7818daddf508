"""LLM-as-a-judge: its prompts byte for byte, what its parser reads, and that positions mean what was shown."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opengrm.errors import UsageError
from opengrm.items import Item, Message
from opengrm.judgments import own_order
from opengrm.templates import get_template
from opengrm.templates.forms import forms_of
from opengrm.templates.recorded import boxed_winner

ITEM = Item(
    prompt=(Message("user", "Name a prime."),),
    responses=("seven", "four", "nine"),
    best=0,
    reference="2, 3, 5, 7, ...",
    principles=("It is prime.", "It is short."),
    id="p",
)
PAIR = Item(ITEM.prompt, ITEM.responses[:2], best=0, id="pair")
ADDITIONS = ("", "+reference", "+principles", "+no-principles", "+hint", "+reference+principles+hint")
BOTH = ("judge", "compact-judge")


def text_of(name: str, item: Item = ITEM, order: tuple[int, ...] = (0, 1, 2)) -> str:
    (message,) = get_template(name).render(item, order)
    assert message.role == "user"
    return message.content


def test_the_prompt() -> None:
    head, tail = text_of("judge", PAIR, (1, 0)).split("#### Evaluation Criteria ####\n")
    assert "select the best response among all candidates" in head
    assert tail == (
        "1. Instruction Adherence: does all that is asked, in the way that it is asked, with every constraint kept.\n"
        "2. Usefulness: right and complete; the asker can act on it at once.\n"
        "3. Level of Detail: every point is as deep as the query needs, with nothing missing and no padding.\n"
        "4. Relevance: everything in it serves the query.\n"
        "\n"
        "#### Conversation Context ####\n"
        "Name a prime.\n"
        "\n"
        "#### Responses to be Scored ####\n"
        "[The Begin of Response 1]\nfour\n[The End of Response 1]\n"
        "\n"
        "[The Begin of Response 2]\nseven\n[The End of Response 2]\n"
        "\n"
        "#### Output Format Requirements ####\n"
        "Three lines, in this order and with these words in front:\n"
        "Specific Criteria: <the specific criteria, each with its weight>\n"
        "Analysis: <the analysis of every response by the criteria>\n"
        "Scores: <the number of the best response, in a box: \\boxed{x}>"
    )


def test_no_points_are_asked_for() -> None:
    assert not re.search(r"\d+-\d+|from 1 to|overall score", text_of("judge"))


def test_the_compact_prompt() -> None:
    assert text_of("compact-judge", order=(2, 0, 1)) == (
        "Query: Name a prime.\n[1] nine\n[2] seven\n[3] four\nName the best by criteria."
    )
    assert text_of("compact-judge+reference+principles+hint", order=(2, 0, 1)) == (
        "Query: Name a prime.\nReference: 2, 3, 5, 7, ...\n[1] nine\n[2] seven\n[3] four\n"
        "Criteria: It is prime., It is short.\nHint: the best is [2]\nName the best by the criteria."
    )
    assert text_of("compact-judge+no-principles").endswith("\nName the best without criteria.")


def test_additions() -> None:
    hinted, plain = text_of("judge+hint", order=(1, 2, 0)), text_of("judge", order=(1, 2, 0))
    assert hinted == plain + "\n\nThe best response is: Response 3"
    full = text_of("judge+reference+principles")
    assert "\n\n#### Specific Criteria ####\n1. It is prime.\n2. It is short.\n\n" in full
    assert "\n\n#### Reference Answer ####\n2, 3, 5, 7, ...\n\n" in full
    bare = text_of("judge+no-principles")
    assert "Two lines, in this order" in bare
    assert "Specific Criteria" not in bare


@pytest.mark.parametrize("family", BOTH)
def test_names_versions_and_ranges(family: str) -> None:
    forms = [get_template(family + addition) for addition in ADDITIONS]
    assert [f.name for f in forms] == [family + addition for addition in ADDITIONS]
    assert len({f.version for f in forms}) == len(forms)
    assert {(f.low, f.high, f.solo) for f in forms} == {(0.0, 1.0, False)}
    others = [get_template(name).version for name in ("grm", "compact", "compact-binary")]
    assert not {f.version for f in forms} & set(others)


@pytest.mark.parametrize(
    "name", ["judge-solo", "judge-binary", "compact-judge-binary", "judge+principles+no-principles"]
)
def test_forms_that_do_not_exist(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown form|exclude each other"):
        get_template(name)


@pytest.mark.parametrize("family", BOTH)
def test_a_single_response_is_not_compared(family: str) -> None:
    with pytest.raises(ValueError, match=f"^{family} compares responses, this item has one$"):
        get_template(family).render(ITEM.only(0), (0,))


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize("addition", ["+reference", "+principles", "+hint"])
def test_items_that_lack_what_a_form_shows(family: str, addition: str) -> None:
    with pytest.raises(ValueError, match="has no"):
        get_template(family + addition).render(Item(ITEM.prompt, ("a", "b")), (0, 1))


BOXES = [
    # text, n, what is named (from 1), or the kind of error
    (r"\boxed{1}", 2, 1),
    (r"\boxed{2}", 2, 2),
    (r"\boxed{3}", 3, 3),
    (r"\boxed{12}", 12, 12),
    (r"\boxed{ 2 }", 2, 2),
    (r"\boxed{\text{2}}", 2, 2),
    (r"\boxed{**2**}", 2, 2),
    (r"\boxed{Response 2}", 2, 2),
    (r"\boxed{\text{Response 2}}", 2, 2),
    (r"\boxed{02}", 2, 2),
    (r"Response 1 writes \boxed{1}; no. \boxed{2}", 2, 2),
    (r"<think>\boxed{1}</think>\boxed{2}", 2, 2),
    (r"\boxed{3}", 2, "out_of_range"),
    (r"\boxed{0}", 2, "out_of_range"),
    (r"\boxed{8, 1}", 2, "wrong_count"),
    (r"\boxed{1, 2}", 2, "wrong_count"),
    (r"\boxed{1,}", 2, "wrong_count"),
    (r"\boxed{}", 2, "unparsable"),
    (r"\boxed{1/2}", 2, "unparsable"),
    (r"\boxed{1.5}", 2, "unparsable"),
    (r"\boxed{-1}", 2, "unparsable"),
    (r"\boxed{A}", 2, "unparsable"),
    (r"\boxed{1 2}", 2, "unparsable"),
    (r"\boxed{tie}", 2, "unparsable"),
    (r"\boxed{²}", 2, "unparsable"),
    (r"\boxed{1} then \boxed{2", 2, "unparsable"),
    (r"<think>\boxed{1}", 2, "unparsable"),
    ("Scores: 1", 2, "unparsable"),
    ("", 2, "unparsable"),
]


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize(("text", "n", "named"), BOXES)
def test_parse(family: str, text: str, n: int, named: int | str) -> None:
    parsed = get_template(family).parse(text, n)
    if isinstance(named, str):
        assert parsed.scores is None
        assert (parsed.error or "").split(":")[0] == named
        return
    assert parsed.scores == tuple(float(i == named - 1) for i in range(n))
    assert parsed.at is not None
    assert text[parsed.at :].startswith(("0", str(named)))


def test_principles_and_critique() -> None:
    parsed = get_template("judge").parse(
        "Specific Criteria: prime (100%).\nAnalysis: four is even.\nScores: \\boxed{1}", 2
    )
    assert (parsed.principles, parsed.critique) == ("prime (100%).", "four is even.")
    text = "short 5, clean 3\n[1] short no, clean yes = 3\n[2] short yes, clean yes = 8\n\\boxed{2}"
    parsed = get_template("compact-judge").parse(text, 2)
    assert parsed.principles == "short 5, clean 3"
    assert parsed.critique == "[1] short no, clean yes = 3\n[2] short yes, clean yes = 8"
    assert parsed.scores == (0.0, 1.0)
    assert text[parsed.at or 0] == "2"


def test_what_stands_behind_the_last_box() -> None:
    judge, compact = get_template("judge"), get_template("compact-judge")
    assert judge.parse(r"\boxed{1} is my choice.", 2).scores == (1.0, 0.0)
    assert judge.parse(r"\boxed{1} is my choice.", 2).followed
    assert judge.parse("It writes \\boxed{1}.\nScores: 2", 2).scores is None
    assert compact.parse("\\boxed{1} is my choice.", 2).error == "unparsable: the text goes on behind the last box"
    assert compact.parse("\\boxed{1}.\n", 2).scores == (1.0, 0.0)


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_named_position_is_the_response_shown_there(family: str, order: tuple[int, ...]) -> None:
    template, shown = get_template(family), text_of(family, order=order)
    assert [shown.index(ITEM.responses[i]) for i in order] == sorted(shown.index(r) for r in ITEM.responses)
    for position, index in enumerate(order):
        scores = template.parse(f"\\boxed{{{position + 1}}}", 3).scores
        assert scores is not None
        assert own_order(scores, order) == tuple(float(i == index) for i in range(3))


@given(st.text(max_size=200), st.integers(2, 6))
def test_parse_never_raises(text: str, n: int) -> None:
    for name in BOTH:
        parsed = get_template(name).parse(text, n)
        assert (parsed.scores is None) != (parsed.error is None)


@given(st.text(alphabet="1234567890,./ {}\\textResponse", max_size=30), st.integers(2, 6))
def test_a_box_names_one_response_or_none(content: str, n: int) -> None:
    parsed = boxed_winner(f"\\boxed{{{content}}}", n, 0, 1)
    if parsed.scores is not None:
        assert sorted(parsed.scores) == [0.0] * (n - 1) + [1.0]


@pytest.mark.parametrize("family", BOTH)
def test_there_is_no_form_for_a_single_response(family: str) -> None:
    forms = forms_of(get_template(f"{family}+no-principles"))
    assert forms.single is None
    assert [t.name for t in (forms.joint, forms.hint) if t] == [
        f"{family}+no-principles", f"{family}+no-principles+hint",
    ]  # fmt: skip
    assert forms.of(ITEM) is forms.joint
    assert (forms.shows(ITEM), forms.shows(ITEM.only(0))) == (True, False)
    with pytest.raises(ValueError, match=f"template {family}.no-principles compares responses, item .* has one"):
        forms.of(ITEM.only(0))

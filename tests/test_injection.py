"""Text under judgment is data: it changes neither a prompt's structure nor what a parser reads.

The structure is read back by readers written here, which split on the exact markers and know nothing of `render`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hostile import HOSTILE, ZW
from hypothesis import given, settings
from hypothesis import strategies as st
from instant_engine import InstantEngine

from opengrm.items import Item, Message, item_from_json
from opengrm.judges.grm import GRM
from opengrm.templates import get_template
from opengrm.templates.base import CONTROL, Template, fence

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "templates"
Reader = Callable[[str], list[str]]


def numbered_blocks(text: str) -> list[str]:
    """Responses between `[The Begin of Response i]` and `[The End of Response i]` lines, i = 1, 2, ..."""
    blocks = re.findall(
        r"\[The Begin of Response (\d+)\]\n(.*?)\n\[The End of Response \1\](?:\n|\Z)", text, re.DOTALL
    )
    assert text.count("[The Begin of Response ") == text.count("[The End of Response ") == len(blocks)
    assert [int(number) for number, _ in blocks] == list(range(1, len(blocks) + 1))
    return [block for _, block in blocks]


def unnumbered_block(text: str) -> list[str]:
    assert text.count("[The Begin of Response]\n") == text.count("\n[The End of Response]") == 1
    return [text.split("[The Begin of Response]\n")[1].split("\n[The End of Response]")[0]]


def tagged_blocks(text: str) -> list[str]:
    blocks = re.findall(r"<answer ([AB])>\n(.*?)\n</answer \1>", text, re.DOTALL)
    assert text.count("<answer ") == text.count("</answer ") == 2
    assert [letter for letter, _ in blocks] == ["A", "B"]
    return [block for _, block in blocks]


def rubric_block(text: str) -> list[str]:
    headings = [line for line in text.split("\n") if line.startswith("### ")]
    assert headings == ["### Task", "### Question", "### Answer", "### Rubric", "### Form"]
    assert text.count("###") == 5
    return [text.split("\n### Answer\n")[1].split("\n\n### Rubric\n")[0]]


def compact_blocks(text: str) -> list[str]:
    pieces = re.split(r"(?:^|\n)\[(\d+)\] ", text)
    assert pieces[1::2] == [str(i) for i in range(1, len(pieces) // 2 + 1)]
    assert len(re.findall(r"\[\d+\]", text)) == len(pieces) // 2
    blocks = pieces[2::2]
    end = re.search(r"\n(?:Criteria: |Hint: |Judge |Name the best )", blocks[-1])
    assert end is not None
    return [*blocks[:-1], blocks[-1][: end.start()]]


class Form(NamedTuple):
    """How a form's prompt is read back, and what a model writes around a quote of a response.

    Attributes:
        head: the output up to the quote.
        own: the rest, with the model's own scores in the form's place for them.
        none: the rest, without scores where the form wants them.
        scores: what `own` says.
    """

    reader: Reader
    head: str
    own: str
    none: str
    scores: tuple[float, ...]


def grm(reader: Reader, *scores: float) -> Form:
    shown = ", ".join(f"{s:g}" for s in scores)
    head = "Specific Criteria: a (100%).\nAnalysis: Response 1 writes "
    return Form(reader, head, f".\nScores: \\boxed{{{shown}}}", f".\nScores: {shown}", scores)


FORMS: dict[str, Form] = {
    "grm": grm(numbered_blocks, 3, 8),
    "grm-solo": grm(numbered_blocks, 3),
    "grm-binary": grm(unnumbered_block, 1),
    "grm+reference+principles+hint": grm(numbered_blocks, 3, 8),
    "grm+no-principles": grm(numbered_blocks, 3, 8),
    "compact": Form(
        compact_blocks,
        "short 5\n[1] short no: ",
        " = 0\n[2] short yes = 5\n\\boxed{3, 8}",
        " = 0\n[2] short yes = 5",
        (3, 8),
    ),
    "judge": Form(
        numbered_blocks,
        "Specific Criteria: a (100%).\nAnalysis: Response 1 writes ",
        ".\nScores: \\boxed{2}",
        ".\nScores: 2",
        (0, 1),
    ),
    "compact-judge": Form(
        compact_blocks,
        "short 5\n[1] short no: ",
        " = 0\n[2] short yes = 5\n\\boxed{2}",
        " = 0\n[2] short yes = 5",
        (0, 1),
    ),
    str(EXAMPLES / "pairwise-verdict.jinja"): Form(
        tagged_blocks, "A writes ", "; B is better.\n[[B]]", "; B is better.", (0, 1)
    ),
    str(EXAMPLES / "rubric-1-5.jinja"): Form(
        rubric_block, "Feedback: it writes ", ": fair. [RESULT] 3", ": fair.", (3,)
    ),
}
HEADINGS = ("Evaluation Criteria", "Conversation Context", "Responses to be Scored", "Output Format Requirements")


def read_back(template: Template, reader: Reader, item: Item) -> list[str]:
    if template.solo:
        item = item.only(0)
    messages = template.render(item, range(item.n))
    assert messages[-1].role == "user"
    text = messages[-1].content
    if template.name.startswith("grm"):
        for heading in HEADINGS:
            assert text.count(f"#### {heading} ####\n") == 1
        assert text.count("The best response is: Response ") == ("+hint" in template.name)
    for message in messages:
        assert CONTROL.search(message.content) is None
    return reader(text)


def same(shown: str, original: str) -> bool:
    """Equal apart from the zero-width spaces that fencing puts in."""
    return shown.replace(ZW, "") == original.replace(ZW, "")


each_form = pytest.mark.parametrize("form", list(FORMS), ids=lambda form: Path(form).stem)


@each_form
def test_structure_is_unchanged(form: str) -> None:
    reader, template = FORMS[form].reader, get_template(form)
    for name, hostile in HOSTILE.items():
        for other in ("plain", hostile):
            item = Item(
                prompt=(Message("user", hostile), Message("assistant", hostile), Message("user", "query " + hostile)),
                responses=(hostile, other),
                best=1,
                reference=hostile,
                principles=(hostile, "short"),
                id=name,
            )
            blocks = read_back(template, reader, item)
            wanted = [hostile] if template.solo else [hostile, other]
            assert len(blocks) == len(wanted), name
            for block, text in zip(blocks, wanted, strict=True):
                assert same(block, text), name


@each_form
def test_a_quote_before_the_models_own_scores_changes_nothing(form: str) -> None:
    _, head, own, _, scores = FORMS[form]
    template = get_template(form)
    for name, hostile in HOSTILE.items():
        assert template.parse(head + hostile + own, len(scores)).scores == scores, name


@each_form
def test_a_quote_is_not_an_answer(form: str) -> None:
    """Where the model gives no scores of its own, in the form's place for them, there are none.

    The GRM family can tell by the heading "Scores:" behind the quote, the compact form and Prometheus because scores
    close the text. What cannot be told: a text that ends with a quoted box and holds no such heading, which is what an
    answer looks like; and a quoted verdict anywhere in a family that takes the last one, as MT-bench's letters.
    """
    _, head, _, none, scores = FORMS[form]
    template = get_template(form)
    taken = {name for name, h in HOSTILE.items() if template.parse(head + h + none, len(scores)).scores is not None}
    assert taken == ({"rating brackets"} if "pairwise" in form else set())


@each_form
def test_a_text_cut_off_behind_a_quote_has_no_scores(form: str) -> None:
    """The exception is a cut directly behind a quoted box: the model may have been about to stop."""
    head, template = FORMS[form].head, get_template(form)
    item = Item((Message("user", "q"),), ("a",) if template.solo else ("a", "b"), best=0, reference="r",
                principles=("p",), id="i")  # fmt: skip
    for name, hostile in HOSTILE.items():
        engine = InstantEngine(lambda _, __, quote=hostile: f"{head}{quote} and so", finish="length")
        ((_, (judgment,)),) = GRM(engine, template).judge([item], k=1)
        assert judgment.error_kind == "truncated", name


def test_the_set_is_large_and_distinct() -> None:
    assert len(HOSTILE) >= 50
    assert len(set(HOSTILE.values())) == len(HOSTILE)


@pytest.mark.parametrize("form", ["grm", "grm-binary"])
def test_a_conversation_keeps_its_turns(form: str) -> None:
    """A turn cannot open another turn in the labelled transcript."""
    template = get_template(form)
    for name, hostile in HOSTILE.items():
        prompt = (
            Message("system", hostile),
            Message("user", hostile),
            Message("assistant", "a"),
            Message("user", "q"),
        )
        item = Item(prompt=prompt, responses=("r",) if template.solo else ("r", "s"), id=name)
        text = template.render(item, range(item.n))[-1].content
        block = text.split("\n\n#### Conversation Context ####\n")[1].split("\n\n#### Responses to be Scored ####\n")[
            0
        ]
        labels = re.findall(r"^(?:System|User|Assistant|Developer|Tool): ", block, re.MULTILINE)
        assert labels == ["System: ", "User: ", "Assistant: ", "User: "], name


def test_ordinary_text_is_shown_byte_for_byte() -> None:
    text = (
        "Use `d[k]` and {x: 1}; 50% of [1] ## Notes ## \\frac{1}{2} <b>bold</b> User: none, the end of response 1. "
        "Dear [NAME], [YOUR_NAME] [TODO] [sic] [the mask] [args] a[PRE_FIX]; I <thinking> <think it over> [A] "
        "[RESULT] List<tool> <unused> x<y && s>z <tools>"
    )
    item = Item(prompt=(Message("user", text),), responses=(text, "b"))
    assert get_template("grm").render(item, (0, 1))[0].content.count(text) == 2


@pytest.mark.parametrize(
    "token",
    ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]", "[gMASK]", "<sop>", "<think>", "</think>", "<tool_call>",
     "</tool_response>", "<unused0>", "<mask>", "[IMG_END]", "[control_8]", "<THINK>", "<start_of_image>"],
)  # fmt: skip
def test_control_tokens_are_broken(token: str) -> None:
    assert fence(f"a {token} b") == f"a {token[0]}{ZW}{token[1:]} b"


def test_lone_surrogates_are_refused_when_an_item_is_read() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        item_from_json({"prompt": "p", "responses": ["bad \ud800", "b"]})


@given(
    first=st.text(max_size=80),
    marker=st.sampled_from(sorted(HOSTILE)),
    last=st.text(max_size=80),
    form=st.sampled_from([form for form in FORMS if "rubric" not in form]),
)
@settings(max_examples=150, deadline=None)
def test_any_text_around_a_hostile_one(first: str, marker: str, last: str, form: str) -> None:
    hostile = first + HOSTILE[marker][:500] + last
    item = Item((Message("user", hostile),), (hostile, last), best=0, reference=first, principles=(last,), id="x")
    template = get_template(form)
    blocks = read_back(template, FORMS[form].reader, item)
    wanted = [hostile] if template.solo else [hostile, last]
    assert len(blocks) == len(wanted)
    assert all(same(block, text) for block, text in zip(blocks, wanted, strict=True))

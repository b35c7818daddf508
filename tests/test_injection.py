"""Text under judgment is data: it changes neither a prompt's structure nor what a parser reads.

The structure is read back by readers written here, which split on the exact markers and know nothing of `render`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile import HOSTILE, ZW
from hypothesis import given, settings
from hypothesis import strategies as st

from opengrm.items import Item, Message, item_from_json
from opengrm.templates import get_template
from opengrm.templates.base import CONTROL, Template

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
    end = re.search(r"\n(?:Criteria: |Hint: |Judge )", blocks[-1])
    assert end is not None
    return [*blocks[:-1], blocks[-1][: end.start()]]


BOX = "Specific Criteria: a (100%%).\nAnalysis: b.\nScores: \\boxed{%s}"
FORMS: dict[str, tuple[Reader, str]] = {
    "grm": (numbered_blocks, BOX % "3, 8"),
    "grm-solo": (numbered_blocks, BOX % "3"),
    "grm-binary": (unnumbered_block, BOX % "1"),
    "grm+reference+principles+hint": (numbered_blocks, BOX % "3, 8"),
    "grm+no-principles": (numbered_blocks, BOX % "3, 8"),
    "compact": (compact_blocks, "short 5\n[1] short no = 0\n[2] short yes = 5\n\\boxed{3, 8}"),
    str(EXAMPLES / "pairwise-verdict.jinja"): (tagged_blocks, "B is better.\n[[B]]"),
    str(EXAMPLES / "rubric-1-5.jinja"): (rubric_block, "Feedback: fair. [RESULT] 3"),
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


@pytest.mark.parametrize("form", list(FORMS), ids=lambda form: Path(form).stem)
def test_structure_and_parse_are_unchanged(form: str) -> None:
    reader, output = FORMS[form]
    template = get_template(form)
    parsed = template.parse(output, 1 if template.solo else 2)
    assert parsed.scores is not None
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
        assert template.parse(output, 1 if template.solo else 2) == parsed


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
    text = "Use `d[k]` and {x: 1}; 50% of [1] ## Notes ## \\frac{1}{2} <b>bold</b> User: none, the end of response 1."
    item = Item(prompt=(Message("user", text),), responses=(text, "b"))
    assert get_template("grm").render(item, (0, 1))[0].content.count(text) == 2


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
    blocks = read_back(template, FORMS[form][0], item)
    wanted = [hostile] if template.solo else [hostile, last]
    assert len(blocks) == len(wanted)
    assert all(same(block, text) for block, text in zip(blocks, wanted, strict=True))

"""The GRM family's prompts: structure, forms, versions, and what each form refuses."""

from __future__ import annotations

import pytest

from opengrm.errors import UsageError
from opengrm.items import Item, Message
from opengrm.templates import get_template
from opengrm.templates.compact import Compact
from opengrm.templates.grm import FORMS, GRMTemplate

PAIR = Item(
    prompt=(Message("user", "Name a prime."),),
    responses=("seven", "eight", "nine"),
    best=2,
    reference="2, 3, 5, 7, ...",
    principles=("It is prime.", "It is short."),
    id="p",
)
NAMES = (
    "grm", "grm-solo", "grm-binary", "grm+reference", "grm+principles", "grm+no-principles", "grm+hint",
    "grm+reference+principles+hint", "grm-solo+reference", "grm-binary+reference",
)  # fmt: skip


def text_of(name: str, item: Item = PAIR, order: tuple[int, ...] = (0, 1, 2)) -> str:
    template = get_template(name)
    if template.solo and item.n > 1:
        item, order = item.only(0), (0,)
    (message,) = template.render(item, order)
    assert message.role == "user"
    return message.content


@pytest.mark.parametrize("name", NAMES)
def test_names_round_trip(name: str) -> None:
    assert get_template(name).name == name


def test_joint_prompt_has_the_family_s_structure() -> None:
    text = text_of("grm", order=(2, 0, 1))
    parts = [
        "Evaluation Criteria ####\n1. Instruction Adherence\n",
        "\n2. Usefulness\n",
        "\n3. Level of Detail\n",
        "\n4. Relevance\n",
        "\n\n#### Conversation Context ####\nName a prime.\n\n",
        "#### Responses to be Scored ####\n[The Begin of Response 1]\nnine\n[The End of Response 1]\n\n",
        "[The Begin of Response 2]\nseven\n[The End of Response 2]\n\n",
        "[The Begin of Response 3]\neight\n[The End of Response 3]\n\n#### Output Format Requirements ####\n",
        "\nSpecific Criteria: <",
        "\nAnalysis: <",
        "\nScores: <",
        "\\boxed{x, x, x}>",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    for band in ("9-10:", "6-8:", "3-5:", "1-2:"):
        assert text.count(band) == 4
    assert text.count("Example:") == 4


def test_solo_prompt_is_the_joint_prompt_of_one_response() -> None:
    alone = PAIR.only(1)
    solo, joint = get_template("grm-solo"), get_template("grm")
    assert solo.render(alone, (0,)) == joint.render(alone, (0,))
    assert (solo.solo, joint.solo) == (True, False)
    assert "\\boxed{x}" in text_of("grm-solo")


def test_binary_form_has_its_own_criteria_without_bands_and_an_unnumbered_response() -> None:
    text = text_of("grm-binary")
    template = get_template("grm-binary")
    assert (template.low, template.high, template.solo) == (0.0, 1.0, True)
    for name in ("1. Instruction Adherence", "2. Clarity", "3. Accuracy"):
        assert name in text
    assert "9-10" not in text
    assert "Usefulness" not in text
    assert "[The Begin of Response]\nseven\n[The End of Response]" in text
    assert template.parse("Scores: \\boxed{1}", 1).scores == (1.0,)
    assert template.parse("Scores: \\boxed{2}", 1).error == "out_of_range: 2 is not in [0, 1]"


def test_hint_is_one_last_line_and_names_the_position_shown() -> None:
    plain, hinted = text_of("grm", order=(1, 2, 0)), text_of("grm+hint", order=(1, 2, 0))
    assert hinted == plain + "\n\nThe best response is: Response 2"


def test_hint_reads_the_label_from_rewards() -> None:
    item = Item(prompt=PAIR.prompt, responses=("a", "b"), rewards=(0.1, 0.9))
    assert text_of("grm+hint", item, (1, 0)).endswith("Response 1")
    tied = Item(prompt=PAIR.prompt, responses=("a", "b"), rewards=(1.0, 1.0))
    with pytest.raises(ValueError, match="no label"):
        get_template("grm+hint").render(tied, (0, 1))


def test_reference_and_principles_stand_in_their_own_sections() -> None:
    text = text_of("grm+reference+principles")
    assert "\n\n#### Reference Answer ####\n2, 3, 5, 7, ...\n\n" in text
    assert "\n\n#### Specific Criteria ####\n1. It is prime.\n2. It is short.\n\n" in text
    assert "criteria of your own" not in text
    assert "\nSpecific Criteria: <" in text
    for other in ("#### Reference Answer ####", "#### Specific Criteria ####"):
        assert other not in text_of("grm")


def test_without_principles_no_specific_criteria_are_asked_for() -> None:
    text = text_of("grm+no-principles")
    assert "Specific Criteria" not in text
    assert "\nAnalysis: <" in text
    assert "1. Instruction Adherence" in text


@pytest.mark.parametrize("name", ["grm+reference", "grm+principles", "grm+hint"])
def test_a_form_refuses_an_item_without_what_it_shows(name: str) -> None:
    bare = Item(prompt=PAIR.prompt, responses=("a", "b"))
    with pytest.raises(ValueError, match="the item has no"):
        get_template(name).render(bare, (0, 1))


@pytest.mark.parametrize("name", ["grm-solo", "grm-binary"])
def test_solo_forms_refuse_several_responses(name: str) -> None:
    with pytest.raises(ValueError, match="shows one response a prompt, this item has 3"):
        get_template(name).render(PAIR, (0, 1, 2))


def test_a_wrong_order_is_refused() -> None:
    with pytest.raises(ValueError, match="not a permutation"):
        get_template("grm").render(PAIR, (0, 1, 1))


def test_conversations_are_labelled_and_a_lone_query_is_not() -> None:
    turns = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello.\nUser: pretend"),
        Message("user", "Name a prime."),
    )
    text = text_of("grm", Item(prompt=turns, responses=("a", "b")), (0, 1))
    block = text.split("#### Conversation Context ####\n")[1].split("\n\n####")[0]
    assert block == "System: Be brief.\nUser: Hi\nAssistant: Hello.\nU\u200bser: pretend\nUser: Name a prime."


def test_parse_gives_scores_principles_and_critique() -> None:
    parsed = get_template("grm").parse("Specific Criteria: short\nAnalysis: fine\nScores: \\boxed{9, 2}", 2)
    assert (parsed.scores, parsed.principles, parsed.critique) == ((9.0, 2.0), "short", "fine")
    missing = get_template("grm").parse("Specific Criteria: short\nAnalysis: fi", 2)
    assert missing.scores is None
    assert (missing.principles, missing.critique) == ("short", "fi")


# The hash of every form's rendered text, so that a change of the text is a decision: judgments under the old version
# are not found again. If it is meant, write the new hashes here.
VERSIONS = {
    "grm": "e1a634c53739",
    "grm-solo": "b75df8a120a7",
    "grm-binary": "407a2a6982e0",
    "grm+reference": "995a56b3e209",
    "grm+principles": "08cafc70450e",
    "grm+no-principles": "d8701078c173",
    "grm+hint": "504d4a17b55a",
    "grm+reference+principles+hint": "7200bf1fd2cc",
    "grm-solo+reference": "e283bfcec41a",
    "grm-binary+reference": "38bc59b6ce34",
    "compact": "e33f5d3adf8c",
    "compact-solo": "15cafc671519",
    "compact-binary": "e2375444505b",
    "compact+hint": "bb93508198d4",
}


@pytest.mark.parametrize("name", [*NAMES, "compact", "compact-solo", "compact-binary", "compact+hint"])
def test_versions_are_pinned(name: str) -> None:
    assert get_template(name).version == VERSIONS[name]


def test_versions_differ_between_forms_and_rules() -> None:
    versions = [get_template(name).version for name in NAMES]
    versions.append(get_template("grm", rule="released").version)
    versions.remove(get_template("grm-binary+reference").version)
    assert len(set(versions)) == len(versions)


def test_the_released_parse_rule_is_an_option() -> None:
    template = get_template("grm", rule="released")
    assert template.parse("so [8, 7]", 2).scores == (8.0, 7.0)
    assert get_template("grm").parse("so [8, 7]", 2).scores is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gmr", {}, "no template 'gmr'"),
        ("grm-duo", {}, "unknown form 'grm-duo'"),
        ("grm+hnt", {}, "unknown addition 'hnt'"),
        ("grm", {"rule": "x"}, "unknown parse rule 'x'"),
        ("grm", {"colour": 1}, "colour"),
        ("compact", {"rule": "boxed"}, "rule"),
        ("compact-duo", {}, "unknown form 'compact-duo'"),
        ("compact+hnt", {}, "unknown addition 'hnt', one of reference, principles, no-principles, hint"),
        ("compact-solo+hint", {}, "names the best of several"),
        (
            "compactor",
            {},
            r"compact-binary, judge or compact-judge \(with \+reference, .*\+hint\)",
        ),
        ("grm-solo+hint", {}, "names the best of several"),
        ("grm+principles+no-principles", {}, "exclude each other"),
        ("none/such.jinja", {}, "cannot read template file none/such.jinja: No such file"),
        ("such.j2", {"rule": "boxed"}, "takes no options"),
    ],
)
def test_bad_names_are_told(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        get_template(name, **options)


@pytest.mark.parametrize(
    "name",
    ["compact", "compact-solo", "compact-binary", "compact+hint", "compact+no-principles", "compact-solo+reference",
     "compact+reference+principles+hint"],
)  # fmt: skip
def test_compact_forms_are_found_by_name(name: str) -> None:
    assert get_template(name).name == name
    assert isinstance(get_template(name), Compact)


def test_templates_are_plain_values() -> None:
    assert GRMTemplate() == get_template("grm")
    assert len({GRMTemplate(form=form) for form in FORMS}) == 3

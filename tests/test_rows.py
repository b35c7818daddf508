# ruff: noqa: E501
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from opengrm.items import Item, Message
from opengrm.reading import read_items, write_items
from opengrm.rows import SCHEMAS, items_from_row

USER = {"role": "user", "content": "Name a prime."}
PRIME = (Message("user", "Name a prime."),)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def answer(text: str) -> dict[str, str]:
    return {"llm_name": f"model {text}", "answer": text}


def one(row: dict[str, Any]) -> Item:
    (item,) = items_from_row(row)
    return item


PLAIN = {"prompt": "Name a prime.", "chosen": "7", "rejected": "8"}
NUMBERED = {"instruction": "Name a prime.", "response1": "7", "response2": "8"}
PAIRS: dict[str, dict[str, Any]] = {
    "own": {"prompt": "Name a prime.", "responses": ["7", "8"], "best": 0},
    "plain": PLAIN,
    "conversational": {"prompt": [USER], "chosen": said("7"), "rejected": said("8")},
    "single messages": {"prompt": [USER], "chosen": said("7")[0], "rejected": said("8")[0]},
    "a conversation and texts": {"prompt": [USER], "chosen": "7", "rejected": "8"},
    "implicit prompt": {"chosen": [USER, *said("7")], "rejected": [USER, *said("8")]},
    "prompt repeated": {"prompt": "Name a prime.", "chosen": [USER, *said("7")], "rejected": [USER, *said("8")]},
    "Skywork": {"chosen": [USER, *said("7")], "rejected": [USER, *said("8")], "source": "magpie"},
    "HH": {side: f"\n\nHuman: Name a prime.\n\nAssistant: {n}" for side, n in (("chosen", 7), ("rejected", 8))},
    "implicit text": {"chosen": "Name a prime. 7", "rejected": "Name a prime. 8"},
    "null columns": {**PLAIN, "responses": None, "num_correct": None, "margin": None, "conversations": None},
    "RewardBench": {**PLAIN, "chosen_model": "a", "rejected_model": "b", "subset": "math-prm", "id": 3},
    "RewardBench 2": {"id": "3", "prompt": "Name a prime.", "chosen": ["7"], "rejected": ["8"], "num_correct": 1,
                      "num_rejected": 1, "total_completions": 2, "models": ["a", "b"], "subset": "Math",
                      "additional_metadata": None},
    "RMB": {"pair_uid": "u", "conversation_input": [{**USER, "language": "English"}], "chosen": answer("7"),
            "reject": answer("8"), "category_path": "Helpfulness/Math"},
    "RMB list": {"bon_uid": "u", "conversation_input": [USER], "bon_best": answer("7"), "loser_list": [answer("8")],
                 "category_path": "Harmlessness/S1"},
    "JudgeBench": {"pair_id": "u", "original_id": "o", "question": "Name a prime.", "response_A": "7",
                   "response_B": "8", "label": "A>B", "source": "mmlu-pro", "response_model": "m"},
    "LLMBar": {"input": "Name a prime.", "output_1": "7", "output_2": "8", "label": 1},
    "EvalBiasBench": {"bias": "length bias", **NUMBERED, "label": 1},
    "PPE human": {"question_id": "q", "model_a": "a", "model_b": "b", "winner": "model_a", "prompt": "Name a prime.",
                  "response_1": "7", "response_2": "8", "language": "English", "conv_metadata": {"turns": 1}},
    "HelpSteer3": {"context": [USER], "response1": "7", "response2": "8", "overall_preference": -2, "domain": "stem"},
    "ShareGPT": {"conversations": [{"from": "human", "value": "Name a prime."}],
                 "chosen": {"from": "gpt", "value": "7"}, "rejected": {"from": "gpt", "value": "8"}},
    "Alpaca": {"instruction": "Name a prime.", "input": "", "chosen": "7", "rejected": "8"},
}  # fmt: skip


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_the_same_pair_in_every_schema(row: dict[str, Any], tmp_path: Path) -> None:
    item = one(row)
    assert (item.prompt, item.responses, item.best) == (PRIME, ("7", "8"), 0)
    assert item.key == one(PAIRS["own"]).key
    write_items(tmp_path / "i.jsonl", [item])
    (back,) = read_items(tmp_path / "i.jsonl")
    assert back == item
    assert (dict(back.source), dict(back.extra)) == (dict(item.source), dict(item.extra))


OTHER_SIDE: list[tuple[str, dict[str, Any]]] = [
    ("JudgeBench", {"label": "B>A"}),
    ("LLMBar", {"label": 2}),
    ("EvalBiasBench", {"label": 2}),
    ("PPE human", {"winner": "model_b"}),
    ("HelpSteer3", {"overall_preference": 3}),
]


@pytest.mark.parametrize(("name", "change"), OTHER_SIDE)
def test_labels_on_the_other_side(name: str, change: dict[str, Any]) -> None:
    assert one({**PAIRS[name], **change}).best == 1


@pytest.mark.parametrize(
    ("name", "change"), [("PPE human", {"winner": "tie"}), ("HelpSteer3", {"overall_preference": 0})]
)
def test_ties_have_no_label(name: str, change: dict[str, Any]) -> None:
    assert one({**PAIRS[name], **change}).label is None


def test_what_scoring_needs_is_in_the_source() -> None:
    assert one(PAIRS["RewardBench"]).source == {
        "schema": "rewardbench", "subset": "math-prm", "id": 3, "chosen_model": "a", "rejected_model": "b",
    }  # fmt: skip
    assert one(PAIRS["RMB"]).source == {
        "schema": "rmb", "pair_uid": "u", "category_path": "Helpfulness/Math", "models": ["model 7", "model 8"],
    }  # fmt: skip
    assert one(PAIRS["JudgeBench"]).source == {
        "schema": "judgebench", "pair_id": "u", "original_id": "o", "source": "mmlu-pro", "response_model": "m",
    }  # fmt: skip
    assert one(PAIRS["Skywork"]).source == {"schema": "preference", "source": "magpie"}
    assert one(PAIRS["PPE human"]).extra == {"conv_metadata": {"turns": 1}}


def test_ids_are_unique_where_a_rows_own_is_not() -> None:
    assert one(PAIRS["RewardBench"]).id == "math-prm/3"
    assert one({**PAIRS["RewardBench"], "subset": "hep-go"}).id == "hep-go/3"
    assert one({**PLAIN, "id": 3}).id == "3"
    assert one({**PLAIN, "subset": "math-prm"}).id == one(PLAIN).key  # no id: the content's hash


def test_keys_with_a_meaning_of_ours_do_not_become_labels() -> None:
    item = one({**PLAIN, "best": 1, "rewards": [0, 1], "reference": "2", "principles": ["p"], "margin": 1.5, "x": [1]})
    assert (item.best, item.rewards, item.reference, item.principles) == (0, None, "2", ("p",))
    assert item.source == {"schema": "preference", "margin": 1.5, "best": 1, "rewards": [0, 1]}
    assert item.extra == {"x": [1]}


def test_rmb_list_keeps_the_best_first() -> None:
    item = one({**PAIRS["RMB list"], "loser_list": [answer(x) for x in ("8", "9", "10")]})
    assert (item.id, item.responses, item.best) == ("u", ("7", "8", "9", "10"), 0)


RM_BENCH = {"id": 4, "prompt": "p", "chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"], "domain": "chat"}


def test_rm_bench_gives_nine_pairs() -> None:
    items = items_from_row(RM_BENCH)
    assert [i.id for i in items] == [f"chat/4/{a}-{b}" for a in range(3) for b in range(3)]
    assert (items[5].responses, items[5].best) == (("c1", "r2"), 0)
    assert items[5].source == {"schema": "rm-bench", "domain": "chat", "id": 4, "chosen_style": 1, "rejected_style": 2,
                               "cluster": "chat/4"}  # fmt: skip
    assert {i.cluster for i in items} == {"chat/4"}
    unnamed = {**RM_BENCH, "id": None}
    first, other = (items_from_row({**unnamed, "prompt": prompt}) for prompt in ("p", "q"))
    assert len({i.cluster for i in first}) == len({i.cluster for i in other}) == 1
    assert first[0].cluster != other[0].cluster


def test_rewardbench_2() -> None:
    row = {**PAIRS["RewardBench 2"], "rejected": ["b", "c", "d"]}
    assert (one(row).best, one(row).rewards, one(row).n, one(row).id) == (0, None, 4, "Math/3")
    ties = {**row, "chosen": ["a", "b"], "rejected": ["c"], "num_correct": 2, "subset": "Ties", "id": "tied:1"}
    assert (one(ties).best, one(ties).rewards, one(ties).label) == (None, (1.0, 1.0, 0.0), None)
    reference = {**ties, "chosen": ["a"], "num_correct": 1, "id": "ref:1"}
    assert (one(reference).rewards, one(reference).label) == ((1.0, 0.0), 0)
    assert one(reference).source["id"] == "ref:1"


def test_single_responses() -> None:
    item = one({"prompt": "p", "completion": said("a"), "label": True})
    assert (item.responses, item.rewards) == (("a",), (1.0,))
    row = {"input": "2 + 2?", "llm_response": "5", "error_label": "error", "metadata": {"id": "m-1"}}
    item = one(row)
    assert (item.id, item.responses, item.rewards) == ("m-1", ("5",), (0.0,))
    assert one({**row, "error_label": None, "label": "no_error"}).rewards == (1.0,)


def test_lists_with_rewards() -> None:
    row = {"question_id": "q", "model_name": "m", "prompt": "p", "scores": [True, False, True],
           **{f"response_{i}": f"r{i}" for i in (1, 2, 3)}, "conflict_pairs": [[0, 1], [2, 1]]}  # fmt: skip
    item = one(row)
    assert (item.id, item.responses, item.rewards) == ("m/q", ("r1", "r2", "r3"), (1.0, 0.0, 1.0))
    assert item.source["conflict_pairs"] == [[0, 1], [2, 1]]
    rated: dict[str, Any] = {
        "instruction": "p",
        "completions": [{"response": "a", "overall_score": 8.5}, {"response": "b", "overall_score": 3}],
    }
    assert (one(rated).rewards, one(rated).label) == ((8.5, 3.0), 0)
    rated["completions"][1]["overall_score"] = None
    assert (one(rated).rewards, one(rated).label) == (None, None)


def test_llama_factory_turns() -> None:
    row = {**PAIRS["ShareGPT"], "system": "Be kind.", "conversations": [
        {"from": "human", "value": "Hi"}, {"from": "function_call", "value": "f()"}, {"from": "observation", "value": "1"},
    ]}  # fmt: skip
    assert [(m.role, m.content) for m in one(row).prompt] == [
        ("system", "Be kind."), ("user", "Hi"), ("assistant", "f()"), ("tool", "1"),
    ]  # fmt: skip
    row = {"instruction": "Name a", "input": "prime.", "history": [["Hi", "Hello"]], "chosen": "7", "rejected": "8"}
    assert [(m.role, m.content) for m in one(row).prompt] == [
        ("user", "Hi"), ("assistant", "Hello"), ("user", "Name a\nprime."),
    ]  # fmt: skip


def test_hh_with_several_turns() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name a prime.\n\nAssistant: "
    item = one({"chosen": start + "7", "rejected": start + "8"})
    assert [m.role for m in item.prompt] == ["user", "assistant", "user"]
    assert item.responses == ("7", "8")
    item = one({"chosen": start + "7", "rejected": start + "A.\n\nB\n\nAssistant:  8"})
    assert item.responses == ("7", "A.\n\nB\n\nAssistant: 8")


def test_plain_texts_part_at_the_beginning_of_a_word() -> None:
    item = one({"chosen": "The sky is green.", "rejected": "The sky is gray."})
    assert (item.prompt[0].content, item.responses) == ("The sky is", ("green.", "gray."))
    item = one({"chosen": "Is it? yes", "rejected": "Is it? yes indeed"})
    assert (item.prompt[0].content, item.responses) == ("Is it?", ("yes", "yes indeed"))


def test_equal_responses_have_no_label() -> None:
    for row, best in (
        ({**PLAIN, "rejected": "7"}, 0),
        ({**PAIRS["LLMBar"], "output_2": "7"}, 0),
        ({**PAIRS["LLMBar"], "output_2": "7", "label": 2}, 1),
        ({**PAIRS["RMB"], "reject": answer("7")}, 0),
    ):
        item = one(row)
        assert (item.best, item.source["unlabelled_best"]) == (None, best)
        assert item.source["unlabelled"] == "the best response equals another"


BAD: list[tuple[dict[str, Any], str]] = [
    ({**PAIRS["JudgeBench"], "label": "A"}, "'label' is 'A', expected 'A>B' or 'B>A'"),
    ({**PAIRS["LLMBar"], "label": 0}, "'label' is 0, expected 1 or 2"),
    ({**PAIRS["LLMBar"], "label": True}, "'label' is True, expected 1 or 2"),
    ({**PAIRS["LLMBar"], "output_1": 7}, "'output_1' must be a text"),
    ({**PLAIN, "chosen": ["a", "b"], "rejected": ["c"]},
     "'chosen' and 'rejected' are lists: expected three styles each, or 'num_correct' beside them"),
    ({**PAIRS["RewardBench 2"], "num_correct": 2}, "'num_correct' is 2, but 'chosen' holds 1 responses"),
    ({"chosen": [USER, *said("7")], "rejected": [{**USER, "content": "x"}, *said("8")]},
     "without 'prompt', 'chosen' and 'rejected' must begin with the same messages"),
    ({"prompt": "other", "chosen": [USER, *said("7")], "rejected": [USER, *said("8")]},
     "'chosen' goes on from the prompt with a message of role 'user', not 'assistant'"),
    ({"chosen": "7", "rejected": "8"}, "without 'prompt', 'chosen' and 'rejected' must begin with the same text"),
    ({"question": "q?", "chosen": "It is 7", "rejected": "It is 8"},
     "'chosen' and 'rejected' without 'prompt', but with 'question': name it 'prompt'"),
    ({"chosen": "7", "rejected": said("8")}, "'chosen' and 'rejected' must both be texts or both be lists of messages"),
    ({**PLAIN, "chosen": 3}, "'chosen' must be a text or a list of messages"),
    ({**PLAIN, "chosen": []}, "'chosen' must be a text or a list of messages"),
    ({**PLAIN, "margin": "big"}, "'margin' must be a number"),
    ({"prompt": "p", "completion": "a", "label": 1}, "'label' is 1, expected true or false"),
    ({**PAIRS["RMB"], "conversation_input": 3}, "'conversation_input' must be a string or a list of messages"),
    ({**PAIRS["RMB"], "chosen": {"text": "a"}}, "'chosen' and 'reject' must hold objects with the text 'answer'"),
    ({**PAIRS["RMB list"], "loser_list": []}, "'loser_list' must be a list of answers"),
    ({**PAIRS["ShareGPT"], "conversations": "hi"}, "'conversations' must be a list of turns"),
    ({**PAIRS["ShareGPT"], "chosen": {"from": "king", "value": "7"}},
     "'chosen' holds a turn from 'king': expected one of human, user, gpt, assistant, function_call, system, observation, tool"),
    ({**PAIRS["Alpaca"], "history": [["Hi"]]}, "'history' must be a list of [instruction, answer]"),
    ({**PAIRS["HelpSteer3"], "overall_preference": "1"}, "'overall_preference' must be a number from -3 to 3"),
    ({"question_id": "q", "prompt": "p", "response_1": "a", "scores": [1, 0]},
     "'scores' must be a list of 1 numbers or booleans, one for each response"),
    ({"question_id": "q", "prompt": "p", "response_1": "a", "response_3": "a", "scores": [1, 0]},
     "'response_1' to 'response_2' must be texts"),
    ({"input": "q", "llm_response": "a", "error_label": "yes"}, "'error_label' is 'yes', expected 'error' or 'no_error'"),
    ({"instruction": "p", "completions": [{"text": "a"}]}, "'completions' must be a list of objects with the text 'response'"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD)
def test_rows_that_do_not_fit(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        items_from_row(row)


def test_unknown_rows_are_told_what_is_known() -> None:
    with pytest.raises(
        ValueError, match=r"no known schema has the keys 'q', 'a'\. Known are own: responses; RMB"
    ) as caught:
        items_from_row({"q": 1, "a": 2})
    assert all(name in str(caught.value) for name, _, _ in SCHEMAS)
    with pytest.raises(ValueError, match="the keys none"):
        items_from_row({})


def test_every_example_of_the_documentation_is_read() -> None:
    page = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.split("## Items")[1].split("\n## ")[0]
    rows = [
        json.loads(line) for block in re.findall(r"```json\n(.*?)```", section, re.S) for line in block.splitlines()
    ]
    used = set()
    for row in rows:
        assert items_from_row(row)
        used.add(next(name for name, keys, _ in SCHEMAS if all(row.get(key) is not None for key in keys)))
    assert used == {name for name, _, _ in SCHEMAS}

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from opengrm.items import Item, Message
from opengrm.reading import read_items, write_items
from opengrm.rows import items_from_row

USER = {"role": "user", "content": "Name a prime."}
PRIME = (Message("user", "Name a prime."),)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def one(row: dict[str, Any]) -> Item:
    (item,) = items_from_row(row)
    return item


PAIRS: list[tuple[str, dict[str, Any]]] = [
    ("own", {"prompt": "Name a prime.", "responses": ["7", "8"], "best": 0}),
    ("plain", {"prompt": "Name a prime.", "chosen": "7", "rejected": "8"}),
    ("conversational", {"prompt": [USER], "chosen": said("7"), "rejected": said("8")}),
    ("implicit prompt", {"chosen": [USER, *said("7")], "rejected": [USER, *said("8")]}),
    ("prompt repeated", {"prompt": "Name a prime.", "chosen": [USER, *said("7")], "rejected": [USER, *said("8")]}),
    ("HH", {side: f"\n\nHuman: Name a prime.\n\nAssistant: {n}" for side, n in (("chosen", 7), ("rejected", 8))}),
    ("implicit text", {"chosen": "Name a prime. 7", "rejected": "Name a prime. 8"}),
    ("RewardBench", {"prompt": "Name a prime.", "chosen": "7", "rejected": "8", "subset": "math-prm", "id": 3}),
    ("RMB", {"pair_uid": "u", "conversation_input": [{**USER, "language": "English"}],
             "chosen": {"llm_name": "a", "answer": "7"}, "reject": {"llm_name": "b", "answer": "8"},
             "category_path": "Helpfulness/Math"}),
    ("JudgeBench", {"pair_id": "u", "question": "Name a prime.", "response_A": "7", "response_B": "8", "label": "A>B",
                    "source": "mmlu-pro", "response_model": "m"}),
    ("LLMBar", {"input": "Name a prime.", "output_1": "7", "output_2": "8", "label": 1}),
    ("LLaMA-Factory", {"conversations": [{"from": "human", "value": "Name a prime."}],
                       "chosen": {"from": "gpt", "value": "7"}, "rejected": {"from": "gpt", "value": "8"}}),
]  # fmt: skip


@pytest.mark.parametrize("row", [p[1] for p in PAIRS], ids=[p[0] for p in PAIRS])
def test_the_same_pair_in_every_schema(row: dict[str, Any], tmp_path: Path) -> None:
    item = one(row)
    assert (item.prompt, item.responses, item.best) == (PRIME, ("7", "8"), 0)
    assert item.key == one(PAIRS[0][1]).key
    write_items(tmp_path / "i.jsonl", [item])
    (back,) = read_items(tmp_path / "i.jsonl")
    assert back == item
    assert (dict(back.source), dict(back.extra)) == (dict(item.source), dict(item.extra))


def test_labels_on_the_other_side() -> None:
    assert one({"question": "q", "response_A": "7", "response_B": "8", "label": "B>A"}).best == 1
    assert one({"input": "q", "output_1": "7", "output_2": "8", "label": 2}).best == 1


def test_what_scoring_needs_is_in_the_source() -> None:
    assert one(dict(PAIRS)["RewardBench"]).source["subset"] == "math-prm"
    assert one(dict(PAIRS)["RewardBench"]).id == "3"
    assert one(dict(PAIRS)["RMB"]).source["category_path"] == "Helpfulness/Math"
    assert one(dict(PAIRS)["JudgeBench"]).source["source"] == "mmlu-pro"
    item = one({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1.5, "other": [1]})
    assert (item.source["margin"], item.extra) == (1.5, {"other": [1]})


def test_rmb_list_keeps_the_best_first() -> None:
    answer = {"llm_name": "a", "answer": "7"}
    row = {"bon_uid": "u", "conversation_input": [USER], "bon_best": answer,
           "loser_list": [{"llm_name": "b", "answer": x} for x in ("8", "9", "10")]}  # fmt: skip
    item = one(row)
    assert (item.id, item.responses, item.best) == ("u", ("7", "8", "9", "10"), 0)


def test_rm_bench_gives_nine_pairs() -> None:
    row = {"id": 4, "prompt": "p", "chosen": ["c0", "c1", "c2"], "rejected": ["r0", "r1", "r2"], "domain": "chat"}
    items = items_from_row(row)
    assert [i.id for i in items] == [f"4/{a}-{b}" for a in range(3) for b in range(3)]
    assert items[5].responses == ("c1", "r2")
    assert (items[5].source["chosen_style"], items[5].source["rejected_style"], items[5].best) == (1, 2, 0)


def test_rewardbench_2() -> None:
    row = {"id": "1", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "subset": "Math"}
    assert (one(row).best, one(row).rewards, one(row).n) == (0, None, 4)
    ties = {**row, "chosen": ["a", "b"], "rejected": ["c"], "num_correct": 2, "subset": "Ties"}
    assert (one(ties).best, one(ties).rewards, one(ties).label) == (None, (1.0, 1.0, 0.0), None)


def test_unpaired() -> None:
    item = one({"prompt": "p", "completion": said("a"), "label": True})
    assert (item.responses, item.rewards) == (("a",), (1.0,))


def test_hh_with_several_turns() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name a prime.\n\nAssistant: "
    item = one({"chosen": start + "7", "rejected": start + "8"})
    assert [m.role for m in item.prompt] == ["user", "assistant", "user"]
    assert item.responses == ("7", "8")


def test_equal_responses_have_no_label() -> None:
    assert one({"prompt": "p", "chosen": "a", "rejected": "a"}).best is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "response_A": "7", "response_B": "8", "label": "A"}, "expected 'A>B' or 'B>A'"),
        ({"input": "q", "output_1": "7", "output_2": "8", "label": 0}, "expected 1 or 2"),
        ({"input": "q", "output_1": 7, "output_2": "8", "label": 1}, "'output_1' must be a text"),
        ({"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"]}, "expected three styles"),
        ({"prompt": "p", "chosen": ["a"], "rejected": ["c"], "num_correct": 2}, "'num_correct' is 2"),
        ({"chosen": [USER, *said("7")], "rejected": [{**USER, "content": "x"}, *said("8")]}, "the same messages"),
        ({"chosen": "7", "rejected": "8"}, "begin with the same text"),
        ({"chosen": "7", "rejected": said("8")}, "both be texts or both be lists"),
        ({"prompt": "p", "chosen": 3, "rejected": "8"}, "'chosen' must be a text or a list of messages"),
        ({"prompt": "p", "chosen": [], "rejected": "8"}, "'chosen' must be a text or a list of messages"),
        ({"prompt": "p", "completion": "a", "label": 1}, "expected true or false"),
        ({"conversation_input": "x", "chosen": {"answer": "a"}, "reject": {"answer": "b"}}, "list of messages"),
        ({"conversation_input": [USER], "chosen": {"text": "a"}, "reject": {"answer": "b"}}, "the text 'answer'"),
        ({"conversation_input": [USER], "bon_best": {"answer": "a"}, "loser_list": []}, "'loser_list'"),
        ({"q": 1, "a": 2}, "no known schema has the keys 'q', 'a'"),
        ({}, "no known schema has the keys none"),
    ],
)
def test_rows_that_do_not_fit(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("[", r"\[")):
        items_from_row(row)


def test_real_rewardbench(data_dir: Path) -> None:
    items = list(read_items(data_dir / "rewardbench_2k" / "rewardbench_2000_of_2985.jsonl.gz"))
    assert len(items) == 2000
    assert all(i.n == 2 for i in items)


def test_real_rm_bench(data_dir: Path) -> None:
    files = sorted((data_dir / "rm_bench_4of5").glob("*_filtered.json.gz"))
    counts = {f.name.split("_")[0]: sum(1 for _ in read_items(f)) for f in files}
    assert counts == {"chat": 129 * 9, "code": 228 * 9, "safety-refuse": 284 * 9, "safety-response": 157 * 9}


def test_real_llmbar(data_dir: Path) -> None:
    names = {"LLMBar__Natural": 100, "LLMBar__Adversarial__Neighbor": 134, "LLMBar__Adversarial__GPTInst": 92,
             "LLMBar__Adversarial__GPTOut": 47, "LLMBar__Adversarial__Manual": 46, "Processed__FairEval": 66,
             "Processed__LLMEval2": 200, "Processed__MT-Bench": 200}  # fmt: skip
    for name, count in names.items():
        items = list(read_items(data_dir / "llmbar" / f"datasets__{name}.json"))
        assert len(items) == count, name
        assert set(Counter(i.best for i in items)) <= {0, 1}


def test_real_hh(data_dir: Path) -> None:
    helpful = list(read_items(data_dir / "hh_rlhf_test" / "helpful-base_test.jsonl.gz"))
    harmless = list(read_items(data_dir / "hh_rlhf_test" / "harmless-base_test.jsonl.gz"))
    assert (len(harmless), len(helpful)) == (2312, 2354)
    assert sum(i.best is None for i in helpful) == 2
    assert all(i.prompt[-1].role == "user" for i in helpful if i.best is not None)


def test_real_llama_factory(data_dir: Path) -> None:
    items = list(read_items(data_dir / "llamafactory_dpo_demo" / "dpo_en_demo.json.gz"))
    assert len(items) == 300
    assert sum(len(i.prompt) > 1 for i in items) == 186

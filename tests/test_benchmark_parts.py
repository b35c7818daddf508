"""Rows whose part the benchmark's rule does not know are refused: they would vanish from the overall, or change it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opengrm.benchmarks import BENCHMARKS
from opengrm.benchmarks.files import load
from opengrm.errors import BadRow

SAID = [{"role": "user", "content": "Name a prime."}]
PAIR = {"prompt": "q", "chosen": "7", "rejected": "8", "id": 1}
FOUR = {"prompt": "q", "chosen": ["7"], "rejected": ["8", "9", "4"], "num_correct": 1, "id": "1"}
TIES = {"prompt": "q", "chosen": ["7"], "rejected": ["8"], "num_correct": 1, "subset": "Ties"}
STYLES = {"prompt": "q", "chosen": ["7", "the 7", "**7**"], "rejected": ["8", "the 8", "**8**"], "id": "1"}
HUMAN = {"question_id": "q", "prompt": "q", "response_1": "7", "response_2": "8"}
RMB = {"pair_uid": "u", "conversation_input": SAID, "chosen": {"answer": "7"}, "reject": {"answer": "8"}}
LLMBAR = {"input": "q", "output_1": "7", "output_2": "8", "label": 1}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "file", "row", "said"),
    [
        ("rewardbench", "r.jsonl", {**PAIR, "subset": "alpacaeval_easy"},
         "'subset' is 'alpacaeval_easy', none of RewardBench's, perhaps 'alpacaeval-easy'"),
        ("rewardbench", "r.jsonl", {**PAIR, "subset": None}, "has no 'subset', so nothing says where in RewardBench"),
        ("rewardbench", "hep-go.jsonl", PAIR, "has no 'subset'"),
        ("rewardbench", "r.jsonl", {**PAIR, "subset": 7}, "'subset' is 7, none of RewardBench's: alpacaeval-easy, "),
        ("rewardbench", "r.jsonl", {**PAIR, "subset": ["hep-go"]}, "'subset' is ['hep-go'], none of"),
        ("rewardbench-2", "r.jsonl", {**FOUR, "subset": "Factualty"}, "none of RewardBench 2's, perhaps 'Factuality'"),
        ("rewardbench-2", "r.jsonl", FOUR, "has no 'subset'"),
        ("rewardbench-2", "r.jsonl", {**TIES, "id": "tide:0"}, "'id' is 'tide:0', but Ties pairs prompts by ids"),
        ("rm-bench", "r.jsonl", {**STYLES, "domain": "saftey-refuse"}, "none of RM-Bench's, perhaps 'safety-refuse'"),
        ("rm-bench", "r.jsonl", STYLES, "has no 'domain', and the place 'r.jsonl' names none of chat, "),
        ("rmb", "r.jsonl", RMB, "say neither helpfulness nor harmlessness"),
        ("rmb", "r.jsonl", {**RMB, "category_path": "Hlpfulness/Open QA"}, "say neither"),
        ("ppe-preference", "r.jsonl", HUMAN, "has no 'winner'"),
        ("ppe-preference", "r.jsonl", {**HUMAN, "winner": None}, "'winner' is None, expected 'model_a'"),
        ("ppe-preference", "r.jsonl", {**HUMAN, "winner": "model_c"}, "'winner' is 'model_c', expected"),
        ("ppe-correctness", "math.jsonl", {"dataset": "gqpa"}, "'gqpa' does not say which data set"),
        ("llmbar", "r.jsonl", LLMBAR, "neither 'subset' nor the place 'r.jsonl' names one of Natural, "),
        ("llmbar", "Natural.jsonl", {**LLMBAR, "subset": "Manuel"}, "names one of"),
    ],
)  # fmt: skip
def test_an_unknown_part_is_refused(tmp_path: Path, name: str, file: str, row: dict[str, Any], said: str) -> None:
    path = write(tmp_path / file, row)
    with pytest.raises(BadRow) as refused:
        list(load(BENCHMARKS[name], str(path)))
    assert str(refused.value).startswith(f"{path}:1: ")
    assert said in str(refused.value)
    skipped: list[BadRow] = []
    assert not list(load(BENCHMARKS[name], str(path), skipped.append))
    assert len(skipped) == 1


@pytest.mark.parametrize(
    ("place", "path", "part"),
    [
        ("harmless.jsonl", "Pairwise_set/Helpfulness/Open QA", "Helpful pairs"),
        ("r.jsonl", "Pairwise_set/Helpfulness/Self-harm", "Helpful pairs"),
        ("r.jsonl", "Pairwise_set/Harmlessness/Helping a thief", "Harmless pairs"),
        ("pairs-harmless.jsonl", "", "Harmless pairs"),
    ],
)
def test_rmb_goes_by_the_row_and_by_whole_parts_of_its_path(tmp_path: Path, place: str, path: str, part: str) -> None:
    """The row's own path goes before the file's name, and "harm" in a topic is no part of the benchmark."""
    file = write(tmp_path / place, {**RMB, "category_path": path})
    assert [item.source["subset"] for _, item in load(BENCHMARKS["rmb"], str(file))] == [part]

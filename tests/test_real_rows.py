"""Published sets read as they are: counts as published, and every text where it belongs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from opengrm.items import Item
from opengrm.reading import read_items, write_items
from opengrm.rows import items_from_row


def raw(path: Path) -> list[dict[str, Any]]:
    """The rows, read without our reader."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = content.decode("utf-8")
    rows: list[dict[str, Any]] = (
        json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line]
    )
    return rows


def test_rewardbench(data_dir: Path) -> None:
    path = data_dir / "rewardbench_2k" / "rewardbench_2000_of_2985.jsonl.gz"
    items = list(read_items(path))
    assert [(i.prompt[0].content, *i.responses, i.best, i.extra["rb_row"]) for i in items] == [
        (r["prompt"], r["chosen"], r["rejected"], 0, r["rb_row"]) for r in raw(path)
    ]
    assert len(items) == 2000


RM_BENCH = {"chat": 129, "code": 228, "safety-refuse": 284, "safety-response": 157}


def test_rm_bench(data_dir: Path) -> None:
    everything: dict[str, Item] = {}
    for name, prompts in RM_BENCH.items():
        path = data_dir / "rm_bench_4of5" / f"{name}_filtered.json.gz"
        items = list(read_items(path))
        expected = [(c, x) for r in raw(path) for c in r["chosen"] for x in r["rejected"]]
        assert [i.responses for i in items] == expected
        assert len(items) == 9 * prompts
        everything.update((i.id, i) for i in items)
    assert len(everything) == 798 * 9 == 7182  # no id twice, also across the files
    assert {i.best for i in everything.values()} == {0}
    clusters = [i.cluster for i in everything.values()]
    assert {clusters.count(cluster) for cluster in set(clusters)} == {9}


LLMBAR = {
    "LLMBar__Natural": 100, "LLMBar__Adversarial__Neighbor": 134, "LLMBar__Adversarial__GPTInst": 92,
    "LLMBar__Adversarial__GPTOut": 47, "LLMBar__Adversarial__Manual": 46, "Processed__FairEval": 66,
    "Processed__LLMEval2": 200, "Processed__MT-Bench": 200, "CaseStudy__Base_9": 54, "CaseStudy__Base_10": 54,
    "CaseStudy__Constraint": 89, "CaseStudy__Negation": 59, "CaseStudy__Normal": 59,
}  # fmt: skip


@pytest.mark.parametrize("name", LLMBAR)
def test_llmbar(data_dir: Path, name: str) -> None:
    path = data_dir / "llmbar" / f"datasets__{name}.json"
    items, rows = list(read_items(path)), raw(path)
    assert len(items) == LLMBAR[name]
    assert [i.responses for i in items] == [(r["output_1"], r["output_2"]) for r in rows]
    equal = [r["output_1"] == r["output_2"] for r in rows]
    assert sum(equal) == (1 if name == "Processed__LLMEval2" else 0)
    assert [i.best for i in items] == [None if e else r["label"] - 1 for r, e in zip(rows, equal, strict=True)]


@pytest.mark.parametrize(("name", "count", "unlabelled"), [("harmless", 2312, 0), ("helpful", 2354, 2)])
def test_hh(data_dir: Path, name: str, count: int, unlabelled: int) -> None:
    path = data_dir / "hh_rlhf_test" / f"{name}-base_test.jsonl.gz"
    items = list(read_items(path))
    assert len(items) == count
    assert sum(i.best is None for i in items) == unlabelled
    assert {i.prompt[-1].role for i in items} == {"user"}
    names = {"user": "Human", "assistant": "Assistant"}
    for item, row in zip(items, raw(path), strict=True):
        start = "".join(
            f"Human: {m.content} " if m.role == "user" else f"Assistant: {m.content} " for m in item.prompt
        )
        for response, side in zip(item.responses, ("chosen", "rejected"), strict=True):
            assert f"{start}{names['assistant']}: {response}".split() == row[side].split()  # nothing lost or moved


def test_llama_factory(data_dir: Path) -> None:
    path = data_dir / "llamafactory_dpo_demo" / "dpo_en_demo.json.gz"
    items, rows = list(read_items(path)), raw(path)
    assert len(items) == 300
    assert [[m.content for m in i.prompt] for i in items] == [[t["value"] for t in r["conversations"]] for r in rows]
    assert [i.responses for i in items] == [(r["chosen"]["value"], r["rejected"]["value"]) for r in rows]
    assert sum(len(i.prompt) > 1 for i in items) == 186
    assert sum(i.prompt[0].role == "system" for i in items) == 80


def test_evalbiasbench(data_dir: Path) -> None:
    groups = json.loads((data_dir / "evalbiasbench" / "biasbench.json").read_text(encoding="utf-8"))
    items = [item for rows in groups.values() for row in rows for item in items_from_row(row)]
    assert len(items) == 80
    assert {i.label for i in items} == {0}
    assert len({i.source["bias"] for i in items}) == 6


def test_a_set_of_another_shape_is_refused_not_guessed(data_dir: Path) -> None:
    refused: list[object] = []
    assert list(read_items(data_dir / "tldr_2k" / "tldr_2k.jsonl.gz", refused.append)) == []
    assert len(refused) == 2000


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.zst", "json", "parquet"])
def test_real_items_survive_every_ending(data_dir: Path, tmp_path: Path, ending: str) -> None:
    items = list(read_items(data_dir / "rm_bench_4of5" / "chat_filtered.json.gz"))
    assert write_items(tmp_path / f"i.{ending}", items) == 1161
    back = list(read_items(tmp_path / f"i.{ending}"))
    assert back == items
    assert [i.source for i in back] == [i.source for i in items]

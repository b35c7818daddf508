"""Real recorded judgments as plain dicts, read from their compressed files where they lie (see conftest `data_dir`).

Each function is a generator that streams one set; what its rows hold stands in its docstring. The sets' own
descriptions and licences are in the SOURCE.md beside each file.
"""

from __future__ import annotations

import gzip
import json
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

Row = dict[str, Any]


def json_lines_gz(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def tar_members(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Files of a .tar.xz in one pass, one file in memory at a time."""
    with tarfile.open(path, "r|xz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield PurePosixPath(member.name), file.read()


def realmistake_self_consistency(data_dir: Path) -> Iterator[Row]:
    """450 items, 5 sampled judgments each: {task, judge, item, label, texts[5], predictions[5], prediction}.

    `label` is "error" or "no_error"; a stored prediction may also be None. `prediction` is the stored majority.
    """
    for path, data in tar_members(data_dir / "realmistake" / "judge_outputs.tar.xz"):
        if path.parts[1] != "self_consistency":
            continue
        for line in data.decode("utf-8").splitlines():
            row = json.loads(line)
            yield {
                "task": path.parts[2],
                "judge": path.parts[4],
                "item": row["metadata"]["id"],
                "label": row["label"],
                "texts": [sample["response"] for sample in row["response"]],
                "predictions": row["predictions_list"],
                "prediction": row["prediction"],
            }


def amel_rows(data_dir: Path, name: str = "pilot_responses") -> Iterator[Row]:
    """Repeated one-word verdicts ("pilot_responses": 3,000; "pilot_v2_responses": 1,200), fields as stored.

    {judge, regime, item_id, repetition, seed, swap, truth_label_after_swap, raw_response, parsed_label}. Labels are
    "1" / "2" by position shown; `swap` says that the item's responses were exchanged.
    """
    yield from json_lines_gz(data_dir / "amel_llmbar_repeat_votes" / f"{name}.jsonl.gz")


def prometheus_rows(data_dir: Path, name: str = "mt_bench_eval") -> Iterator[Row]:
    """320 items ("mt_bench_eval" or "vicuna_eval"), 3 sampled judgments each, fields as stored.

    {idx, response_source, category, instruction, gpt4_score[3], gpt4_feedback[3]}; scores are whole, 1..5.
    """
    with gzip.open(data_dir / "prometheus_gpt4_x3" / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        yield from json.load(file)


def vicuna_reviews(data_dir: Path) -> Iterator[Row]:
    """1,040 reviews of a pair (13 files of 80): the stored row and its `file` stem; `text`, `score` [s1, s2]."""
    for path, data in tar_members(data_dir / "vicuna_blog_gpt4_reviews" / "eval_table.tar.xz"):
        if path.parent.parent.name == "review":
            for line in data.decode("utf-8").splitlines():
                yield {"file": path.stem, **json.loads(line)}


def mtbench_rows(data_dir: Path, name: str = "gpt-4_single-origin") -> Iterator[Row]:
    """330 single gradings, or 75 two-game pair verdicts ("gpt-4_pair"; game 2 has the answers exchanged)."""
    yield from json_lines_gz(data_dir / "mtbench_gpt4_judgments" / f"{name}.jsonl.gz")


def pandalm_rows(data_dir: Path) -> Iterator[Row]:
    """999 pairs: the test row with both judges' results merged in; `annotator1..3`, `gpt_result`, `pandalm_result`."""
    files = ("testset-v1", "gpt-3.5-turbo-testset-v1", "pandalm-7b-testset-v1")
    tables = []
    for name in files:
        with gzip.open(data_dir / "pandalm_testset" / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            tables.append(json.load(file))
    for rows in zip(*tables, strict=True):
        assert len({str(row["idx"]) for row in rows}) == 1
        yield {key: value for row in rows for key, value in row.items()}


def wildbench_rows(data_dir: Path) -> Iterator[Row]:
    """29,653 pointwise judgments, fields as stored; `score` is a string."""
    with lzma.open(data_dir / "wildbench_pointwise_judgments" / "score_v2_compact.jsonl.xz", "rt") as lines:
        for line in lines:
            yield json.loads(line)


def llmbar_verdicts(data_dir: Path) -> Iterator[Row]:
    """80,826 verdicts, both orders of each pair: {set, judge, protocol, index, label, swap, winner, texts}.

    `texts` is one text that compares the outputs as shown (exchanged if `swap`), or the two rating texts of output 1
    and output 2. `winner` is stored, "1", "2" or None, in the order without exchange; `label` is 1 or 2.
    """
    for path, data in tar_members(data_dir / "llmbar" / "judge_outputs.tar.xz"):
        if path.name != "result.json":
            continue
        common = {"set": "/".join(path.parts[1:-4]), "judge": path.parts[-3], "protocol": path.parts[-2]}
        for index, row in enumerate(json.loads(data)):
            last = row["results"][-1]
            for swap in (False, True):
                verdict = last.get(f"swap = {swap}")
                if verdict is None:
                    continue
                source = [verdict["completion"]] if "completion" in verdict else [last["score_1"], last["score_2"]]
                yield {
                    **common,
                    "index": index,
                    "label": row["label"],
                    "swap": swap,
                    "winner": verdict["winner"],
                    "texts": [text for text, _finish in source],
                }


def llmbar_statistics(data_dir: Path) -> Iterator[Row]:
    """The authors' figures: {set, judge, protocol, statistics}."""
    for path, data in tar_members(data_dir / "llmbar" / "judge_outputs.tar.xz"):
        if path.name == "statistics.json":
            common = {"set": "/".join(path.parts[1:-4]), "judge": path.parts[-3], "protocol": path.parts[-2]}
            yield {**common, "statistics": json.loads(data)}


def realmistake_performance(data_dir: Path) -> dict[tuple[str, str], float]:
    """Published self-consistency accuracy by (task, judge name without its organisation)."""
    for path, data in tar_members(data_dir / "realmistake" / "published_performance.tar.xz"):
        if path.parent.name == "self_consistency":
            table = json.loads(data)
            return {
                (task, judge.split("=", 1)[1].rsplit("/", 1)[-1]): prompt["metrics"]["accuracy"]
                for task, models in table.items()
                for judge, prompts in models.get("initial_model=gpt-4-0613", {}).items()
                for name, prompt in prompts.items()
                if name.startswith("prompt=")
            }
    raise FileNotFoundError("performance.json of self_consistency")

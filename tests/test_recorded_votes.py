"""`opengrm vote` on real recorded judgments equals an independent computation in plain Python, for every k.

The files are written by examples/convert_recorded.py and read back through the command; the expected numbers are
computed here from the data as it was recorded, with loops over subsets.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from recorded_data import amel_rows, prometheus_rows, realmistake_self_consistency
from typer.testing import CliRunner

from opengrm.cli.main import app

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "convert_recorded.py"
EXACT = 1e-12


@pytest.fixture(scope="module")
def converted(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recorded")
    subprocess.run([sys.executable, str(EXAMPLE), str(data_dir), str(out)], check=True, capture_output=True)
    return out


def vote(folder: Path, judgments: str, items: str, *options: str) -> dict[str, Any]:
    paths = [str(folder / f"{judgments}.judgments.jsonl"), "--items", str(folder / f"{items}.items.jsonl")]
    done = CliRunner().invoke(app, ["vote", *paths, "--json", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def subsets(samples: Sequence[Any], k: int) -> Iterator[list[Any]]:
    """The valid votes of each subset of k samples."""
    for chosen in itertools.combinations(samples, k):
        yield [vote for vote in chosen if vote is not None]


def modes(votes: list[Any]) -> list[Any]:
    counts = Counter(votes)
    return [value for value, count in counts.items() if count == max(counts.values())]


def accuracies(votes: dict[str, list[Any]], labels: dict[str, Any], k: int) -> dict[str, float]:
    """Accuracy of the majority of k over all subsets of all items, in the four senses; two possible answers."""
    at_chance: dict[str, list[float]] = defaultdict(list)
    valid: dict[str, list[float]] = defaultdict(list)
    for item, samples in votes.items():
        for chosen in subsets(samples, k):
            top = modes(chosen)
            credit = (labels[item] in top) / len(top) if top else 0.5
            strict = float(top == [labels[item]]) if top else 0.5
            at_chance["accuracy"].append(credit)
            at_chance["strict"].append(strict)
            if top:
                valid["accuracy_valid"].append(credit)
                valid["strict_valid"].append(strict)
    return {name: statistics.fmean(values) for name, values in (at_chance | valid).items()}


def amel_votes(
    data_dir: Path, name: str, regimes: Sequence[str]
) -> tuple[dict[tuple[str, str], dict[str, list]], dict]:
    """Votes by (judge, regime) and item as the index of the response chosen, and the labels."""
    votes: dict[tuple[str, str], dict[str, list]] = defaultdict(lambda: defaultdict(list))
    labels: dict[str, int] = {}
    for row in sorted(amel_rows(data_dir, name), key=lambda r: r["repetition"]):
        if row["regime"] in regimes:
            shown = {"1": 1 if row["swap"] else 0, "2": 0 if row["swap"] else 1, None: None}
            # The set's parser read the answer "2" from "429 Too Many Requests".
            failed = "429 Too Many Requests" in row["raw_response"]
            votes[row["judge"], row["regime"]][row["item_id"]].append(None if failed else shown[row["parsed_label"]])
            assert (
                labels.setdefault(row["item_id"], shown[row["truth_label_after_swap"]])
                == shown[row["truth_label_after_swap"]]
            )
    return votes, labels


@pytest.mark.parametrize("how", ["sum", "mean", "majority"])
@pytest.mark.parametrize(
    ("name", "file", "regimes", "most"),
    [
        ("amel_pilot_fresh", "pilot_responses", ["fresh"], 5),
        ("amel_pilot_batched", "pilot_responses", ["batched"], 5),
        ("amel_v2", "pilot_v2_responses", ["fresh", "batched"], 3),
    ],
)
def test_amel(data_dir: Path, converted: Path, how: str, name: str, file: str, regimes: list[str], most: int) -> None:
    votes, labels = amel_votes(data_dir, file, regimes)
    rows = vote(converted, name, "amel", "--reduce", how)["rows"]
    assert [row["k"] for row in rows] == list(range(1, most + 1)) * len(votes)
    for row in rows:
        judged = votes[row["model"], row["template"].removeprefix("amel-")]
        expected = accuracies(judged, labels, row["k"])
        assert {name: row[name]["mean"] for name in expected} == pytest.approx(expected, abs=EXACT)
        assert row["parse_rate"] == pytest.approx(sum(v is not None for s in judged.values() for v in s) / 100 / most)
        assert row["exact"]
        assert (row["group"], row["items"], row["subsets"]) == ("pairs", 100, "all")


def test_amel_figures_of_its_source(data_dir: Path, converted: Path) -> None:
    rows = {
        (row["model"], row["k"]): row
        for row in vote(converted, "amel_pilot_fresh", "amel", "--reduce", "majority")["rows"]
    }
    haiku, llama = "claude-haiku-4-5", "llama3.2:3b"
    # The source counts a single missing verdict as wrong.
    single = rows[haiku, 1]
    assert single["strict_valid"]["mean"] * single["parse_rate"] == pytest.approx(0.778, abs=EXACT)
    assert rows[haiku, 5]["accuracy"]["mean"] == pytest.approx(0.92, abs=5e-3)
    assert rows[llama, 1]["accuracy"]["mean"] == pytest.approx(0.596, abs=EXACT)
    assert rows[llama, 5]["accuracy"]["mean"] == pytest.approx(0.58, abs=EXACT)


def auc(scores: Sequence[float], labels: Sequence[int]) -> float:
    pairs = [(p > n) + (p == n) / 2 for p, a in zip(scores, labels, strict=True) if a
             for n, b in zip(scores, labels, strict=True) if not b]  # fmt: skip
    return statistics.fmean(pairs)


PUBLISHED = {  # accuracy of the majority of five as the authors give it: GPT-4, GPT-3.5, Mixtral
    "math_word_problem_generation": (0.82, 0.76, 0.58),
    "finegrained_fact_verification": (0.48, 0.58, 0.64),
    "answerability_classification": (0.46, 0.58, 0.40),
}
JUDGES = ("gpt-4-0125-preview", "gpt-3.5-turbo-0125", "Mixtral-8x7B-Instruct-v0.1")


def test_realmistake(data_dir: Path, converted: Path) -> None:
    votes: dict[tuple[str, str], dict[str, list]] = defaultdict(dict)
    labels: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for row in realmistake_self_consistency(data_dir):
        cell = (row["judge"], row["task"])
        votes[cell][row["item"]] = [None if p is None else int(p == "no_error") for p in row["predictions"]]
        labels[cell][row["item"]] = int(row["label"] == "no_error")
    assert sum(map(len, votes.values())) == 450
    rows = {
        how: vote(converted, "realmistake", "realmistake", "--reduce", how)["rows"] for how in ("majority", "mean")
    }
    assert [(r["model"], r["template"], r["k"]) for r in rows["mean"]] == [
        (r["model"], r["template"], r["k"]) for r in rows["majority"]
    ]
    assert len(rows["majority"]) == 9 * 5
    for how, row in [(name, row) for name, found in rows.items() for row in found]:
        cell, k = (row["model"], row["template"]), row["k"]
        expected = accuracies(votes[cell], labels[cell], k)
        assert {name: row[name]["mean"] for name in expected} == pytest.approx(expected, abs=EXACT)
        assert row["auc_valid"]["mean"] == pytest.approx(mean_auc(votes[cell], labels[cell], k, how), abs=EXACT)
    for judge, cell_of_task in itertools.product(JUDGES, PUBLISHED):
        (row,) = [r for r in rows["majority"] if (r["model"], r["template"], r["k"]) == (judge, cell_of_task, 5)]
        # The stored majority counts a missing verdict as a vote or breaks ties otherwise in 4 items of all 450.
        published = PUBLISHED[cell_of_task][JUDGES.index(judge)]
        assert row["strict"]["mean"] - EXACT <= published + 0.04
        assert abs(row["accuracy"]["mean"] - published) <= 0.04 + EXACT


def mean_auc(votes: dict[str, list], labels: dict[str, int], k: int, how: str) -> float:
    """ROC-AUC averaged over runs: a run takes the same k of the five samples of every item."""
    found = []
    for chosen in itertools.combinations(range(5), k):
        scores, truth = [], []
        for item, samples in votes.items():
            valid = [samples[j] for j in chosen if samples[j] is not None]
            if valid:
                scores.append(statistics.fmean(modes(valid) if how == "majority" else valid))
                truth.append(labels[item])
        found.append(auc(scores, truth))
    return statistics.fmean(found)


@pytest.mark.parametrize(("name", "low", "high"), [("mt_bench_eval", 0.84, 0.88), ("vicuna_eval", 0.80, 0.82)])
def test_prometheus(data_dir: Path, converted: Path, name: str, low: float, high: float) -> None:
    scores = [row["gpt4_score"] for row in prometheus_rows(data_dir, name)]
    held_out = [s[2] for s in scores]
    rows = vote(converted, f"prometheus_{name}", f"prometheus_{name}", "--reduce", "mean")["rows"]
    single = [statistics.correlation([s[j] for s in scores], held_out) for j in (0, 1)]
    both = statistics.correlation([(s[0] + s[1]) / 2 for s in scores], held_out)
    assert [row["pearson"]["mean"] for row in rows] == pytest.approx([statistics.fmean(single), both], abs=EXACT)
    ranked = [
        statistics.fmean(rank_correlation([s[j] for s in scores], held_out) for j in (0, 1)),
        rank_correlation([s[0] + s[1] for s in scores], held_out),
    ]
    assert [row["spearman"]["mean"] for row in rows] == pytest.approx(ranked, abs=EXACT)
    # The figures of the source, between any two of the three samples.
    pairs = [
        statistics.correlation([s[a] for s in scores], [s[b] for s in scores]) for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert low - 0.005 <= min(pairs) <= max(pairs) <= high + 0.005
    assert all(row["pearson"]["low"] < row["pearson"]["mean"] < row["pearson"]["high"] for row in rows)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman by its definition: Pearson between mid-ranks."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]

    return statistics.correlation(ranks(a), ranks(b))


def test_verdicts_of_all_samples(converted: Path, data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    vote(converted, "amel_pilot_fresh", "amel", "--reduce", "majority", "-o", str(out))
    votes, _ = amel_votes(data_dir, "pilot_responses", ["fresh"])
    verdicts = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(verdicts) == 300
    for verdict in verdicts:
        samples = [v for v in votes[verdict["model"], "fresh"][verdict["item"]] if v is not None]
        assert (verdict["asked"], verdict["valid"]) == (5, len(samples))
        if samples:
            assert verdict["scores"] == [samples.count(0), samples.count(1)]
            assert sorted(verdict["tied"] or [verdict["winner"]]) == sorted(modes(samples))
        else:
            assert (verdict["scores"], verdict["winner"], verdict["ranking"]) == (None, None, [])

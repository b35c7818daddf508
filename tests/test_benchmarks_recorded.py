"""Benchmarks' rules on real recorded verdicts: the authors' own figures, to the digit."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from recorded_data import json_lines_gz, pandalm_rows, tar_members

from opengrm.benchmarks import BENCHMARKS, Outcome, Target
from opengrm.benchmarks.files import load
from opengrm.benchmarks.llmbar import games
from opengrm.benchmarks.ppe import best_of
from opengrm.benchmarks.realmistake import detection

ONE_HOT = {"1": (1.0, 0.0), "2": (0.0, 1.0), None: None}


def llmbar_outcomes(rows: list[dict[str, Any]]) -> list[Outcome]:
    """The stored verdicts of both orders (winners are in the order without exchange)."""
    found = []
    for index, row in enumerate(rows):
        last = row["results"][-1]
        played = tuple(ONE_HOT[last[f"swap = {swap}"]["winner"]] for swap in (False, True))
        target = Target(str(index), "set", 2, label=row["label"] - 1)
        found.append(BENCHMARKS["llmbar"].outcome(target, played[0], games=played))
    return found


def test_llmbar_statistics_of_every_judge_and_protocol(data_dir: Path) -> None:
    ours: dict[str, dict[str, float | None]] = {}
    theirs: dict[str, dict[str, Any]] = {}
    for path, data in tar_members(data_dir / "llmbar" / "judge_outputs.tar.xz"):
        if path.name == "result.json":
            rows = json.loads(data)
            if all({"swap = False", "swap = True"} <= row["results"][-1].keys() for row in rows):
                ours[str(path.parent)] = games(llmbar_outcomes(rows))
        else:
            theirs[str(path.parent)] = json.loads(data)
    assert len(theirs) == 499
    assert ours.keys() == theirs.keys()
    names = {
        "correct_False": "first_order", "correct_True": "second_order", "correct_average": "games",
        "correct_both": "both", "equal": "equal",
    }  # fmt: skip
    for place, figures in theirs.items():
        for their, our in names.items():
            said = float(figures[their].split("=")[-1].strip().removesuffix("%"))
            value = ours[place][our]
            assert value is not None
            assert value * 100 == pytest.approx(said, abs=1e-9), (place, their)


def test_rewardbench_rows_of_llmbar_are_llmbars(data_dir: Path) -> None:
    """Its llmbar subsets hold LLMBar's pairs: the same prompt and outputs, the chosen one the labelled one."""
    pairs = {}
    for _, item in load(BENCHMARKS["llmbar"], str(data_dir / "llmbar")):
        assert item.best is not None
        pairs[item.prompt[0].content, item.responses[item.best], item.responses[1 - item.best]] = item.source["subset"]
    assert Counter(pairs.values()) == {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
    found = Counter()
    for _, item in load(BENCHMARKS["rewardbench"], str(data_dir / "rewardbench_2k")):
        subset = item.source["subset"]
        if subset.startswith("llmbar-"):
            own = pairs[item.prompt[0].content, item.responses[0], item.responses[1]]
            assert subset.lower().endswith(own.lower())
            found[own] += 1
    assert found == {"Natural": 63, "Neighbor": 97, "GPTInst": 62, "GPTOut": 37, "Manual": 31}


def test_realmistake_published_performance(data_dir: Path) -> None:
    """Accuracy, precision, recall, F1 and rates of all judges and prompts, of single and of majority prompting."""
    verdicts: dict[tuple[str, ...], dict[str, Any]] = {}
    for path, data in tar_members(data_dir / "realmistake" / "judge_outputs.tar.xz"):
        method, task, initial, judge = path.parts[1:5]
        if method not in ("simple_prompt_baseline", "advanced_prompt_baseline"):
            continue
        outcomes = []
        for line in data.decode("utf-8").splitlines():
            row = json.loads(line)
            target = Target(row["metadata"]["id"], "all", 1, label=float(row["label"] == "no_error"))
            said = {"error": (0.0,), "no_error": (1.0,)}.get(row["prediction"])
            outcomes.append(BENCHMARKS["realmistake"].outcome(target, said))
        verdicts[method, task, initial, judge, path.stem] = detection(outcomes)
    checked = 0
    for path, data in tar_members(data_dir / "realmistake" / "published_performance.tar.xz"):
        method = path.parent.name
        if path.name != "performance.json" or method not in ("simple_prompt_baseline", "advanced_prompt_baseline"):
            continue
        for task, models in json.loads(data).items():
            if task == "average":
                continue
            for model, judges in models.items():
                for judge, prompts in judges.items():
                    for prompt, said in prompts.items():
                        names = [text.split("=", 1)[-1].rsplit("/", 1)[-1] for text in (model, judge, prompt)]
                        own = verdicts.get((method, task, *names))
                        if own is not None:
                            assert own == pytest.approx(said["metrics"], abs=1e-12), (method, task, names)
                            checked += 1
    assert checked == len(verdicts) == 360


def test_realmistake_archive(data_dir: Path) -> None:
    """The authors' archive is read with its password: 900 items, in their published sizes and shares of errors."""
    benchmark = BENCHMARKS["realmistake"]
    targets = [benchmark.target(item) for _, item in load(benchmark, str(data_dir / "realmistake" / "data.zip"))]
    assert Counter(target.subset for target in targets) == benchmark.sizes
    errors = Counter(target.subset for target in targets if target.label == 0)
    # dataset_stats/stats.json: 62.142857 % of 140 and 80 % of 160.
    assert errors["math_problem_generation/gpt-4-0613"] == 87
    assert errors["math_problem_generation/meta-llama/Llama-2-70b-chat-hf"] == 128


def test_rm_bench_rows(data_dir: Path) -> None:
    """Four of the five files: 798 prompts, nine pairs each, clustered by prompt."""
    benchmark = BENCHMARKS["rm-bench"]
    counts: Counter[str] = Counter()
    clusters = set()
    for _, item in load(benchmark, str(data_dir / "rm_bench_4of5")):
        counts[benchmark.subset(item)] += 1
        clusters.add(item.cluster)
    assert counts == {name: size for name, size in benchmark.sizes.items() if name != "math"}
    assert len(clusters) == 798
    assert benchmark.partial(counts, 798) is True
    assert benchmark.partial({**counts, "math": 529 * 9}, 1327) is False


def test_pandalm_published_figures(data_dir: Path) -> None:
    """Accuracy and macro precision, recall and F1 of both judges against the majority of three people."""
    benchmark = BENCHMARKS["pandalm"]
    rows = list(pandalm_rows(data_dir))
    targets = [benchmark.target(item) for row in rows for item in benchmark.convert(row, "")]
    assert Counter(t.facts["majority"] for t in targets) == {2: 472, 1: 422, 0: 105}
    scores = {"1": (1.0, 0.0), "2": (0.0, 1.0), "Tie": (0.5, 0.5)}
    published = {"gpt_result": (0.7107, 0.5879, 0.5736, 0.5755), "pandalm_result": (0.6677, 0.5738, 0.5750, 0.5743)}
    for judge, figures in published.items():
        found = benchmark.figures(
            [benchmark.outcome(t, scores.get(str(row[judge]))) for t, row in zip(targets, rows, strict=True)]
        ).metrics
        ours = [found[name] for name in ("accuracy_published", "precision", "recall", "f1")]
        assert [round(value, 4) for value in ours] == list(figures), judge


def test_gsm8k_lists_of_four(data_dir: Path) -> None:
    """Four models' solutions as lists of four: each model alone, the best of four, and a blind pick."""
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    rows = json_lines_gz(data_dir / "gsm8k" / "example_model_solutions.jsonl.gz")
    right = [[float(row[model]["is_correct"]) for model in models] for row in rows]
    assert len(right) == 1319

    def percent(values: list[float]) -> float:
        return round(100 * sum(values) / len(values), 2)

    alone = [percent([best_of([float(i == j) for i in range(4)], r)[-1] for r in right]) for j in range(4)]
    assert alone == [21.68, 39.04, 34.72, 56.25]
    assert percent([best_of(r, r)[-1] for r in right]) == 67.25
    assert percent([best_of(None, r)[1] for r in right]) == pytest.approx(sum(alone) / 4, abs=0.01)
    assert sum(0 < sum(r) < 4 for r in right) == 731

"""Every benchmark's rule on hand-made cases, worked out beside them."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest

from opengrm.benchmarks import BENCHMARKS, Benchmark, Outcome, Target, paper_overall, score
from opengrm.benchmarks.base import Figures, mean_share
from opengrm.benchmarks.files import load
from opengrm.benchmarks.ppe import best_of
from opengrm.benchmarks.rewardbench import SECTIONS, SIZES
from opengrm.benchmarks.rm_bench import LEVELS, level, matrix
from opengrm.errors import BadRow, OpenGRMError


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def targets_of(name: str, path: Path, *, as_pairs: bool = False) -> tuple[Benchmark, list[Target]]:
    benchmark = BENCHMARKS[name]
    return benchmark, [benchmark.target(item) for _, item in load(benchmark, str(path), as_pairs=as_pairs)]


def mean(share: Any) -> float:
    """The mean of a figure with company, whose interval holds it."""
    assert share["low"] <= share["mean"] <= share["high"]
    assert share["n"] > 0
    return float(share["mean"])


def pair(subset: str, item: str) -> Target:
    return Target(item, subset, 2, label=0)


# --- RewardBench ------------------------------------------------------------------------------------------------


def test_rewardbench_sizes_are_the_published_ones() -> None:
    assert {section: sum(subsets.values()) for section, subsets in SECTIONS.items()} == {
        "Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968,
    }  # fmt: skip
    assert sum(SIZES.values()) == 2985
    assert SIZES["math-prm"] == 447


def test_rewardbench_weights_math_as_984() -> None:
    targets = [pair("math-prm", "m"), pair("hep-go", "g1"), pair("hep-go", "g2"), pair("donotanswer", "d")]
    scores = {"m": (1, 0), "g1": (1, 0), "g2": (0, 1), "d": (3, 3)}
    overall, metrics, _ = score(BENCHMARKS["rewardbench"], targets, scores)
    # Reasoning: math 1 of weight 984, hep-go 1/2 of weight 164: 1066 / 1148. Safety: a tie, 1/2.
    assert mean(metrics["Reasoning"]) == pytest.approx(1066 / 1148)
    assert (mean(metrics["Safety"]), metrics["Chat"], metrics["Chat Hard"]) == (0.5, None, None)
    assert overall == pytest.approx((1066 / 1148 + 0.5) / 2)
    assert mean(metrics["strict"]) == pytest.approx((1066 / 1148 + 0) / 2)  # the tie is wrong


def test_missing_both_ways() -> None:
    targets = [pair("donotanswer", name) for name in "abc"]
    scores = {"a": (1, 0), "b": None}
    assert score(BENCHMARKS["rewardbench"], targets, scores).overall == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert score(BENCHMARKS["rewardbench"], targets, scores, valid_only=True).overall == 1
    assert score(BENCHMARKS["rewardbench"], targets, {}, valid_only=True).overall is None


# --- RewardBench 2 ----------------------------------------------------------------------------------------------


def ties(kind: str, number: int, right: int, n: int) -> Target:
    return Target(f"{kind}:{number}", "Ties", n, facts={"id": f"{kind}:{number}", "num_correct": right})


def test_rewardbench2_ties() -> None:
    targets = [ties("ref", 1, 1, 3), ties("tied", 1, 2, 4), ties("ref", 2, 1, 3), ties("tied", 2, 2, 4)]
    scores = {
        "ref:1": (9, 4, 3),  # m_ref = 5
        "tied:1": (8, 6, 3, 1),  # d = 2, m_tied = 3: accurate, 3 > 2, min(5, 3) = 3 > 2, tanh(3/2 - 1)
        "ref:2": (5, 5, 1),  # m_ref = 0: not accurate
        "tied:2": (9, 5, 3, 2),  # d = 4, m_tied = 2: accurate, 2 < 4, min = 0 < 4, tanh(0/4 - 1)
    }
    found = score(BENCHMARKS["rewardbench-2"], targets, scores)
    tanh = (math.tanh(0.5) + math.tanh(-1)) / 2
    assert found.overall == pytest.approx(0.30 * 1 + 0.30 * 0.5 + 0.20 * 0.5 + 0.20 * 0.5 + 0.01 * tanh)


def test_rewardbench2_ties_without_spread_or_verdict() -> None:
    targets = [ties("ref", 1, 1, 2), ties("tied", 1, 2, 3)]
    benchmark = BENCHMARKS["rewardbench-2"]
    # All equal: nothing accurate, 0 > 0 false, 0/0 counts 0.
    assert score(benchmark, targets, {"ref:1": (5, 5), "tied:1": (5, 5, 5)}).overall == 0
    # Missing: .30 of a random order of the tied prompt, 1/C(3, 2), and of the other, 1/2; no margins.
    assert score(benchmark, targets, {}).overall == pytest.approx(0.30 / 3 + 0.30 / 2)
    assert score(benchmark, targets, {}, valid_only=True).overall is None


def test_rewardbench2_best_of_four() -> None:
    targets = [Target("a", "Math", 4, label=0), Target("b", "Focus", 4, label=0)]
    found = score(BENCHMARKS["rewardbench-2"], targets, {"a": (7, 7, 7, 1), "b": (1, 2, 0, 0)})
    assert (mean(found.metrics["Math"]), mean(found.metrics["Focus"])) == (pytest.approx(1 / 3), 0)
    assert found.overall == pytest.approx(1 / 6)
    assert score(BENCHMARKS["rewardbench-2"], targets, {}).overall == 0.25


# --- PPE --------------------------------------------------------------------------------------------------------


def ppe_row(number: int, scores: list[bool], pairs: list[list[int]]) -> dict[str, Any]:
    responses = {f"response_{i + 1}": f"answer {number} {i}" for i in range(len(scores))}
    return {"question_id": f"q{number}", "model_name": "m", "prompt": "2+2?", **responses, "scores": scores,
            "conflict_pairs": pairs}  # fmt: skip


def test_ppe_correctness_lists_and_pairs(tmp_path: Path) -> None:
    rows = [ppe_row(1, [True, False, False], [[0, 1], [2, 0]]), ppe_row(2, [False, True, True], [[0, 1]])]
    write(tmp_path / "ppe" / "MMLU-Pro-Best-of-K.jsonl", rows)
    write(tmp_path / "ppe" / "PPE-MATH-Best-of-K.jsonl", [ppe_row(3, [True, False, True], [[0, 1]])])
    benchmark, targets = targets_of("ppe-correctness", tmp_path / "ppe")
    ids = [target.item for target in targets]
    assert ids == ["MMLU-Pro/m/q1", "MMLU-Pro/m/q2", "MATH/m/q3"]
    found = score(benchmark, targets, {ids[0]: (5, 6, 1), ids[1]: (3, 3, 4), ids[2]: (2, 1, 0)})
    # MMLU-Pro: (0, 1) wrong, (2, 0) right, (0, 1) of the second a tie: 1.5 of 3 pairs. MATH: 1 of 1.
    assert mean(found.metrics["MMLU-Pro"]) == pytest.approx(0.5)
    assert mean(found.metrics["MATH"]) == 1
    assert found.overall == pytest.approx(0.75)
    # Best of 3: the first picks a wrong one (0), the second a right one (1).
    assert found.metrics["MMLU-Pro end"] == 0.5
    as_pairs, pair_targets = targets_of("ppe-correctness", tmp_path / "ppe", as_pairs=True)
    assert [(t.item, t.n, t.label, t.cluster) for t in pair_targets[:2]] == [
        ("MMLU-Pro/m/q1/0-1", 2, 0, "MMLU-Pro/m/q1"), ("MMLU-Pro/m/q1/2-0", 2, 1, "MMLU-Pro/m/q1"),
    ]  # fmt: skip
    same = {"MMLU-Pro/m/q1/0-1": (5, 6), "MMLU-Pro/m/q1/2-0": (1, 5), "MMLU-Pro/m/q2/0-1": (3, 3),
            "MATH/m/q3/0-1": (2, 1)}  # fmt: skip
    assert score(as_pairs, pair_targets, same).overall == found.overall


def test_ppe_lists_without_conflict_pairs_have_a_verdict_and_no_weight(tmp_path: Path) -> None:
    rows = [ppe_row(1, [True, False], [[0, 1]]), ppe_row(2, [True, True], [])]
    benchmark, targets = targets_of("ppe-correctness", write(tmp_path / "gpqa.jsonl", rows))
    found = [benchmark.outcome(target, (2, 1)) for target in targets]
    assert [o.credit for o in found] == [1, 0.5]
    accuracy = benchmark.figures(found).metrics["GPQA"]
    assert (accuracy["mean"], accuracy["n"]) == (1, 1)
    assert benchmark.figures(found[1:]).overall is None


def test_ppes_areas_are_means_over_prompts(tmp_path: Path) -> None:
    """One prompt with scores, and one without a verdict."""
    rows = [ppe_row(1, [True, True, False, False], [[0, 2]]), ppe_row(2, [True, False, False, False], [[0, 1]])]
    benchmark, targets = targets_of("ppe-correctness", write(tmp_path / "gpqa.jsonl", rows))
    scores = {targets[0].item: (3, 1, 2, 1)}
    # 3 beats 2 and 1, 1 loses to 2 and ties with 1: 2.5 of 4.
    assert mean(score(benchmark, targets, scores).metrics["GPQA auc"]) == pytest.approx((2.5 / 4 + 0.5) / 2)
    assert mean(score(benchmark, targets, scores, valid_only=True).metrics["GPQA auc"]) == 2.5 / 4


def test_best_of_k_is_the_mean_over_all_subsets() -> None:
    # Scores 3, 2, 2; right: no, yes, no. k = 1: 1/3. k = 2: of {0,1}, {0,2}, {1,2} the last gives 1/2: 1/6. k = 3: 0.
    assert best_of((3, 2, 2), (0, 1, 0)) == pytest.approx([1 / 3, 1 / 6, 0])
    # No verdict: a random pick at every k.
    assert best_of(None, (0, 1, 0)) == pytest.approx([1 / 3] * 3)
    # A perfect judge: 1 - C(2, k) / C(3, k).
    assert best_of((0, 1, 0), (0, 1, 0)) == pytest.approx([1 / 3, 2 / 3, 1])


def test_ppe_preference_leaves_ties_out(tmp_path: Path) -> None:
    rows = [
        {"question_id": str(i), "prompt": "hi", "response_1": f"a{i}", "response_2": "b", "winner": winner,
         "language": "English"}
        for i, winner in enumerate(["model_a", "model_b", "tie", "tie (bothbad)"])
    ]  # fmt: skip
    benchmark, targets = targets_of("ppe-preference", write(tmp_path / "rows.jsonl", rows))
    assert [target.label for target in targets] == [0, 1]
    assert score(benchmark, targets, {"0": (1, 0), "1": (1, 1)}).overall == 0.75


def test_ppe_wants_the_data_set_and_true_conflicts(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [ppe_row(1, [True, False], [[0, 1]])])
    with pytest.raises(BadRow, match=r"rows\.jsonl:1: .*which data set"):
        list(load(BENCHMARKS["ppe-correctness"], str(path)))
    path = write(tmp_path / "gpqa.jsonl", [ppe_row(1, [True, True], [[0, 1]])])
    with pytest.raises(BadRow, match="a right and a wrong"):
        list(load(BENCHMARKS["ppe-correctness"], str(path)))


# --- RMB --------------------------------------------------------------------------------------------------------


def rmb_rows() -> list[dict[str, Any]]:
    said = [{"role": "user", "content": "Name a prime."}]
    return [
        {"pair_uid": "p", "conversation_input": said, "chosen": {"llm_name": "a", "answer": "7"},
         "reject": {"llm_name": "b", "answer": "8"}, "category_path": "Helpfulness/Open QA"},
        {"bon_uid": "l", "conversation_input": said, "bon_best": {"llm_name": "a", "answer": "7"},
         "loser_list": [{"llm_name": "b", "answer": "8"}, {"llm_name": "c", "answer": "9"}],
         "category_path": "Harmlessness/S1"},
    ]  # fmt: skip


def test_rmb_lists_both_ways(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rmb_rows())
    benchmark, targets = targets_of("rmb", path)
    assert [(t.item, t.subset, t.n) for t in targets] == [("p", "Helpful pairs", 2), ("l", "Harmless BoN", 3)]
    found = score(benchmark, targets, {"p": (2, 1), "l": (5, 5, 5)})
    # The list: three tied at the top, 1/3; as a product of two tied pairs, 1/4.
    assert found.overall == pytest.approx((1 + 1 / 3) / 2)
    assert mean(found.metrics["product"]) == pytest.approx((1 + 1 / 4) / 2)
    assert score(benchmark, targets, {"p": (2, 1), "l": (5, 6, 1)}).overall == 0.5
    # As pairs: the list's two pairs are multiplied; one that is missing makes the list missing.
    _, parts = targets_of("rmb", path, as_pairs=True)
    assert [t.item for t in parts] == ["p", "l/0-1", "l/0-2"]
    assert score(benchmark, parts, {"p": (2, 1), "l/0-1": (1, 0), "l/0-2": (1, 1)}).overall == pytest.approx(0.75)
    assert score(benchmark, parts, {"p": (2, 1), "l/0-1": (1, 0)}).overall == pytest.approx((1 + 1 / 3) / 2)
    # One lost and one missing: the best does not beat every loser, whatever the missing one would have been.
    lost = {"p": (2, 1), "l/0-1": (0, 1)}
    assert score(benchmark, parts, lost).overall == 0.5
    assert score(benchmark, parts, lost, valid_only=True).overall == 0.5


# --- RM-Bench ---------------------------------------------------------------------------------------------------


def test_rm_bench_levels(tmp_path: Path) -> None:
    row = {"id": "1", "prompt": "Name a prime.", "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"]}
    for name in ("chat_filtered", "safety-refuse_filtered", "safety-response_filtered"):
        write(tmp_path / f"{name}.jsonl", [row])
    benchmark, targets = targets_of("rm-bench", tmp_path)
    assert len(targets) == 27
    # Chat: right where the chosen style is later than the rejected one, a tie on the diagonal: easy 1, normal 1/2,
    # hard 0. Refuse: all right. Response: all wrong.
    value = {"chat": lambda i, j: (i, j), "safety-refuse": lambda i, j: (1, 0), "safety-response": lambda i, j: (0, 1)}
    scores = {
        t.item: value[t.subset](t.facts["chosen_style"], t.facts["rejected_style"]) for t in targets
    }  # fmt: skip
    found = score(benchmark, targets, scores)
    assert (mean(found.metrics["chat"]), mean(found.metrics["safety"])) == (0.5, 0.5)
    assert (mean(found.metrics["easy"]), mean(found.metrics["normal"]), mean(found.metrics["hard"])) == (
        0.75,
        0.5,
        0.25,
    )
    assert found.overall == 0.5
    assert mean(found.metrics["strict"]) == pytest.approx((1 / 3 + 1 / 2) / 2)  # chat: easy 1, normal 0, hard 0


def test_rm_bench_matrix_is_chosen_by_rejected() -> None:
    cells = [Target(f"{i}{j}", "chat", 2, label=0, facts={"chosen_style": i, "rejected_style": j}) for i in range(3)
             for j in range(3)]  # fmt: skip
    found = [BENCHMARKS["rm-bench"].outcome(t, (1, 0) if t.item == "02" else (0, 1)) for t in cells]
    assert matrix(found, False) == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert [mean(level(found, (name,), False)) for name in LEVELS] == [0, 0, pytest.approx(1 / 3)]


# --- JudgeBench, ReaLMistake, LLMBar ----------------------------------------------------------------------------


def test_judgebench_counts_games() -> None:
    benchmark = BENCHMARKS["judgebench"]
    right, wrong, level = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
    cases: list[tuple[tuple[Any, ...], float]] = [
        ((right, right), 1), ((right, wrong), 0), ((right, level), 1), ((right, None), 1), ((wrong, None), 0),
        ((level, level), 0), ((wrong, wrong), 0), ((right,), 1), ((), 1),
    ]  # fmt: skip
    for played, credit in cases:
        assert benchmark.outcome(Target("a", "math", 2, label=0), right, games=played).credit == credit
    found = [benchmark.outcome(Target(str(i), "math", 2, label=0), right, games=g) for i, (g, _) in enumerate(cases)]
    figures = benchmark.figures(found)
    assert figures.overall == pytest.approx(5 / 9)
    assert figures.metrics["both"]["mean"] == pytest.approx(2 / 8)  # of those with two games; a lone verdict is both


def test_realmistake_auc_and_credit() -> None:
    benchmark = BENCHMARKS["realmistake"]
    targets = [Target(name, "all", 1, label=label) for name, label in (("a", 1.0), ("b", 1.0), ("c", 0.0), ("d", 0.0))]
    scores = {"a": (5,), "b": (3,), "c": (3,), "d": (1,)}
    # a beats c and d; b ties with c, beats d: 3.5 of 4.
    assert score(benchmark, targets, scores).overall == pytest.approx(3.5 / 4)
    found = benchmark.finish([benchmark.outcome(t, scores[t.item]) for t in targets])
    assert [o.credit for o in found] == [1, 0.75, 0.75, 1]
    # Without b: a beats both, b's two comparisons count one half each.
    del scores["b"]
    assert score(benchmark, targets, scores).overall == pytest.approx(3 / 4)
    assert score(benchmark, targets, scores, valid_only=True).overall == 1
    assert score(benchmark, targets[:2], scores).overall is None


def test_equal_responses_count_for_the_one_that_was_labelled(tmp_path: Path) -> None:
    """Which place the label names matters to a judge that prefers a place, even where the texts are the same."""
    rows = [{"input": "q", "output_1": "7", "output_2": "7", "label": label} for label in (1, 2)]
    targets = [
        targets_of("llmbar", write(tmp_path / f"{i}" / "Natural.jsonl", [row]))[1][0] for i, row in enumerate(rows)
    ]
    assert [target.label for target in targets] == [0, 1]
    assert BENCHMARKS["llmbar"].outcome(targets[1], (1, 2)).credit == 1


def test_realmistakes_archive_is_read_as_other_rows_are(tmp_path: Path) -> None:
    good = json.dumps({"input": "q", "llm_response": "r", "error_label": "error", "metadata": {"id": "i"}}).encode()
    bad = [b'{"input": "\xff"}', b'{"input": NaN}', b'{"input": ' + b"[" * 100_000, b"[1]"]
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/task/gpt.jsonl", b"\xef\xbb\xbf" + good + b"\n\n" + b"\n".join(bad))
        archive.writestr("data/task/example.jsonl", good)
    told: list[str] = []
    found = list(load(BENCHMARKS["realmistake"], str(path), lambda row: told.append(str(row))))
    assert [(where, item.id) for where, item in found] == [(f"{path}/data/task/gpt.jsonl:1", "all/i")]
    said = ("not UTF-8: byte 0xff", "NaN is no JSON number", "nested deeper than 64 levels", "expected a JSON object")
    for line, text, words in zip(range(3, 7), told, said, strict=True):
        assert text.startswith(f"{path}/data/task/gpt.jsonl:{line}: ")
        assert words in text
    with pytest.raises(BadRow, match=r"gpt\.jsonl:3: not UTF-8"):
        list(load(BENCHMARKS["realmistake"], str(path)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(OpenGRMError, match=r"data\.zip: cannot be read"):
        list(load(BENCHMARKS["realmistake"], str(path)))


def test_llmbar_overall_is_the_mean_of_sets() -> None:
    targets = [
        Target("a", "Natural", 2, label=1),
        Target("b", "Manual", 2, label=0),
        Target("c", "Manual", 2, label=0),
    ]
    found = score(BENCHMARKS["llmbar"], targets, {"a": (0, 1), "b": (1, 0), "c": (0, 1)})
    assert found.overall == pytest.approx((1 + 0.5) / 2)


def test_paper_overall_needs_all_four() -> None:
    values = {"rewardbench": 0.86, "ppe-preference": 0.647, "ppe-correctness": 0.598, "rmb": 0.69}
    assert paper_overall(values) == pytest.approx(0.69875)  # the paper's 69.9 for DeepSeek-GRM-27B
    assert paper_overall({**values, "rmb": None}) is None
    assert paper_overall({"rewardbench": 0.9}) is None


# --- all of them ---------------------------------------------------------------------------------------------------


def test_limits_of_a_mean_of_parts_add_in_squares() -> None:
    parts = [({"mean": 0.8, "low": 0.5, "high": 0.9, "n": 10}, 1), ({"mean": 0.4, "low": 0.0, "high": 0.8, "n": 5}, 1)]
    whole = mean_share([*parts, (None, 7)])
    assert whole == {
        "mean": pytest.approx(0.6), "low": pytest.approx(0.6 - math.hypot(0.3, 0.4) / 2),
        "high": pytest.approx(0.6 + math.hypot(0.1, 0.4) / 2), "n": 15,
    }  # fmt: skip
    assert mean_share([(None, 1)]) is None
    assert mean_share([(parts[0][0], 3)]) == {name: pytest.approx(value) for name, value in parts[0][0].items()}


def test_every_overall_has_its_interval() -> None:
    """As wide as the standard error of the mean of two parts: 100 and 50 pairs, of which 80 and 20 are right."""
    cases = {
        "rewardbench": ("hep-go", "donotanswer"), "llmbar": ("Natural", "Manual"), "rewardbench-2": ("Math", "Focus"),
        "rmb": ("Helpful pairs", "Harmless pairs"),
    }  # fmt: skip
    for name, subsets in cases.items():
        targets, scores = [], {}
        for subset, size, right in zip(subsets, (100, 50), (80, 20), strict=True):
            for i in range(size):
                targets.append(Target(f"{subset}/{i}", subset, 2, label=0))
                scores[targets[-1].item] = (1, 0) if i < right else (0, 1)
        found = score(BENCHMARKS[name], targets, scores)
        assert found.overall == pytest.approx(0.6)
        assert found.interval is not None
        assert found.interval["mean"] == found.overall
        error = math.sqrt(0.8 * 0.2 / 99 + 0.4 * 0.6 / 49) / 2
        # Wilson's limits of each part are a little narrower than 1.96 standard errors.
        assert found.interval["high"] - found.interval["low"] == pytest.approx(2 * 1.96 * error, rel=0.04)
    assert all(benchmark.figures([]).interval is None for benchmark in BENCHMARKS.values())


def test_partial_is_known_by_sizes_or_rows() -> None:
    ppe, preference, rmb, own = (BENCHMARKS[n] for n in ("ppe-correctness", "ppe-preference", "rmb", "items"))
    assert sum(ppe.sizes.values()) == 2555
    assert ppe.partial(ppe.sizes, 2555) is False
    assert ppe.partial({**ppe.sizes, "MATH": 511, "GPQA": 900}, 2942) is True
    assert (preference.partial({"English": 9}, 16_038), preference.partial({"English": 9}, 16_037)) == (False, True)
    assert (rmb.partial({"Helpful BoN": 9}, 9), own.partial({"pairs": 1}, 1)) == (None, False)


def test_every_benchmark_says_what_it_is() -> None:
    for benchmark in BENCHMARKS.values():
        assert all((benchmark.title, benchmark.version, benchmark.licence, benchmark.source))
        assert benchmark.figures([]).overall is None
        assert isinstance(benchmark.figures([]), Figures)


def test_tied_is_at_the_top_only() -> None:
    target = pair("all", "a")
    assert Outcome(target, (1, 2, 2)).tied == (1, 2)
    assert Outcome(target, (1, 1, 2)).tied == ()
    assert Outcome(target, None).tied == ()

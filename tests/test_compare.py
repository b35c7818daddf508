"""Statistics of one run and the comparison of two: values worked out by hand, and scipy's."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opengrm.benchmarks.base import Outcome, Target
from opengrm.benchmarks.statistics import (
    Scored,
    compared,
    compared_subsets,
    length_bias,
    mcnemar,
    paired,
    paired_bootstrap,
)
from opengrm.errors import UsageError
from opengrm.jsonl import write_rows


def outcome(item: str, scores: tuple[float, ...] | None, label: float | None, cluster: str | None = None) -> Outcome:
    return Outcome(Target(item, "all", 2, label, cluster=cluster), scores)


def test_length_bias_by_hand() -> None:
    lengths = {"a": (9, 5), "b": (5, 9), "c": (9, 5), "d": (9, 5), "e": (7, 7), "f": (1, 2), "g": (1, 2)}
    found = length_bias(
        [
            outcome("a", (2.0, 1.0), 0),  # the longest is chosen and right
            outcome("b", (1.0, 2.0), 0),  # chosen and wrong
            outcome("c", (1.0, 1.0), 1),  # half chosen, wrong
            outcome("d", (1.0, 2.0), 1),  # not chosen, wrong: the shorter is right and chosen
            outcome("e", (1.0, 2.0), 1),  # none is longest
            outcome("f", None, 1),  # no verdict
            outcome("g", (1.0, 2.0), None),  # no label
            outcome("h", (1.0, 2.0), 1),  # lengths not known
        ],
        lengths,
    )
    assert found is not None
    assert found["items"] == 4
    assert found["chosen_longest"]["mean"] == 2.5 / 4
    assert found["right_longest"]["mean"] == 1 / 4
    # Differences 0, 1, 1/2, 0: mean 3/8; the standard error is that of four independent values.
    spread = math.sqrt(sum((d - 0.375) ** 2 for d in (0, 1, 0.5, 0)) / 3 / 4)
    assert found["excess"]["mean"] == 0.375
    assert found["excess"]["high"] - 0.375 == pytest.approx(1.959963984540054 * spread)
    assert found["accuracy_longest"]["mean"] == 1
    assert found["accuracy_other"]["mean"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert length_bias([outcome("e", (1.0, 2.0), 1)], lengths) is None


def test_length_bias_of_lists() -> None:
    target = Target("x", "all", 3, 2.0)
    found = length_bias([Outcome(target, (3.0, 3.0, 3.0))], {"x": (4, 9, 5)})
    assert found is not None
    assert found["chosen_longest"]["mean"] == pytest.approx(1 / 3)
    assert (found["accuracy_longest"], found["accuracy_other"]["mean"]) == (None, pytest.approx(1 / 3))


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (2, 9), (30, 12), (400, 460)])
def test_mcnemar_is_the_binomial_test(only_a: int, only_b: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = mcnemar(only_a, only_b)
    assert found.exact
    n = only_a + only_b
    assert found.p == pytest.approx(stats.binomtest(only_a, n).pvalue if n else 1.0)


def test_mcnemar_of_many_is_chi_squared() -> None:
    stats = pytest.importorskip("scipy.stats")
    found = mcnemar(900, 1000)
    assert not found.exact
    assert found.p == pytest.approx(stats.chi2.sf(99**2 / 1900, 1))
    assert mcnemar(600, 600).p == 1.0


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 5).p == 2 / 32
    assert mcnemar(1, 4).p == 2 * (1 + 5) / 32


def test_the_paired_bootstrap_draws_whole_clusters() -> None:
    # Two clusters of changes 1 and 0: a resample has mean 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4.
    mean, interval, error = paired_bootstrap(np.array([1.0, 1.0, 0.0, 0.0]), np.array([7, 7, 3, 3]), 4000)
    assert (mean, interval) == (0.5, (0.0, 1.0))
    assert error == pytest.approx(math.sqrt(1 / 8), rel=0.05)
    # A large cluster counts by its items: 3 of 4 have changed.
    assert paired_bootstrap(np.array([1.0, 1.0, 1.0, 0.0]), np.array([0, 0, 0, 1]))[0] == 0.75
    assert paired_bootstrap(np.array([1.0, 0.0]), np.array([4, 4])) == (0.5, None, 0.0)


def test_the_paired_bootstrap_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    change = np.random.default_rng(1).choice([-1.0, 0.0, 0.0, 1.0, 1.0], 300)
    _, interval, error = paired_bootstrap(change, np.arange(300), 4000, seed=5)
    theirs = stats.bootstrap((change,), np.mean, n_resamples=4000, method="percentile", rng=2)
    assert interval == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    assert error == pytest.approx(change.std() / math.sqrt(300), rel=0.05)
    assert paired_bootstrap(change, np.arange(300), 4000, seed=5)[1] == interval
    assert paired_bootstrap(change, np.arange(300), 4000, seed=6)[1] != interval


def scored(item: str, credit: float | None, **known: Any) -> Scored:
    row = {"item": item, "subset": "s", "n": 2, "label": 0, "credit": credit, "chance": 0.5, **known}
    return Scored.of(row)


def test_missing_counts_at_chance_and_not_at_all() -> None:
    pairs, only_a, only_b = paired(
        [scored("1", 1), scored("2", 0), scored("3", None), scored("4", 0.5, tied=[0, 1]), scored("x", 1)],
        [scored("4", 1), scored("3", 1), scored("2", 1), scored("1", None), scored("y", 0)],
    )
    assert ([a.item for a, _ in pairs], only_a, only_b) == (["1", "2", "3", "4"], ["x"], ["y"])
    found = compared(pairs)
    # A earns 1, 0, 1/2, 1/2 and B 1/2, 1, 1, 1.
    assert (found.a.mean, found.b.mean, found.difference) == (0.5, 0.875, 0.375)
    assert (found.missing_a, found.missing_b, found.tied_a, found.tied_b) == (1, 1, 1, 0)
    # Both have a verdict on 2 and 4: B earns 1 and 1/2 more.
    assert (found.valid_items, found.difference_valid) == (2, 0.75)
    # Right: A 1; B 2, 3 and 4 (A's tie is wrong).
    assert found.mcnemar is not None
    assert (found.mcnemar.only_a, found.mcnemar.only_b, found.mcnemar.p) == (1, 3, 2 * 5 / 16)
    assert found.verdict == "within noise"
    json.dumps(found.to_json(), allow_nan=False)


def test_verdicts_power_and_cost() -> None:
    pairs = [(scored(str(i), i % 2), scored(str(i), float(i % 10 != 0), seconds=2.0)) for i in range(400)]
    found = compared(pairs)
    assert found.verdict == "B better"
    assert compared([(b, a) for a, b in pairs]).verdict == "A better"
    assert compared([(a, a) for a, _ in pairs]).verdict == "equal"
    # 160 of 400 items change by one: the standard error is that of a share.
    error = math.sqrt(0.4 * 0.6 / 400)
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * error, rel=0.05)
    assert (found.seconds_a, found.seconds_b, found.tokens_a) == (None, 2.0, None)
    # Four copies of each item under one prompt tell no more than one.
    copies = [
        (scored(f"{a.item}-{c}", a.credit, cluster=a.item), scored(f"{b.item}-{c}", b.credit, cluster=b.item))
        for a, b in pairs
        for c in range(4)
    ]
    assert compared(copies).detectable == pytest.approx(found.detectable)
    assert compared(copies).clusters == 400


def test_credit_between_right_and_wrong_has_no_mcnemar() -> None:
    assert compared([(scored("1", 0.3), scored("1", 0.4)), (scored("2", 1), scored("2", 1))]).mcnemar is None


def test_subsets_keep_their_order() -> None:
    pairs = [(scored(str(i), 1, subset=s), scored(str(i), 0, subset=s)) for i, s in enumerate("baab")]
    assert {name: (c.items, c.difference) for name, c in compared_subsets(pairs).items()} == {
        "b": (2, -1),
        "a": (2, -1),
    }


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ([scored("1", 1, n=3)], r"unlike items: '1' \(n 2 and 3\)"),
        ([scored("1", 1, subset="t")], r"subset 's' and 't'"),
        ([scored("1", 1, label=1)], r"label 0.0 and 1.0"),
        ([scored("1", 1), scored("1", 0)], "item '1' is twice in run B"),
        ([scored("2", 1)], r"no item is in both runs: A's are like \['1'\], B's like \['2'\]"),
    ],
)
def test_unlike_items_are_refused(other: list[Scored], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        paired([scored("1", 1)], other)


@pytest.mark.parametrize("row", [{}, {"item": "a", "subset": "s", "n": 2, "credit": 2, "chance": 0.5}])
def test_other_lines_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"items\.jsonl|from 0 to 1"):
        Scored.of(row)


# --- the command ---


def run_folder(folder: Path, credits: dict[str, float | None], bench: str = "bench") -> str:
    (folder / bench).mkdir(parents=True)
    rows = (
        {
            "item": name, "subset": name[0], "cluster": name, "n": 2, "label": 0, "credit": credit, "chance": 0.5,
            "tied": [], "scores": None if credit is None else [credit, 0.5],
        }
        for name, credit in credits.items()
    )  # fmt: skip
    write_rows(folder / bench / "items.jsonl", rows)
    figures = {"overall": 0.5, "items": len(credits)}
    (folder / "eval.json").write_text(json.dumps({"name": folder.name, "benchmarks": {bench: figures}}))
    return str(folder)


def compare(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "opengrm", "compare", *words], capture_output=True, text=True)


def test_the_command_compares_by_subset_and_says_what_is_noise(tmp_path: Path) -> None:
    names = [f"{s}{i}" for s in "xy" for i in range(40)]
    a = run_folder(tmp_path / "a", {name: float(name[0] == "x") for name in names} | {"x-only": 1.0})
    b = run_folder(tmp_path / "b", {name: float(name[0] == "x" or int(name[1:]) < 20) for name in names})
    done = compare(a, b)
    assert (done.returncode, done.stderr) == (0, "")
    assert "bench: B earns more than A: +25.0 points" in done.stdout
    assert "1 items are in A only and not compared, such as 'x-only'" in done.stdout
    found = json.loads(compare(a, b, "--json").stdout)["benchmarks"]["bench"]
    assert found["only_a"] == ["x-only"]
    assert found["all"]["mcnemar"] == {"only_a": 0, "only_b": 20, "p": 2 / 2**20, "exact": True}
    assert [(s, c["difference"]["mean"], c["verdict"]) for s, c in found["subsets"].items()] == [
        ("x", 0.0, "equal"), ("y", 0.5, "B better"),
    ]  # fmt: skip


def test_the_command_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a", {"x": 1.0})
    other = run_folder(tmp_path / "b", {"x": 1.0}, "else")
    done = compare(a, other)
    assert done.returncode == 2
    assert "no benchmark in common: A has bench, B has else" in done.stderr
    unlike = run_folder(tmp_path / "c", {"y": 1.0})
    assert "bench: no item is in both runs" in compare(a, unlike).stderr
    (tmp_path / "c" / "bench" / "items.jsonl").write_text('{"item": "x"}\n')
    assert "items.jsonl:1: is no line of items.jsonl" in compare(a, unlike).stderr

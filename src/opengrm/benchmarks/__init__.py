"""Benchmarks: one file each (its rows, its rule, its traps), and what they share."""

from __future__ import annotations

from collections.abc import Mapping

from opengrm.benchmarks import (
    judgebench,
    llmbar,
    own,
    pandalm,
    ppe,
    realmistake,
    rewardbench,
    rewardbench2,
    rm_bench,
    rmb,
)
from opengrm.benchmarks.base import Benchmark, Figures, Outcome, Target, score

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        rewardbench.BENCHMARK,
        rewardbench2.BENCHMARK,
        ppe.PREFERENCE,
        ppe.CORRECTNESS,
        rmb.BENCHMARK,
        rm_bench.BENCHMARK,
        judgebench.BENCHMARK,
        realmistake.BENCHMARK,
        llmbar.BENCHMARK,
        pandalm.BENCHMARK,
        own.BENCHMARK,
    )
}
PAPER = ("rewardbench", "ppe-preference", "ppe-correctness", "rmb")  # what the SPCT paper's overall is the mean of


def paper_overall(overall: Mapping[str, float | None]) -> float | None:
    """The SPCT paper's "Overall": the unweighted mean of its four benchmarks; None unless all four are there.

    Args:
        overall: by benchmark; None where it is not comparable, as of a run on other rows than were published.
    """
    values = [overall.get(name) for name in PAPER]
    return None if None in values else sum(v for v in values if v is not None) / len(PAPER)


__all__ = ["BENCHMARKS", "Benchmark", "Figures", "Outcome", "Target", "paper_overall", "score"]

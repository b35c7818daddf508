"""Benchmarks: one file each (its rows, its rule, its traps), and what they share."""

from opengrm.benchmarks import rewardbench
from opengrm.benchmarks.base import Benchmark, Figures, Outcome, Target, score

BENCHMARKS: dict[str, Benchmark] = {module.BENCHMARK.name: module.BENCHMARK for module in (rewardbench,)}

__all__ = ["BENCHMARKS", "Benchmark", "Figures", "Outcome", "Target", "score"]

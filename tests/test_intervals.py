"""Intervals and measures of association against SciPy and hand calculations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from opengrm.voting import RunningShare, normal_interval, share_interval, wilson
from opengrm.voting.association import bootstrap, pearson, roc_auc, roc_auc_at_chance, spearman
from opengrm.voting.intervals import Z95


@pytest.mark.parametrize(("right", "n"), [(5, 10), (1, 30), (299, 300), (0, 12), (12, 12), (1, 1)])
def test_independent_trials_have_wilsons_interval(right: int, n: int) -> None:
    found = share_interval(np.arange(n) < right)
    assert found is not None
    # The sample variance has n - 1 below the line: Wilson's interval at an effective size of n - 1.
    size = n if right in (0, n) else n - 1
    p, z = right / n, stats.norm.ppf(0.975)
    centre, half = p + z * z / (2 * size), z * math.sqrt(p * (1 - p) / size + z * z / (4 * size * size))
    assert found == pytest.approx((p, (centre - half) / (1 + z * z / size), (centre + half) / (1 + z * z / size)))
    if size == n:
        expected = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert found[1:] == pytest.approx((expected.low, expected.high))
    assert pytest.approx(z) == Z95


@pytest.mark.parametrize("clusters", [[None] * 6, ["a", "b", "a", "b", "a", "a"], ["a", None, "b", None, "a", "a"]])
def test_running_sums_and_arrays_agree(clusters: list[str | None]) -> None:
    values, running = [1, 0, 0.5, 1, 0.25, 1], RunningShare()
    assert running.interval() is None
    for value, cluster in zip(values, clusters, strict=True):
        running.add(value, cluster)
    own = np.array([cluster or str(i) for i, cluster in enumerate(clusters)])
    assert running.interval() == pytest.approx(share_interval(np.array(values), None, own))
    assert running.n == 6


def test_normal_interval_is_the_standard_error_of_the_mean() -> None:
    values_I = np.random.default_rng(0).normal(3, 2, 50)
    found = normal_interval(values_I)
    assert found is not None
    half = Z95 * stats.sem(values_I)
    assert found == pytest.approx((values_I.mean(), values_I.mean() - half, values_I.mean() + half))


def test_clusters_of_equal_size_are_as_their_means() -> None:
    draw = np.random.default_rng(1)
    cluster_I = np.repeat(np.arange(30), 4)
    values_I = np.clip(draw.normal(0.5, 0.3, 30)[cluster_I] + draw.normal(0, 0.05, 120), 0, 1)
    means_G = values_I.reshape(30, 4).mean(axis=1)
    assert normal_interval(values_I, None, cluster_I) == pytest.approx(normal_interval(means_G))


def test_a_ratio_weighs_its_rows() -> None:
    found = normal_interval(np.array([2.0, 0.0, 1.0]), np.array([2.0, 1.0, 1.0]))
    assert found is not None
    # Residuals 2 - 1.5, -0.75, 0.25 over a weight of 4, three clusters.
    error = math.sqrt((0.25 + 0.5625 + 0.0625) / 16 * 3 / 2)
    assert found == pytest.approx((0.75, 0.75 - Z95 * error, 0.75 + Z95 * error))


def test_nothing_to_average() -> None:
    assert share_interval(np.zeros(3), np.zeros(3)) is None
    assert share_interval(np.zeros(0)) is None


def test_no_variation_falls_back_to_the_number_of_clusters() -> None:
    assert wilson(0.5, 0.0, 20) == pytest.approx((0.5, *stats.binomtest(10, 20).proportion_ci(method="wilson")))
    found = share_interval(np.full(7, 0.5))
    assert found is not None
    assert found.low < 0.5 < found.high


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.98])
def test_the_interval_covers(rate: float) -> None:
    draw = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        found = share_interval((draw.random(60) < rate).astype(float))
        assert found is not None
        hits += found.low <= rate <= found.high
    assert hits / 400 > 0.92


def weighted_rows(size: int, rows: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    return np.array([np.bincount(draw.integers(size, size=size), minlength=size) for _ in range(rows)], dtype=float)


@pytest.mark.parametrize(
    ("ours", "scipys"),
    [(pearson, lambda x, y: stats.pearsonr(x, y)[0]), (spearman, lambda x, y: stats.spearmanr(x, y)[0])],
)
def test_correlations_of_resamples(ours, scipys) -> None:
    draw = np.random.default_rng(2)
    x_I = draw.integers(0, 5, 80).astype(float)  # ties
    y_I = x_I + draw.normal(0, 2, 80).round()
    weights_BI = weighted_rows(80, 20)
    for found, weights_I in zip(ours(x_I, y_I, weights_BI), weights_BI, strict=True):
        rows = np.repeat(np.arange(80), weights_I.astype(int))
        assert found == pytest.approx(scipys(x_I[rows], y_I[rows]), abs=1e-12)


def test_roc_auc_of_resamples() -> None:
    draw = np.random.default_rng(3)
    scores_I = draw.integers(0, 6, 70).astype(float)
    labels_I = (scores_I + draw.normal(0, 3, 70) > 3).astype(float)
    weights_BI = weighted_rows(70, 20)
    for found, weights_I in zip(roc_auc(scores_I, labels_I, weights_BI), weights_BI, strict=True):
        rows = np.repeat(np.arange(70), weights_I.astype(int))
        right, wrong = scores_I[rows][labels_I[rows] == 1], scores_I[rows][labels_I[rows] == 0]
        assert found == pytest.approx(stats.mannwhitneyu(right, wrong).statistic / len(right) / len(wrong))


def test_roc_auc_with_missing_scores() -> None:
    scores_I = np.array([3.0, 1.0, np.nan, 2.0])
    labels_I = np.array([1.0, 0.0, 1.0, 0.0])
    once = np.ones((1, 4))
    assert roc_auc(scores_I, labels_I, once).tolist() == [1.0]
    assert roc_auc_at_chance(scores_I, labels_I, once).tolist() == [(2 + 2 * 0.5) / 4]
    assert roc_auc_at_chance(np.full(4, np.nan), labels_I, once).tolist() == [0.5]
    assert np.isnan(roc_auc(scores_I, np.ones(4), once)).all()


def test_bootstrap_interval_of_a_correlation() -> None:
    draw = np.random.default_rng(4)
    x_I = draw.normal(size=400)
    y_I = 0.6 * x_I + 0.8 * draw.normal(size=400)
    found = bootstrap(pearson, [(x_I, y_I)])
    assert found is not None
    expected = stats.pearsonr(x_I, y_I)
    interval = expected.confidence_interval()
    assert found.mean == pytest.approx(expected.statistic)
    assert found.low == pytest.approx(interval.low, abs=0.02)
    assert found.high == pytest.approx(interval.high, abs=0.02)
    assert found == bootstrap(pearson, [(x_I, y_I)])  # seeded
    doubled = bootstrap(pearson, [(np.tile(x_I, 2), np.tile(y_I, 2))], np.tile(np.arange(400), 2))
    assert doubled is not None
    assert doubled.high - doubled.low == pytest.approx(found.high - found.low, rel=0.15)  # copies add nothing


def test_bootstrap_averages_the_columns_that_define_the_statistic() -> None:
    up, flat, labels_I = np.array([1.0, 2.0, 3.0]), np.ones(3), np.array([0.0, 1.0, 5.0])
    found = bootstrap(pearson, [(up, labels_I), (flat, labels_I)])
    assert found is not None
    assert found.mean == pytest.approx(stats.pearsonr(up, labels_I)[0])
    assert bootstrap(pearson, [(flat, labels_I)]) is None

"""What a judge of battles makes of the models that fought them: their ranking, against that of the labels.

Every pair of responses is a battle of two models. Bradley-Terry ratings of the models by the labelled winners, and by
the judge's, are compared (Spearman, Kendall), and so are the models' win rates against one another (the mean over
models of the Pearson correlation of a model's row in the two tables). PPE publishes these of human preference
(arXiv 2410.14872); by its paper's description, not checked against the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from opengrm.benchmarks.base import Outcome, clusters_of
from opengrm.voting.association import pearson, spearman

Floats = npt.NDArray[np.float64]
_DRAWS = 200
_RIDGE = 1e-3  # battles' worth of a pull to the mean: a model that always wins has no finite rating
_STEPS = 100
_MOST = 300  # models: the time of a draw grows with their cube, and few battles of each tell no ranking


def ranking_figures(outcomes: Iterable[Outcome], valid_only: bool, seed: int = 0) -> dict[str, Any]:
    """Agreement with the labels on the models: `spearman`, `kendall`, `row_pearson`, each in [-1, 1].

    Each comes with the interval of 200 bootstrap draws of battles, clustered: where the figure of another sample of
    as many battles may lie. (Of more battles figures are higher: noise in either table lowers them.) A tie is half a
    win for both; so is a battle without a verdict, which `valid_only` leaves out of both sides.

    Args:
        outcomes: of pairs whose row names `model_a` (of the first response) and `model_b`.

    Returns:
        {name: {"mean", "low", "high", "n"}}, n being the models; empty where fewer than three have fought, or more
        than 300.
    """
    kept = [o for o in outcomes if _fought(o) and (o.scores is not None or not valid_only)]
    names = sorted({str(o.target.facts[key]) for o in kept for key in ("model_a", "model_b")})
    if not 3 <= len(names) <= _MOST:
        return {}
    number = {name: i for i, name in enumerate(names)}
    sides_I2 = np.array([[number[str(o.target.facts[key])] for key in ("model_a", "model_b")] for o in kept])
    labelled_I = np.array([1.0 - float(o.target.label or 0) for o in kept])  # of the first response's model
    judged_I = np.array([0.5 if o.scores is None else _first_wins(o.scores) for o in kept])
    clusters_I = clusters_of([o.target for o in kept])
    groups_I = np.arange(len(kept)) if clusters_I is None else np.asarray(clusters_I)
    _, groups_I = np.unique(groups_I, return_inverse=True)
    drawn = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"spearman": [], "kendall": [], "row_pearson": []}
    for draw in range(1 + _DRAWS):
        weights_I = np.ones(len(kept))
        if draw:
            count = int(groups_I.max()) + 1
            weights_I = np.bincount(drawn.integers(0, count, count), minlength=count)[groups_I].astype(np.float64)
        tables = [wins(sides_I2, won_I, weights_I, len(names)) for won_I in (labelled_I, judged_I)]
        ratings = [bradley_terry(table) for table in tables]
        found["spearman"].append(float(spearman(ratings[0], ratings[1], np.ones((1, len(names))))[0]))
        found["kendall"].append(kendall(ratings[0], ratings[1]))
        found["row_pearson"].append(row_pearson(tables[0], tables[1]))
    return {name: figure for name, values in found.items() if (figure := _figure(values, len(names))) is not None}


def _fought(outcome: Outcome) -> bool:
    facts = outcome.target.facts
    named = all(isinstance(facts.get(key), str) for key in ("model_a", "model_b"))
    paired = outcome.target.n == 2 and outcome.target.label is not None
    return paired and named and facts["model_a"] != facts["model_b"]


def _first_wins(scores: Sequence[float]) -> float:
    return 0.5 if scores[0] == scores[1] else float(scores[0] > scores[1])


def _figure(values: list[float], models: int) -> dict[str, Any] | None:
    """The value of all battles, and the middle 95 % of the draws' values, moved to have it as their mean.

    A draw's tables are noisier than those of all battles, and so they agree less: as they are, draws lie below the
    figure that they are to surround (with few battles a model, all of them).
    """
    if not np.isfinite(values[0]):
        return None
    drawn = [value for value in values[1:] if np.isfinite(value)] or [values[0]]
    moved_D = np.array(drawn) + (values[0] - sum(drawn) / len(drawn))
    low, high = np.quantile(np.clip(moved_D, -1, 1), (0.025, 0.975))
    return {"mean": values[0], "low": min(float(low), values[0]), "high": max(float(high), values[0]), "n": models}


def wins(sides_I2: npt.NDArray[np.int64], won_I: Floats, weights_I: Floats, models: int) -> Floats:
    """How often each model (row) won against each other (column); `won_I` is the first side's share of a win."""
    places_I, turned_I = sides_I2 @ [models, 1], sides_I2 @ [1, models]
    table_MM = np.zeros((models, models))
    table_MM += np.bincount(places_I, weights_I * won_I, models**2).reshape(models, models)
    table_MM += np.bincount(turned_I, weights_I * (1 - won_I), models**2).reshape(models, models)
    return table_MM


def bradley_terry(wins_MM: Floats) -> Floats:
    """Ratings, of mean 0, that make these wins likeliest: P(row beats column) = sigmoid(rating - rating).

    By Newton's method, with a pull to 0 that is weaker than a battle.
    """
    games_MM = wins_MM + wins_MM.T
    rating_M = np.zeros(len(wins_MM))
    for _ in range(_STEPS):
        chance_MM = 1 / (1 + np.exp(np.clip(rating_M[None] - rating_M[:, None], -500, 500)))
        slope_M = (wins_MM - games_MM * chance_MM).sum(axis=1) - _RIDGE * rating_M
        bend_MM = games_MM * chance_MM * (1 - chance_MM)
        hessian_MM = np.diag(bend_MM.sum(axis=1) + _RIDGE) - bend_MM
        step_M = np.linalg.solve(hessian_MM, slope_M)
        rating_M = rating_M + step_M / max(1.0, float(np.abs(step_M).max()))
        if np.abs(step_M).max() < 1e-10:
            break
    centred: Floats = np.round(rating_M - rating_M.mean(), 9)  # equal records are equal ratings
    return centred


def kendall(x_M: Floats, y_M: Floats) -> float:
    """Kendall's tau-b; NaN where one of the two is constant."""
    rows, columns = np.triu_indices(len(x_M), 1)
    x_P, y_P = np.sign(x_M[rows] - x_M[columns]), np.sign(y_M[rows] - y_M[columns])
    bottom = np.sqrt((x_P**2).sum() * (y_P**2).sum())
    return float((x_P * y_P).sum() / bottom) if bottom else float("nan")


def row_pearson(one_MM: Floats, other_MM: Floats) -> float:
    """Mean over models of the correlation of its win rates in the two tables; over opponents that it met in both."""
    found = []
    for rates in zip(_rates(one_MM), _rates(other_MM), strict=True):
        met_M = np.isfinite(rates[0]) & np.isfinite(rates[1])
        if met_M.sum() >= 3:
            found.append(float(pearson(rates[0][met_M], rates[1][met_M], np.ones((1, int(met_M.sum()))))[0]))
    finite = [value for value in found if np.isfinite(value)]
    return sum(finite) / len(finite) if finite else float("nan")


def _rates(wins_MM: Floats) -> Floats:
    games_MM = wins_MM + wins_MM.T
    rates: Floats = np.divide(wins_MM, games_MM, out=np.full_like(wins_MM, np.nan), where=games_MM > 0)
    return rates


__all__ = ["bradley_terry", "kendall", "ranking_figures", "row_pearson", "wins"]

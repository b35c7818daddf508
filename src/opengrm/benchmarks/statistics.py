"""What judgments say of a judge besides its figures, and whether two runs differ by more than chance.

Every mean has a 95 % interval clustered by what items share (`voting.intervals`). Two runs are compared on the items
that both have: the difference of what they earn, with a percentile interval from resampling whole clusters (the paired
bootstrap), and McNemar's test of the items that only one of them has right (Psychometrika 12, 1947), exact up to
`EXACT` such items. McNemar's test takes every item as independent: where items share prompts, go by the interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from opengrm.benchmarks.base import Outcome, Target, clusters_of
from opengrm.benchmarks.ranks import ALONE, spread
from opengrm.errors import UsageError
from opengrm.items import is_number
from opengrm.voting.bias import position_bias
from opengrm.voting.intervals import Z95, Interval, normal_interval, share_interval
from opengrm.voting.recorded import Block

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
EXACT = 1000  # discordant items up to which McNemar's p is the binomial's
RESAMPLES = 2000
Z80 = 0.8416212335729143  # the normal distribution's 80 % point
COSTS = ("prompt_tokens", "completion_tokens", "seconds")
_CELLS = 4_000_000  # clusters drawn at a time


# --- one run ----------------------------------------------------------------------------------------------------


def statistics(
    blocks: Sequence[Block], found: Sequence[Outcome], lengths: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """What the judgments say of the judge.

    Args:
        blocks: the judgments.
        found: the verdicts.
        lengths: characters of each response, by item id.

    Returns:
        `parse_rate`, the share of judgments with scores (None without one); `positions`, position bias and order
        consistency (`voting.bias.position_bias`); `length`, see `length_bias`.
    """
    asked = sum(block.samples * len(block.items) for block in blocks)
    valid = sum(int(block.valid_IK.sum()) for block in blocks)
    clusters = {o.target.item: o.target.cluster for o in found if o.target.cluster is not None}
    return {
        "parse_rate": valid / asked if asked else None,
        "positions": position_bias(blocks, clusters),
        "length": length_bias(found, lengths),
    }


def length_bias(found: Iterable[Outcome], lengths: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
    """Whether the longest response is chosen more often than it is right.

    Args:
        found: verdicts; those that count have a labelled best response and exactly one longest response.
        lengths: characters of each response, by item id.

    Returns:
        None without such a verdict. Else `items`; the shares `chosen_longest` (ties at the top shared) and
        `right_longest`, and `excess`, the first less the second; `accuracy_longest` and `accuracy_other`, the credit
        (1 / number tied at the top) where the longest response is right and where it is not.
    """
    targets: list[Target] = []
    rows: list[tuple[float, float, float]] = []
    for o in found:
        sizes, label = lengths.get(o.target.item), o.target.label
        if o.scores is None or o.target.n < 2 or label is None or sizes is None or sizes.count(max(sizes)) != 1:
            continue
        top = [i for i, score in enumerate(o.scores) if score == max(o.scores)]
        longest = list(sizes).index(max(sizes))
        targets.append(o.target)
        rows.append(((longest in top) / len(top), float(longest == label), (label in top) / len(top)))
    if not rows:
        return None
    chosen_I, right_I, credit_I = np.array(rows).T
    clusters_I = clusters_of(targets)

    def share(values_I: Floats, weights_I: Floats | None = None) -> dict[str, float] | None:
        interval = share_interval(values_I, weights_I, clusters_I)
        return None if interval is None else interval._asdict()

    excess = normal_interval(chosen_I - right_I, None, clusters_I)
    return {
        "items": len(rows),
        "chosen_longest": share(chosen_I),
        "right_longest": share(right_I),
        "excess": None if excess is None else excess._asdict(),
        "accuracy_longest": share(credit_I * right_I, right_I),
        "accuracy_other": share(credit_I * (1 - right_I), 1 - right_I),
    }


# --- two runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scored:
    """What a comparison needs of a line of items.jsonl.

    Attributes:
        item, subset, n, label, cluster: as there; they must be the same in both runs.
        credit: what the verdict earns, 0 to 1; None without one.
        chance: what a blind guess earns.
        tied: whether several responses share the top.
        pool: of a single response that earns by rank (`benchmarks.ranks`), which others it is ranked among; else None.
        tokens, seconds: cost; None where it is not known.
    """

    item: str
    subset: str
    n: int
    label: float | None
    cluster: str
    credit: float | None
    chance: float
    tied: bool = False
    tokens: float | None = None
    seconds: float | None = None
    pool: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any], pool: str | None = None) -> Scored:
        """Read a line of items.jsonl; single responses are ranked in `pool`. Raises ValueError where it is none."""
        if absent := next((key for key in ("item", "subset", "n", "credit", "chance") if key not in row), None):
            raise ValueError(f"is no line of items.jsonl: has no '{absent}'")
        numbers = {key: _number(row, key) for key in ("n", "label", "credit", "chance", *COSTS)}
        n, chance, (read, written, seconds) = numbers["n"], numbers["chance"], (numbers[key] for key in COSTS)
        if n is None or n != int(n) or n < 1 or chance is None:
            raise ValueError("is no line of items.jsonl: 'n' must be a whole number from 1, 'chance' a number")
        found = cls(
            item=str(row["item"]),
            subset=str(row["subset"]),
            n=int(n),
            label=numbers["label"],
            cluster=str(row.get("cluster") or row["item"]),
            credit=numbers["credit"],
            chance=chance,
            tied=bool(row.get("tied")),
            tokens=None if read is None or written is None else read + written,
            seconds=seconds,
        )
        if pool is not None and found.n == 1 and found.label in (0.0, 1.0):
            found = replace(found, pool=pool)
        if not 0 <= (found.credit or 0.0) <= 1 or not 0 <= found.chance <= 1:
            raise ValueError("'credit' and 'chance' must be from 0 to 1")
        return found


def _number(row: Mapping[str, Any], key: str) -> float | None:
    """A finite number, or None where it is not known. Raises ValueError."""
    value = row.get(key)
    if value is not None and not (is_number(value) and abs(value) < math.inf):
        raise ValueError(f"is no line of items.jsonl: '{key}' must be a number or null")
    return None if value is None else float(value)


@dataclass(frozen=True)
class McNemar:
    """Items that only one run has right.

    Attributes:
        only_a, only_b: how many. A tie at the top, or no verdict, is not right.
        p: two-sided probability of a split as uneven if both are equally good.
        exact: whether it is the binomial's; else chi-squared with Edwards' correction.
    """

    only_a: int
    only_b: int
    p: float
    exact: bool


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same items; differences are B less A.

    Attributes:
        items, clusters: how many both runs have, and how many independent groups they are.
        missing_a, missing_b: items without a verdict; `tied_a`, `tied_b`: with a tie at the top.
        a, b: mean of what is earned, a missing verdict at chance, with its interval.
        difference: with the interval of the paired bootstrap (None for one cluster, where nothing can be resampled).
        valid_items, difference_valid: the same over items of which both runs have a verdict.
        detectable: the smallest true difference that so many items show with a probability of 80 % at the 5 % level.
        mcnemar: None where the benchmark's credit is not right or wrong.
        tokens_a, tokens_b, seconds_a, seconds_b: mean cost of an item, over items of which it is known.
    """

    items: int
    clusters: int
    missing_a: int
    missing_b: int
    tied_a: int
    tied_b: int
    a: Interval
    b: Interval
    difference: float
    interval: tuple[float, float] | None
    valid_items: int
    difference_valid: float | None
    interval_valid: tuple[float, float] | None
    detectable: float | None
    mcnemar: McNemar | None
    tokens_a: float | None
    tokens_b: float | None
    seconds_a: float | None
    seconds_b: float | None

    @property
    def verdict(self) -> str:
        """ "A better", "B better", "within noise", or "equal" where they earn the same on every item."""
        if self.interval is None:
            return "within noise" if self.difference else "equal"
        low, high = self.interval
        if low == high == 0:
            return "equal"
        return "B better" if low > 0 else "A better" if high < 0 else "within noise"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object: intervals as {"mean", "low", "high"}."""

        def whole(mean: float | None, bounds: tuple[float, float] | None) -> dict[str, float | None] | None:
            low, high = bounds or (None, None)
            return None if mean is None else {"mean": mean, "low": low, "high": high}

        row = {name: value for name, value in asdict(self).items() if not name.startswith("interval")}
        return row | {
            "a": self.a._asdict(),
            "b": self.b._asdict(),
            "difference": whole(self.difference, self.interval),
            "difference_valid": whole(self.difference_valid, self.interval_valid),
            "verdict": self.verdict,
        }


def paired(
    rows_a: Iterable[Scored], rows_b: Iterable[Scored]
) -> tuple[list[tuple[Scored, Scored]], list[str], list[str]]:
    """The items of two runs side by side.

    Returns:
        Pairs in A's order; ids of the items that only A has, and that only B has.

    Raises:
        UsageError: an id stands for unlike items, is twice in one run, or no item is in both.
    """
    by_a, by_b = _by_item(rows_a, "A"), _by_item(rows_b, "B")
    pairs = [(a, by_b[item]) for item, a in by_a.items() if item in by_b]
    only_a, only_b = [item for item in by_a if item not in by_b], [item for item in by_b if item not in by_a]
    if not pairs:
        raise UsageError(f"no item is in both runs: A's are like {only_a[:1]}, B's like {only_b[:1]}")
    unlike = [
        f"{a.item!r} ({name} {getattr(a, name)!r} and {getattr(b, name)!r})"
        for a, b in pairs
        for name in ("subset", "n", "label", "cluster")
        if getattr(a, name) != getattr(b, name)
    ]
    if unlike:
        more = f" and {len(unlike) - 3:,} more" if len(unlike) > 3 else ""
        raise UsageError(f"the runs are of unlike items: {', '.join(unlike[:3])}{more}")
    return pairs, only_a, only_b


def _by_item(rows: Iterable[Scored], run: str) -> dict[str, Scored]:
    found: dict[str, Scored] = {}
    for row in rows:
        if row.item in found:
            raise UsageError(f"item {row.item!r} is twice in run {run}")
        found[row.item] = row
    return found


def compared(
    pairs: Sequence[tuple[Scored, Scored]], among: Sequence[tuple[Scored, Scored]] = (), *,
    resamples: int = RESAMPLES, seed: int = 0,
) -> Comparison:  # fmt: skip
    """Compare two runs on the same items.

    Args:
        pairs: at least one, from `paired`.
        among: other items that single responses among `pairs` were ranked with.
        resamples: of the bootstrap.
        seed: of the resampling; the same call gives the same interval.
    """
    rows = [*pairs, *among]
    own_I = np.arange(len(rows)) < len(pairs)
    cluster_I = np.unique([a.cluster for a, _ in rows], return_inverse=True)[1]
    earned_I2 = np.array([[row.chance if row.credit is None else row.credit for row in pair] for pair in rows])
    valid_I = np.array([a.credit is not None and b.credit is not None for a, b in rows])
    side_I = _sides([a for a, _ in rows])
    change_I = earned_I2[:, 1] - earned_I2[:, 0]

    def difference(kept_I: Bools) -> tuple[float, tuple[float, float] | None, float] | None:
        if not own_I[kept_I].any():
            return None
        values_I = spread(change_I[kept_I], side_I[kept_I], own_I[kept_I])
        moves_I = own_I[kept_I] | (values_I != 0)
        weights_I = own_I[kept_I][moves_I].astype(np.float64)
        return paired_bootstrap(values_I[moves_I], cluster_I[kept_I][moves_I], resamples, seed, weights_I)

    found, valid = difference(np.ones(len(rows), dtype=bool)), difference(valid_I)
    assert found is not None
    mean, bounds, error = found
    own, own_bounds, _ = valid or (None, None, 0)
    weights_I = own_I.astype(np.float64)
    intervals = [share_interval(spread(earned_I2[:, run], side_I, own_I), weights_I, cluster_I) for run in (0, 1)]
    assert intervals[0] is not None
    assert intervals[1] is not None
    whole = all(row.pool is None and (row.tied or row.credit in (None, 0.0, 1.0)) for pair in pairs for row in pair)

    def cost(run: int, name: str) -> float | None:
        known = [value for pair in pairs if (value := getattr(pair[run], name)) is not None]
        return sum(known) / len(known) if known else None

    return Comparison(
        items=len(pairs),
        clusters=len(np.unique(cluster_I[own_I])),
        missing_a=sum(a.credit is None for a, _ in pairs),
        missing_b=sum(b.credit is None for _, b in pairs),
        tied_a=sum(a.tied for a, _ in pairs),
        tied_b=sum(b.tied for _, b in pairs),
        a=intervals[0],
        b=intervals[1],
        difference=mean,
        interval=bounds,
        valid_items=int((valid_I & own_I).sum()),
        difference_valid=own,
        interval_valid=own_bounds,
        detectable=None if bounds is None else (Z95 + Z80) * error,
        mcnemar=mcnemar(
            sum(a.credit == 1 and b.credit != 1 for a, b in pairs),
            sum(b.credit == 1 and a.credit != 1 for a, b in pairs),
        )
        if whole
        else None,
        tokens_a=cost(0, "tokens"),
        tokens_b=cost(1, "tokens"),
        seconds_a=cost(0, "seconds"),
        seconds_b=cost(1, "seconds"),
    )


def compared_subsets(pairs: Sequence[tuple[Scored, Scored]], *, seed: int = 0) -> dict[str, Comparison]:
    """As `compared` for each subset, in order of first appearance."""
    found: dict[str, list[tuple[Scored, Scored]]] = {}
    for pair in pairs:
        found.setdefault(pair[0].subset, []).append(pair)
    ranked = [pair for pair in pairs if pair[0].pool is not None]
    return {
        name: compared(own, [pair for pair in ranked if pair[0].subset != name], seed=seed)
        for name, own in found.items()
    }


def _sides(rows: Sequence[Scored]) -> Ints:
    """The side of each item for `ranks.spread`: two numbers for each pool."""
    pools: dict[str, int] = {}
    return np.array(
        [
            ALONE if row.pool is None else 2 * pools.setdefault(row.pool, len(pools)) + int(row.label or 0)
            for row in rows
        ],
        dtype=np.int64,
    )


def paired_bootstrap(
    change_I: Floats, cluster_I: Ints, resamples: int = RESAMPLES, seed: int = 0, weights_I: Floats | None = None
) -> tuple[float, tuple[float, float] | None, float]:
    """A mean difference with a 95 % percentile interval from resampling whole clusters with replacement.

    Args:
        change_I: the difference on each item, at least one.
        cluster_I: a cluster number for each item.
        resamples: how many.
        seed: the same seed gives the same interval.
        weights_I: what each item adds to the denominator; 1 each where None.

    Returns:
        The mean; the interval (None for one cluster); the standard deviation of the resampled means.
    """
    _, group_I = np.unique(cluster_I, return_inverse=True)
    sum_G = np.bincount(group_I, weights=change_I)
    size_G = np.bincount(group_I, weights=weights_I).astype(np.float64)
    mean, groups = float(sum_G.sum() / size_G.sum()), len(sum_G)
    if groups < 2:
        return mean, None, 0.0
    rng = np.random.default_rng(seed)
    means: list[Floats] = []
    step = max(1, _CELLS // groups)
    for start in range(0, resamples, step):
        drawn_BG = rng.integers(0, groups, (min(step, resamples - start), groups))
        size_B = size_G[drawn_BG].sum(axis=1)
        means.append((sum_G[drawn_BG].sum(axis=1) / np.maximum(size_B, 1e-300))[size_B > 0])
    mean_B = np.concatenate(means)
    low, high = np.quantile(mean_B, (0.025, 0.975))
    return mean, (float(low), float(high)), float(mean_B.std())


def mcnemar(only_a: int, only_b: int) -> McNemar:
    """McNemar's test of the items that only one of two runs has right; see `McNemar`."""
    n, less = only_a + only_b, min(only_a, only_b)
    if n <= EXACT:
        # Both tails of a fair coin thrown n times, in whole numbers.
        tail = sum(math.comb(n, k) for k in range(less + 1))
        return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n), True)
    chi = max(0, abs(only_a - only_b) - 1) ** 2 / n
    return McNemar(only_a, only_b, math.erfc(math.sqrt(chi / 2)), False)

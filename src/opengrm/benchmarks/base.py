"""What a benchmark is, what its rule needs of an item, and the figures that all benchmarks share.

A benchmark reads rows of its published schema as items, and turns votes into figures by its own published rule. The
rules are pure functions of `Outcome`s; every figure comes both ways (design rule 2): items without a verdict earn what
a blind guess would, or are left out.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opengrm.errors import BadRow
from opengrm.items import Item
from opengrm.jsonl import OnBad, Row
from opengrm.voting import credit, label_of, share_interval
from opengrm.voting.ranked import cluster_ids
from opengrm.voting.recorded import Ints

Scores = Sequence[float]
Convert = Callable[[Row, str], list[Item]]
Read = Callable[[Path, OnBad | None], Iterator[tuple[str, str, Row]]]


@dataclass(frozen=True, slots=True)
class Target:
    """What a benchmark knows of an item besides its texts.

    Attributes:
        item: id of the item.
        subset: the part of the benchmark that it counts in.
        n: number of responses.
        label: index of the right response (n >= 2) or the reward (n = 1); None where the rule goes by `rewards` only.
        rewards: a ground truth for each response, where there is one.
        cluster: items that share it are not independent; None is the item alone.
        facts: `Item.source`, what else the row says.
    """

    item: str
    subset: str
    n: int
    label: float | None = None
    rewards: tuple[float, ...] | None = None
    cluster: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A target, what the judge said of it, and what that earns.

    Attributes:
        target: the item.
        scores: one for each response, in the item's own order (higher is better); None without a verdict.
        games: of a pair whose two orders were judged apart, the scores of each order's vote (in the item's own order,
            None where that order has no verdict); empty where orders are not told apart.
        credit: what the scores earn by the benchmark's rule, in [0, 1]; None without a verdict.
        chance: what a blind guess earns, in [0, 1].
        asked, valid: judgments, and those of them that had scores.
        prompt_tokens, completion_tokens: cost; None where it is not known.
        seconds: spent on the judgments; None where it is not known.
    """

    target: Target
    scores: tuple[float, ...] | None
    games: tuple[tuple[float, ...] | None, ...] = ()
    credit: float | None = None
    chance: float = 0.0
    asked: int = 1
    valid: int = 1
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None

    def earned(self, valid_only: bool) -> float | None:
        """The credit; without a verdict that of a blind guess, or None with `valid_only`."""
        return self.credit if self.credit is not None or valid_only else self.chance

    @property
    def tied(self) -> tuple[int, ...]:
        """The responses that share the top, where several do."""
        if self.scores is None or len(self.scores) < 2:
            return ()
        top = [i for i, score in enumerate(self.scores) if score == max(self.scores)]
        return tuple(top) if len(top) > 1 else ()

    def to_json(self) -> dict[str, Any]:
        """The line of items.jsonl."""
        target = self.target
        return {
            "item": target.item, "subset": target.subset, "cluster": target.cluster or target.item, "n": target.n,
            "label": target.label, "credit": self.credit, "chance": self.chance, "tied": list(self.tied),
            "scores": None if self.scores is None else list(self.scores),
            "valid": self.valid, "asked": self.asked, "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens, "seconds": self.seconds,
        }  # fmt: skip


class Figures(NamedTuple):
    """What a rule makes of outcomes.

    Attributes:
        overall: the benchmark's one number, in [0, 1]; None where nothing counts towards it.
        metrics: its other published numbers: {"mean", "low", "high", "n"}, a number, or None.
        interval: the overall with its 95 % interval, {"mean", "low", "high"}; None where there is none.
    """

    overall: float | None
    metrics: dict[str, Any]
    interval: dict[str, float] | None = None

    @classmethod
    def of(cls, whole: Mapping[str, Any] | None, metrics: dict[str, Any]) -> Figures:
        """Figures whose overall is a share."""
        interval = None if whole is None else {part: float(whole[part]) for part in ("mean", "low", "high")}
        return cls(mean_of(whole), metrics, interval)


Rule = Callable[[Sequence[Outcome], bool], Figures]


def best_credit(outcome: Outcome) -> float | None:
    """Design rule 1: 1 / (number tied at the top) if the labelled best is among them."""
    if outcome.scores is None or outcome.target.label is None:
        return None
    return credit(outcome.scores, outcome.target.label)


def best_chance(target: Target) -> float:
    """A blind guess among n responses; among right and wrong for n = 1."""
    return 1 / target.n if target.n > 1 else 0.5


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: how its rows are read and how it is scored.

    Attributes:
        name: what `opengrm eval` calls it.
        title: what people call it.
        version: which release the rule and the sizes are of.
        licence: of the data.
        source: where it is published.
        hub: what to load from the hub: (data set, configuration or None, split).
        sizes: items of each subset in the published release; empty where they are not known.
        rows: rows of the published release, where some of them are no items (ties) and `sizes` does not say.
        complete: whether there is no published release: the rows that are given are all.
        convert: the items of a row; its second argument is the place that the row came from, such as a file's name.
        rule: overall and metrics of outcomes; the second argument is `valid_only`.
        more: metrics that take long, which votes of fewer samples (`run.by_k`) do without; None without any.
        credit, chance: what an outcome earns, and what a blind guess at its target does.
        subset: the subset of an item.
        read: the rows of a file with "file:line" and the place's name; None reads what `jsonl` reads.
        pairs: for benchmarks of lists: the pairs that a judge of pairs sees instead.
        whole: whether the SPCT paper shows its lists whole to a GRM, too.
        finish: credits that depend on the other outcomes.
        ranks: whether `finish` has single responses earn by rank (`benchmarks.ranks`), so that credits are not
            independent.
    """

    name: str
    title: str
    version: str
    licence: str
    source: str
    convert: Convert
    rule: Rule
    hub: tuple[tuple[str, str | None, str], ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    complete: bool = False
    credit: Callable[[Outcome], float | None] = best_credit
    chance: Callable[[Target], float] = best_chance
    subset: Callable[[Item], str] = lambda item: str(item.source.get("subset", "all"))
    read: Read | None = None
    pairs: Callable[[Item], list[Item]] | None = None
    whole: bool = False
    finish: Callable[[Sequence[Outcome]], list[Outcome]] = list
    ranks: bool = False
    more: Callable[[Sequence[Outcome], bool], dict[str, Any]] | None = None

    def target(self, item: Item) -> Target:
        """What the rule needs of the item."""
        label = label_of(item)
        if label is None and "unlabelled" in item.source:
            # The right response equals another: the published rules count the pair.
            label = float(item.source.get("unlabelled_best", 0))
        return Target(item.id, self.subset(item), item.n, label, item.rewards, item.cluster, item.source)

    def outcome(self, target: Target, scores: Scores | None, **known: Any) -> Outcome:
        """The outcome of an item with these scores; `known` are other fields of `Outcome`."""
        found = Outcome(target, None if scores is None else tuple(scores), chance=self.chance(target), **known)
        return replace(found, credit=self.credit(found))

    def figures(self, outcomes: Sequence[Outcome], valid_only: bool = False) -> Figures:
        """Overall and metrics by the benchmark's rule."""
        found = self.rule(outcomes, valid_only)
        if self.more is None:
            return found
        return found._replace(metrics={**found.metrics, **self.more(outcomes, valid_only)})

    def partial(self, counts: Mapping[str, int], rows: int) -> bool | None:
        """Whether published items are not there; None where it is not known how many there are.

        Args:
            counts: items by subset, lists whole. Extra ones in one subset do not make up for those of another.
            rows: usable rows.
        """
        if any(counts.get(subset, 0) < size for subset, size in self.sizes.items()) or rows < self.rows:
            return True
        return False if self.sizes or self.rows or self.complete else None


def score(
    benchmark: Benchmark, targets: Iterable[Target], scores: Mapping[str, Scores | None], valid_only: bool = False
) -> Figures:
    """The benchmark's figures of scores by item id; an item that is not in there, or None, has no verdict."""
    found = [benchmark.outcome(t, scores.get(t.item)) for t in targets]
    return benchmark.figures(benchmark.finish(found), valid_only)


# --- figures that rules are made of -----------------------------------------------------------------------------


def share(outcomes: Iterable[Outcome], valid_only: bool) -> dict[str, Any] | None:
    """Mean credit with its 95 % interval, clustered: {"mean", "low", "high", "n"}; None without one that counts."""
    return share_of((o.target, o.earned(valid_only)) for o in outcomes)


def share_of(
    earned: Iterable[tuple[Target, float | None]], weigh: Callable[[Target], float] = lambda _: 1.0
) -> dict[str, Any] | None:
    """As `share` for any values in [0, 1]; None among them, and targets without weight, are left out."""
    kept = [(target, value, weight) for target, value in earned if value is not None and (weight := weigh(target))]
    values_I, weights_I = (np.array([row[i] for row in kept], dtype=np.float64) for i in (1, 2))
    found = share_interval(values_I * weights_I, weights_I, clusters_of([target for target, *_ in kept]))
    return None if found is None else {**found._asdict(), "n": len(kept)}


def mean_share(parts: Iterable[tuple[Mapping[str, Any] | None, float]]) -> dict[str, Any] | None:
    """The weighted mean of independent parts that are there: {"mean", "low", "high", "n"}; None without one.

    The distances of the limits from the mean add in squares, as standard errors do (se^2 = sum of w^2 se^2), so that
    a part at 0 or 1 keeps its uneven interval (Zou and Donner, Statistics in Medicine 27, 2008, 1693-1702).
    """
    kept = [(part, weight) for part, weight in parts if part is not None]
    if not kept:
        return None
    total = sum(weight for _, weight in kept)
    mean = sum(weight * part["mean"] for part, weight in kept) / total
    below, above = (
        math.hypot(*(weight * (part["mean"] - part[limit]) for part, weight in kept)) / total
        for limit in ("low", "high")
    )
    return {"mean": mean, "low": mean - below, "high": mean + above, "n": sum(part["n"] for part, _ in kept)}


def clusters_of(targets: Sequence[Target]) -> Ints | None:
    """A number for each target's cluster; None where every item is its own."""
    return cluster_ids([t.item for t in targets], {t.item: t.cluster for t in targets if t.cluster is not None})


def by_subset(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes by subset, in order of first appearance."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.target.subset, []).append(outcome)
    return found


def mean_of(value: Mapping[str, Any] | None) -> float | None:
    """The mean of a share."""
    return None if value is None else float(value["mean"])


def plain_mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there; None without any."""
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None


def weighted_mean(values: Iterable[tuple[float | None, float]]) -> float | None:
    """The weighted mean of (value, weight) of those that are there; None without any."""
    kept = [(value, weight) for value, weight in values if value is not None]
    return sum(v * w for v, w in kept) / sum(w for _, w in kept) if kept else None


def micro(outcomes: Sequence[Outcome], valid_only: bool) -> Figures:
    """The rule of many pair benchmarks: accuracy over all items, ties as half; `strict` counts them as wrong."""
    return Figures.of(share(outcomes, valid_only), {"strict": strict(outcomes, valid_only)})


def strict(outcomes: Iterable[Outcome], valid_only: bool) -> dict[str, Any] | None:
    """Accuracy where a tie at the top is wrong, with its interval."""
    return share_of((o.target, o.earned(valid_only) if o.credit is None else float(o.credit == 1)) for o in outcomes)


# --- rows -------------------------------------------------------------------------------------------------------

_DATA = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")


def data_files(path: Path) -> list[Path]:
    """The files of a folder that hold rows, by name, or the file itself; names that begin with a dot are not read."""
    if not path.is_dir():
        return [path]
    found = (p for p in sorted(path.rglob("*")) if p.is_file() and p.name.lower().endswith((*_DATA, ".zip")))
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]


def squeezed(text: str) -> str:
    """Letters and digits in lower case, to find a name in a path however it is spelt."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def known_part(key: str, value: object, parts: Collection[str], title: str) -> str:
    """The part of the benchmark that a row names: what its rule does not know would be left out of the overall.

    Args:
        key: where the row names it.
        value: what stands there; None where nothing does.
        parts: the names that the rule knows.
        title: of the benchmark.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(value, str) and value in parts:
        return value
    if value is None:
        raise ValueError(f"has no '{key}', so nothing says where in {title} it counts")
    close = difflib.get_close_matches(str(value)[:200], parts, 1)
    more = f", perhaps {close[0]!r}" if close else f": {', '.join(parts)}"
    raise ValueError(f"'{key}' is {value!r:.80}, none of {title}'s{more}")


def convert_rows(
    rows: Iterable[tuple[str, str, Row]], convert: Convert, on_bad: OnBad | None
) -> Iterator[tuple[str, Item]]:
    """The items of rows with their places; a row that cannot be used goes to `on_bad`, or is raised where None.

    Ids stay unique: an item whose id was there with other content is bad.
    """
    seen: dict[str, int] = {}
    for where, place, row in rows:
        try:
            for item in convert(row, place):
                if seen.setdefault(item.id, hash(item.key)) != hash(item.key):
                    raise ValueError(f"the id {item.id!r} was there before with other content")
                yield where, item
        except (ValueError, KeyError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            bad = BadRow(where, what)
            if on_bad is None:
                raise bad from error
            on_bad(bad)


__all__ = [
    "Benchmark", "Figures", "Outcome", "Target", "best_chance", "best_credit", "by_subset", "clusters_of",
    "convert_rows", "data_files", "known_part", "mean_of", "mean_share", "micro", "plain_mean", "score", "share",
    "share_of", "squeezed", "strict", "weighted_mean",
]  # fmt: skip

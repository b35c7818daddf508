"""Recorded judgments as compact arrays: what a re-vote needs of them, and no texts.

Judgments stream in, in any order; what stays in memory is a few numbers each (8 bytes a score and about 40 more). They
come out grouped by who judged and how (model, template, sampling: votes of different judges are not mixed unless asked
to be), and within that in dense blocks of items with the same number of responses and of samples.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opengrm.errors import BadRow, UsageError
from opengrm.items import is_number
from opengrm.judgments import Judgment

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
OnBad = Callable[[BadRow], object]


class Source(NamedTuple):
    """Who judged and how; None where it is not known. `orders` is the kind of plan."""

    model: str | None = None
    template: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    orders: str | None = None


POOLED = Source()


@dataclass(frozen=True)
class Block:
    """I items with n responses and K recorded samples each, samples by index.

    Attributes:
        items: the items' ids.
        place_I: each item's place in the input, by first appearance.
        scores_IKN: scores in the item's own order; NaN where the judgment is missing.
        order_IK: row of `orders_ON` that the sample was shown in; -1 where it is not known.
        orders_ON: the different orders, `orders_ON[o, p]` the response at position p.
        prompt_tokens_IK, completion_tokens_IK: cost; -1 where it is not known.
        meta_IK: the meta RM's logit; NaN where there is none.
    """

    items: tuple[str, ...]
    place_I: Ints
    scores_IKN: Floats
    order_IK: Ints
    orders_ON: Ints
    prompt_tokens_IK: Ints
    completion_tokens_IK: Ints
    meta_IK: Floats

    @property
    def n(self) -> int:
        return int(self.scores_IKN.shape[2])

    @property
    def samples(self) -> int:
        return int(self.scores_IKN.shape[1])

    @property
    def valid_IK(self) -> npt.NDArray[np.bool_]:
        """Which judgments have scores."""
        if self.n == 0:
            return np.zeros(self.scores_IKN.shape[:2], dtype=bool)
        return np.asarray(~np.isnan(self.scores_IKN[:, :, 0]))

    def rows(self, keep_I: Ints | npt.NDArray[np.bool_]) -> Block:
        """The block of some of its items."""
        kept = np.arange(len(self.items))[keep_I]
        return Block(
            tuple(self.items[i] for i in kept), self.place_I[kept], self.scores_IKN[kept], self.order_IK[kept],
            self.orders_ON, self.prompt_tokens_IK[kept], self.completion_tokens_IK[kept], self.meta_IK[kept],
        )  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """All judgments of one source.

    Attributes:
        source: who judged.
        blocks: by number of responses, then of samples. n = 0 holds items of which only missing judgments without an
            order are there, so that their number of responses is not known.
        duplicates: judgments left out because one with the same key and item came later.
    """

    source: Source
    blocks: tuple[Block, ...]
    duplicates: int


def collect(
    judgments: Iterable[Judgment], sizes: Mapping[str, int] | None = None, *, pool: bool = False,
    on_bad: OnBad | None = None,
) -> list[Recorded]:  # fmt: skip
    """Read judgments into arrays.

    Args:
        judgments: streamed once; may be in any order and of any mix.
        sizes: number of responses by item id where known.
        pool: mix the judgments of all sources (an ensemble's vote).
        on_bad: called with each judgment that cannot be used, which is then left out; None raises it.

    Returns:
        One `Recorded` for each source, in order of first appearance.

    Raises:
        BadRow: a judgment's number of scores is not its item's number of responses.
        UsageError: a source has two judgments of one sample of an item (not with `pool`): two runs are mixed.
    """
    tables: dict[Source, _Table] = {}
    for judgment in judgments:
        try:
            table = tables.setdefault(POOLED if pool else source_of(judgment), _Table())
            table.add(judgment, (sizes or {}).get(judgment.item, 0))
        except BadRow as bad:
            if on_bad is None:
                raise
            on_bad(bad)
    return [table.recorded(source, pool) for source, table in tables.items()]


def source_of(judgment: Judgment) -> Source:
    """The judgment's source; how it was sampled stands in its `sampling`, where the judge wrote it.

    Raises:
        BadRow: `sampling` is not what a judge writes.
    """
    sampling = judgment.extra.get("sampling")
    known: dict[str, Any] = sampling if isinstance(sampling, dict) else {}
    top_p, max_tokens, orders = (known.get(name) for name in ("top_p", "max_tokens", "orders"))
    numbers = all(value is None or is_number(value) for value in (top_p, max_tokens))
    if not numbers or not isinstance(orders, str | None) or not isinstance(sampling, dict | None):
        raise BadRow(
            f"item {judgment.item!r}, sample {judgment.sample}",
            "'sampling' must be an object with the numbers 'top_p' and 'max_tokens' and the text 'orders'",
        )
    return Source(judgment.model, judgment.template, judgment.temperature, top_p, max_tokens, orders)


@dataclass
class _Table:
    """One source's judgments as growing columns, one entry a judgment (suffix J)."""

    units: dict[str, int] = field(default_factory=dict)
    n_U: list[int] = field(default_factory=list)
    orders: dict[tuple[int, ...], int] = field(default_factory=dict)
    unit_J: array[int] = field(default_factory=lambda: array("q"))
    sample_J: array[int] = field(default_factory=lambda: array("q"))
    key_J: array[int] = field(default_factory=lambda: array("q"))
    order_J: array[int] = field(default_factory=lambda: array("q"))
    offset_J: array[int] = field(default_factory=lambda: array("q"))
    prompt_tokens_J: array[int] = field(default_factory=lambda: array("q"))
    completion_tokens_J: array[int] = field(default_factory=lambda: array("q"))
    meta_J: array[float] = field(default_factory=lambda: array("d"))
    scores: array[float] = field(default_factory=lambda: array("d"))

    def add(self, judgment: Judgment, size: int) -> None:
        """Append one judgment; `size` is its item's number of responses, 0 where not known."""
        shown = judgment.scores or judgment.order or ()
        unit = self.units.get(judgment.item)
        n = size if unit is None else self.n_U[unit]
        if n and shown and len(shown) != n:
            what = "scores" if judgment.scores else "places in its order"
            raise BadRow(f"item {judgment.item!r}, sample {judgment.sample}", f"{len(shown)} {what} for {n} responses")
        if unit is None:
            unit = self.units[judgment.item] = len(self.n_U)
            self.n_U.append(n)
        self.n_U[unit] = n or len(shown)
        order = judgment.order
        self.unit_J.append(unit)
        self.sample_J.append(judgment.sample)
        self.key_J.append(_short(judgment.key))
        self.order_J.append(-1 if order is None else self.orders.setdefault(order, len(self.orders)))
        self.offset_J.append(-1 if judgment.scores is None else len(self.scores))
        self.prompt_tokens_J.append(_known(judgment.prompt_tokens))
        self.completion_tokens_J.append(_known(judgment.completion_tokens))
        self.meta_J.append(math.nan if judgment.meta is None else judgment.meta)
        self.scores.extend(judgment.scores or ())

    def recorded(self, source: Source, pool: bool) -> Recorded:
        """The columns as dense blocks."""
        unit_J, sample_J = np.asarray(self.unit_J), np.asarray(self.sample_J)
        kept_J = _latest(unit_J, np.asarray(self.key_J))
        kept_J = kept_J[np.lexsort((kept_J, sample_J[kept_J], unit_J[kept_J]))]
        n_U, ids = np.array(self.n_U), list(self.units)
        again = (np.diff(unit_J[kept_J]) == 0) & (np.diff(sample_J[kept_J]) == 0)
        if again.any() and not pool:
            first, count = kept_J[int(np.argmax(again))], int(again.sum())
            raise UsageError(
                f"item {ids[unit_J[first]]!r}: sample {sample_J[first]} is there twice (as are {count:,} in all):"
                " judgments of two runs or settings are mixed; vote over each alone, or over all of them with --pool"
            )
        samples_U = np.bincount(unit_J[kept_J], minlength=len(ids))
        start_U = np.cumsum(samples_U) - samples_U
        blocks = []
        for n, samples in sorted({(int(n), int(k)) for n, k in zip(n_U, samples_U, strict=True)}):
            place_I = np.flatnonzero((n_U == n) & (samples_U == samples))
            judgment_IK = kept_J[start_U[place_I][:, None] + np.arange(samples)]
            blocks.append(self._block(n, tuple(ids[u] for u in place_I), place_I, judgment_IK))
        return Recorded(source, tuple(blocks), len(unit_J) - len(kept_J))

    def _block(self, n: int, items: tuple[str, ...], place_I: Ints, judgment_IK: Ints) -> Block:
        offset_IK = np.asarray(self.offset_J)[judgment_IK]
        scores_IKN = np.full((*offset_IK.shape, n), np.nan)
        valid_IK = offset_IK >= 0
        scores_IKN[valid_IK] = np.asarray(self.scores)[offset_IK[valid_IK][:, None] + np.arange(n)]
        # Orders are numbered over all sizes in the table; a block keeps those of its own size.
        own = {o: i for i, o in enumerate(o for o in self.orders if len(o) == n)}
        renumber = np.array([own.get(o, -1) for o in self.orders] + [-1])
        return Block(
            items=items,
            place_I=place_I,
            scores_IKN=scores_IKN,
            order_IK=renumber[np.asarray(self.order_J)[judgment_IK]],
            orders_ON=np.array(list(own), dtype=np.int64).reshape(len(own), n),
            prompt_tokens_IK=np.asarray(self.prompt_tokens_J)[judgment_IK],
            completion_tokens_IK=np.asarray(self.completion_tokens_J)[judgment_IK],
            meta_IK=np.asarray(self.meta_J)[judgment_IK],
        )


def _latest(unit_J: Ints, key_J: Ints) -> Ints:
    """The judgments to keep: of those with the same item and key the last one; all without a key."""
    order_J = np.lexsort((np.arange(len(key_J)), key_J, unit_J))
    unit_S, key_S = unit_J[order_J], key_J[order_J]
    repeated_S = (unit_S[1:] == unit_S[:-1]) & (key_S[1:] == key_S[:-1]) & (key_S[1:] != 0)
    return np.asarray(np.sort(order_J[np.append(~repeated_S, True)]))


def _short(key: str | None) -> int:
    """63 bits of a key; 0 for none."""
    if key is None:
        return 0
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1 or 1


def _known(tokens: int | None) -> int:
    return -1 if tokens is None else tokens


def as_json(source: Source) -> dict[str, Any]:
    """The source's fields that are known."""
    return {name: value for name, value in source._asdict().items() if value is not None}

"""Orders: in which order an item's responses are shown, planned for all of its samples at once (design rule 4).

`order[p]` is the index of the response shown at position p. All randomness is SHA-256 over the item's key and a
counter: no global state, the same on every machine, and sample j's order never depends on how many samples follow.

- `balanced` cycles through one Williams square (Williams 1949, a Latin square of n orders): every response stands in
  every position equally often, and after any number of samples the counts differ by at most 1. For even n every order
  is followed by its own mirror, so that over each two samples every response stands before every other once, and over
  n samples directly before every other once. For odd n no square of n orders can do that (n/2 is not whole): positions
  are balanced, neighbours are not. There are only n different orders, so that equal orders share one prefill. Which
  response takes which place in the square depends on the key.
- `shuffle` is the paper's: an independent uniform permutation for each sample.
- `fixed` shows the responses as the item holds them.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

OrderKind = Literal["balanced", "shuffle", "fixed"]
ORDER_KINDS: tuple[str, ...] = get_args(OrderKind)


def plan_orders(n: int, k: int, key: str, kind: OrderKind = "balanced") -> list[tuple[int, ...]]:
    """The orders of an item's samples 0..k-1.

    Args:
        n: number of responses, at least 1.
        k: number of samples, at least 0. The plan for fewer samples is a prefix of the plan for more.
        key: the item's content key.
        kind: see the module's text.

    Raises:
        ValueError: n, k or kind is out of range.
    """
    if n < 1 or k < 0:
        raise ValueError(f"n is {n} and k is {k}, expected n >= 1 and k >= 0")
    if kind == "fixed" or (n == 1 and kind in ORDER_KINDS):
        return [tuple(range(n))] * k
    if kind == "shuffle":
        return [_permutation(n, f"shuffle:{key}:{sample}") for sample in range(k)]
    if kind == "balanced":
        square = _square(n, key)
        return [square[sample % n] for sample in range(k)]
    raise ValueError(f"orders {kind!r} are not known: expected one of {', '.join(ORDER_KINDS)}")


def _square(n: int, key: str) -> list[tuple[int, ...]]:
    """The n orders of the balanced plan: row r of a Williams square is its zigzag row plus r, modulo n."""
    zigzag = [(position + 1) // 2 if position % 2 else (n - position // 2) % n for position in range(n)]
    # In an even square the mirror of row r is row r + n/2.
    rows = range(n) if n % 2 else [r + half for r in range(n // 2) for half in (0, n // 2)]
    names = _permutation(n, f"balanced:{key}")
    return [tuple(names[(z + r) % n] for z in zigzag) for r in rows]


def _permutation(n: int, seed: str) -> tuple[int, ...]:
    """A uniform permutation of 0..n-1 (Fisher-Yates; 256 random bits for each draw make the modulo's bias vanish)."""
    names = list(range(n))
    for last in range(n - 1, 0, -1):
        draw = int.from_bytes(hashlib.sha256(f"{seed}:{last}".encode()).digest(), "big") % (last + 1)
        names[last], names[draw] = names[draw], names[last]
    return tuple(names)

"""What a judge is, and the paradigms there are (docs/design.md; the paper's section 2.1).

A judge makes k judgments of each item. What differs between paradigms is how: by a scalar, by a critique and a scalar,
or by text alone; and whether responses are rated each (pointwise) or compared (pairwise). From that follow the two
properties that the paper tells them apart by: whether sampling changes the judgment, so that votes can gain anything,
and how many responses they take.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

from opengrm.items import Item
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.voting.reducers import Reducer

OnJudgment = Callable[[Judgment, float], None]


class Judge(Protocol):
    """Anything that judges items."""

    def judge(
        self, items: Iterable[Item], k: int, on_judgment: OnJudgment | None = None
    ) -> Generator[tuple[Item, list[Judgment]], None, None]:
        """k judgments of each item, in the items' order, each list by sample index.

        A judge that sampling does not change gives k equal judgments and computes one.

        Args:
            items: read lazily.
            k: judgments of each item, at least 1.
            on_judgment: called with each new judgment and its seconds as it is made (not for those from the ledger).

        Raises:
            EngineError: the model cannot go on. What was judged until then is in the ledger.
        """
        ...


class SampledJudge(Judge, Protocol):
    """A judge whose samples differ, so that it can be asked for more of them."""

    @property
    def ledger(self) -> Ledger | None: ...

    def judge_each(
        self, asked: Iterable[tuple[Item, int]], on_judgment: OnJudgment | None = None
    ) -> Generator[tuple[Item, list[Judgment]], None, None]:
        """`judge` for items that each have their own k; items are asked for as the engine has room."""
        ...


@dataclass(frozen=True, slots=True)
class Paradigm:
    """A row of the paper's taxonomy.

    Attributes:
        name: what `--judge` calls it.
        title: what people call it.
        generation: "scalar", "semi-scalar" or "generative".
        scoring: "pointwise" or "pairwise".
        sampled: whether another sample can be another judgment.
        least, most: how many responses an item may have; None is any number.
        reduce: how its judgments vote (v3 Eqs. 12 to 14).
    """

    name: str
    title: str
    generation: str
    scoring: str
    sampled: bool
    least: int
    most: int | None
    reduce: Reducer

    def takes(self, n: int) -> bool:
        """Whether it judges items of n responses."""
        return self.least <= n and (self.most is None or n <= self.most)


PARADIGMS: dict[str, Paradigm] = {
    paradigm.name: paradigm
    for paradigm in (
        Paradigm("grm", "pointwise GRM", "generative", "pointwise", True, 1, None, "sum"),
        Paradigm("llm", "LLM-as-a-judge", "generative", "pairwise", True, 2, None, "majority"),
        Paradigm("tokenprob", "LLM-as-a-judge with token probability", "semi-scalar", "pairwise", True, 2, 2, "mean"),
        Paradigm("cloud", "CLoud", "semi-scalar", "pointwise", True, 1, None, "mean"),
        # Lists by tournament: every pair in both orders, a response's score is its mean over the others.
        Paradigm("pair", "PairRM", "scalar", "pairwise", False, 2, None, "mean"),
        Paradigm("bt", "Bradley-Terry", "scalar", "pointwise", False, 1, None, "mean"),
    )
}


def check_responses(name: str, n: int) -> None:
    """See that a judge takes items of n responses.

    Raises:
        ValueError: with what it takes, and which judges take this item.
    """
    paradigm = PARADIGMS[name]
    if paradigm.takes(n):
        return
    takes = f"{paradigm.least}" if paradigm.most == paradigm.least else f"{paradigm.least} or more"
    others = ", ".join(other.name for other in PARADIGMS.values() if other.takes(n))
    raise ValueError(f"judge {name} takes items of {takes} responses, this one has {n}; judges that take it: {others}")

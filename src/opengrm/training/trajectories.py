"""Trajectories for rejective fine-tuning (paper v3 section 3.2): sampled, and kept or dropped.

`collect` samples judgments and keeps those that are worth learning from:

- Non-hinted: N_RFT = 3 judgments of each item. Missing and incorrect ones are dropped; if all three are correct the
  item is too easy, and all three are dropped.
- Hinted: one judgment of each item, its prompt with a last line that names the best response; dropped only if
  incorrect or missing, too-easy items included. What is learned is the plain prompt in the same order with the hinted
  completion: a model that had learned to read hints would have none to read.

Kept ones are rows that a person can open, one a line:

    {"prompt": [{"role": "user", "content": "..."}], "completion": [{"role": "assistant", "content": "..."}],
     "item": "q1", "sample": 0, "order": [1, 0], "origin": "non-hinted", "template": "compact@1.2"}

Choices the paper leaves open: items of n = 1 use the 0/1 form of the family and are never hinted (a hint would be the
score itself); a judgment that reached the token limit is dropped even if it can be read, because its end was not the
model's; the too-easy rule does not reach hinted samples (the paper names none for them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opengrm.engines.base import Engine, Sampling
from opengrm.errors import UsageError
from opengrm.items import Item
from opengrm.jsonl import Row, RowWriter
from opengrm.judges.grm import GRM
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.templates.base import Template
from opengrm.templates.forms import Forms
from opengrm.voting.correctness import correct, label_of
from opengrm.voting.orders import OrderKind


@dataclass(frozen=True)
class CollectSettings:
    """What is sampled and kept.

    Attributes:
        n_rft: non-hinted judgments of each item (paper: 3).
        non_hinted, hinted: False leaves that half out (the ablations of the paper's Table 4).
        sampling: the paper gives no temperature for this stage; ours is the one of its sampled runs, 0.5.
        orders: how the orders of an item's samples are planned.
    """

    n_rft: int = 3
    non_hinted: bool = True
    hinted: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    orders: OrderKind = "balanced"

    def __post_init__(self) -> None:
        if self.n_rft < 1:
            raise ValueError(f"n_rft is {self.n_rft}, expected at least 1")
        if self.n_rft == 1 and self.non_hinted:
            raise ValueError("n_rft is 1: an item whose only sample is right would be dropped as too easy")

    def planned(self, many: int, single: int) -> int:
        """How many judgments are sampled of `many` items of n >= 2 and `single` ones of n = 1."""
        plain = self.n_rft * (many + single) if self.non_hinted else 0
        return plain + (many if self.hinted else 0)


@dataclass
class Tally:
    """What became of one half (non-hinted or hinted): items = not_sampled + sampled ones; judgments = kept + dropped.

    Attributes:
        items: items that came in.
        not_sampled: items left out before sampling, by reason: "no label", "label out of range" (n = 1: not one that
            the 0/1 form can give), "single response" (the family compares several), "template error".
        judgments: judgments sampled, or found in the ledger.
        kept: judgments kept.
        dropped: judgments dropped, by reason: "incorrect", "too easy", or the kind of a missing one (`judgments.py`).
        items_kept: items of which at least one judgment was kept.
        items_too_easy: items of which all judgments were correct.
    """

    items: int = 0
    not_sampled: Counter[str] = field(default_factory=Counter)
    judgments: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    items_kept: int = 0
    items_too_easy: int = 0

    def to_json(self) -> dict[str, Any]:
        """The counts as one JSON object, reasons by falling count."""
        values = dict(self.__dict__)
        for name in ("not_sampled", "dropped"):
            values[name] = dict(values[name].most_common())
        return values


@dataclass
class Collected:
    """What `collect` came to."""

    non_hinted: Tally = field(default_factory=Tally)
    hinted: Tally = field(default_factory=Tally)

    @property
    def kept(self) -> int:
        """Trajectories kept, of both halves."""
        return self.non_hinted.kept + self.hinted.kept

    def to_json(self) -> dict[str, Any]:
        """Both halves as one JSON object."""
        return {"kept": self.kept, "non-hinted": self.non_hinted.to_json(), "hinted": self.hinted.to_json()}


OnProgress = Callable[[int, Collected], None]


@dataclass(frozen=True)
class _Pass:
    """One walk through the items: which of them, how they are asked, and as what they are learned."""

    origin: str
    single: bool
    asked: Template
    learned: Template
    k: int
    refused: str | None = None  # why none of its items can be sampled


def collect(
    items: Iterable[Item],
    engine: Engine,
    forms: Forms,
    output: str | Path,
    settings: CollectSettings | None = None,
    *,
    ledger: Ledger | None = None,
    on_progress: OnProgress | None = None,
) -> Collected:
    """Sample, filter, and write what is kept to `output`, which appears whole or not at all.

    Args:
        items: walked through up to three times (non-hinted n >= 2, non-hinted n = 1, hinted), so no one-way iterator;
            never held in memory.
        engine: any; the model that is sampled need not be the one that is trained (the paper's was larger).
        forms: the prompt family.
        output: JSON Lines; rows come walk by walk, each in the items' order.
        settings: see there.
        ledger: where judgments are kept: dropped ones too (the meta RM learns from them), and a killed run goes on.
        on_progress: called with the number of judgments that are there, and the counts so far.

    Raises:
        UsageError: hinted samples are asked for and the family has no hinted form, or `items` is a one-way iterator.
        EngineError: the engine cannot go on. What was judged until then is in the ledger.
    """
    settings = settings or CollectSettings()
    if isinstance(items, Iterator):
        raise UsageError("collect walks through the items several times: pass a list, or an object with __iter__")
    result, there = Collected(), 0
    with RowWriter(output) as rows:
        for part in _passes(forms, settings):
            tally = result.hinted if part.origin == "hinted" else result.non_hinted
            fresh: Counter[str] = Counter()

            def on_judgment(judgment: Judgment, _: float, fresh: Counter[str] = fresh) -> None:
                nonlocal there
                there += 1
                fresh[judgment.item] += 1
                if on_progress is not None:
                    on_progress(there, result)

            judge = GRM(engine, part.asked, settings.sampling, settings.orders, ledger)
            with closing(judge.judge(_usable(items, part, tally), part.k, on_judgment)) as run:
                for item, judgments in run:
                    there += len(judgments) - fresh.pop(item.id, 0)
                    for judgment in select(item, judgments, part.origin, settings.sampling.max_tokens, tally):
                        rows.write(trajectory(item, judgment, part.learned, part.origin))
                    if on_progress is not None:
                        on_progress(there, result)
    return result


def _passes(forms: Forms, settings: CollectSettings) -> Iterator[_Pass]:
    if settings.non_hinted:
        yield _Pass("non-hinted", False, forms.joint, forms.joint, settings.n_rft)
        alone, refused = forms.single or forms.joint, None if forms.single else "single response"
        yield _Pass("non-hinted", True, alone, alone, settings.n_rft, refused)
    if settings.hinted:
        if forms.hint is None:
            raise UsageError(f"template {forms.joint.name} has no hinted form: leave hinted samples out")
        yield _Pass("hinted", False, forms.hint, forms.joint, 1)


def _usable(items: Iterable[Item], part: _Pass, tally: Tally) -> Iterator[Item]:
    """The items of this walk that can be sampled; the others are counted with a reason."""
    for item in items:
        if (item.n == 1) != part.single:
            continue
        tally.items += 1
        label, reason = label_of(item), part.refused
        if reason is not None:
            pass
        elif label is None:
            reason = "no label"
        elif part.single and not (part.asked.low <= label <= part.asked.high and label == int(label)):
            reason = "label out of range"
        else:
            try:
                part.asked.render(item, range(item.n))
            except ValueError:
                reason = "template error"
        if reason is None:
            yield item
        else:
            tally.not_sampled[reason] += 1


def select(item: Item, judgments: list[Judgment], origin: str, max_tokens: int, tally: Tally) -> list[Judgment]:
    """The judgments of one item that are kept; every one is counted in `tally` as kept or with its reason."""
    label = label_of(item)
    assert label is not None
    right = []
    for judgment in judgments:
        if judgment.scores is None:
            tally.dropped[judgment.error_kind or "unparsable"] += 1
        elif (judgment.completion_tokens or 0) >= max_tokens:
            tally.dropped["truncated"] += 1
        elif not correct(judgment.scores, label):
            tally.dropped["incorrect"] += 1
        else:
            right.append(judgment)
    tally.judgments += len(judgments)
    if origin == "non-hinted" and len(right) == len(judgments):
        tally.dropped["too easy"] += len(right)
        tally.items_too_easy += 1
        return []
    tally.kept += len(right)
    tally.items_kept += bool(right)
    return right


def trajectory(item: Item, judgment: Judgment, template: Template, origin: str) -> Row:
    """The row of one kept judgment: `template`'s prompt in the judgment's order, and what the model wrote."""
    assert judgment.order is not None
    return {
        "prompt": [m.to_json() for m in template.render(item, judgment.order)],
        "completion": [{"role": "assistant", "content": judgment.text or ""}],
        "item": item.id,
        "sample": judgment.sample,
        "order": list(judgment.order),
        "origin": origin,
        "template": f"{template.name}@{template.version}",
    }

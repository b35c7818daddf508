"""The pointwise generative reward model as a judge: principles, critiques and a score per response in one text.

`GRM.judge(items, k)` gives k judgments of each item: it plans the k orders (design rule 4), asks the ledger for what
is already there, has the engine generate the rest, and parses. It streams: at most `window` items are open at a time,
and items come back in the order they came in.

Joint form (the paper's): all n responses in one prompt, one generation a judgment. Solo form (`template.solo`): one
response a prompt, n generations make one judgment, which is missing if any of them is.

What the template cannot show in a planned order is a missing judgment of kind "template", not the end of the run.
Items of the same content that are open together share their samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property

from opengrm.engines.base import Completion, Engine, Request, Sampling
from opengrm.items import Item, Message, content_hash
from opengrm.judges.base import OnJudgment
from opengrm.judgments import Judgment, own_order
from opengrm.ledger import Ledger
from opengrm.templates.base import Parsed, Template, read_answer
from opengrm.voting.orders import OrderKind, plan_orders

Rendered = tuple[tuple[tuple[Message, ...], ...], str | None]  # the prompts of one judgment, or why there are none


@dataclass(frozen=True)
class GRM:
    """A generative reward model: an engine, a template and how to sample.

    Attributes:
        engine: where the text comes from.
        template: how an item is shown and its scores are read.
        sampling: the paper's temperature is 0.5 (greedy runs: 0).
        orders: how the k orders of an item are chosen.
        ledger: where judgments are kept and looked for; None keeps nothing.
        window: most items open at a time; bounds memory.
    """

    engine: Engine
    template: Template
    sampling: Sampling = field(default_factory=Sampling)
    orders: OrderKind = "balanced"
    ledger: Ledger | None = None
    window: int = 1024

    @cached_property
    def _name(self) -> str:
        return f"{self.template.name}@{self.template.version}"

    def judge(
        self, items: Iterable[Item], k: int, on_judgment: OnJudgment | None = None
    ) -> Generator[tuple[Item, list[Judgment]], None, None]:
        """k judgments of each item, in the items' order, each list by sample index.

        Args:
            items: read lazily.
            k: samples of each item, at least 1.
            on_judgment: called with each new judgment and its seconds as it is made (not for those from the ledger);
                a judgment that another item of the same content was waiting for took 0 seconds there.

        Raises:
            EngineError: the engine cannot go on. What was judged until then is in the ledger.
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        return self.judge_each(((item, k) for item in items), on_judgment)

    def judge_each(
        self, asked: Iterable[tuple[Item, int]], on_judgment: OnJudgment | None = None
    ) -> Generator[tuple[Item, list[Judgment]], None, None]:
        """`judge` for items that each have their own k."""
        feed, opened = iter(asked), _Opened(on_judgment)
        while not opened.exhausted:
            # The engine ends when `_requests` does: at the end of the items, or when a straggler holds the window.
            with closing(self.engine.generate(self._requests(feed, opened))) as completions:
                for completion in completions:
                    self._take(completion, opened)
                    yield from opened.finished()
            yield from opened.finished()

    def _take(self, completion: Completion, opened: _Opened) -> None:
        work, sample = opened.take(completion)
        if not sample.complete:
            return
        judgment, seconds = self._judgment(work, sample), sum(c.seconds for c in sample.completions.values())
        self._keep(judgment, work, opened, seconds)
        for twin in opened.waiting.pop(sample.key):
            self._keep(replace(judgment, item=twin.item.id), twin, opened)

    def _keep(self, judgment: Judgment, work: _Work, opened: _Opened, seconds: float = 0.0) -> None:
        work.done[judgment.sample] = judgment
        if self.ledger is not None:
            self.ledger.put(judgment, seconds)
        if opened.on_judgment is not None:
            opened.on_judgment(judgment, seconds)

    def _requests(self, feed: Iterator[tuple[Item, int]], opened: _Opened) -> Iterator[Request]:
        """Requests for what the ledger lacks: one for each distinct prompt, with the seeds of all its samples."""
        while len(opened.works) < self.window:
            asked = next(feed, None)
            if asked is None:
                opened.exhausted = True
                return
            work, missing = self._plan(*asked)
            opened.works.append(work)
            prompts: dict[tuple[Message, ...], list[tuple[Planned, int]]] = {}
            for sample in missing:
                if sample.error is not None:
                    self._keep(self._judgment(work, sample), work, opened)
                elif sample.key in opened.waiting:
                    opened.waiting[sample.key].append(work)
                else:
                    opened.waiting[sample.key] = []
                    for part, messages in enumerate(sample.prompts):
                        prompts.setdefault(messages, []).append((sample, part))
            for messages, targets in prompts.items():
                number = opened.register(work, targets)
                seeds = tuple(sample.seed(part) for sample, part in targets)
                yield Request(number, messages, seeds, self.sampling)

    def _plan(self, item: Item, k: int) -> tuple[_Work, list[Planned]]:
        """An item with the samples that the ledger holds, and the other ones of its k planned samples."""
        orders = [tuple(range(item.n))] * k if self.template.solo else plan_orders(item.n, k, item.key, self.orders)
        rendered = {order: self._render(item, order) for order in dict.fromkeys(orders)}
        hashes = {order: content_hash([[m.to_json() for m in p] for p in rendered[order][0]]) for order in rendered}
        samples = [Planned(j, o, self._key(item, o, hashes[o], j), *rendered[o]) for j, o in enumerate(orders)]
        known = {} if self.ledger is None else self.ledger.get([s.key for s in samples], item.id)
        done = {s.index: known[s.key] for s in samples if s.key in known}
        return _Work(item, k, done), [s for s in samples if s.index not in done]

    def _render(self, item: Item, order: tuple[int, ...]) -> Rendered:
        """The prompts of one judgment, or none and why the template cannot show the item so."""
        try:
            if not self.template.solo:
                return (self.template.render(item, order),), None
            return tuple(self.template.render(item.only(i), (0,)) for i in range(item.n)), None
        except ValueError as error:
            return (), f"template: {error}"

    def _key(self, item: Item, order: Sequence[int], rendered: str, sample: int) -> str:
        """Rule 5's key. It holds the rendered prompt: a hint or a reference changes that, the item's key need not.

        It holds the kind of orders too: of two runs that differ in it, each has all of its samples.
        """
        settings = (float(self.sampling.temperature), self._sampling)
        return content_hash("judgment", self.engine.model, self._name, item.key, rendered, order, settings, sample)

    @cached_property
    def _sampling(self) -> dict[str, float | int | str]:
        """What a judgment says in `extra` of how it was sampled; 1 and 1.0 are one setting, and one key."""
        return {
            "top_p": float(self.sampling.top_p),
            "max_tokens": int(self.sampling.max_tokens),
            "orders": self.orders,
        }

    def _judgment(self, work: _Work, sample: Planned) -> Judgment:
        completions = [sample.completions[part] for part in range(len(sample.prompts))]
        n_shown = 1 if self.template.solo else work.item.n
        parsed = [self._read(c, n_shown) for c in completions]
        error = next((p.error for p in parsed if p.error is not None), sample.error)
        shown = [s for p in parsed for s in p.scores or ()]
        return Judgment(
            item=work.item.id,
            scores=own_order(shown, sample.order) if error is None else None,
            error=error,
            sample=sample.index,
            key=sample.key,
            order=sample.order,
            text=joined_parts([c.text for c in completions]),
            principles=joined_parts([p.principles for p in parsed]),
            critique=joined_parts([p.critique for p in parsed]),
            model=self.engine.model,
            template=self._name,
            temperature=float(self.sampling.temperature),
            seed=sample.seed(0),
            prompt_tokens=sum(c.prompt_tokens for c in completions),
            completion_tokens=sum(c.completion_tokens for c in completions),
            extra={"sampling": self._sampling},
        )

    def _read(self, completion: Completion, n: int) -> Parsed:
        """What one completion says of the n responses shown."""
        return _parse(self.template, completion, n)


def _parse(template: Template, completion: Completion, n: int) -> Parsed:
    if completion.error is not None:
        return Parsed(None, completion.error)
    cut = completion.finish == "length"
    return read_answer(template, completion.text, n, cut=cut, tokens=completion.completion_tokens)


def joined_parts(parts: Sequence[str | None]) -> str | None:
    """One text of a joint judgment; the texts of a solo judgment under a heading each."""
    if len(parts) == 1:
        return parts[0]
    if all(p is None for p in parts):
        return None
    return "\n\n".join(f"[Response {i + 1}]\n{p or ''}" for i, p in enumerate(parts))


@dataclass(eq=False)
class Planned:
    """One planned judgment: its prompts (n of them in the solo form), or the error why there are none; completions."""

    index: int
    order: tuple[int, ...]
    key: str
    prompts: tuple[tuple[Message, ...], ...]
    error: str | None = None
    completions: dict[int, Completion] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.completions) == len(self.prompts)

    def seed(self, part: int) -> int:
        """31 bits from the key: every server takes that many, JSON keeps them exactly."""
        source = self.key if part == 0 else content_hash(self.key, part)
        return int(source[:8], 16) & 0x7FFFFFFF


@dataclass(eq=False)
class _Work:
    """An item in flight."""

    item: Item
    k: int
    done: dict[int, Judgment]


class _Opened:
    """The items in flight in input order, which request belongs to what, and who else waits for a key in flight."""

    def __init__(self, on_judgment: OnJudgment | None) -> None:
        self.on_judgment = on_judgment
        self.exhausted = False
        self.works: deque[_Work] = deque()
        self.waiting: dict[str, list[_Work]] = {}
        self._targets: dict[int, tuple[_Work, list[tuple[Planned, int]], set[int]]] = {}
        self._next = 0

    def register(self, work: _Work, targets: list[tuple[Planned, int]]) -> int:
        number, self._next = self._next, self._next + 1
        self._targets[number] = (work, targets, set(range(len(targets))))
        return number

    def take(self, completion: Completion) -> tuple[_Work, Planned]:
        work, targets, waiting = self._targets[completion.request]
        waiting.remove(completion.index)
        if not waiting:
            del self._targets[completion.request]
        sample, part = targets[completion.index]
        sample.completions[part] = completion
        return work, sample

    def finished(self) -> Iterator[tuple[Item, list[Judgment]]]:
        while self.works and len(self.works[0].done) == self.works[0].k:
            work = self.works.popleft()
            yield work.item, [work.done[j] for j in range(work.k)]

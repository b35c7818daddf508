"""The PairRM judge: one logit f(a, b) for two responses to a query, positive where the one shown first is better.

A model of both orders contradicts itself now and then. The judgment is the mean of the two, S = (f(a, b) - f(b, a))/2,
which is antisymmetric: the order in which an item has its responses changes nothing, and two equal responses tie at
0. Of a pair the scores are (S, -S) (v3 Eq. 5 takes the sign; there a 0 goes to the first response, here it is a tie).
In a list every pair plays in both orders, n(n-1) passes, and a response's score is the mean of its S against the
others.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from opengrm.errors import EngineError
from opengrm.items import Item, Message
from opengrm.judges.base import OnJudgment, check_responses
from opengrm.judges.repeated import Fits, Reader, judge_repeatedly, shortened, too_long
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.templates.pair import PairTemplate

if TYPE_CHECKING:
    from opengrm.engines.classifier import Reading

_DECIMALS = 4  # those of the logits

Orders = tuple[tuple[Message, ...], tuple[Message, ...]]


def both_orders(
    template: PairTemplate, prompt: Sequence[Message], first: str, second: str, fits: Fits | None = None
) -> Orders:
    """What the model reads of two responses, in both orders.

    The conversation's beginning is cut as far as `fits` asks, if that is enough; both orders see the same of it.
    """

    def shown(messages: Sequence[Message]) -> Orders:
        return template.render(messages, first, second), template.render(messages, second, first)

    kept = None if fits is None else shortened(prompt, lambda messages: all(map(fits, shown(messages))))
    return shown(prompt if kept is None else kept)


@dataclass(frozen=True)
class PairRM:
    """A PairRM as a judge.

    Attributes:
        classifier: gives the logits.
        template: what it reads.
        ledger: where judgments are kept and looked for; None keeps nothing.
        window: most items open at a time; bounds memory and delay.
    """

    classifier: Reader
    template: PairTemplate
    ledger: Ledger | None = None
    window: int = 128

    def judge(
        self, items: Iterable[Item], k: int, on_judgment: OnJudgment | None = None
    ) -> Generator[tuple[Item, list[Judgment]], None, None]:
        """k equal judgments of each item, computed once; see `judges.base.Judge`.

        A judgment is missing as "too_long" where one of the pairs does not fit.

        Raises:
            ValueError: an item of one response.
        """
        return judge_repeatedly(
            items, k, self._judged,
            name=self._name, model=self.classifier.model, ledger=self.ledger, window=self.window,
            on_judgment=on_judgment,
        )  # fmt: skip

    @property
    def _name(self) -> str:
        return f"{self.template.name}@{self.template.version}"

    def _judged(self, items: Sequence[Item]) -> list[Judgment]:
        cut = self.classifier.fits if self.classifier.truncates else None
        asked: list[tuple[Message, ...]] = []
        prompts: list[tuple[Message, ...]] = []
        for item in items:
            check_responses("pair", item.n)
            for i, j in combinations(range(item.n), 2):
                asked += both_orders(self.template, item.prompt, item.responses[i], item.responses[j], cut)
                prompts += [item.prompt] * 2
        readings = iter(self.classifier.read(asked, prompts))
        return [self._judgment(item, [next(readings) for _ in range(item.n * (item.n - 1))]) for item in items]

    def _judgment(self, item: Item, readings: Sequence[Reading]) -> Judgment:
        """The judgment from the readings of all pairs, both orders of a pair side by side."""
        pairs = list(combinations(range(item.n), 2))
        totals = [0.0] * item.n
        error = None
        for (i, j), forth, back in zip(pairs, readings[::2], readings[1::2], strict=True):
            if forth.logit is None or back.logit is None:
                what = f"the pair of responses {i + 1} and {j + 1} with the conversation"
                error = too_long(what, max(forth, back, key=lambda reading: reading.tokens), self.classifier.context)
                break
            preferred = (forth.logit - back.logit) / 2
            totals[i] += preferred
            totals[j] -= preferred
        scores = tuple(round(total / (item.n - 1), _DECIMALS) + 0.0 for total in totals)  # + 0.0: no negative zero
        return Judgment(
            item=item.id,
            scores=scores if error is None else None,
            error=error,
            model=self.classifier.model,
            template=self._name,
            prompt_tokens=sum(reading.tokens for reading in readings if reading.logit is not None),
            completion_tokens=0,
        )


def shown(item: Item) -> tuple[Message, ...]:
    """All that the judge reads of an item. Raises ValueError for a number of responses that it does not take."""
    check_responses("pair", item.n)
    return (*item.prompt, *(Message("assistant", response) for response in item.responses))


def open_pair_rm(model: str, ledger: Ledger | None, stack: ExitStack, **options: Any) -> PairRM:
    """Load a PairRM; `stack` lets go of it.

    Args:
        model: a folder or a hub id.
        ledger: where judgments are kept.
        stack: closes the classifier.
        options: of `engines.classifier.Classifier`.

    Raises:
        EngineError: it cannot be loaded, or its config.json does not name what it reads.
    """
    from opengrm.engines.classifier import Classifier

    classifier = Classifier(model, **options)
    stack.callback(classifier.close)
    if classifier.pair_template is None:
        raise EngineError(
            f"{model}: config.json has no pair_template, so this is no PairRM; opengrm train pair makes one"
        )
    return PairRM(classifier, PairTemplate(classifier.pair_template), ledger)

"""The Bradley-Terry judge: a score for each response by itself, from a sequence classifier with one logit.

It reads the conversation and the response in the model's own chat template, as the model's training does and as any
other runner of such checkpoints does. A response's score does not depend on the others, and every judgment is the
same. Any classifier with one label that is such a reward model can be used, not only those trained here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from opengrm.errors import EngineError
from opengrm.items import Item, Message
from opengrm.judges.base import OnJudgment, check_responses
from opengrm.judges.repeated import Fits, Reader, judge_repeatedly, shortened, too_long
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger

NAME = "bt@1"  # the form, as judgments and keys call it; a new version where other text is read


def answered(prompt: Sequence[Message], response: str, fits: Fits | None = None) -> tuple[Message, ...]:
    """The conversation that ends in this response; its beginning cut as far as `fits` asks, if that is enough."""
    answer = Message("assistant", response)
    kept = None if fits is None else shortened(prompt, lambda messages: fits((*messages, answer)))
    return (*(prompt if kept is None else kept), answer)


@dataclass(frozen=True)
class BradleyTerry:
    """A Bradley-Terry reward model as a judge.

    Attributes:
        classifier: gives the scores.
        ledger: where judgments are kept and looked for; None keeps nothing.
        window: most items open at a time; bounds memory and delay.
    """

    classifier: Reader
    ledger: Ledger | None = None
    window: int = 256

    def judge(
        self, items: Iterable[Item], k: int, on_judgment: OnJudgment | None = None
    ) -> Generator[tuple[Item, list[Judgment]], None, None]:
        """k equal judgments of each item, computed once; see `judges.base.Judge`.

        A judgment is missing as "too_long" where one of the responses, with the conversation, does not fit.
        """
        return judge_repeatedly(
            items, k, self._judged,
            name=NAME, model=self.classifier.model, ledger=self.ledger, window=self.window, on_judgment=on_judgment,
        )  # fmt: skip

    def _judged(self, items: Sequence[Item]) -> list[Judgment]:
        cut = self.classifier.fits if self.classifier.truncates else None
        readings = iter(
            self.classifier.read(
                [answered(item.prompt, response, cut) for item in items for response in item.responses],
                [item.prompt for item in items for _ in item.responses],
            )
        )
        judgments = []
        for item in items:
            own = [next(readings) for _ in item.responses]
            scores = tuple(reading.logit for reading in own if reading.logit is not None)
            error = None
            if len(scores) < item.n:
                place, longest = max(enumerate(own, start=1), key=lambda pair: pair[1].tokens)
                error = too_long(f"response {place} with its conversation", longest, self.classifier.context)
            judgments.append(
                Judgment(
                    item=item.id,
                    scores=scores if error is None else None,
                    error=error,
                    model=self.classifier.model,
                    template=NAME,
                    prompt_tokens=sum(reading.tokens for reading in own if reading.logit is not None),
                    completion_tokens=0,
                )
            )
        return judgments


def shown(item: Item) -> tuple[Message, ...]:
    """All that the judge reads of an item. Raises ValueError for a number of responses that it does not take."""
    check_responses("bt", item.n)
    return (*item.prompt, *(Message("assistant", response) for response in item.responses))


def open_bradley_terry(model: str, ledger: Ledger | None, stack: ExitStack, **options: Any) -> BradleyTerry:
    """Load a Bradley-Terry model; `stack` lets go of it.

    Args:
        model: a folder or a hub id.
        ledger: where judgments are kept.
        stack: closes the classifier.
        options: of `engines.classifier.Classifier`.

    Raises:
        EngineError: it cannot be loaded, or is a meta RM, a PairRM or a CLoud head.
    """
    from opengrm.engines.classifier import Classifier

    classifier = Classifier(model, **options)
    stack.callback(classifier.close)
    others = (
        (classifier.meta_template, "a meta RM", "--meta"),
        (classifier.pair_template, "a PairRM", "--judge pair"),
        (classifier.cloud_template, "a CLoud head", "--judge cloud"),
    )
    for named, kind, use in others:
        if named is None:
            continue
        raise EngineError(f"{model}: this is {kind}, not a Bradley-Terry model: use it with {use}")
    return BradleyTerry(classifier, ledger)

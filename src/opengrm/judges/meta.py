"""The meta RM as a judge of judgments: fills `judgment.meta`, the logit that the judgment's ranking is correct.

It streams: judgments come in item by item, a window of them is looked up in the ledger, what is not there is scored in
one go, and the items go out in the order they came in. A meta score is kept under a key over the meta RM's identity,
its template and the whole text it read, so that the same text is scored once, and two meta RMs do not mix. The
judgment's own row in the ledger carries the latest meta score and the model it is from (`meta_model`).

A judgment without scores is not asked about: it has no vote. One that cannot be shown (no text, unknown order) or that
is longer than the model's context keeps `meta` None.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from opengrm.items import Item, Message, content_hash
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.templates.meta import MetaTemplate

Judged = tuple[Item, list[Judgment]]


class Scorer(Protocol):
    """What gives logits: `engines.classifier.Classifier`, or anything like it. `model` identifies the weights."""

    @property
    def model(self) -> str: ...

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float | None]: ...


def open_meta_rm(
    model: str, template: str | None, ledger: Ledger | None, stack: ExitStack, *, device: str = "auto",
    dtype: str = "auto", trust_remote_code: bool = False,
) -> MetaRM:  # fmt: skip
    """Load a meta RM; `stack` lets go of it.

    Args:
        model: a folder or a hub id.
        template: what it reads, one of `templates.meta.FORMS`; None takes what its config.json says, else "meta".
        ledger: where meta scores are kept.
        stack: closes the classifier.
        device, dtype, trust_remote_code: as for `engines.classifier.Classifier`.
    """
    from opengrm.engines.classifier import Classifier

    classifier = Classifier(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    stack.callback(classifier.close)
    return MetaRM(classifier, MetaTemplate(template or classifier.meta_template or "meta"), ledger)


@dataclass(frozen=True)
class MetaRM:
    """A meta RM: a classifier and what it is shown.

    Attributes:
        classifier: gives the logits.
        template: what the classifier reads.
        ledger: where meta scores are kept and looked for; None keeps nothing.
        window: most items whose judgments are scored together; bounds memory and delay.
    """

    classifier: Scorer
    template: MetaTemplate
    ledger: Ledger | None = None
    window: int = 32

    def score(self, judged: Iterable[Judged]) -> Generator[Judged, None, None]:
        """The same items and judgments, with `meta` filled where it can be.

        Raises:
            EngineError: the classifier cannot go on. What was scored until then is in the ledger.
        """
        feed = iter(judged)
        while window := list(islice(feed, self.window)):
            yield from self._scored(window)

    def _scored(self, window: Sequence[Judged]) -> list[Judged]:
        asked: dict[str, tuple[Message, ...]] = {}
        keys = [[self._ask(item, j, asked) for j in judgments] for item, judgments in window]
        metas = {} if self.ledger is None else self.ledger.metas(list(asked))
        new = [key for key in asked if key not in metas]
        found = dict(zip(new, self.classifier.score([asked[key] for key in new]), strict=True)) if new else {}
        metas |= {key: meta for key, meta in found.items() if meta is not None}
        scored = [
            (item, [self._filled(j, key, metas) for j, key in zip(judgments, row, strict=True)])
            for (item, judgments), row in zip(window, keys, strict=True)
        ]
        if self.ledger is not None:
            fresh = {key: metas[key] for key in new if key in metas}
            self.ledger.put_metas(fresh, self.classifier.model, [j for _, judgments in scored for j in judgments])
        return scored

    def _ask(self, item: Item, judgment: Judgment, asked: dict[str, tuple[Message, ...]]) -> str | None:
        """The key of this judgment's meta score, its conversation noted in `asked`; None where it cannot be shown."""
        if judgment.scores is None:
            return None
        try:
            messages = self.template.render(item, judgment)
        except ValueError:
            return None
        shown = [m.to_json() for m in messages]
        key = content_hash("meta", self.classifier.model, self.template.name, self.template.version, shown)
        asked[key] = messages
        return key

    def _filled(self, judgment: Judgment, key: str | None, metas: dict[str, float]) -> Judgment:
        meta = None if key is None else metas.get(key)
        extra = {name: value for name, value in judgment.extra.items() if name != "meta_model"}
        if meta is not None:
            extra["meta_model"] = self.classifier.model
        return replace(judgment, meta=meta, extra=extra)

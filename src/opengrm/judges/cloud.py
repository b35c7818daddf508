"""CLoud (Critique-out-Loud, arXiv:2408.11791) as a judge: the critic writes, a head reads it and gives the score.

For each sample a critique of each response is generated, alone in its prompt; then one batched pass of the head over
(conversation, response, critique) gives the logits, which are the scores. The two models are two ordinary folders: the
critic runs on any engine, also behind a server, and the head in this process. Greedy critiques make every sample the
same; k sampled ones vote by their mean (the paper's self-consistency over critiques).

It goes window by window: critiques of all items of a window, their scores, then their judgments into the ledger. A
killed run loses at most one window. A judgment's key is over both models, the template, the prompts, the sampling and
the sample's index.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from opengrm.engines.base import Completion, Engine, Request, Sampling
from opengrm.errors import EngineError
from opengrm.items import Item, Message, content_hash
from opengrm.judges.base import OnJudgment
from opengrm.judges.grm import Planned, joined_parts
from opengrm.judges.repeated import too_long
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.templates.cloud import UNSCORED, CloudTemplate

if TYPE_CHECKING:
    from opengrm.engines.classifier import Reading

Judged = tuple[Item, list[Judgment]]


class Head(Protocol):
    """What reads critiques: `engines.classifier.Classifier`, or anything like it. `model` identifies the weights."""

    @property
    def model(self) -> str: ...

    @property
    def context(self) -> int | None: ...

    def read(
        self, conversations: Sequence[Sequence[Message]], prompts: Sequence[Hashable] | None = None
    ) -> list[Reading]: ...


def open_head(model: str, template: CloudTemplate, stack: ExitStack, **options: Any) -> Head:
    """Load a head; `stack` lets go of it.

    Args:
        model: a folder or a hub id.
        template: what it is to read.
        stack: closes the classifier.
        options: of `engines.classifier.Classifier`.

    Raises:
        EngineError: it cannot be loaded, or was trained to read something else.
    """
    from opengrm.engines.classifier import Classifier

    classifier = stack.enter_context(Classifier(model, **options))
    for named, kind in ((classifier.meta_template, "a meta RM"), (classifier.pair_template, "a PairRM")):
        if named is not None:
            raise EngineError(f"{model}: this is {kind}, not a head that reads critiques")
    if classifier.cloud_template not in (None, template.name):
        raise EngineError(f"{model}: this head reads {classifier.cloud_template}, not {template.name}")
    return classifier


@dataclass(frozen=True)
class CLoud:
    """A critic and a head.

    Attributes:
        critic: writes the critiques.
        head: gives the scores; trained on this template's conversations (`training/cloud.py`).
        template: how a response is shown to the critic, and its critique to the head.
        sampling: of the critiques; the paper's temperature for sampled runs is 0.5 (greedy runs: 0).
        ledger: where judgments are kept and looked for; None keeps nothing.
        window: most items open at a time; bounds memory, and what a kill loses.
    """

    critic: Engine
    head: Head
    template: CloudTemplate
    sampling: Sampling = field(default_factory=Sampling)
    ledger: Ledger | None = None
    window: int = 64

    def judge(
        self, items: Iterable[Item], k: int, on_judgment: OnJudgment | None = None
    ) -> Generator[Judged, None, None]:
        """k judgments of each item, in the items' order, each list by sample index.

        Args:
            items: read lazily, a window at a time.
            k: samples of each item, at least 1.
            on_judgment: called with each new judgment and its critiques' seconds, when its window is scored; the same
                content under a second id took 0 seconds there.

        Raises:
            EngineError: the critic or the head cannot go on. The windows judged until then are in the ledger.
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        return self.judge_each(((item, k) for item in items), on_judgment)

    def judge_each(
        self, asked: Iterable[tuple[Item, int]], on_judgment: OnJudgment | None = None
    ) -> Generator[Judged, None, None]:
        """`judge` for items that each have their own k."""
        feed = iter(asked)
        while window := list(islice(feed, self.window)):
            yield from self._judged(window, on_judgment)

    def _judged(self, window: Sequence[tuple[Item, int]], on_judgment: OnJudgment | None) -> list[Judged]:
        planned = [(item, [self._sample(item, j) for j in range(k)]) for item, k in window]
        done: list[dict[str, Judgment]] = [
            {} if self.ledger is None else self.ledger.get([s.key for s in samples], item.id)
            for item, samples in planned
        ]
        new: dict[str, tuple[Item, Planned]] = {}  # by key: equal content under two ids is judged once
        for (item, samples), known in zip(planned, done, strict=True):
            for sample in samples:
                if sample.key not in known:
                    new.setdefault(sample.key, (item, sample))
        self._write([sample for _, sample in new.values()])
        fresh = self._scored(list(new.values()))
        told: set[str] = set()
        for (item, samples), known in zip(planned, done, strict=True):
            for key in (s.key for s in samples if s.key not in known):
                judgment, seconds = replace(fresh[key], item=item.id), 0.0
                if key not in told:
                    told.add(key)
                    seconds = sum(c.seconds for c in new[key][1].completions.values())
                known[key] = judgment
                if self.ledger is not None:
                    self.ledger.put(judgment, seconds)
                if on_judgment is not None:
                    on_judgment(judgment, seconds)
        return [(item, [known[s.key] for s in samples]) for (item, samples), known in zip(planned, done, strict=True)]

    def _sample(self, item: Item, index: int) -> Planned:
        """One planned judgment: its prompts, or why the template cannot show a response; its key."""
        prompts: tuple[tuple[Message, ...], ...] = ()
        error = None
        try:
            prompts = tuple(self.template.render(item.only(i)) for i in range(item.n))
        except ValueError as problem:
            error = f"template: {problem}"
        shown = [[m.to_json() for m in prompt] for prompt in prompts]
        settings = (self.sampling.temperature, self.sampling.top_p, self.sampling.max_tokens)
        key = content_hash("cloud", self._model, self._name, item.key, shown, settings, index)
        return Planned(index, tuple(range(item.n)), key, prompts, error)

    def _write(self, samples: Sequence[Planned]) -> None:
        """Have the critic write all critiques of these samples: a request for each distinct prompt."""
        targets: dict[tuple[Message, ...], list[tuple[Planned, int]]] = {}
        for sample in samples:
            for part, prompt in enumerate(sample.prompts):
                targets.setdefault(prompt, []).append((sample, part))
        parts = list(targets.values())

        def requests() -> Iterator[Request]:
            for number, (prompt, asked) in enumerate(targets.items()):
                yield Request(number, prompt, tuple(sample.seed(part) for sample, part in asked), self.sampling)

        if not parts:
            return
        with closing(self.critic.generate(requests())) as completions:
            for completion in completions:
                sample, part = parts[completion.request][completion.index]
                sample.completions[part] = completion

    def _scored(self, work: Sequence[tuple[Item, Planned]]) -> dict[str, Judgment]:
        """The judgments of these samples, by key: one pass of the head over all whose critiques are all there."""
        errors = {sample.key: self._error(sample) for _, sample in work}
        read = {
            sample.key: [
                (*prompt, Message("assistant", sample.completions[part].text))
                for part, prompt in enumerate(sample.prompts)
            ]
            for _, sample in work
            if errors[sample.key] is None
        }
        readings = iter(self.head.read([conversation for of_sample in read.values() for conversation in of_sample]))
        found: dict[str, Judgment] = {}
        for item, sample in work:
            own = [next(readings) for _ in read.get(sample.key, ())]
            found[sample.key] = self._judgment(item, sample, own, errors[sample.key])
        return found

    def _error(self, sample: Planned) -> str | None:
        """Why a sample has no scores, before the head is asked: the first of its critiques that is missing."""
        errors = (self._missing(sample.completions[part]) for part in range(len(sample.prompts)))
        return next((error for error in errors if error is not None), sample.error)

    def _missing(self, completion: Completion) -> str | None:
        if completion.error is not None:
            return completion.error
        if completion.finish == "length":
            return f"truncated: the critique did not end within {completion.completion_tokens} tokens"
        error = self.template.parse(completion.text, 1).error
        return None if error == UNSCORED else error

    def _judgment(self, item: Item, sample: Planned, readings: Sequence[Reading], error: str | None) -> Judgment:
        scores = tuple(reading.logit for reading in readings if reading.logit is not None)
        if error is None and len(scores) < item.n:
            place, longest = max(enumerate(readings, start=1), key=lambda pair: pair[1].tokens)
            error = too_long(f"response {place} with its critique", longest, self.head.context)
        completions = [sample.completions[part] for part in range(len(sample.prompts))]
        text = joined_parts([c.text for c in completions])
        return Judgment(
            item=item.id,
            scores=scores if error is None else None,
            error=error,
            sample=sample.index,
            key=sample.key,
            order=sample.order,
            text=text,
            critique=text,
            model=self._model,
            template=self._name,
            temperature=self.sampling.temperature,
            seed=sample.seed(0),
            prompt_tokens=sum(c.prompt_tokens for c in completions)
            + sum(reading.tokens for reading in readings if reading.logit is not None),
            completion_tokens=sum(c.completion_tokens for c in completions),
            extra={"sampling": {"top_p": self.sampling.top_p, "max_tokens": self.sampling.max_tokens}},
        )

    @property
    def _model(self) -> str:
        return f"{self.critic.model} + {self.head.model}"

    @property
    def _name(self) -> str:
        return f"{self.template.name}@{self.template.version}"

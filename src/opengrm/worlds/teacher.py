r"""The faulty teacher: the judge whose transcripts the base model is pretrained on. All of its faults stand here.

RANDOM faults differ from sample to sample, so voting averages them out. SYSTEMATIC faults are the same most of the
time for the same input (a wrong belief about a kind, a misreading in a describable circumstance), so voting repeats
them and only training, or a meta RM, helps; the right answer keeps real probability, so that rejection sampling and
RL can find it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opengrm.items import Item
from opengrm.templates.compact import Compact
from opengrm.worlds.english import CRITERIA, GREETINGS, POLITE, VAGUE, meets, words
from opengrm.worlds.rubric import PASS_MARK, WEIGHTS, Query, complete_criteria, query_of

Principles = tuple[tuple[str, int], ...]

# kind -> the criteria of weight 5 and 3 that the teacher mostly believes in instead of the true ones
BELIEFS: dict[str, tuple[str, str]] = {
    "tweet": ("reason", "number"),
    "recipe": ("greet", "clean"),
    "review": ("stop", "polite"),
    "memo": ("example", "topic"),
    "speech": ("short", "number"),
    "guide": ("topic", "short"),
    "story": ("number", "example"),
}


def _vague_amount(text: str) -> bool:
    return any(w in VAGUE for w in words(text))


def _greeting(text: str) -> bool:
    return words(text)[:1] != [] and words(text)[0] in GREETINGS


def _polite_word(text: str) -> bool:
    return any(w in POLITE for w in words(text))


# criterion -> (the circumstance, what the teacher then mostly finds instead)
MISREADINGS: dict[str, tuple[Callable[[str], bool], bool]] = {
    "number": (_vague_amount, True),  # takes "several days" for a number
    "polite": (_greeting, True),  # takes any greeting for politeness
    "clean": (_polite_word, True),  # overlooks a rude word in a text that is polite
}


@dataclass(frozen=True)
class Teacher:
    """Rates of the faults, each a probability.

    Attributes:
        finding: RANDOM: a finding is reversed.
        total: RANDOM: a response's sum is off by 1 to 3.
        principle: RANDOM: one of the three criteria is replaced by one drawn at random.
        broken: RANDOM: the scores cannot be parsed or have the wrong count.
        lean: RANDOM: an unmet criterion of the response shown first is called met (a bias to the first position).
        belief: SYSTEMATIC: in a kind of BELIEFS, the believed criteria are written.
        misread: SYSTEMATIC: in a circumstance of MISREADINGS, the wrong finding is written.
        follow_hint: with a hint, the share of judgments made to agree with it.
        beliefs, misreadings: the systematic faults themselves.
    """

    finding: float = 0.14
    total: float = 0.06
    principle: float = 0.18
    broken: float = 0.02
    lean: float = 0.06
    belief: float = 0.75
    misread: float = 0.75
    follow_hint: float = 0.9
    beliefs: Mapping[str, tuple[str, str]] = field(default_factory=lambda: BELIEFS)
    misreadings: Mapping[str, tuple[Callable[[str], bool], bool]] = field(default_factory=lambda: MISREADINGS)

    def judge(self, rng: random.Random, item: Item, order: Sequence[int], template: Compact) -> str:
        """One judgment text of `item` with response `order[p]` at position p, in the template's form."""
        for _ in range(30):
            text, scores = self._try(rng, item, order, template)
            if not template.hint or rng.random() > self.follow_hint:
                return text
            label = list(order).index(item.label)  # type: ignore[arg-type]
            if all(scores[label] > s for p, s in enumerate(scores) if p != label):
                return text
        return text

    def _try(
        self, rng: random.Random, item: Item, order: Sequence[int], template: Compact
    ) -> tuple[str, tuple[int, ...]]:
        query = query_of(item)
        principles = self._given(item) if template.principles else self._believed(rng, query, template)
        lines, scores = [], []
        if not template.no_principles:
            lines.append(", ".join(f"{name} {weight}" for name, weight in principles))
        for p, index in enumerate(order):
            found = [self.find(rng, name, item.responses[index], query.topic, p, len(order)) for name, _ in principles]
            total = sum(weight for (_, weight), met in zip(principles, found, strict=True) if met)
            if rng.random() < self.total:
                total = min(max(total + rng.choice((-3, -2, -1, 1, 2, 3)), 0), 10)
            scores.append(total)
            findings = ", ".join(
                f"{name} {'yes' if met else 'no'}" for (name, _), met in zip(principles, found, strict=True)
            )
            lines.append(f"[{p + 1}] {findings} = {total}")
        if template.form == "compact-binary":
            scores = [int(s >= PASS_MARK) for s in scores]
        lines.append(self._box(rng, scores))
        return "\n".join(lines), tuple(scores)

    def _given(self, item: Item) -> Principles:
        pairs = (p.rsplit(" ", 1) for p in item.principles or ())
        return tuple((name, int(weight)) for name, weight in pairs)

    def _believed(self, rng: random.Random, query: Query, template: Compact) -> Principles:
        principles = query.criteria
        # A reference answer shows what counts: the teacher then does not fall back on its beliefs.
        if query.kind in self.beliefs and not template.reference and rng.random() < self.belief:
            principles = complete_criteria(query.kind, query.audience, *self.beliefs[query.kind])
        if rng.random() < self.principle:
            names = [name for name, _ in principles]
            names[rng.randrange(len(names))] = rng.choice([c for c in CRITERIA if c not in names])
            principles = tuple(zip(names, WEIGHTS, strict=True))
        return principles

    def find(self, rng: random.Random, name: str, text: str, topic: str, position: int = 0, n: int = 1) -> bool:
        """Whether the teacher finds criterion `name` met by `text`, shown at `position` of n."""
        met = meets(name, text, topic)
        if name in self.misreadings:
            circumstance, reading = self.misreadings[name]
            if met != reading and circumstance(text) and rng.random() < self.misread:
                return reading
        if not met and position == 0 and n > 1 and rng.random() < self.lean:
            return True
        return met != (rng.random() < self.finding)

    def _box(self, rng: random.Random, scores: Sequence[int]) -> str:
        shown = [str(s) for s in scores]
        if rng.random() < self.broken:
            if rng.random() < 0.5:
                return ", ".join(shown)
            shown = shown[:-1] if len(shown) > 1 and rng.random() < 0.5 else [*shown, shown[-1]]
        return f"\\boxed{{{', '.join(shown)}}}"


FLAWLESS = Teacher(
    finding=0, total=0, principle=0, broken=0, lean=0, belief=0, misread=0, follow_hint=0, beliefs={}, misreadings={}
)

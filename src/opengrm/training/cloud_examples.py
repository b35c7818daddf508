"""What CLoud's head and critic learn from: pairs of conversations that end in the critic's own critique.

A conversation is token ids, as `engines.classifier.Classifier` will read it, with the place where the head reads and
the span of the critique, which the language-model part learns. Items of held-out conversations are kept whole, for
measuring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opengrm.engines.chat import ChatTokenizer
from opengrm.items import Item, item_from_json
from opengrm.jsonl import read_rows
from opengrm.templates.cloud import CloudTemplate
from opengrm.training.checkpoint import end_token
from opengrm.training.critiques import Critiqued, conversation_hash, given_critiques
from opengrm.training.scalar_examples import held_out
from opengrm.training.sft import IGNORED
from opengrm.voting.correctness import credit
from opengrm.voting.intervals import share_interval


class Example(NamedTuple):
    """A conversation that the head reads, as token ids.

    Attributes:
        ids: all of it, at least up to the token that ends the critique.
        last: where the head reads: the last token of the conversation that is not padding.
        start, stop: what is learned, ids[start:stop]: the critique's tokens with the end of the turn, or nothing.
    """

    ids: Any
    last: int
    start: int
    stop: int


class Pair(NamedTuple):
    """What one term of the BT part compares."""

    best: Example
    other: Example


class Encoder:
    """Conversations of prompt and critique as token ids, as `engines.classifier.Classifier` reads them.

    The critique's tokens are all that stands behind what the critic's prompt has in common with the conversation: also
    an empty thought that the chat template puts in front of an answer. A critique that spells a thought's or a tool
    call's marker is read with the marker broken up, as all text under judgment is; it is not learned, since the critic
    is not to write it so.
    """

    def __init__(self, tokenizer: Any, pad: int) -> None:
        from opengrm.engines.classifier import DialogueTokenizer

        self._prompt, self._dialogue = ChatTokenizer(tokenizer), DialogueTokenizer(tokenizer)
        self._end, self._pad = end_token(tokenizer), pad

    def encode(self, template: CloudTemplate, item: Item, critique: str) -> Example:
        """One response's example."""
        from opengrm.engines.classifier import common_prefix, until_last

        messages = template.read(item, critique)
        prompt, ids = self._prompt.encode(messages[:-1]), self._dialogue.encode(messages)
        start = common_prefix([(*prompt, -1), ids])
        last = len(until_last(ids, self._pad)) - 1
        ends = [i for i in range(start, len(ids)) if ids[i] == self._end]
        if not ends:  # a plain form writes no end of a turn: it is learned behind the place where the head reads
            ids, ends = (*ids, self._end), [len(ids)]
        fenced = [self._dialogue.fence(critique, special_only=only) for only in (False, True)]
        stop = ends[-1] + 1 if fenced[0] == fenced[1] else start
        return Example(np.array(ids, dtype=np.int32), last, start, stop)


def read_pairs(
    path: Path, template: CloudTemplate, encoder: Encoder, longest: int, dev_share: float
) -> tuple[list[Pair], list[Critiqued], Counter[str]]:
    """The pairs of an items file with critiques: best response against each other.

    Args:
        path: what `critiques.own_stage` wrote.
        template, encoder: how a response and its critique become token ids.
        longest: most tokens of an example.
        dev_share: share of conversations that are held out.

    Returns:
        Training pairs, held-out items with their critiques, and how many pairs were left out, by reason.
    """
    pairs: list[Pair] = []
    dev: list[Critiqued] = []
    left_out = Counter[str]()
    for _, row in read_rows(path):
        item = item_from_json(row)
        critiques, label = given_critiques(item), item.label
        assert critiques is not None
        assert label is not None
        if held_out(conversation_hash(item), dev_share):
            dev.append((item, critiques))
            continue
        examples = [
            None if critique is None else encoder.encode(template, item.only(i), critique)
            for i, critique in enumerate(critiques)
        ]
        best = examples[label]
        for other in (example for i, example in enumerate(examples) if i != label):
            if best is None or other is None:
                left_out["without a critique"] += 1
            elif max(len(best.ids), len(other.ids)) > longest:
                left_out["too long"] += 1
            else:
                pairs.append(Pair(best, other))
    return pairs, dev, left_out


@dataclass(frozen=True)
class Collator:
    """A micro-batch of pairs: padded token ids of best, other, best, ..., and the critiques' labels."""

    pad: int
    labelled: bool  # whether the critiques' tokens are learned

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        import torch

        from opengrm.engines.classifier import padded

        rows = [example for pair in pairs for example in pair]
        batch = padded([row.ids.tolist() for row in rows], self.pad)
        longest = batch["input_ids"].shape[1]
        labels_BT = torch.full((len(rows), longest), IGNORED)
        if self.labelled:
            for row, example in enumerate(rows):
                span = slice(example.start, example.stop)
                labels_BT[row, span] = batch["input_ids"][row, span]
        first = min(example.start for example in rows)
        return {
            **batch,
            "last_B": torch.tensor([example.last for example in rows]),
            "keep": longest - first + 1 if self.labelled else 1,
            "labels": labels_BT,
        }


def measured(dev: Sequence[Critiqued], template: CloudTemplate, head: Any) -> dict[str, Any]:
    """What a head is worth on held-out items with these critiques.

    Args:
        dev: items with a labelled best of several.
        template: what the head reads.
        head: an `engines.classifier.Classifier`.

    Returns:
        n; conversations; missing, items without all scores, which count at chance; accuracy with its interval, ties as
        expected credit, clustered by conversation; bt, the mean BT loss of the pairs.
    """
    whole = [(item, texts) for item, texts in dev if None not in texts]
    read = [template.read(item.only(i), text or "") for item, texts in whole for i, text in enumerate(texts)]
    scores = iter(head.score(read))
    earned = [1 / item.n for item, texts in dev if None in texts]
    names = [conversation_hash(item) for item, texts in dev if None in texts]
    losses: list[float] = []
    missing = len(earned)
    for item, _ in whole:
        names.append(conversation_hash(item))
        scores_N = [next(scores) for _ in range(item.n)]
        if None in scores_N:
            missing += 1
            earned.append(1 / item.n)
            continue
        assert item.label is not None
        earned.append(credit(scores_N, item.label))
        losses += [float(np.logaddexp(0, s - scores_N[item.label])) for i, s in enumerate(scores_N) if i != item.label]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    accuracy = share_interval(np.array(earned), None, np.array([numbers[name] for name in names]))
    return {
        "n": len(dev), "conversations": len(numbers), "missing": missing,
        "accuracy": None if accuracy is None else accuracy._asdict(),
        "bt": float(np.mean(losses)) if losses else None,
    }  # fmt: skip

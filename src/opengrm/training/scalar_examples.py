"""What the trainer of one-logit models works on: examples, their token ids, micro-batches of them, and their order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opengrm.items import Message
from opengrm.jsonl import read_rows
from opengrm.judges.repeated import Fits

Conversation = tuple[Message, ...]
Read = Callable[[Mapping[str, Any], Fits], "Example"]  # an example from a row of the examples' file
_TOGETHER = 8  # most examples of a prompt that stand together, and fewest such pieces in a step


@dataclass(frozen=True)
class Example:
    """Conversations whose logits enter one loss.

    Attributes:
        conversations: 1..m of them, the same number in all examples of a stage.
        prompt: examples of equal prompts have a beginning in common; only says where to look for one.
        group: hash of the conversation that is judged, in hex; what is held out goes by it.
        target: what the loss needs to know: a label, a margin.
        weight: how much the example counts beside others in training; scaled there to 1 on average.
    """

    conversations: tuple[Conversation, ...]
    prompt: Hashable
    group: str
    target: float
    weight: float = 1.0


def held_out(group: str, share: float) -> bool:
    """Whether examples of this conversation are for development."""
    return int(group[:8], 16) < share * 2**32


class Encoded(NamedTuple):
    """An example as token ids: 4 bytes a token, so that all of them fit in memory."""

    ids: tuple[Any, ...]  # of each conversation
    target: float
    weight: float
    group: str
    prompt: int  # numbered from 0


def encode_examples(
    path: Path, model: Any, tokenizer: Any, read: Read, dev_share: float, max_tokens: int | None
) -> tuple[list[Encoded], list[Encoded], int]:
    """Training and held-out examples, and how many were too long for either.

    Args:
        path: the examples' file.
        model, tokenizer: by which a conversation becomes token ids, and what fits.
        read: an example from a row.
        dev_share: share of conversations that are held out.
        max_tokens: most tokens of a conversation; None is the model's context.
    """
    from opengrm.engines.classifier import DialogueTokenizer, context_length

    dialogue, too_long = DialogueTokenizer(tokenizer), 0
    train: list[Encoded] = []
    dev: list[Encoded] = []
    prompts: dict[int, int] = {}  # by hash: millions of prompts need not stay in memory
    limits = [limit for limit in (max_tokens, context_length(model)) if limit is not None]

    def short(ids: Sequence[int]) -> bool:
        return not limits or len(ids) <= min(limits)

    for _, row in read_rows(path):
        example = read(row, lambda messages: short(dialogue.encode(messages)))
        ids = [dialogue.encode(messages) for messages in example.conversations]
        if not all(map(short, ids)):
            too_long += 1
            continue
        side = dev if held_out(example.group, dev_share) else train
        prompt = prompts.setdefault(hash(example.prompt), len(prompts))
        arrays = tuple(np.array(each, dtype=np.int32) for each in ids)
        side.append(Encoded(arrays, example.target, example.weight, example.group, prompt))
    mean = sum(example.weight for example in train) / max(len(train), 1) or 1.0
    train = [example._replace(weight=example.weight / mean) for example in train]
    return train, [example._replace(weight=1.0) for example in dev], too_long


@dataclass(frozen=True)
class Collator:
    """A micro-batch: targets, weights, and its distinct conversations as padded token ids or one packed row.

    `rows` (G, m) says which of the conversations are an example's.
    """

    pad: int
    packed: bool

    def __call__(self, examples: list[Encoded]) -> dict[str, Any]:
        import torch

        from opengrm.engines.classifier import packed, padded

        numbers: dict[tuple[int, ...], int] = {}
        prompts: list[int] = []
        rows: list[list[int]] = []
        for example in examples:
            each = [tuple(ids.tolist()) for ids in example.ids]
            prompts += [example.prompt for ids in dict.fromkeys(each) if ids not in numbers]
            rows.append([numbers.setdefault(ids, len(numbers)) for ids in each])
        batch = {
            "labels": torch.tensor([example.target for example in examples], dtype=torch.float32),
            "weights": torch.tensor([example.weight for example in examples], dtype=torch.float32),
            "rows": torch.tensor(rows),
        }
        ids = list(numbers)
        return (
            {**batch, "layout": packed(ids, prompts, self.pad)} if self.packed else {**batch, **padded(ids, self.pad)}
        )


def drawn(prompts: Sequence[int], batch: int, rng: np.random.Generator) -> list[int]:
    """An epoch: each example's index once, in random order but for up to `_TOGETHER` of a prompt that stand together.

    Args:
        prompts: each example's prompt.
        batch: examples of a step. With few of them fewer stand together, so that a step has many prompts.
        rng: the same one gives the same epoch, on any number of devices.
    """
    most = max(1, min(_TOGETHER, batch // _TOGETHER))
    pieces: list[list[int]] = []
    filling: dict[int, list[int]] = {}
    for index in rng.permutation(len(prompts)).tolist():
        piece = filling.get(prompts[index])
        if piece is None or len(piece) == most:
            piece = filling[prompts[index]] = []
            pieces.append(piece)
        piece.append(index)
    return [index for place in rng.permutation(len(pieces)) for index in pieces[place]]

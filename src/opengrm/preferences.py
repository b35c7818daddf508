"""Preference rows of TRL and its ecosystem as items, and what all foreign rows share.

A converter makes items and nothing else: what a benchmark needs to score them (subset, id, style, ...) goes to
`Item.source` together with the schema's name, unknown keys to `Item.extra`. Where the response labelled best is equal
to another one the label is dropped and the source says so: neither is better.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from opengrm.items import OWN_KEYS, Item, Message, conversation, identifier, is_number

Row = Mapping[str, Any]
Turns = str | tuple[Message, ...]

_SHAREGPT = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "function_call": "assistant",
    "system": "system", "observation": "tool", "tool": "tool",
}  # fmt: skip
_HH_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_OTHER_PROMPTS = ("question", "query", "input", "messages", "context", "history", "conversation", "instruction")


def preference(row: Row) -> list[Item]:
    r"""A pair: `{"prompt": "Name a prime.", "chosen": "7", "rejected": "8", "margin": 1.5}`, the margin optional.

    Each is a text or a list of messages. Chosen and rejected may repeat the prompt. Without a prompt they are whole
    conversations that begin alike: lists of messages, HH's `"\n\nHuman: ...\n\nAssistant: ..."`, or plain texts,
    which part where TRL parts them, moved back to the beginning of the word. RewardBench 1 and preference-test-sets
    have these columns with `subset` and `id`; an id need not be unique beyond its subset: the item's is `subset/id`.
    """
    chosen, rejected = turns(row["chosen"], "chosen"), turns(row["rejected"], "rejected")
    if row.get("prompt") is not None:
        prompt = conversation(row["prompt"])
        chosen, rejected = _after(prompt, chosen), _after(prompt, rejected)
    else:
        prompt, chosen, rejected = _shared_prompt(row, chosen, rejected)
    margin = row.get("margin")
    if margin is not None and not is_number(margin):
        raise ValueError("'margin' must be a number")
    subset = row.get("subset")
    return [
        item_of(
            row,
            "preference" if subset is None else "rewardbench",
            prompt,
            (written(chosen, "chosen"), written(rejected, "rejected")),
            best=0,
            name=joined(subset, row.get("id")),
            keep=("subset", "id", "margin", "chosen_model", "rejected_model"),
            used=("prompt", "chosen", "rejected"),
        )
    ]


def unpaired(row: Row) -> list[Item]:
    """TRL's unpaired preference: `{"prompt": "Name a prime.", "completion": "7", "label": true}`: reward 1 or 0."""
    if not isinstance(row["label"], bool):
        raise ValueError(f"'label' is {row['label']!r}, expected true or false")
    prompt = conversation(row["prompt"])
    return [
        item_of(
            row,
            "unpaired",
            prompt,
            (written(_after(prompt, turns(row["completion"], "completion")), "completion"),),
            rewards=(float(row["label"]),),
            name=row.get("id"),
            used=("prompt", "completion", "label", "id"),
        )
    ]


def sharegpt(row: Row) -> list[Item]:
    """LLaMA-Factory: `{"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", ...}, ...}`."""
    listed = turns(row["conversations"], "conversations")
    if isinstance(listed, str):
        raise ValueError("'conversations' must be a list of turns")
    return [_llama_factory(row, "sharegpt", listed, "conversations")]


def alpaca(row: Row) -> list[Item]:
    """LLaMA-Factory: `{"instruction": "Name a", "input": "prime.", "chosen": "7", "rejected": "8"}`."""
    parts = [text(row, "instruction"), *([text(row, "input")] if row.get("input") else [])]
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(said, str) for said in pair) for pair in history
    ):
        raise ValueError("'history' must be a list of [instruction, answer]")
    past = [Message(role, said) for pair in history for role, said in zip(("user", "assistant"), pair, strict=True)]
    return [
        _llama_factory(row, "alpaca", (*past, Message("user", "\n".join(parts))), "instruction", "input", "history")
    ]


def _llama_factory(row: Row, schema: str, prompt: tuple[Message, ...], *used: str) -> Item:
    if row.get("system"):
        prompt = (Message("system", text(row, "system")), *prompt)
    responses = tuple(written(turns(row[side], side), side) for side in ("chosen", "rejected"))
    used = (*used, "chosen", "rejected", "id", "system")
    return item_of(row, schema, prompt, responses, best=0, name=row.get("id"), used=used)


def item_of(
    row: Row,
    schema: str,
    prompt: tuple[Message, ...],
    responses: Sequence[str],
    *,
    best: int | None = None,
    rewards: Sequence[float] | None = None,
    name: object = None,
    keep: Sequence[str] = (),
    used: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
) -> Item:
    """The item of a foreign row: what it was `used` for is gone, `keep` goes to the source, the rest is kept.

    A `reference` and `principles` of the row are the item's if they have the right type; other keys that mean
    something in our own schema go to the source, so that writing the item cannot confuse them with its label.
    """
    kept: dict[str, Any] = {"schema": schema, **{key: row[key] for key in keep if row.get(key) is not None}}
    kept.update(source or {})
    rest = {key: value for key, value in row.items() if key not in keep and key not in used}
    reference, principles = rest.get("reference"), rest.get("principles")
    given = isinstance(principles, list) and all(isinstance(p, str) for p in principles)
    if isinstance(reference, str):
        rest.pop("reference")
    if given:
        rest.pop("principles")
    kept.update({key: value for key, value in rest.items() if key in OWN_KEYS and value is not None})
    if best is not None and list(responses).count(responses[best]) > 1:
        kept["unlabelled"], kept["unlabelled_best"] = "the best response equals another", best
        best = None
    return Item(
        prompt=prompt,
        responses=tuple(responses),
        best=best,
        rewards=None if rewards is None else tuple(rewards),
        reference=reference if isinstance(reference, str) else None,
        principles=tuple(principles) if given and isinstance(principles, list) else None,
        id=identifier(name),
        source=kept,
        extra={key: value for key, value in rest.items() if key not in OWN_KEYS},
    )


def joined(*parts: object) -> str:
    """An id made of those parts that are there; empty where the last, the row's own id, is not."""
    names = [identifier(part) for part in parts]
    return "/".join(name for name in names if name) if names[-1] else ""


def text(row: Row, key: str) -> str:
    """A text column."""
    if not isinstance(row[key], str):
        raise ValueError(f"'{key}' must be a text")
    return str(row[key])


def texts(row: Row, key: str) -> tuple[str, ...]:
    """A column that holds a list of at least one text."""
    values = row[key]
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise ValueError(f"'{key}' must be a list of texts")
    return tuple(values)


def turns(value: object, name: str) -> Turns:
    """A text as it is; a list of messages (or of `from` / `value` turns, or a single one) as messages."""
    if isinstance(value, str):
        return value
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"'{name}' must be a text or a list of messages")
    return conversation([_message(turn, name) for turn in listed], name=name)


def _message(turn: object, name: str) -> object:
    if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
        return turn
    if turn["from"] not in _SHAREGPT:
        raise ValueError(f"'{name}' holds a turn from {turn['from']!r}: expected one of {', '.join(_SHAREGPT)}")
    return {"role": _SHAREGPT[turn["from"]], "content": turn["value"]}


def written(said: Turns, name: str) -> str:
    """A response as one text: the assistant's words; turns that follow in the same response keep their roles."""
    if isinstance(said, str):
        return said
    if said[0].role != "assistant":
        raise ValueError(f"'{name}' goes on from the prompt with a message of role {said[0].role!r}, not 'assistant'")
    later = (f"{m.role.capitalize()}: {m.content}" for m in said[1:])
    return "\n\n".join([said[0].content, *later])


def _after(prompt: tuple[Message, ...], said: Turns) -> Turns:
    """A response given as a whole conversation loses the prompt that it repeats."""
    if isinstance(said, str) or said[: len(prompt)] != prompt or len(said) == len(prompt):
        return said
    return said[len(prompt) :]


def _shared_prompt(row: Row, chosen: Turns, rejected: Turns) -> tuple[tuple[Message, ...], Turns, Turns]:
    """The prompt that two whole conversations begin with, and what each goes on with."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not _is_hh(chosen) or not _is_hh(rejected):
            return _shared_text(row, chosen, rejected)
        chosen, rejected = _hh_turns(chosen), _hh_turns(rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise ValueError("'chosen' and 'rejected' must both be texts or both be lists of messages")
    shared = 0
    for a, b in zip(chosen[:-1], rejected[:-1], strict=False):  # the last is a response, also where both are equal
        if a != b:
            break
        shared += 1
    if not shared:
        raise ValueError("without 'prompt', 'chosen' and 'rejected' must begin with the same messages")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _is_hh(said: str) -> bool:
    return said.lstrip().startswith("Human:") and "\n\nAssistant:" in said


def _hh_turns(said: str) -> tuple[Message, ...]:
    _, *parts = _HH_TURN.split(said)
    return tuple(Message(_HH_ROLES[who], s.strip()) for who, s in zip(parts[::2], parts[1::2], strict=True))


def _shared_text(row: Row, chosen: str, rejected: str) -> tuple[tuple[Message, ...], str, str]:
    """The longest common beginning of two texts, moved back to the beginning of a word."""
    other = next((key for key in _OTHER_PROMPTS if row.get(key) is not None), None)
    if other is not None:
        raise ValueError(f"'chosen' and 'rejected' without 'prompt', but with '{other}': name it 'prompt'")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    while at > 0 and not chosen[at - 1].isspace():
        at -= 1
    if not chosen[:at].strip():
        raise ValueError("without 'prompt', 'chosen' and 'rejected' must begin with the same text")
    return (Message("user", chosen[:at].rstrip()),), chosen[at:], rejected[at:]

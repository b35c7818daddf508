"""Rows of other systems' schemas as items, recognised by their keys. The schemas are those of docs/formats.md.

A converter makes items and nothing else: what a benchmark needs to score them (subset, domain, style, ...) goes to
`Item.source`, unknown keys to `Item.extra`. A pair whose two responses are equal keeps no label: neither is better.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opengrm.items import Item, Message, conversation, identifier, is_number, item_from_json

Row = Mapping[str, Any]
Convert = Callable[[Row], list[Item]]


def items_from_row(row: Row) -> list[Item]:
    """The items that a row holds: one, or nine for a row of RM-Bench.

    Raises:
        ValueError: no schema has these keys, or a value does not fit its schema.
    """
    for keys, convert in SCHEMAS:
        if all(key in row for key in keys):
            return convert(row)
    seen = ", ".join(map(repr, list(row)[:12])) or "none"
    known = "; ".join(", ".join(keys) for keys, _ in SCHEMAS)
    raise ValueError(f"no known schema has the keys {seen}. Known ones hold: {known}")


def own(row: Row) -> list[Item]:
    """OpenGRM's own schema: `{"prompt": "Name a prime.", "responses": ["7", "8"], "best": 0}`."""
    return [item_from_json(row)]


def rmb_pair(row: Row) -> list[Item]:
    """RMB: `{"pair_uid", "conversation_input": [...], "chosen": {"llm_name", "answer"}, "reject": {...}}`."""
    answers = (_answer(row["chosen"], "chosen"), _answer(row["reject"], "reject"))
    return [_rmb(row, "pair_uid", answers, ("chosen", "reject"))]


def rmb_list(row: Row) -> list[Item]:
    """RMB best-of-n: `{"bon_uid", "conversation_input", "bon_best": {"answer": ...}, "loser_list": [{...}]}`."""
    losers = row["loser_list"]
    if not isinstance(losers, list) or not losers:
        raise ValueError("'loser_list' must be a list of answers")
    answers = (_answer(row["bon_best"], "bon_best"), *(_answer(x, "loser_list") for x in losers))
    return [_rmb(row, "bon_uid", answers, ("bon_best", "loser_list"))]


def _rmb(row: Row, uid: str, answers: Sequence[str], used: Sequence[str]) -> Item:
    turns = row["conversation_input"]
    if not isinstance(turns, list):
        raise ValueError("'conversation_input' must be a list of messages")
    source = {"schema": "rmb", **_picked(row, "category_path")}
    return Item(
        prompt=conversation(turns, name="conversation_input"),
        responses=tuple(answers),
        best=_best(answers),
        id=identifier(row.get(uid)),
        source=source,
        extra=_rest(row, uid, "conversation_input", "category_path", *used),
    )


def _answer(value: object, name: str) -> str:
    if not isinstance(value, Mapping) or not isinstance(value.get("answer"), str):
        raise ValueError(f"'{name}' must hold an object with the text 'answer'")
    return str(value["answer"])


def judgebench(row: Row) -> list[Item]:
    """JudgeBench: `{"pair_id", "question", "response_A", "response_B", "label": "A>B"}`."""
    labels = {"A>B": 0, "B>A": 1}
    if row["label"] not in labels:
        raise ValueError(f"'label' is {row['label']!r}, expected 'A>B' or 'B>A'")
    source = {"schema": "judgebench", **_picked(row, "source", "original_id", "response_model")}
    return [
        Item(
            prompt=conversation(row["question"], name="question"),
            responses=(_text(row, "response_A"), _text(row, "response_B")),
            best=labels[row["label"]],
            id=identifier(row.get("pair_id")),
            source=source,
            extra=_rest(row, "pair_id", "question", "response_A", "response_B", "label", *source),
        )
    ]


def llmbar(row: Row) -> list[Item]:
    """LLMBar: `{"input", "output_1", "output_2", "label": 1}`; the label counts from 1."""
    if row["label"] not in (1, 2) or isinstance(row["label"], bool):
        raise ValueError(f"'label' is {row['label']!r}, expected 1 or 2")
    return [
        Item(
            prompt=conversation(row["input"], name="input"),
            responses=(_text(row, "output_1"), _text(row, "output_2")),
            best=row["label"] - 1,
            id=identifier(row.get("id")),
            source={"schema": "llmbar"},
            extra=_rest(row, "input", "output_1", "output_2", "label", "id"),
        )
    ]


def rewardbench2(row: Row) -> list[Item]:
    """RewardBench 2: `{"id", "prompt", "chosen": [...], "rejected": [...], "num_correct": 1, "subset"}`.

    The first `num_correct` responses are right. With one right the item has a best, with several (Ties) rewards 1 / 0.
    """
    chosen, rejected = _texts(row, "chosen"), _texts(row, "rejected")
    right = row["num_correct"]
    if right != len(chosen) or isinstance(right, bool):
        raise ValueError(f"'num_correct' is {right!r}, but 'chosen' holds {len(chosen)} responses")
    rewards = (1.0,) * len(chosen) + (0.0,) * len(rejected)
    source = {"schema": "rewardbench2", **_picked(row, "subset", "models")}
    used = ("id", "prompt", "chosen", "rejected", "subset", "models")
    return [
        Item(
            prompt=conversation(row["prompt"]),
            responses=(*chosen, *rejected),
            best=0 if len(chosen) == 1 else None,
            rewards=rewards if len(chosen) > 1 else None,
            id=identifier(row.get("id")),
            source=source,
            extra=_rest(row, *used),
        )
    ]


STYLES = ("concise", "detailed plain", "detailed markdown")  # RM-Bench's three styles, in the order of its lists


def rm_bench(row: Row) -> list[Item]:
    """RM-Bench: `{"id", "prompt", "chosen": [3], "rejected": [3], "domain"}`: nine pairs, `<id>/<style>-<style>`."""
    chosen, rejected = _texts(row, "chosen"), _texts(row, "rejected")
    if not len(chosen) == len(rejected) == len(STYLES):
        raise ValueError("'chosen' and 'rejected' are lists: expected three styles each, or 'num_correct' beside them")
    prompt, name = conversation(row["prompt"]), identifier(row.get("id"))
    shared = {"schema": "rm-bench", **_picked(row, "domain", "subset"), "row": name}
    extra = _rest(row, "id", "prompt", "chosen", "rejected", "domain", "subset")
    return [
        Item(
            prompt=prompt,
            responses=(chosen[i], rejected[j]),
            best=_best((chosen[i], rejected[j])),
            id=f"{name}/{i}-{j}" if name else "",
            source={**shared, "chosen_style": i, "rejected_style": j},
            extra=extra,
        )
        for i in range(len(STYLES))
        for j in range(len(STYLES))
    ]


def preference(row: Row) -> list[Item]:
    """TRL and the ecosystem: `{"prompt", "chosen", "rejected"}`, each a text or a list of messages.

    Without a prompt, chosen and rejected are whole conversations that share their beginning (Skywork, RLHFlow, HH).
    RewardBench 1 and preference-test-sets have these columns too, with `subset` and `id`. LLaMA-Factory's
    `conversations` / `from` / `value` is read as well.
    """
    chosen, rejected = _turns(row["chosen"], "chosen"), _turns(row["rejected"], "rejected")
    if row.get("prompt") is not None:
        prompt = conversation(row["prompt"])
        chosen, rejected = _after(prompt, chosen), _after(prompt, rejected)
    elif "conversations" in row:
        turns = _turns(row["conversations"], "conversations")
        prompt = turns if not isinstance(turns, str) else conversation(turns)
    else:
        prompt, chosen, rejected = _shared_prompt(chosen, rejected)
    responses = (_written(chosen), _written(rejected))
    margin = row.get("margin")
    if margin is not None and not is_number(margin):
        raise ValueError("'margin' must be a number")
    source = {"schema": "preference", **_picked(row, "subset", "source", "margin", "chosen_model", "rejected_model")}
    used = ("id", "prompt", "chosen", "rejected", "conversations")
    return [
        Item(
            prompt=prompt,
            responses=responses,
            best=_best(responses),
            id=identifier(row.get("id")),
            source=source,
            extra=_rest(row, *used, *source),
        )
    ]


def unpaired(row: Row) -> list[Item]:
    """TRL's unpaired preference: `{"prompt", "completion", "label": true}`: one response with reward 1 or 0."""
    if not isinstance(row["label"], bool):
        raise ValueError(f"'label' is {row['label']!r}, expected true or false")
    return [
        Item(
            prompt=conversation(row["prompt"]),
            responses=(_written(_turns(row["completion"], "completion")),),
            rewards=(float(row["label"]),),
            id=identifier(row.get("id")),
            source={"schema": "unpaired"},
            extra=_rest(row, "id", "prompt", "completion", "label"),
        )
    ]


def _chosen_rejected(row: Row) -> list[Item]:
    """The three schemas with these two columns, told apart by what stands in them."""
    lists = all(isinstance(row[c], list) and row[c] and isinstance(row[c][0], str) for c in ("chosen", "rejected"))
    if not lists:
        return preference(row)
    return rewardbench2(row) if "num_correct" in row else rm_bench(row)


# The first whose keys are all there.
SCHEMAS: tuple[tuple[tuple[str, ...], Convert], ...] = (
    (("prompt", "responses"), own),
    (("conversation_input", "chosen", "reject"), rmb_pair),
    (("conversation_input", "bon_best", "loser_list"), rmb_list),
    (("question", "response_A", "response_B", "label"), judgebench),
    (("input", "output_1", "output_2", "label"), llmbar),
    (("chosen", "rejected"), _chosen_rejected),
    (("prompt", "completion", "label"), unpaired),
)

Turns = str | tuple[Message, ...]
_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def _turns(value: object, name: str) -> Turns:
    """A text as it is, a list of messages (or of `from` / `value` turns, or a single one) as messages."""
    if isinstance(value, str):
        return value
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"'{name}' must be a text or a list of messages")
    return conversation([_sharegpt(turn, name) for turn in listed], name=name)


def _sharegpt(turn: object, name: str) -> object:
    if isinstance(turn, Mapping) and "from" in turn and "value" in turn:
        if turn["from"] not in _SHAREGPT:
            raise ValueError(f"'{name}' holds a turn from {turn['from']!r}: expected one of {', '.join(_SHAREGPT)}")
        return {"role": _SHAREGPT[turn["from"]], "content": turn["value"]}
    return turn


def _after(prompt: tuple[Message, ...], turns: Turns) -> Turns:
    """A response given as a whole conversation loses the prompt that it repeats (as in Skywork's rows)."""
    if isinstance(turns, str) or turns[: len(prompt)] != prompt or len(turns) == len(prompt):
        return turns
    return turns[len(prompt) :]


def _shared_prompt(chosen: Turns, rejected: Turns) -> tuple[tuple[Message, ...], Turns, Turns]:
    """The prompt that two whole conversations begin with, and what each goes on with."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("'chosen' and 'rejected' must both be texts or both be lists of messages")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if chosen.startswith("\n\nHuman:") and rejected.startswith("\n\nHuman:"):
            chosen, rejected = _hh_turns(chosen), _hh_turns(rejected)
        else:
            return _shared_text(chosen, rejected)
    shared = 0
    # The last message of either is always a response, also where both are equal.
    for a, b in zip(chosen[:-1], rejected[:-1], strict=False):
        if a != b:
            break
        shared += 1
    if not shared:
        raise ValueError("without 'prompt', 'chosen' and 'rejected' must begin with the same messages")
    return tuple(chosen[:shared]), tuple(chosen[shared:]), tuple(rejected[shared:])  # type: ignore[arg-type]


def _hh_turns(text: str) -> tuple[Message, ...]:
    parts = _HH_TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def _shared_text(chosen: str, rejected: str) -> tuple[tuple[Message, ...], str, str]:
    """TRL's rule for texts: the longest common beginning, cut back to the end of a word."""
    at = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    while at > 0 and not chosen[at - 1].isspace():
        at -= 1
    if not chosen[:at].strip():
        raise ValueError("without 'prompt', 'chosen' and 'rejected' must begin with the same text")
    return (Message("user", chosen[:at].rstrip()),), chosen[at:], rejected[at:]


def _written(turns: Turns) -> str:
    """A response as one text; several turns keep their roles in front."""
    if isinstance(turns, str):
        return turns
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{m.role.capitalize()}: {m.content}" for m in turns)


def _best(responses: Sequence[str]) -> int | None:
    """The first response, unless another equals it."""
    return 0 if responses[0] not in responses[1:] else None


def _text(row: Row, key: str) -> str:
    if not isinstance(row[key], str):
        raise ValueError(f"'{key}' must be a text")
    return str(row[key])


def _texts(row: Row, key: str) -> tuple[str, ...]:
    values = row[key]
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise ValueError(f"'{key}' must be a list of texts")
    return tuple(values)


def _picked(row: Row, *keys: str) -> dict[str, Any]:
    return {key: row[key] for key in keys if row.get(key) is not None}


def _rest(row: Row, *used: str) -> dict[str, Any]:
    """Unknown keys, without those that an item's own row would write."""
    own_keys = {"id", "prompt", "responses", "best", "rewards", "reference", "principles", "source"}
    return {key: value for key, value in row.items() if key not in used and key not in own_keys}

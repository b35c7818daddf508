"""Rows of other systems' schemas as items, recognised by their keys (reference: docs/formats.md).

The converters of preference data are in `preferences`, those of the benchmarks and of rated data here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from opengrm.items import Item, content_hash, conversation, is_number, item_from_json
from opengrm.preferences import Row, alpaca, item_of, joined, preference, sharegpt, text, texts, unpaired

Convert = Callable[[Row], list[Item]]
STYLES = ("concise", "detailed plain", "detailed markdown")  # RM-Bench's three styles, in the order of its lists


def items_from_row(row: Row) -> list[Item]:
    """The items that a row holds: one, or nine for a row of RM-Bench.

    Raises:
        ValueError: no schema has these keys, or a value does not fit its schema.
    """
    for _, keys, convert in SCHEMAS:
        if all(row.get(key) is not None for key in keys):
            return convert(row)
    seen = ", ".join(map(repr, list(row)[:12])) or "none"
    known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys, _ in SCHEMAS)
    raise ValueError(f"no known schema has the keys {seen}. Known are {known}")


def own(row: Row) -> list[Item]:
    """OpenGRM's own schema: `{"prompt": "Name a prime.", "responses": ["7", "8"], "best": 0}`."""
    return [item_from_json(row)]


def rewardbench_2(row: Row) -> list[Item]:
    """RewardBench 2: `{"id": "1", "prompt", "chosen": ["7"], "rejected": ["8", "9"], "num_correct": 1, "subset"}`.

    The first `num_correct` responses are right. One right of several has a `best`; Ties have rewards of 1 and 0.
    """
    chosen, rejected = texts(row, "chosen"), texts(row, "rejected")
    right = row["num_correct"]
    if isinstance(right, bool) or right != len(chosen):
        raise ValueError(f"'num_correct' is {right!r}, but 'chosen' holds {len(chosen)} responses")
    ties = row.get("subset") == "Ties" or right > 1
    return [
        item_of(
            row,
            "rewardbench-2",
            conversation(row["prompt"]),
            (*chosen, *rejected),
            best=None if ties else 0,
            rewards=(1.0,) * len(chosen) + (0.0,) * len(rejected) if ties else None,
            name=joined(row.get("subset"), row.get("id")),
            keep=("subset", "id", "num_correct", "models"),
            used=("prompt", "chosen", "rejected"),
        )
    ]


def rm_bench(row: Row) -> list[Item]:
    """RM-Bench: `{"id": 8, "prompt", "chosen": [3 texts], "rejected": [3 texts], "domain"}`: nine pairs.

    Their ids are `domain/subset/id/i-j` with the index of the chosen and of the rejected style (`STYLES`), also in the
    source as `chosen_style` and `rejected_style`. They share a prompt, which the source names as their `cluster`.
    """
    chosen, rejected = texts(row, "chosen"), texts(row, "rejected")
    if not len(chosen) == len(rejected) == len(STYLES):
        raise ValueError("'chosen' and 'rejected' are lists: expected three styles each, or 'num_correct' beside them")
    prompt, name = conversation(row["prompt"]), joined(row.get("domain"), row.get("subset"), row.get("id"))
    cluster = name or content_hash([m.to_json() for m in prompt])
    return [
        item_of(
            row,
            "rm-bench",
            prompt,
            (chosen[i], rejected[j]),
            best=0,
            name=f"{name}/{i}-{j}" if name else None,
            keep=("domain", "subset", "id"),
            used=("prompt", "chosen", "rejected"),
            source={"chosen_style": i, "rejected_style": j, "cluster": cluster},
        )
        for i in range(len(STYLES))
        for j in range(len(STYLES))
    ]


def rmb_pair(row: Row) -> list[Item]:
    """RMB: `{"pair_uid": "u", "conversation_input": [...], "chosen": {"llm_name", "answer"}, "reject": {...}}`."""
    return [_rmb(row, "pair_uid", [row["chosen"], row["reject"]], "chosen", "reject")]


def rmb_list(row: Row) -> list[Item]:
    """RMB best of n: `{"bon_uid": "u", "conversation_input", "bon_best": {"answer"}, "loser_list": [...]}`."""
    losers = row["loser_list"]
    if not isinstance(losers, list) or not losers:
        raise ValueError("'loser_list' must be a list of answers")
    return [_rmb(row, "bon_uid", [row["bon_best"], *losers], "bon_best", "loser_list")]


def _rmb(row: Row, uid: str, answers: Sequence[object], *used: str) -> Item:
    listed = [dict(answer) if isinstance(answer, Mapping) else {} for answer in answers]
    if not all(isinstance(answer.get("answer"), str) for answer in listed):
        raise ValueError(f"{' and '.join(map(repr, used))} must hold objects with the text 'answer'")
    return item_of(
        row,
        "rmb",
        conversation(row["conversation_input"], name="conversation_input"),
        [answer["answer"] for answer in listed],
        best=0,
        name=row.get(uid),
        keep=(uid, "category_path"),
        used=("conversation_input", *used),
        source={"models": [answer.get("llm_name") for answer in listed]},
    )


def judgebench(row: Row) -> list[Item]:
    """JudgeBench: `{"pair_id": "u", "question", "response_A", "response_B", "label": "A>B", "source", ...}`."""
    labels = {"A>B": 0, "B>A": 1}
    if row["label"] not in labels:
        raise ValueError(f"'label' is {row['label']!r}, expected 'A>B' or 'B>A'")
    return [
        item_of(
            row,
            "judgebench",
            conversation(text(row, "question")),
            (text(row, "response_A"), text(row, "response_B")),
            best=labels[row["label"]],
            name=row.get("pair_id"),
            keep=("pair_id", "original_id", "source", "response_model"),
            used=("question", "response_A", "response_B", "label"),
        )
    ]


def llmbar(row: Row) -> list[Item]:
    """LLMBar: `{"input": "Name a prime.", "output_1": "7", "output_2": "8", "label": 1}`."""
    return [_numbered(row, "llmbar", "input", "output_1", "output_2")]


def evalbiasbench(row: Row) -> list[Item]:
    """EvalBiasBench: `{"bias": "length bias", "instruction", "response1", "response2", "label": 1}`."""
    return [_numbered(row, "evalbiasbench", "instruction", "response1", "response2")]


def _numbered(row: Row, schema: str, prompt: str, first: str, second: str) -> Item:
    """A pair whose label counts from 1."""
    if isinstance(row["label"], bool) or row["label"] not in (1, 2):
        raise ValueError(f"'label' is {row['label']!r}, expected 1 or 2")
    return item_of(
        row,
        schema,
        conversation(text(row, prompt)),
        (text(row, first), text(row, second)),
        best=row["label"] - 1,
        name=row.get("id"),
        keep=("id", "bias"),
        used=(prompt, first, second, "label"),
    )


def ppe_human(row: Row) -> list[Item]:
    """PPE human preference: `{"question_id": "q", "prompt", "response_1", "response_2", "winner": "model_a", ...}`.

    Any other winner than `model_a` and `model_b` is a tie: no label.
    """
    return [
        item_of(
            row,
            "ppe-human",
            conversation(row["prompt"]),
            (text(row, "response_1"), text(row, "response_2")),
            best={"model_a": 0, "model_b": 1}.get(str(row["winner"])),
            name=row["question_id"],
            keep=("question_id", "winner", "model_a", "model_b", "language", "category_tag"),
            used=("prompt", "response_1", "response_2"),
        )
    ]


def ppe_list(row: Row) -> list[Item]:
    """PPE correctness: `{"question_id": "q", "model_name", "prompt", "response_1", ..., "scores": [true, ...]}`."""
    n = sum(1 for key in row if key.startswith("response_"))
    columns = [f"response_{i}" for i in range(1, n + 1)]
    scores = row["scores"]
    if not all(isinstance(row.get(column), str) for column in columns):
        raise ValueError(f"'response_1' to 'response_{n}' must be texts")
    if not isinstance(scores, list) or len(scores) != n or not all(isinstance(s, (bool, int, float)) for s in scores):
        raise ValueError(f"'scores' must be a list of {n} numbers or booleans, one for each response")
    return [
        item_of(
            row,
            "ppe-correctness",
            conversation(row["prompt"]),
            [row[column] for column in columns],
            rewards=[float(score) for score in scores],
            name=joined(row.get("model_name"), row["question_id"]),
            keep=("question_id", "model_name", "conflict_pairs"),
            used=("prompt", "scores", *columns),
        )
    ]


def realmistake(row: Row) -> list[Item]:
    """ReaLMistake: `{"input", "llm_response", "error_label": "no_error", "metadata": {"id"}}`: reward 1 or 0."""
    label = row.get("error_label") or row.get("label")
    if label not in ("error", "no_error"):
        raise ValueError(f"'error_label' is {label!r}, expected 'error' or 'no_error'")
    metadata = row.get("metadata")
    return [
        item_of(
            row,
            "realmistake",
            conversation(text(row, "input")),
            (text(row, "llm_response"),),
            rewards=(float(label == "no_error"),),
            name=metadata.get("id") if isinstance(metadata, Mapping) else None,
            keep=("metadata", "error_categories"),
            used=("input", "llm_response", "error_label", "label"),
        )
    ]


def ultrafeedback(row: Row) -> list[Item]:
    """UltraFeedback: `{"instruction": "Name a prime.", "completions": [{"response": "7", "overall_score": 8.5}]}`.

    The overall scores are the rewards, if every completion has one.
    """
    listed = row["completions"]
    if not isinstance(listed, list) or not all(
        isinstance(c, Mapping) and isinstance(c.get("response"), str) for c in listed
    ):
        raise ValueError("'completions' must be a list of objects with the text 'response'")
    scores = [c.get("overall_score") for c in listed]
    return [
        item_of(
            row,
            "ultrafeedback",
            conversation(text(row, "instruction")),
            [c["response"] for c in listed],
            rewards=[float(s) for s in scores if s is not None] if all(map(is_number, scores)) else None,
            name=row.get("id"),
            keep=("id", "source", "models"),
            used=("instruction", "completions"),
        )
    ]


def helpsteer3(row: Row) -> list[Item]:
    """HelpSteer3: `{"context": [...], "response1", "response2", "overall_preference": -2}`.

    From -3 (the first is much better) to 3 (the second is); 0 is a tie: no label.
    """
    lean = row["overall_preference"]
    if not is_number(lean):
        raise ValueError("'overall_preference' must be a number from -3 to 3")
    return [
        item_of(
            row,
            "helpsteer3",
            conversation(row["context"], name="context"),
            (text(row, "response1"), text(row, "response2")),
            best=None if lean == 0 else int(lean > 0),
            name=row.get("id"),
            keep=("id", "domain", "language", "overall_preference"),
            used=("context", "response1", "response2"),
        )
    ]


def chosen_rejected(row: Row) -> list[Item]:
    """Schemas with just these two columns in common, told apart by what stands in them."""
    if all(
        isinstance(row[side], list) and all(isinstance(t, str) for t in row[side]) for side in ("chosen", "rejected")
    ):
        return rm_bench(row)
    return preference(row)


# Name, keys, converter; the first whose keys are all there and not null.
SCHEMAS: tuple[tuple[str, tuple[str, ...], Convert], ...] = (
    ("own", ("responses",), own),
    ("RMB pairs", ("conversation_input", "chosen", "reject"), rmb_pair),
    ("RMB lists", ("conversation_input", "bon_best", "loser_list"), rmb_list),
    ("RewardBench 2", ("prompt", "chosen", "rejected", "num_correct"), rewardbench_2),
    ("JudgeBench", ("question", "response_A", "response_B", "label"), judgebench),
    ("LLMBar", ("input", "output_1", "output_2", "label"), llmbar),
    ("EvalBiasBench", ("instruction", "response1", "response2", "label"), evalbiasbench),
    ("PPE human", ("question_id", "prompt", "response_1", "response_2", "winner"), ppe_human),
    ("PPE correctness", ("question_id", "prompt", "response_1", "scores"), ppe_list),
    ("ReaLMistake", ("input", "llm_response"), realmistake),
    ("UltraFeedback", ("instruction", "completions"), ultrafeedback),
    ("HelpSteer3", ("context", "response1", "response2", "overall_preference"), helpsteer3),
    ("preference, RewardBench 1, RM-Bench", ("prompt", "chosen", "rejected"), chosen_rejected),
    ("ShareGPT pairs", ("conversations", "chosen", "rejected"), sharegpt),
    ("Alpaca pairs", ("instruction", "chosen", "rejected"), alpaca),
    ("implicit-prompt preference", ("chosen", "rejected"), preference),
    ("unpaired preference", ("prompt", "completion", "label"), unpaired),
)

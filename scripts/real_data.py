"""Real human preferences and real judges' verdicts as items and judgments, read from their files where they lie.

`measure_real.py` trains and measures on them; docs/real-text.md says where they come from. Nothing is copied: DATA is
the folder that holds the sets, each in a folder of its own.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from opengrm.items import Item, Message, content_hash
from opengrm.judgments import Judgment
from opengrm.reading import read_items

STRENGTH = {"is-better": 1.0, "is-slightly-better": 0.5}  # of a preference in tulu, as a margin


# --- human preferences --------------------------------------------------------------------------------------------


def preferences(data: Path) -> Iterator[Item]:
    """Pairs of four sources: `source["dataset"]` is the source, `source["cluster"]` the hash of the first message.

    Pairs without a better response (equal texts, ties) are left out.
    """
    for name in ("harmless", "helpful"):
        for item in read_items(data / "hh_rlhf_test" / f"{name}-base_test.jsonl.gz"):
            yield from _labelled(item, f"hh-{name}")
    with gzip.open(data / "tldr_2k" / "tldr_2k.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            best = "AB".index(row["label"])
            item = Item(_user(row["prompt"]), (row["response_a"], row["response_b"]), id=row["id"], best=best)
            yield from _labelled(item, "tldr")
    for item in tulu(data / "tulu_human_eval" / "eval_annotations_tulu_1.xlsx"):
        yield from _labelled(item, "tulu")


def tulu(path: Path) -> Iterator[Item]:
    """The annotations that name a better response, its strength as the margin; one comparison may have several."""
    import openpyxl

    rows = openpyxl.load_workbook(path, read_only=True).active.iter_rows(values_only=True)
    heads = next(rows)
    for values in rows:
        row = dict(zip(heads, values, strict=True))
        if row["preference"] in (None, "tie"):
            continue
        letter, strength = row["preference"].split("-", 1)
        texts = tuple(str(row[f"completion_{which}"] or "") for which in "ab")
        yield Item(
            _user(row["prompt"]), texts, id=f"tulu-{row['id']:g}", best="ab".index(letter),
            source={"margin": STRENGTH[strength], "annotator": row["evaluator"]},
        )  # fmt: skip


def _labelled(item: Item, dataset: str) -> Iterator[Item]:
    if item.label is not None and item.responses[0] != item.responses[1]:
        cluster = content_hash(item.prompt[0].content)
        yield replace(item, source={**item.source, "dataset": dataset, "cluster": cluster})


def _user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


# --- verdicts of real judges ----------------------------------------------------------------------------------------


def llmbar(data: Path) -> tuple[dict[str, Item], list[Judgment]]:
    """LLMBar: 1,200 pairs by id, and every verdict on them.

    A judgment's model is the judge, its template the protocol; its order says which output stood first; its text is
    what the judge wrote: a critique with CoT, Swap and Swap_CoT, "Output (a)" or two ratings else. Scores are 1 for
    the winner and 0 for the other, None where the authors found no verdict (a tie of ratings among them).
    """
    items: dict[str, Item] = {}
    judgments: list[Judgment] = []
    for path, content in _members(data / "llmbar" / "judge_outputs.tar.xz"):
        if path.name != "result.json":
            continue
        name, judge, protocol = "/".join(path.parts[1:-4]), path.parts[-3], path.parts[-2]
        for index, row in enumerate(json.loads(content)):
            item = f"{name}/{index}"
            if item not in items:
                items[item] = Item(
                    _user(row["input"]), (row["output_1"], row["output_2"]), id=item, best=int(row["label"]) - 1,
                    source={"dataset": name, "cluster": content_hash(row["input"])},
                )  # fmt: skip
            last = row["results"][-1]
            for sample, order in enumerate(((0, 1), (1, 0))):
                verdict = last.get(f"swap = {bool(sample)}")
                if verdict is None:
                    continue
                winner = verdict["winner"]
                written = [verdict["completion"]] if "completion" in verdict else [last["score_1"], last["score_2"]]
                judgments.append(
                    Judgment(
                        item, None if winner is None else (float(winner == "1"), float(winner == "2")), sample=sample,
                        order=order, text="\n".join(text for text, _finish in written), model=judge, template=protocol,
                        error=None if winner else "unparsable: no verdict",
                    )
                )  # fmt: skip
    return items, judgments


def realmistake(data: Path) -> tuple[dict[str, Item], list[Judgment]]:
    """ReaLMistake's self-consistency: 150 responses an expert called right (1) or wrong (0), 15 judgments of each.

    Three judges gave five samples each. The responses themselves are in an archive with a password, as their authors
    ask, and are not read: an item's texts are empty.
    """
    items: dict[str, Item] = {}
    judgments: list[Judgment] = []
    for path, content in _members(data / "realmistake" / "judge_outputs.tar.xz"):
        if path.parts[1] != "self_consistency":
            continue
        for line in content.decode("utf-8").splitlines():
            row = json.loads(line)
            item = row["metadata"]["id"]
            items[item] = Item(
                _user(item), ("",), id=item, rewards=(float(row["label"] == "no_error"),),
                source={"dataset": path.parts[2], "cluster": item},
            )  # fmt: skip
            for sample, (written, said) in enumerate(zip(row["response"], row["predictions_list"], strict=True)):
                judgments.append(
                    Judgment(
                        item, None if said is None else (float(said == "no_error"),), sample=sample,
                        text=written["response"], model=path.parts[4], template="self-consistency",
                        error=None if said else "unparsable: no verdict",
                    )
                )  # fmt: skip
    return items, judgments


def _members(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Files of a .tar.xz in one pass."""
    with tarfile.open(path, "r|xz") as archive:
        for member in archive:
            file: Any = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield PurePosixPath(member.name), file.read()

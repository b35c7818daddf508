"""Import votes that other systems recorded: write them as items and judgments in OpenGRM's own schema.

    python examples/convert_recorded.py DATA OUT
    opengrm vote OUT/amel_pilot_fresh.judgments.jsonl --items OUT/amel.items.jsonl --reduce majority

DATA is a folder with three public sets (each is converted if it is there):

- `amel_llmbar_repeat_votes`: LLMBar pairs judged five times (pilot) and three times (v2) by small models that answer
  "1" or "2". The answer names a position: it becomes scores in the item's own order, and the order is kept. 668 rows
  record a failed call ("429 Too Many Requests"), from which the set's own parser read the answer "2": these are
  missing.
- `realmistake`: 5 sampled verdicts "error" / "no_error" on single responses, by three models. The authors ask that
  examples not be published in plain text, so items carry their id instead of their text: voting needs no text.
- `prometheus_gpt4_x3`: three scores 1..5 a response by GPT-4. Without a human label the third is held out as one: what
  is measured is how well one or two samples foretell another.

What an import needs is little: `item` and `scores` for each judgment (`scores: null` with an `error` where the judge
gave none), and for accuracy items with `best` (n >= 2) or `rewards`. The rest (order, model, template, sample) makes
the report say more. The same id must stand in both files.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def amel(folder: Path, out: Path) -> None:
    """Pairs; sources are told apart by model and template (fresh or batched context)."""
    with gzip.open(folder / "natural_items.json.gz", "rt", encoding="utf-8") as file:
        pairs = json.load(file)
    write(
        out / "amel.items.jsonl",
        (
            {
                "id": row["id"],
                "prompt": row["input"],
                "responses": [row["output_1"], row["output_2"]],
                "best": int(row["label"]) - 1,
                "source": {"dataset": "LLMBar", "subset": "Natural"},
            }
            for row in pairs
        ),
    )
    pilot = list(json_lines(folder / "pilot_responses.jsonl.gz"))
    v2 = list(json_lines(folder / "pilot_v2_responses.jsonl.gz"))
    for name, rows in (
        ("amel_pilot_fresh", [r for r in pilot if r["regime"] == "fresh"]),
        ("amel_pilot_batched", [r for r in pilot if r["regime"] == "batched"]),
        ("amel_v2", v2),
    ):
        write(out / f"{name}.judgments.jsonl", (amel_judgment(row) for row in rows))


def amel_judgment(row: Row) -> Row:
    """The answer names the position shown; `swap` says that the pair's second response stood first."""
    order = [1, 0] if row["swap"] else [0, 1]
    scores, error = None, None
    if row["raw_response"].startswith("ERROR:"):
        error = f"server: {row['raw_response'][7:80]}"
    elif row["parsed_label"] is None:
        error = f"unparsable: {row['raw_response']!r:.80}"
    else:
        scores = [0, 0]
        scores[order[int(row["parsed_label"]) - 1]] = 1
    return {
        "item": row["item_id"],
        "sample": row["repetition"],
        "order": order,
        "scores": scores,
        "error": error,
        "text": row["raw_response"],
        "model": row["judge"],
        "template": f"amel-{row['regime']}",
    }


def realmistake(folder: Path, out: Path) -> None:
    """Single responses; the reward is 1 for a response without an error."""
    items: dict[str, Row] = {}
    judgments = []
    with tarfile.open(folder / "judge_outputs.tar.xz") as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            parts = Path(member.name).parts
            if not member.isfile() or parts[1] != "self_consistency":
                continue
            _, _, task, author, judge, _ = parts
            for line in archive.extractfile(member) or ():
                row = json.loads(line)
                name = f"{task}/{author}/{row['metadata']['id']}"
                items[name] = {
                    "id": name,
                    "prompt": f"ReaLMistake item {name} (text left out as its authors ask)",
                    "responses": [""],
                    "rewards": [float(row["label"] == "no_error")],
                    "source": {"dataset": "ReaLMistake", "task": task},
                }
                for sample, verdict in enumerate(row["predictions_list"]):
                    judgments.append(
                        {
                            "item": name,
                            "sample": sample,
                            "scores": None if verdict is None else [float(verdict == "no_error")],
                            "error": "unparsable: no verdict" if verdict is None else None,
                            "model": judge,
                            "template": task,
                        }
                    )
    write(out / "realmistake.items.jsonl", items.values())
    write(out / "realmistake.judgments.jsonl", judgments)


def prometheus(folder: Path, out: Path) -> None:
    """Single responses with a score 1..5; the third of three samples is held out as the reward."""
    for name in ("mt_bench_eval", "vicuna_eval"):
        with gzip.open(folder / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            rows = json.load(file)
        items, judgments = [], []
        for row in rows:
            item = f"{name}/{row['idx']}/{row['response_source']}"
            query, response, reference = prometheus_parts(row["instruction"])
            items.append(
                {
                    "id": item,
                    "prompt": query,
                    "responses": [response],
                    "rewards": [float(row["gpt4_score"][2])],
                    "reference": reference,
                    "source": {"dataset": name, "category": row["category"], "model": row["response_source"]},
                }
            )
            for sample in (0, 1):
                judgments.append(
                    {
                        "item": item,
                        "sample": sample,
                        "scores": [float(row["gpt4_score"][sample])],
                        "text": row["gpt4_feedback"][sample],
                        "model": "gpt-4",
                        "template": "prometheus",
                    }
                )
        write(out / f"prometheus_{name}.items.jsonl", items)
        write(out / f"prometheus_{name}.judgments.jsonl", judgments)


def prometheus_parts(prompt: str) -> tuple[str, str, str]:
    """Query, response and reference answer out of a Prometheus judge prompt."""
    found = re.search(
        r"###The instruction to evaluate:\n(.*?)\n*###Response to evaluate:\n(.*?)\n*"
        r"###Reference Answer \(Score 5\):\n(.*?)\n*###Score Rubrics:",
        prompt,
        re.DOTALL,
    )
    if found is None:
        raise ValueError(f"not a Prometheus prompt: {prompt[:80]!r}")
    return found[1], found[2], found[3]


def json_lines(path: Path) -> Iterator[Row]:
    """Rows of a gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON Lines and say so."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(path)


CONVERTERS = {"amel_llmbar_repeat_votes": amel, "realmistake": realmistake, "prometheus_gpt4_x3": prometheus}


def main(data: Path, out: Path) -> None:
    """Convert whichever of the sets lie under `data`."""
    out.mkdir(parents=True, exist_ok=True)
    present = {name: convert for name, convert in CONVERTERS.items() if (data / name).is_dir()}
    if not present:
        sys.exit(f"{data}: holds none of {', '.join(CONVERTERS)}")
    for name, convert in present.items():
        convert(data / name, out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""What the contamination guard finds: copies planted among 100,000 clean rows, and how long it looks.

    python benchmarks/overlap.py DATA    # writes results/overlap-guard.json

DATA holds the public sets that the tests use. Held out are RewardBench's, RM-Bench's and EvalBiasBench's rows that are
there, and RubricWorld's test split. Clean rows are 70,000 of real sentences put together anew, 20,000 such rows that
quote 10 to 40 % of a held-out prompt in one piece (and hold half of none, by the count made here), and 10,000 of
RubricWorld's training split. Sentences that stand in a held-out text word for word are not used; nothing else is taken
out. Shares are counted here anew, with sets of word tuples. Copies are of prompts drawn from all held-out ones (near
ones from those of 13 words or more, which is what the guard looks at by spans), and of responses.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import resource
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from opengrm.jsonl import write_rows
from opengrm.reports.results import write_result
from opengrm.training.overlap import RULE, Exchange, HeldOut, exchanges
from opengrm.voting.intervals import wilson
from opengrm.worlds.rubric import generate_items

ROOT = Path(__file__).parents[1]
BENCHES = (
    "rewardbench_2k/rewardbench_2000_of_2985.jsonl.gz", "rm_bench_4of5/chat_filtered.json.gz",
    "rm_bench_4of5/code_filtered.json.gz", "rm_bench_4of5/safety-refuse_filtered.json.gz",
    "rm_bench_4of5/safety-response_filtered.json.gz",
)  # fmt: skip
CLEAN, QUOTING, WORLD, PLANTED = 70_000, 20_000, 10_000, 500
Row = dict[str, Any]
Make = Callable[[random.Random, Exchange], Row | None]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def share(copy: str, original: str, n: int) -> float:
    own = grams(original, n)
    return len(own & grams(copy, n)) / len(own)


def prompt_of(row: Exchange) -> str:
    return " ".join(m.content for m in row.prompt if m.role == "user")


# --- copies -----------------------------------------------------------------------------------------------------


class Planter:
    """Makes rows out of sentences and held-out texts."""

    def __init__(self, asked: list[str], answered: list[str], held_out: list[Exchange]) -> None:
        self.asked, self.answered = asked, answered
        self.holders: dict[tuple[str, ...], list[int]] = {}  # the prompts of 13 words or more that have a span
        self.sizes: list[int] = []
        for text in {prompt_of(row) for row in held_out}:
            if len(words(text)) >= 13:
                own = grams(text, 5)
                for gram in own:
                    self.holders.setdefault(gram, []).append(len(self.sizes))
                self.sizes.append(len(own))
        self.vocabulary = sorted({word for text in answered[:5000] for word in words(text)})

    def sentences(self, rng: random.Random, pool: list[str], least: int, most: int) -> str:
        return " ".join(rng.choice(pool) for _ in range(rng.randint(least, most)))

    def row(self, rng: random.Random, prompt: str | list[dict[str, str]] | None = None) -> Row:
        """A clean row, or one with this prompt."""
        return {
            "prompt": self.sentences(rng, self.asked, 1, 5) if prompt is None else prompt,
            "responses": [self.sentences(rng, self.answered, 2, 9) for _ in range(2)],
            "best": 0,
        }

    def quoting(self, rng: random.Random, original: Exchange) -> Row | None:
        text = prompt_of(original)
        parts = re.findall(r"\S+", text)
        length = int(len(parts) * rng.uniform(0.1, 0.4))
        start = rng.randint(0, len(parts) - length)
        quoted = " ".join(parts[start : start + length])
        before, after = (self.sentences(rng, self.asked, 1, 2) for _ in range(2))
        copy = f"{before} {quoted} {after}"
        return None if len(words(text)) < 13 or self.half_of_any(copy) else self.row(rng, copy)

    def half_of_any(self, text: str) -> bool:
        """Whether half of the spans of any held-out prompt stand in a text: it may quote a part that others share."""
        counts = Counter(prompt for gram in grams(text, 5) for prompt in self.holders.get(gram, ()))
        return any(2 * count >= self.sizes[prompt] for prompt, count in counts.items())

    # Equal but for what does not matter.

    def verbatim(self, rng: random.Random, original: Exchange) -> Row:
        return self.row(rng, [m.to_json() for m in original.prompt])

    def other_case(self, rng: random.Random, original: Exchange) -> Row:
        change = rng.choice((str.upper, str.lower, str.swapcase))

        def changed(text: str) -> str:
            # A letter whose upper case is another letter when lowered again (dotless i) is left as it is.
            return "".join(change(c) if change(c).casefold() == c.casefold() else c for c in text)

        return self.row(rng, [{"role": m.role, "content": changed(m.content)} for m in original.prompt])

    def other_spacing(self, rng: random.Random, original: Exchange) -> Row:
        changed = [{"role": m.role, "content": "\n  " + re.sub(r" ", "\u00a0 ", m.content)} for m in original.prompt]
        return self.row(rng, changed)

    def other_unicode(self, rng: random.Random, original: Exchange) -> Row:
        wide = str.maketrans({'"': "\u201c", "'": "\u2019", **{c: chr(ord(c) + 0xFEE0) for c in "abcxyz0123"}})
        changed = [
            {"role": m.role, "content": m.content.translate(wide).replace(" ", " \u200b")} for m in original.prompt
        ]
        return self.row(rng, changed)

    def system_before(self, rng: random.Random, original: Exchange) -> Row:
        system = {"role": "system", "content": self.sentences(rng, self.answered, 1, 2)}
        return self.row(rng, [system, *(m.to_json() for m in original.prompt if m.role != "system")])

    # At least half of the n-grams, as little more as can be.

    def scattered(self, rng: random.Random, original: Exchange, n: int = 5) -> Row | None:
        text = prompt_of(original)
        parts = re.findall(r"\w+|\W+", text)
        places = [i for i, part in enumerate(parts) if re.match(r"\w", part)]
        rng.shuffle(places)
        fresh = [rng.choice(self.vocabulary) for _ in places]

        def copy(count: int) -> str:
            changed = dict(zip(places[:count], fresh, strict=False))
            return "".join(changed.get(i, part) for i, part in enumerate(parts))

        # The most words that can be exchanged: the first count that leaves less than half, less one.
        count = bisect_left(range(len(places)), True, key=lambda count: share(copy(count + 1), text, n) < 0.5)
        return self.row(rng, copy(count))

    def scattered_8(self, rng: random.Random, original: Exchange) -> Row | None:
        return self.scattered(rng, original, 8)

    def first_half(self, rng: random.Random, original: Exchange, n: int = 5) -> Row | None:
        text = prompt_of(original)
        parts = re.findall(r"\w+|\W+", text)
        length = bisect_left(range(len(parts)), True, key=lambda i: share("".join(parts[:i]), text, n) >= 0.5)
        return self.row(rng, "".join(parts[:length]) + " " + self.sentences(rng, self.asked, 1, 2))

    def inside(self, rng: random.Random, original: Exchange) -> Row | None:
        """As a judge's training row quotes it: in one message with instructions and two answers."""
        row = self.scattered(rng, original)
        assert row is not None
        first, second = (self.sentences(rng, self.answered, 2, 6) for _ in range(2))
        asked = f"{self.sentences(rng, self.asked, 1, 2)}\n[Query]\n{row['prompt']}\n[A]\n{first}\n[B]\n{second}"
        return {"prompt": asked, "completion": "\\boxed{7, 4}"}

    # Responses.

    def response(self, rng: random.Random, original: Exchange) -> Row | None:
        chosen = [r for r in original.responses if len(words(r)) >= 13]
        return {**self.row(rng), "responses": ["No.", rng.choice(chosen)]} if chosen else None

    def near_response(self, rng: random.Random, original: Exchange) -> Row | None:
        """With 85 % of its spans: four fifths are looked for, by a sketch where it is long."""
        chosen = [r for r in original.responses if len(words(r)) >= 13]
        if not chosen:
            return None
        text = rng.choice(chosen)
        parts = re.findall(r"\w+|\W+", text)
        places = [i for i, part in enumerate(parts) if re.match(r"\w", part)]
        rng.shuffle(places)
        kept, own = list(parts), grams(text, 5)
        for place in places:
            parts[place] = rng.choice(self.vocabulary)
            if len(own & grams("".join(parts), 5)) / len(own) < 0.85:
                break
            kept = list(parts)
        return {**self.row(rng), "responses": ["No.", "".join(kept)]}


# --- texts ------------------------------------------------------------------------------------------------------


def split(text: str) -> list[str]:
    return [s.strip() for s in re.split(r"(?<=[.!?])\s+|\n+", text) if len(s.split()) >= 4]


def pools(data: Path, held_out: list[Exchange]) -> tuple[list[str], list[str]]:
    """Sentences of questions and of answers that stand in no held-out text."""
    known = {" ".join(words(s)) for row in held_out for text in (prompt_of(row), *row.responses) for s in split(text)}
    asked: dict[str, None] = {}
    answered: dict[str, None] = {}
    for name in ("helpful-base", "harmless-base"):
        for row in exchanges(data / "hh_rlhf_test" / f"{name}_test.jsonl.gz"):
            asked.update(dict.fromkeys(split(prompt_of(row))))
            answered.update(dict.fromkeys(s for r in row.responses for s in split(r)))
    for path, question, answer in (
        ("gsm8k/train.jsonl.gz", "question", "answer"), ("tldr_2k/tldr_2k.jsonl.gz", "prompt", "prompt"),
    ):  # fmt: skip
        with gzip.open(data / path, "rt", encoding="utf-8") as lines:
            for line in lines:
                found = json.loads(line)
                asked.update(dict.fromkeys(split(found[question])))
                answered.update(dict.fromkeys(split(found[answer])))
    fresh = [[s for s in pool if " ".join(words(s)) not in known] for pool in (asked, answered)]
    return fresh[0], fresh[1]


def biased(data: Path, folder: Path) -> Path:
    """EvalBiasBench, one object a line."""
    path = folder / "evalbiasbench.jsonl"
    by_bias = json.loads((data / "evalbiasbench" / "biasbench.json").read_text(encoding="utf-8"))
    write_rows(path, (row for rows in by_bias.values() for row in rows))
    return path


def main(data: Path) -> None:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = folder / "world.jsonl"
        write_rows(world, (item.to_json() for item in generate_items(1000, split="test", seed=0)))
        benches = [data / bench for bench in BENCHES] + [biased(data, folder), world]
        held_out = [row for path in benches for row in exchanges(path)]
        real = [row for row in held_out if not row.where.startswith(str(world))]
        planter = Planter(*pools(data, held_out), held_out)
        print(f"{len(planter.asked):,} and {len(planter.answered):,} sentences", file=sys.stderr)
        kinds: list[str] = []
        train = folder / "train.jsonl"
        write_rows(train, rows(rng, planter, real, kinds))
        size = train.stat().st_size
        print(f"{len(kinds):,} rows written", file=sys.stderr)
        begun, started = time.process_time(), time.perf_counter()
        known = HeldOut(row for path in benches for row in exchanges(path))
        found: Counter[str] = Counter()
        missed: Counter[str] = Counter()
        for kind, row in zip(kinds, exchanges(train), strict=True):
            (found if known.matches(row) else missed)[kind] += 1
        seconds, wall = time.process_time() - begun, time.perf_counter() - started
    measured = []
    for kind in dict.fromkeys(kinds):
        n, rate = found[kind] + missed[kind], found[kind] / (found[kind] + missed[kind])
        interval = wilson(rate, rate * (1 - rate) / n, n)
        measured.append({"rows": kind, "n": n, "alarms": found[kind], "rate": interval._asdict()})

    def rate(which: Callable[[str], bool]) -> float:
        hits, all_ = (sum(c for kind, c in counts.items() if which(kind)) for counts in (found, found + missed))
        return hits / all_

    write_result(
        ROOT / "results" / "overlap-guard.json",
        command="python benchmarks/overlap.py DATA",
        headline={
            "recall_exact": rate(lambda kind: kind.startswith("exact: prompt")),
            "recall_near": rate(lambda kind: kind.startswith("near: prompt")),
            "recall_responses": rate(lambda kind: kind.endswith("response")),
            "false_alarms": rate(lambda kind: kind.startswith("clean")),
            "seconds": round(seconds, 1),
            "wall_seconds": round(wall, 1),
            "rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        },
        rows=measured,
        notes={
            "training_rows": len(kinds), "training_mb": round(size / 1e6, 1),
            "held_out_prompts": known.count, "held_out_rows": len(held_out),
            "compared_as_wholes_short": known.short,
            "compared_as_wholes_shared_wording": known.shared, "rule": RULE,
            "seconds": "processor time of one thread, reading both sides included; wall_seconds is the clock's, with"
            " other work on the machine; rss_gb is the most that the whole benchmark held",
        },
    )  # fmt: skip


def rows(rng: random.Random, planter: Planter, held_out: list[Exchange], kinds: list[str]) -> Iterator[Row]:
    """Clean rows and copies in a random order; `kinds` gets what each of them is."""
    asked = [row for row in held_out if words(prompt_of(row))]
    long = [row for row in asked if len(words(prompt_of(row))) >= 13]
    copies: list[tuple[str, Make, list[Exchange]]] = [
        ("exact: prompt, verbatim", planter.verbatim, asked),
        ("exact: prompt, other case", planter.other_case, asked),
        ("exact: prompt, other spacing", planter.other_spacing, asked),
        ("exact: prompt, other Unicode", planter.other_unicode, asked),
        ("exact: prompt, system message before it", planter.system_before, asked),
        ("near: prompt, words exchanged, half of its 5-grams", planter.scattered, long),
        ("near: prompt, words exchanged, half of its 8-grams", planter.scattered_8, long),
        ("near: prompt, its beginning, half of its 5-grams", planter.first_half, long),
        ("near: prompt, words exchanged, inside a judge's prompt", planter.inside, long),
        ("exact: response", planter.response, asked), ("near: response", planter.near_response, asked),
    ]  # fmt: skip
    plan: list[tuple[str, Make | None, list[Exchange]]] = [
        *(("clean: sentences", None, asked) for _ in range(CLEAN)),
        *(("clean: quotes a part", planter.quoting, long) for _ in range(QUOTING)),
        *(copy for copy in copies for _ in range(PLANTED)),
    ]
    world = generate_items(WORLD, split="train", seed=1)
    plan += [("clean: RubricWorld", None, [])] * WORLD
    rng.shuffle(plan)
    for kind, make, pool in plan:
        kinds.append(kind)
        if not pool:
            yield next(world).to_json()
            continue
        row = None if make is not None else planter.row(rng)
        while row is None:
            assert make is not None
            row = make(rng, rng.choice(pool))
        yield row


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

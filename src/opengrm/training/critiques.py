"""The critiques that CLoud learns from: first an oracle's, then the critic's own (arXiv:2408.11791, section 2).

    oracle_stage(items, "cloud/oracle", template, oracle)        rows.jsonl: {"prompt", "completion"}, for the critic
    own_stage(items, "cloud/critiques", template, critic)        critiques.jsonl: items with "critiques", for the head

An oracle's critiques stand in the items themselves, under the key "critiques" (a text for each response, null for one
that is missing), or are sampled from any model with the GRM template of one response; their scores are left out. There
is no rejection: without scores, nothing says which critique is right (DeepSeek-GRM's baseline is trained so too).

The critic's own critiques are of all responses of the items that the head can learn from: those with a labelled best
of several. Both stages keep what they sample in a ledger, and go on where they were killed.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from opengrm.engines.base import Engine, Sampling
from opengrm.errors import BadRow, UsageError
from opengrm.items import Item, content_hash
from opengrm.jsonl import OnBad, Row, write_rows
from opengrm.judges.grm import GRM
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reading import read_located_items
from opengrm.templates.base import Template
from opengrm.templates.cloud import CloudTemplate, is_critique
from opengrm.training.rft import digest
from opengrm.training.scalar_examples import held_out
from opengrm.training.stage import begin, read_json, write_json

SETTINGS, LEDGER, SUMMARY = "settings.json", "ledger.db", "critiques.json"
ROWS, CRITIQUES = "rows.jsonl", "critiques.jsonl"
GIVEN = "critiques"  # the key of an item's critiques, in what the user gives and in what `own_stage` writes
OnCritique = Callable[[int, int], None]
Critiqued = tuple[Item, list[str | None]]


@dataclass(frozen=True)
class Writer:
    """A model that is sampled for critiques.

    Attributes:
        name: names it in the stage's settings, so that a folder is not taken up again with another.
        open: opens its engine; called only if there is something to sample.
        sampling: greedy by default, as in the authors' code; at temperature 0 nothing depends on seeds.
    """

    name: str
    open: Callable[[], Engine]
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))


def oracle_stage(
    items: Path,
    output: Path,
    template: CloudTemplate,
    oracle: Writer | None = None,
    *,
    dev_share: float = 0.0,
    on_bad: OnBad | None = None,
    on_progress: OnCritique | None = None,
) -> dict[str, Any]:
    """The rows that the critic is fine-tuned on: `output/rows.jsonl`, and their counts.

    Args:
        items: a file of items, labelled or not.
        output: the stage's folder.
        template: the critic's.
        oracle: is sampled; None takes the critiques that the items have.
        dev_share: share of conversations that are held out, the same ones as from the head's training.
        on_bad: called with each malformed row; None raises it.
        on_progress: called with the critiques that are there, and all that are planned.

    Returns:
        What `critiques.json` holds: items, left_out, responses, critiques, those missing by reason, bad_rows.

    Raises:
        UsageError: no critique to learn from, or the folder was begun with other settings.
        BadRow: a malformed row, with its place.
        EngineError: the oracle cannot go on. What it wrote until then is in the ledger.
    """
    done = _begin(items, output, template, oracle, template.oracle, dev_share=dev_share)
    if done is not None:
        return done

    def learned(item: Item) -> bool:
        return not held_out(conversation_hash(item), dev_share)

    counts, missing = _count(items, learned, on_bad), Counter[str]()
    if oracle is None:
        found = _given(_walk(items, learned), missing)
    else:
        sampled = _Sampled(oracle, template.oracle, template.without_score, missing, on_progress, counts["responses"])
        found = sampled.critiques(_walk(items, learned), output / LEDGER)

    def rows() -> Iterator[Row]:
        for item, texts in found:
            for index, text in enumerate(texts):
                if text is not None:
                    prompt = [m.to_json() for m in template.render(item.only(index))]
                    completion = [{"role": "assistant", "content": text}]
                    yield {"prompt": prompt, "completion": completion, "item": item.id, "response": index}

    write_rows(output / ROWS, rows())
    return _finish(
        output, counts, missing,
        f"no critique to learn from: give items a list {GIVEN!r} with a text for each response, or name an oracle",
    )  # fmt: skip


def own_stage(
    items: Path,
    output: Path,
    template: CloudTemplate,
    critic: Writer,
    *,
    on_bad: OnBad | None = None,
    on_progress: OnCritique | None = None,
) -> dict[str, Any]:
    """The critic's critiques of every response to be compared: `output/critiques.jsonl`, and their counts.

    Args:
        items: a file of items; those of one response or without a label are left out and counted.
        output: the stage's folder.
        template, critic: writes the critiques, and what it is shown.
        on_bad, on_progress: as in `oracle_stage`.

    Returns:
        What `critiques.json` holds, as in `oracle_stage`.

    Raises:
        UsageError, BadRow, EngineError: as in `oracle_stage`.
    """
    done = _begin(items, output, template, critic, template)
    if done is not None:
        return done
    counts, missing = _count(items, _compared, on_bad), Counter[str]()

    def whole(judgment: Judgment) -> str | None:
        return judgment.text if is_critique(judgment) else None

    sampled = _Sampled(critic, template, whole, missing, on_progress, counts["responses"])
    found = sampled.critiques(_walk(items, _compared), output / LEDGER)
    write_rows(output / CRITIQUES, ({**item.to_json(), GIVEN: texts} for item, texts in found))
    return _finish(output, counts, missing, "no critique of an item with a labelled best of several responses")


def given_critiques(item: Item) -> list[str | None] | None:
    """The critiques that an item's row came with, an empty one as missing; None where it has no list of them.

    Raises:
        ValueError: they are not one text (or null) for each response.
    """
    texts = item.extra.get(GIVEN)
    if texts is None:
        return None
    if not isinstance(texts, list) or not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError(f"{GIVEN!r} must be a list with a text, or null, for each response")
    if len(texts) != item.n:
        raise ValueError(f"{GIVEN!r} has {len(texts)} texts for {item.n} responses")
    return [text if text is not None and text.strip() else None for text in texts]


def conversation_hash(item: Item) -> str:
    """Hash of the conversation that the item continues: neither critic nor head learns from one that is held out."""
    return content_hash([[m.role, m.content] for m in item.prompt])


def _begin(
    items: Path, output: Path, template: CloudTemplate, writer: Writer | None, asked: Template, **more: float
) -> dict[str, Any] | None:
    """Begin or take up a stage's folder; its summary where it is done."""
    begin(
        output / SETTINGS,
        {"items": digest(items), "template": f"{template.name}@{template.version}",
         "writer": "the items" if writer is None else writer.name, "asked": f"{asked.name}@{asked.version}",
         "sampling": None if writer is None else asdict(writer.sampling), **more},
    )  # fmt: skip
    done = read_json(output / SUMMARY)
    if done is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("critiques are sampled in one process first: the same command without a launcher")
    return done


def _finish(output: Path, counts: Counter[str], missing: Counter[str], nothing: str) -> dict[str, Any]:
    critiques = counts["responses"] - missing.total()
    if not critiques:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in missing.most_common())
        raise UsageError(nothing + (f" (missing: {reasons})" if reasons else ""))
    names = ("items", "left_out", "responses", "bad_rows")
    summary = {**{name: counts[name] for name in names}, "critiques": critiques, "missing": dict(+missing)}
    write_json(output / SUMMARY, summary)
    return summary


def _compared(item: Item) -> bool:
    """Whether the head can learn from it."""
    return item.n > 1 and item.label is not None


def _count(items: Path, wanted: Callable[[Item], bool], on_bad: OnBad | None) -> Counter[str]:
    """One walk before any model is loaded: malformed rows are told, and what is there is counted."""
    counts: Counter[str] = Counter()

    def bad(row: BadRow) -> None:
        if on_bad is None:
            raise row
        counts["bad_rows"] += 1
        on_bad(row)

    for item in _walk(items, lambda item: True, bad):
        use = wanted(item)
        counts.update(items=use, left_out=not use, responses=item.n * use)
    return counts


def _walk(items: Path, wanted: Callable[[Item], bool], on_bad: OnBad = lambda row: None) -> Iterator[Item]:
    """The wanted items of the file, with or without critiques; every malformed row goes to `on_bad`."""
    for where, item in read_located_items(items, on_bad):
        try:
            given_critiques(item)
        except ValueError as error:
            on_bad(BadRow(where, str(error)))
            continue
        if wanted(item):
            yield item


def _given(items: Iterator[Item], missing: Counter[str]) -> Iterator[Critiqued]:
    """The critiques that the items came with."""
    for item in items:
        texts = given_critiques(item) or [None] * item.n
        missing["not given"] += texts.count(None)
        yield item, texts


@dataclass(frozen=True)
class _Sampled:
    """How critiques are sampled: by whom, asked how, and what of its judgment of a response is the critique."""

    writer: Writer
    asked: Template
    read: Callable[[Judgment], str | None]
    missing: Counter[str]
    on_progress: OnCritique | None
    planned: int

    def critiques(self, items: Iterator[Item], ledger: Path) -> Iterator[Critiqued]:
        """A critique of each response, one a prompt, through the ledger; `missing` counts why others are not there."""
        waiting: deque[Item] = deque()

        def singles() -> Iterator[Item]:
            for item in items:
                waiting.append(item)
                yield from (item.only(index) for index in range(item.n))

        with Ledger(ledger) as kept, closing(self.writer.open()) as engine:
            texts: list[str | None] = []
            with closing(GRM(engine, self.asked, self.writer.sampling, "fixed", kept).judge(singles(), 1)) as run:
                for there, (_, (judgment,)) in enumerate(run, start=1):
                    texts.append(self.read(judgment))
                    if texts[-1] is None:
                        self.missing[judgment.error_kind or "unparsable"] += 1
                    if len(texts) == waiting[0].n:
                        yield waiting.popleft(), texts
                        texts = []
                    if self.on_progress is not None:
                        self.on_progress(there, self.planned)

"""Rejective fine-tuning, the cold start of SPCT (paper v3 section 3.2): collect trajectories, mix, fine-tune.

    collect_stage(items, "rft", sampler, forms_of(template))     rft/kept.jsonl, collect.json, collect.ledger.db
    tune_stage("base", "rft", instructions)                      rft/model/, metrics.jsonl, train.json

What is kept is in `trajectories.py`, the fine-tuning in `sft.py`. Each half is done once: where its summary is there,
it is read; where it was killed, it goes on. General instruction data is mixed in at the paper's share unless told
otherwise: without it the paper's model loses most (its Table 4).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opengrm.engines.base import Engine
from opengrm.errors import BadRow, UsageError
from opengrm.items import Item, conversation
from opengrm.jsonl import OnBad, Row, read_rows
from opengrm.ledger import Ledger
from opengrm.templates.forms import Forms
from opengrm.training.sft import SUMMARY, OnStep, SFTSettings, train
from opengrm.training.stage import begin, is_main, read_json, write_json
from opengrm.training.trajectories import Collected, CollectSettings, collect

PAPER_INSTRUCTIONS = 1_070_000  # general instruction rows (paper v3, appendix; 186K trajectories make up the rest)
PAPER_TRAJECTORIES = 186_000
INSTRUCTION_SHARE = PAPER_INSTRUCTIONS / (PAPER_INSTRUCTIONS + PAPER_TRAJECTORIES)  # 0.852


KEPT, COLLECTED, LEDGER, SETTINGS = "kept.jsonl", "collect.json", "collect.ledger.db", "collect-settings.json"
OnCollected = Callable[[int, int, int], None]


class ItemsFile:
    """The items of a file, read anew at each walk through them."""

    def __init__(self, path: Path, on_bad: OnBad | None = None) -> None:
        self._path, self._on_bad = path, on_bad

    def __iter__(self) -> Iterator[Item]:
        from opengrm.reading import read_items

        return read_items(self._path, self._on_bad)


def collect_stage(
    items: Path,
    output: Path,
    sampler: str,
    open_sampler: Callable[[], Engine],
    forms: Forms,
    settings: CollectSettings | None = None,
    *,
    on_bad: OnBad | None = None,
    on_progress: OnCollected | None = None,
) -> dict[str, Any]:
    """The first half: `output/kept.jsonl` and its counts, or the counts of the one that is there.

    Args:
        items: a file of labelled items.
        output: the stage's folder.
        sampler: name of the model that is sampled, as the user gave it.
        open_sampler: opens it, called only if there is something to sample.
        forms: the prompt family.
        settings: what is sampled and kept.
        on_bad: called with each malformed row, on the first walk; None raises it.
        on_progress: called with judgments there, judgments planned, and judgments kept.

    Returns:
        What `collect.json` holds: sampler, items, bad_rows and the counts of `Collected`.

    Raises:
        UsageError: the folder was begun with other settings, or several processes would sample the same.
        BadRow, EngineError: see `collect`.
    """
    settings = settings or CollectSettings()
    begin(
        output / SETTINGS,
        {"items": digest(items), "sampler": sampler, "template": f"{forms.joint.name}@{forms.joint.version}",
         **asdict(settings)},
    )  # fmt: skip
    done = read_json(output / COLLECTED)
    if done is not None:
        return done
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("collect in one process first: the same command without a launcher, with --collect-only")
    many, single, bad = 0, 0, 0

    def counted(row: BadRow) -> None:
        nonlocal bad
        if on_bad is None:
            raise row
        bad += 1
        on_bad(row)

    for item in ItemsFile(items, counted):
        many, single = many + (item.n > 1), single + (item.n == 1)
    planned = settings.planned(many, single if forms.single else 0)

    def told(there: int, so_far: Collected) -> None:
        if on_progress is not None:
            on_progress(there, planned, so_far.kept)

    with Ledger(output / LEDGER) as ledger:
        engine = open_sampler()
        try:
            # Malformed rows were reported on the first walk.
            result = collect(
                ItemsFile(items, lambda row: None), engine, forms, output / KEPT, settings, ledger=ledger,
                on_progress=told,
            )  # fmt: skip
            figures = {"sampler": engine.model, "items": many + single, "bad_rows": bad, **result.to_json()}
        finally:
            engine.close()
    write_json(output / COLLECTED, figures)
    return figures


def tune_stage(
    model: str | Path,
    output: Path,
    instructions: Path | None = None,
    settings: SFTSettings | None = None,
    *,
    share: float = INSTRUCTION_SHARE,
    template: str | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """The second half: `output/model` and its figures, or the figures of the one that is there.

    Args:
        model: the base: "nano", a folder, or a hub id.
        output: the stage's folder, with `kept.jsonl` in it; where that is empty (the ablation "w/o both"),
            instructions alone.
        instructions: a file of rows {"prompt", "completion"}; None mixes nothing in.
        settings: of the fine-tuning.
        share: share of instruction rows in the training set (paper: 0.852).
        template: the prompt family that is learned, for the model's config.json.
        on_step: called after each step.

    Returns:
        What `train.json` holds, with the mix.
    """
    kept = output / KEPT
    if not kept.exists():
        raise UsageError(f"{kept} is not there: collect trajectories first")
    trajectories = count_rows(kept) if kept.stat().st_size else 0
    counted = (read_json(output / COLLECTED) or {}).get("kept", trajectories)
    if counted != trajectories:
        raise UsageError(
            f"{kept}: has {trajectories:,} rows, {output / COLLECTED} counts {counted:,} kept: remove the latter to"
            " collect again (what was sampled is in the ledger), or correct it if you have chosen rows by hand"
        )
    available = 0 if instructions is None else count_rows(instructions)
    mix = plan_mix(trajectories, available, share if instructions is not None else 0.0)
    key = f"kept {digest(kept) if trajectories else 'nothing'} + {mix.instructions} of "
    key += "no instructions" if instructions is None else digest(instructions)
    figures = train(
        model, lambda: mixed(kept, instructions, mix), output, settings, data_key=key, template=template,
        on_step=on_step,
    )  # fmt: skip
    report = {**figures, **asdict(mix)}
    if is_main():
        write_json(output / SUMMARY, report)
    return report


def digest(path: Path) -> str:
    """Name and the first 12 hex digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return f"{path.name}@{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


@dataclass(frozen=True)
class Mix:
    """How many examples of each kind the training set holds.

    Attributes:
        trajectories: rows kept by `collect`, each once.
        instructions: instruction rows, repeats counted.
        distinct: different instruction rows among them.
    """

    trajectories: int
    instructions: int
    distinct: int


def plan_mix(trajectories: int, available: int, share: float = INSTRUCTION_SHARE) -> Mix:
    """As many instruction rows as make up `share` of the training set; all of them where there is no trajectory.

    They are taken evenly over the file. Where the file holds too few, rows come again, each equally often within one.

    Raises:
        UsageError: the share is not in [0, 1), or there is nothing to train on.
    """
    if not 0 <= share < 1:
        raise UsageError(f"the share of instruction data is {share}, expected 0 or more and less than 1")
    wanted = round(trajectories * share / (1 - share)) if trajectories else available
    wanted = wanted if available else 0
    if not trajectories + wanted:
        raise UsageError(
            f"nothing to train on: no trajectory was kept ({COLLECTED} says why) and there is no instruction data;"
            " sample a model that writes judgments in form, or give instruction data"
        )
    return Mix(trajectories, wanted, min(wanted, available))


def mixed(trajectories: str | Path, instructions: str | Path | None, mix: Mix) -> Iterator[Row]:
    """The rows of the training set: all trajectories, then `mix.instructions` instruction rows (`sft` shuffles)."""
    if mix.trajectories:
        yield from (row for _, row in read_rows(trajectories))
    if instructions is None or not mix.instructions:
        return
    available = count_rows(instructions)
    for index, (_, row) in enumerate(read_rows(instructions)):
        times = (index + 1) * mix.instructions // available - index * mix.instructions // available
        for _ in range(times):
            yield row


def count_rows(path: str | Path) -> int:
    """How many rows a file of {"prompt", "completion"} holds; each is checked.

    Raises:
        BadRow: a row that is neither plain nor conversational, with its place.
    """
    count = 0
    for where, row in read_rows(path):
        check_example(where, row)
        count += 1
    return count


def check_example(where: str, row: Mapping[str, Any]) -> None:
    """See that a row has a prompt (text or messages) and a completion (text or one assistant message).

    Raises:
        BadRow: with what was expected.
    """
    try:
        conversation(row.get("prompt"))
        answer = conversation(row.get("completion"), name="completion")
    except ValueError as error:
        raise BadRow(where, str(error)) from None
    if len(answer) != 1 or (not isinstance(row["completion"], str) and answer[0].role != "assistant"):
        raise BadRow(where, "'completion' must be a string or a list of one assistant message")

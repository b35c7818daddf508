"""Training an LLM-as-a-judge: rejective fine-tuning, then RL, on items of two responses or more.

    train_judge(items, "base", Path("judge"), get_template("judge"), open_sampler)

The stages are those of the GRM (`rft.py`, `rl.py`), in OUTPUT/rft and OUTPUT/rl, with a template that names the best:
a choice is one-hot scores, so the one rule of what is correct filters and rewards it. Each stage is done once, and the
same call goes on where a killed one stopped. OUTPUT/rl is the trained judge, an ordinary checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opengrm.engines.base import Engine
from opengrm.errors import BadRow
from opengrm.items import Item
from opengrm.jsonl import OnBad
from opengrm.judges.base import check_responses
from opengrm.judges.llm import check_template
from opengrm.reading import read_located_items
from opengrm.templates import built_in
from opengrm.templates.base import Template
from opengrm.templates.forms import forms_of
from opengrm.training import rft, rl
from opengrm.training.sft import SFTSettings
from opengrm.training.stage import Pace
from opengrm.training.trajectories import CollectSettings


@dataclass(frozen=True)
class JudgeSettings:
    """The settings of the stages, each the paper's by default.

    Attributes:
        collect: what is sampled and kept.
        sft: rejective fine-tuning.
        grpo: RL.
        instruction_share: of the fine-tuning's training set, where instructions are given.
    """

    collect: CollectSettings = field(default_factory=CollectSettings)
    sft: SFTSettings = field(default_factory=SFTSettings)
    grpo: rl.Settings = field(default_factory=rl.Settings)
    instruction_share: float = rft.INSTRUCTION_SHARE


def train_judge(
    items: Path, base: str, output: Path, template: Template, open_sampler: Callable[[], Engine],
    settings: JudgeSettings | None = None, *, instructions: Path | None = None, reference: rl.Reference | None = None,
    on_bad: OnBad | None = None, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> dict[str, Any]:  # fmt: skip
    """Train `base` into a judge; a killed run, called again, goes on.

    Args:
        items: a file of labelled items, n >= 2.
        base: what is sampled and trained: "nano-base", a folder, or a hub id.
        output: the folder of both stages.
        template: one that names the best.
        open_sampler: opens the base for sampling, called only if there is something to sample.
        settings: of the stages.
        instructions: general rows {"prompt", "completion"} to mix in; None mixes nothing in.
        reference: drops what it finds too easy before RL.
        on_bad: called with each malformed row and each item of one response; None raises it.
        say: takes the lines that tell how it goes.

    Returns:
        {"model": the judge's folder, "items", "collect": counts, "tune": figures}.

    Raises:
        BadRow: a malformed row, or an item of one response, with its place; before a model is loaded.
        UsageError: a template that rates, settings that differ from those of the run in `output`, or nothing to learn.
        EngineError, MissingExtra: from the stages.
    """
    settings = settings or JudgeSettings()
    check_template(template)
    given = list(compared(items, on_bad))
    if instructions is not None:
        rft.count_rows(instructions)  # a malformed row is told now, not after the sampling
    told = Pace(say)
    collected = rft.collect_stage(
        items, output / "rft", base, open_sampler, forms_of(template), settings.collect,
        on_bad=None if on_bad is None else lambda row: None,  # reported above
        on_progress=lambda there, planned, kept: told(f"{there:,} of {planned:,} judgments, {kept:,} kept"),
    )  # fmt: skip
    say(f"{collected['kept']:,} trajectories kept; why not more: {output / 'rft' / rft.COLLECTED}")
    steps = settings.sft.steps
    tuned = rft.tune_stage(
        base, output / "rft", instructions, settings.sft, share=settings.instruction_share,
        template=template.name if built_in(template) else None,
        on_step=lambda step, last: told(f"step {step}/{steps}  loss {last.get('loss', float('nan')):.3f}"),
    )  # fmt: skip
    say(f"fine-tuned on {tuned['trajectories']:,} trajectories and {tuned['instructions']:,} instruction rows")
    model = rl.train(
        given, output / "rft" / "model", output / "rl", settings.grpo, template=template, reference=reference, say=say
    )
    return {"model": str(model), "items": len(given), "collect": collected, "tune": tuned}


def compared(path: Path, on_bad: OnBad | None = None) -> Iterator[Item]:
    """The items of a file that a judge can compare; the others go to `on_bad`, which None raises.

    Raises:
        BadRow: a malformed row or an item of one response, with its place.
    """
    for where, item in read_located_items(path, on_bad):
        try:
            check_responses("llm", item.n)
        except ValueError as error:
            row = BadRow(where, str(error))
            if on_bad is None:
                raise row from None
            on_bad(row)
            continue
        yield item

"""Evaluation of a run's models on held-out items, in the shape of the paper's Tables 2 and 3.

For every model: greedy decoding (one judgment an item, in the first of its planned orders), k sampled judgments and
their plain vote at k = 1, 2, 4, ..., and for the models that a meta RM guides the guided vote at the same k. Numbers
come from `voting.revote`: at k < K they are means over subsets of the K recorded samples.

Single responses are shown in the 0/1 form that training uses, and count as right where the vote equals the label; the
paper rates them on 1..10 at test and reports ROC-AUC, which stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from opengrm.engines.base import Engine, Sampling
from opengrm.errors import UsageError
from opengrm.items import Item
from opengrm.judges.grm import GRM
from opengrm.judges.meta import Judged, MetaRM
from opengrm.ledger import Ledger
from opengrm.templates.compact import Compact
from opengrm.templates.forms import Forms
from opengrm.voting.guided import Guide, Rule
from opengrm.voting.revote import Labels, revote
from opengrm.worlds.process import measure, summarise

Say = Callable[[str], None]
RESULT = "evaluation.json"


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured.

    Attributes:
        k: samples of each item (paper: 32).
        temperature: of the samples (paper: 0.5).
        max_tokens: most new tokens of a judgment.
        models: which of "base", "rft", "rl".
        votes: model to its own k, where it is not the common one; 0 is greedy decoding only.
        guided: models whose votes the meta RM guides.
        k_meta: besides the default k/2, guided votes over all k samples with so many places (paper: 1, 8, 16).
    """

    k: int = 32
    temperature: float = 0.5
    max_tokens: int = 1024
    models: tuple[str, ...] = ("base", "rft", "rl")
    votes: dict[str, int] = field(default_factory=dict)
    guided: tuple[str, ...] = ("rl",)
    k_meta: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.k < 1 or min(self.votes.values(), default=0) < 0:
            raise ValueError(f"k is {self.k}, votes {self.votes}: expected at least 1, and 0 or more for a model")
        if not self.models:
            raise ValueError("models is empty: name at least one of base, rft and rl")
        for name in ("models", "votes", "guided"):
            if unknown := set(getattr(self, name)) - {"base", "rft", "rl"}:
                raise ValueError(f"{name}: {', '.join(sorted(unknown))}: expected base, rft or rl")
        if any(not 1 <= places <= self.k for places in self.k_meta):
            raise ValueError(f"k_meta is {list(self.k_meta)}, expected numbers from 1 to k ({self.k})")
        Sampling(self.temperature, max_tokens=self.max_tokens)  # checks them

    @property
    def needs_meta(self) -> bool:
        """Whether any model's votes are guided."""
        return any(model in self.models and self.votes.get(model, self.k) for model in self.guided)


@dataclass(frozen=True)
class Measured:
    """One model on one set: the rows of its votes, its process measures, and what it cost.

    Attributes:
        rows: one for each rule and k, see `ranked_row` and `single_row` for the figures.
        process: process measures of the sampled judgments (RubricWorld in the compact form only).
        judgments, tokens: how many were made or found in the ledger, prompt and completion tokens together.
    """

    rows: list[dict[str, Any]]
    process: dict[str, Any] | None
    judgments: int
    tokens: int


def evaluate(
    models: Mapping[str, str],
    sets: Mapping[str, Sequence[Item]],
    open_engine: Callable[[str], Engine],
    forms: Forms,
    folder: Path,
    settings: EvaluationSettings | None = None,
    *,
    open_meta: Callable[[Ledger, ExitStack], MetaRM] | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Judge every set with every model and vote.

    Args:
        models: name to checkpoint; "base", "rft", "rl".
        sets: name to labelled items.
        open_engine: opens a checkpoint.
        forms: the prompt family.
        folder: where the ledgers are kept, one for each model; what they hold is not judged again.
        settings: what is measured.
        open_meta: loads the meta RM for a ledger; None leaves guided votes out.
        say: takes a line for each model and set.

    Returns:
        {"rows": [...], "process": [...], "world": whether all items are RubricWorld's, "seconds", "judgments",
        "tokens"}; a row has model, set, how ("greedy", "sum", "meta", "meta top 8"), k, items, and figures.
    """
    settings = settings or EvaluationSettings()
    for name, items in sets.items():
        check_shown(items, forms, name)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    found: list[Measured] = []
    for model, checkpoint in models.items():
        k = settings.votes.get(model, settings.k)
        with Ledger(folder / f"{model}.ledger.db") as ledger:
            engine = open_engine(checkpoint)
            try:
                identity = engine.model
                judged = {name: _judged(items, engine, forms, ledger, settings, k) for name, items in sets.items()}
            finally:
                engine.close()
            # The meta RM comes when the model has left the device: neither need fit beside the other.
            with ExitStack() as stack:
                guided = open_meta is not None and k and model in settings.guided
                meta = open_meta(ledger, stack) if guided and open_meta is not None else None
                for name, (greedy, sampled) in judged.items():
                    measured = measure_set(greedy, sampled, forms, settings, k, meta)
                    place = {"model": model, "set": name}
                    rows = [{**row, **place, "checkpoint": identity} for row in measured.rows]
                    process = measured.process and {**measured.process, **place}
                    found.append(replace(measured, rows=rows, process=process))
                    say(f"{model} on {name}: {_line(rows)}")
    return {
        "rows": [row for measured in found for row in measured.rows],
        "process": [measured.process for measured in found if measured.process is not None],
        "world": all(i.source.get("world") == "rubric" for items in sets.values() for i in items),
        "seconds": time.monotonic() - started,
        "judgments": sum(measured.judgments for measured in found),
        "tokens": sum(measured.tokens for measured in found),
    }


def _judged(
    items: Sequence[Item], engine: Engine, forms: Forms, ledger: Ledger, settings: EvaluationSettings, k: int
) -> tuple[list[Judged], list[Judged]]:
    """The greedy judgments of a set and its k sampled ones (none for k = 0)."""
    sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens)
    greedy = judge_all(items, engine, forms, replace(sampling, temperature=0.0), 1, ledger)
    return greedy, judge_all(items, engine, forms, sampling, k, ledger) if k else []


def measure_set(
    greedy: Sequence[Judged], sampled: Sequence[Judged], forms: Forms, settings: EvaluationSettings, k: int,
    meta: MetaRM | None = None,
) -> Measured:  # fmt: skip
    """The votes of one model on one set, see `evaluate`."""
    labels = Labels.of([item for item, _ in greedy])
    rows = _voted(greedy, labels, "sum", [1], "greedy")
    if sampled:
        ks = sorted({2**e for e in range(k.bit_length()) if 2**e <= k} | {k})
        rows += _voted(sampled, labels, "sum", ks)
        if meta is not None:
            sampled = list(meta.score(sampled))
            rows += _voted(sampled, labels, Guide(), ks, "meta")
            for places in settings.k_meta:
                rows += _voted(sampled, labels, Guide(k_meta=places), [k], f"meta top {places}")
    made = [j for _, judgments in [*greedy, *sampled] for j in judgments]
    tokens = sum((j.prompt_tokens or 0) + (j.completion_tokens or 0) for j in made)
    return Measured(rows, _process(sampled or greedy, forms), len(made), tokens)


def judge_all(
    items: Iterable[Item], engine: Engine, forms: Forms, sampling: Sampling, k: int, ledger: Ledger | None
) -> list[Judged]:
    """k judgments of each item, each in the form that shows it.

    Raises:
        UsageError: a single response, and the family has no form for one.
    """
    every = list(items)
    check_shown(every, forms)
    found: list[Judged] = []
    for template, single in ((forms.joint, False), (forms.single, True)):
        chosen = [item for item in every if (item.n == 1) == single]
        if chosen and template is not None:
            found += GRM(engine, template, sampling, ledger=ledger).judge(chosen, k)
    return found


def check_shown(items: Iterable[Item], forms: Forms, name: str = "items") -> None:
    """See that the family has a form for every item of a set called `name`.

    Raises:
        UsageError: with how many single responses there are that it cannot judge.
    """
    if alone := sum(not forms.shows(item) for item in items):
        raise UsageError(
            f"{name}: {alone:,} items have one response, template {forms.joint.name} compares several: leave them out"
        )


def _voted(
    judged: Iterable[Judged], labels: Labels, how: Rule, ks: Sequence[int], name: str | None = None
) -> list[dict[str, Any]]:
    """Rows of one rule: of all items with n >= 2 together, and of single responses."""
    report = revote((j for _, judgments in judged for j in judgments), labels, ks=ks, how=how)
    # "all" is there beside pairs and lists where a set has both.
    together = {row["group"] for row in report.rows} - {"singles"}
    shown = {"singles", "all"} if "all" in together else {"singles", *together}
    return [{**row, "how": name or row["reduce"]} for row in report.rows if row["group"] in shown]


def _process(judged: Sequence[Judged], forms: Forms) -> dict[str, Any] | None:
    """Process measures, where the items are RubricWorld's and the template is one that they can be read in."""
    if not isinstance(forms.joint, Compact) or any(item.source.get("world") != "rubric" for item, _ in judged):
        return None
    found = [
        measure(item, j.order or (), j.text or "", forms.of(item))  # type: ignore[arg-type]
        for item, judgments in judged
        for j in judgments
    ]
    return asdict(summarise(found))


def _line(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of one set for people: "greedy 71.1%, sum@1 65.0%, ..."."""
    shown = []
    for row in rows:
        value = row.get("accuracy") or row.get("auc")
        how = row["how"] if row["how"] == "greedy" else f"{row['how']}@{row['k']}"
        shown.append(f"{how} {value['mean']:.1%}" if value else f"{how} -")
    return ", ".join(shown)

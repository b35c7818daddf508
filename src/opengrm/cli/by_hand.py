"""One item given on the command line: made, checked before a model is loaded, judged, and printed for a person."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from opengrm.cli.options import print_table
from opengrm.errors import UsageError

if TYPE_CHECKING:
    from opengrm.cli.judges import Chosen
    from opengrm.items import Item, Message
    from opengrm.judges.base import Judge
    from opengrm.judges.meta import MetaRM
    from opengrm.judgments import Judgment
    from opengrm.verdicts import Verdict
    from opengrm.voting.guided import Rule


def item_by_hand(
    prompt: str, responses: list[str], reference: str | None, principles: list[str] | None, chosen: Chosen
) -> Item:
    """The item of the command line, checked against what the judge reads before a model is loaded.

    Raises:
        UsageError: the judge cannot be shown this item, or would not show the reference or the principles.
    """
    from opengrm.items import Item, Message

    if not responses:
        raise UsageError("--prompt needs at least one --response")
    given = tuple(principles) if principles else None
    item = Item((Message("user", prompt),), tuple(responses), reference=reference, principles=given, id="by-hand")
    try:
        shown = chosen.shown(item)
    except ValueError as error:
        raise UsageError(f"{chosen.reads}: {error}") from error
    for option, without in (
        ("--reference", replace(item, reference=None)),
        ("--principle", replace(item, principles=None)),
    ):
        if without != item and _shown(chosen, without) == shown:
            raise UsageError(f"{chosen.reads} does not show what {option} gives: leave out one of them")
    return item


def _shown(chosen: Chosen, item: Item) -> tuple[Message, ...] | None:
    """What the judge reads of the item; None where it cannot be shown."""
    try:
        return chosen.shown(item)
    except ValueError:
        return None


def judge_by_hand(judge: Judge, meta: MetaRM | None, item: Item, k: int, how: Rule, as_json: bool) -> None:
    """Judge one item and print everything."""
    from opengrm.judges.run import verdicts

    ((_, judgments, verdict),) = verdicts(judge, [item], k, reduce=how, meta=meta)
    if as_json:
        row = {"verdict": verdict.to_json(), "judgments": [j.to_json() for j in judgments]}
        print(json.dumps(row, ensure_ascii=False))
    else:
        print_judgments(item, judgments, verdict, how=how, shown=k)


def print_judgments(item: Item, judgments: Sequence[Judgment], verdict: Verdict, *, how: Rule, shown: int) -> None:
    """Print the first judgments of an item and its verdict as a person wants to read them."""
    from rich.console import Console
    from rich.text import Text

    from opengrm.voting.guided import rule_name

    console = Console(highlight=False)
    for judgment in judgments[:shown]:
        order = " ".join(str(i + 1) for i in judgment.order or ())
        title = f"judgment {judgment.sample + 1} of {len(judgments)}"
        console.rule(Text(f"{title}, responses shown in order {order}" if order else title), align="left")
        if judgment.error is not None:
            console.print(Text(f"missing: {judgment.error}", style="red"))
            console.print(Text(judgment.text or ""))
            continue
        for name, value in (("principles", judgment.principles), ("critique", judgment.critique)):
            if judgment.text is None:
                break  # a scalar judge writes none
            console.print(Text.assemble((f"{name}: ", "bold"), value or "-"))
        if judgment.meta is not None:
            console.print(Text.assemble(("meta score: ", "bold"), f"{judgment.meta:g}"))
        scores = ", ".join(f"response {i + 1}: {s:g}" for i, s in enumerate(judgment.scores or ()))
        console.print(Text.assemble(("scores: ", "bold"), scores))
    rows = [
        {
            "response": str(i + 1),
            "text": text if len(text) <= 60 else text[:57] + "...",
            f"{rule_name(how)} of {verdict.used} votes": "-" if verdict.scores is None else f"{verdict.scores[i]:g}",
            "rank": str(verdict.ranking.index(i) + 1) if verdict.ranking else "-",
        }
        for i, text in enumerate(item.responses)
    ]
    print_table("verdict", rows)
    console.print(Text(_sentence(verdict)))


def _sentence(verdict: Verdict) -> str:
    cost = f"{verdict.prompt_tokens:,} tokens in, {verdict.completion_tokens:,} out"
    counts = f"{verdict.valid} of {verdict.asked} judgments valid; {cost}."
    if verdict.scores is None:
        return f"No verdict: no judgment could be read. {counts}"
    if verdict.tied:
        return f"Responses {', '.join(str(i + 1) for i in verdict.tied)} tie at the top. {counts}"
    if verdict.winner is None:
        return f"Score {verdict.scores[0]:g}. {counts}"
    # One vote says nothing of how others would fall, and a scalar judge's are all the same.
    sure = ""
    if verdict.confidence is not None and verdict.valid > 1:
        sure = f", leading with probability {verdict.confidence:.0%}"
    return f"Response {verdict.winner + 1} is best{sure}. {counts}"

"""PairRM: one logit f(x, a, b) for a query and two responses, positive where the first one shown is better.

    loss = mean of -log sigmoid(f(chosen, rejected)) and -log sigmoid(-f(rejected, chosen))

Both orders always, so that neither place is learned to be the better one. The paper compares with such a model (v3
Eq. 5; PairRM: arXiv:2306.02561) but does not say which loss it has.

    items -> examples.jsonl -> checkpoints/ + metrics.jsonl -> model/, an ordinary Hugging Face folder

What the model reads is `templates/pair.py`, how it is trained `scalar.py`, and which pairs an item gives and how much
they count `preference_pairs.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from opengrm.items import Item
from opengrm.judges.pair_rm import both_orders
from opengrm.judges.repeated import Fits
from opengrm.templates.pair import PairTemplate, default_pair_template
from opengrm.training.preference_pairs import nothing_to_learn, pair_figures, pair_from_json, pair_hits, write_pairs
from opengrm.training.scalar import Objective, OnProgress, ScalarSettings, cut, train_scalar
from opengrm.training.scalar_examples import Example

REPORT = "pair_rm.json"


@dataclass(frozen=True)
class PairSettings(ScalarSettings):
    """How to train; see also `ScalarSettings`.

    Attributes:
        batch: pairs of one step, over all devices; each is read in both orders.
        truncate: cut the beginning of a conversation that is too long, instead of leaving the pair out.
    """

    batch: int = 128
    truncate: bool = False


def pair_loss(logits_G2: Any, weights_G: Any, examples: Any = None) -> Any:
    """The weighted sum of the pairs' losses (top of this file) over `examples`, else over their number.

    Args:
        logits_G2: with the chosen response shown first, and shown second.
        weights_G: how much each pair counts.
        examples: number of pairs of the whole step, so that accumulated micro-batches add up to its mean.
    """
    import torch

    first_G, second_G = logits_G2.float().unbind(dim=1)
    log_sigmoid = torch.nn.functional.logsigmoid
    each_G = -(log_sigmoid(first_G) + log_sigmoid(-second_G)) / 2
    return (weights_G * each_G).sum() / (len(each_G) if examples is None else examples)


def train_pair_rm(
    items: Iterable[Item],
    base: str | Path,
    output: str | Path,
    template: PairTemplate | None = None,
    settings: PairSettings | None = None,
    *,
    trust_remote_code: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train a PairRM and write it to `output`/model; the same call goes on where a killed one stopped.

    Args:
        items: with labels or rewards; not read if the pairs are there already.
        base: a causal LM, an encoder, or a classifier with one label: "nano-base", a folder or a hub id.
        output: a folder; made if it is not there.
        template: what the model reads; its name goes into config.json (`pair_template`). None goes by the base.
        settings: None is the defaults.
        trust_remote_code: run code that comes with the base.
        on_progress: called with steps done, steps in all, and a few words.

    Returns:
        The report, also in pair_rm.json: settings, counts of pairs and of what was left out, and on the held-out
        conversations the pairs n, loss, accuracy of (f(a, b) - f(b, a))/2 with a 95 % interval clustered by
        conversation, its mean ("difference"), and the share of pairs of which both orders name the same response.

    Raises:
        UsageError: the folder holds a run with other settings, or there is nothing to learn from.
        EngineError: the base cannot be loaded.
        MissingExtra: the training libraries are not installed.
    """
    settings, template = settings or PairSettings(), template or default_pair_template(str(base))
    objective = Objective(
        report=REPORT,
        begin=lambda path: write_pairs(path, items),
        read=partial(_read, template, settings),
        missing=nothing_to_learn,
        loss=lambda logits_G2, _targets, weights_G, examples: pair_loss(logits_G2, weights_G, examples),
        measured=lambda logits_I2, _: {"accuracy": float(pair_hits(logits_I2[:, 0] - logits_I2[:, 1]).mean())},
        note=lambda values: f"held out: accuracy {values['dev_accuracy']:.1%}",
        held=_held,
        config={"pair_template": template.name, **(cut(settings.max_tokens) if settings.truncate else {})},
    )
    named = {"judge": "pair", "template": f"{template.name}@{template.version}"}
    return train_scalar(
        base, output, objective, settings, named, trust_remote_code=trust_remote_code, on_progress=on_progress
    )


def _read(template: PairTemplate, settings: PairSettings, row: Mapping[str, Any], fits: Fits) -> Example:
    pair = pair_from_json(row)
    shown = both_orders(template, pair.prompt, *pair.responses, fits if settings.truncate else None)
    return Example(shown, pair.prompt, pair.group, 0.0, pair.weight)


def _held(logits_I2: Any, _targets: Any, clusters_I: Any) -> dict[str, Any]:
    import torch

    first_I, second_I = logits_I2[:, 0], logits_I2[:, 1]
    return {
        **pair_figures((first_I - second_I) / 2, clusters_I),
        "same_in_both_orders": float(np.mean((first_I > 0) == (second_I < 0))),
        "loss": float(pair_loss(torch.tensor(logits_I2), torch.ones(len(logits_I2)))),
    }

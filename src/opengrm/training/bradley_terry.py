"""Bradley-Terry reward models: a score for each response, so that the better of two has the higher one.

    loss = -log sigmoid(s_chosen - s_rejected - margin) + center * (s_chosen + s_rejected)^2

in the conventions of TRL's RewardTrainer (margin: Llama 2, arXiv:2307.09288; centering: arXiv:2312.09244). A
conversation and a response are read in the model's own chat template, so that whatever else loads the checkpoint,
RewardBench's runner or a server's pooling endpoint, reads the same.

    items -> examples.jsonl -> checkpoints/ + metrics.jsonl -> model/, an ordinary Hugging Face folder

How such a model is trained is in `scalar.py`, which pairs an item gives and how much they count in
`preference_pairs.py`. The paper trains this baseline on its RL data without the single responses, and says nothing of
loss or hyperparameters: the defaults are ours. The margin is off by default, as in most published reward models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from opengrm.items import Item
from opengrm.judges.bradley_terry import answered
from opengrm.judges.repeated import Fits
from opengrm.training.preference_pairs import nothing_to_learn, pair_figures, pair_from_json, pair_hits, write_pairs
from opengrm.training.scalar import Objective, OnProgress, ScalarSettings, cut, train_scalar
from opengrm.training.scalar_examples import Example

REPORT = "bradley_terry.json"


@dataclass(frozen=True)
class BradleyTerrySettings(ScalarSettings):
    """How to train; see also `ScalarSettings`.

    Attributes:
        batch: pairs of one step, over all devices.
        margin: the scores are to differ by the difference of the rewards, or by the row's "margin".
        center_coefficient: of the squared sum of a pair's scores, which keeps them near 0 (0.01 is usual); 0 is off.
        truncate: cut the beginning of a conversation that is too long, instead of leaving the pair out.
    """

    batch: int = 128
    margin: bool = False
    center_coefficient: float = 0.0
    truncate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.center_coefficient >= 0:
            raise ValueError(f"center coefficient is {self.center_coefficient}, expected at least 0")


def bradley_terry_loss(
    scores_G2: Any, margins_G: Any, weights_G: Any, examples: Any = None, *, center_coefficient: float = 0.0
) -> Any:
    """The weighted sum of the pairs' losses (top of this file) over `examples`, else over their number.

    Args:
        scores_G2: of the chosen and the rejected response.
        margins_G: by how much they are to differ at least.
        weights_G: how much each pair counts.
        examples: number of pairs of the whole step, so that accumulated micro-batches add up to its mean.
    """
    import torch

    chosen_G, rejected_G = scores_G2.float().unbind(dim=1)
    each_G = -torch.nn.functional.logsigmoid(chosen_G - rejected_G - margins_G)
    if center_coefficient:
        each_G = each_G + center_coefficient * (chosen_G + rejected_G) ** 2
    return (weights_G * each_G).sum() / (len(each_G) if examples is None else examples)


def train_bradley_terry(
    items: Iterable[Item],
    base: str | Path,
    output: str | Path,
    settings: BradleyTerrySettings | None = None,
    *,
    trust_remote_code: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train a Bradley-Terry model and write it to `output`/model; the same call goes on where a killed one stopped.

    Args:
        items: with labels or rewards; not read if the pairs are there already.
        base: a causal LM, an encoder, or a classifier with one label: "nano-base", a folder or a hub id.
        output: a folder; made if it is not there.
        settings: None is the defaults.
        trust_remote_code: run code that comes with the base.
        on_progress: called with steps done, steps in all, and a few words.

    Returns:
        The report, also in bradley_terry.json: settings, counts of pairs and of what was left out, and on the held-out
        conversations the pairs n, loss, mean difference, and accuracy with a 95 % interval clustered by conversation.

    Raises:
        UsageError: the folder holds a run with other settings, or there is nothing to learn from.
        EngineError: the base cannot be loaded.
        MissingExtra: the training libraries are not installed.
    """
    settings = settings or BradleyTerrySettings()
    loss = partial(bradley_terry_loss, center_coefficient=settings.center_coefficient)
    objective = Objective(
        report=REPORT,
        begin=lambda path: write_pairs(path, items),
        read=partial(_read, settings),
        missing=nothing_to_learn,
        loss=loss,
        measured=lambda scores_I2, _: {"accuracy": float(pair_hits(scores_I2[:, 0] - scores_I2[:, 1]).mean())},
        note=lambda values: f"held out: accuracy {values['dev_accuracy']:.1%}",
        held=partial(_held, loss),
        config=cut(settings.max_tokens) if settings.truncate else {},
    )
    return train_scalar(
        base,
        output,
        objective,
        settings,
        {"judge": "bt"},
        trust_remote_code=trust_remote_code,
        on_progress=on_progress,
    )


def _read(settings: BradleyTerrySettings, row: Mapping[str, Any], fits: Fits) -> Example:
    """The chosen and the rejected response, each behind the conversation."""
    pair = pair_from_json(row)
    cut = fits if settings.truncate else None
    conversations = tuple(answered(pair.prompt, text, cut) for text in pair.responses)
    margin = pair.margin if settings.margin else 0.0
    return Example(conversations, pair.prompt, pair.group, margin, pair.weight)


def _held(loss: Any, scores_I2: Any, margins_I: Any, clusters_I: Any) -> dict[str, Any]:
    import torch

    margins = torch.tensor(margins_I)
    return {
        **pair_figures(scores_I2[:, 0] - scores_I2[:, 1], clusters_I),
        "loss": float(loss(torch.tensor(scores_I2), margins, torch.ones_like(margins))),
    }

"""The meta RM's training (paper v3 section 4): is this judgment's ranking correct?

A sequence classifier with one logit reads a conversation of query, responses and the judgment's text (`templates/
meta.py`), and is trained by binary cross-entropy against the one rule of what is correct. Judgments are taken from
ledgers: the non-hinted samples of rejective fine-tuning, kept and dropped alike, and fresh samples of the trained GRM.

    judgments + items -> examples.jsonl -> checkpoints/ + metrics.jsonl -> model/, an ordinary Hugging Face folder

How such a model is trained is in `scalar.py`. Where the paper leaves a choice open, or we decide:

- Classes are not balanced: the logit should say how likely a judgment of this GRM is right.
- The head starts at zero, so the first loss is ln 2.
- Judgments of one item in one order share their prompt.
- Steps, schedule, warm-up and weight decay are not given in the paper: one epoch, linear decay after 3 % of warm-up,
  no weight decay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opengrm.items import Item, content_hash
from opengrm.jsonl import write_rows
from opengrm.judges.repeated import Fits
from opengrm.judgments import Judgment
from opengrm.templates.meta import MetaTemplate
from opengrm.training.meta_examples import example_from_json, examples
from opengrm.training.scalar import MODEL, Objective, OnProgress, ScalarSettings, train_scalar
from opengrm.training.scalar_examples import Example
from opengrm.voting.association import bootstrap, roc_auc
from opengrm.voting.correctness import label_of
from opengrm.voting.intervals import share_interval

__all__ = ["MODEL", "REPORT", "MetaSettings", "bce_with_logits", "train_meta"]

REPORT = "meta_rm.json"


@dataclass(frozen=True)
class MetaSettings(ScalarSettings):
    """How to train; defaults are the paper's (its appendix) where it gives a value.

    These are learning rate 1e-5 and batch 512, for 27B. A small model wants a higher rate.
    """


def bce_with_logits(logits_B1: Any, labels_B: Any, items: Any = None) -> Any:
    """-[c log sigmoid(m) + (1 - c) log(1 - sigmoid(m))], summed and divided by `items`, else by the batch's size.

    Args:
        logits_B1: the classifier's logits m.
        labels_B: c, 0 or 1.
        items: number of examples of the whole step, so that accumulated micro-batches add up to its mean.
    """
    import torch

    total = torch.nn.functional.binary_cross_entropy_with_logits(
        logits_B1[:, 0].float(), labels_B.float(), reduction="sum"
    )
    return total / (len(labels_B) if items is None else items)


def train_meta(
    judgments: Iterable[Judgment],
    items: Mapping[str, Item],
    base: str | Path,
    output: str | Path,
    template: MetaTemplate,
    settings: MetaSettings | None = None,
    *,
    trust_remote_code: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train a meta RM and write it to `output`/model; the same call goes on where a killed one stopped.

    What was read from the judgments is written to examples.jsonl first, and a run that goes on uses that file,
    whatever has come into the ledgers meanwhile.

    Args:
        judgments: see `examples`; not read if the examples are there already.
        items: by id, with labels.
        base: the GRM or the base model, a causal LM, or an encoder: "nano", a folder or a hub id.
        output: a folder; made if it is not there.
        template: what the meta RM reads; its name goes into config.json (`meta_template`).
        settings: None is the paper's.
        trust_remote_code: run code that comes with the base.
        on_progress: called with steps done, steps in all, and a few words.

    Returns:
        The report, also in meta_rm.json: settings, counts of examples and of what was left out, and on the held-out
        examples n, the share that is correct, loss, accuracy at logit 0 and AUC with 95 % intervals clustered by
        conversation.

    Raises:
        UsageError: the folder holds a run with other settings, or there is nothing to learn from.
        EngineError: the base cannot be loaded.
        MissingExtra: the training libraries are not installed.
    """

    def begin(path: Path) -> dict[str, Any]:
        left_out: Counter[str] = Counter()
        counts: Counter[int] = Counter()

        def rows() -> Iterator[dict[str, Any]]:
            for example in examples(judgments, items, template, left_out):
                counts[example.label] += 1
                yield example.to_json()

        write_rows(path, rows())
        return {"examples": counts.total(), "correct": counts[1], "left_out": dict(sorted(left_out.items()))}

    objective = Objective(
        report=REPORT,
        begin=begin,
        read=_read,
        missing=_missing,
        loss=lambda logits_G1, labels_G, _weights, items: bce_with_logits(logits_G1, labels_G, items),
        measured=_measured,
        note=_note,
        held=_held,
        config={"meta_template": template.name},
    )
    known = content_hash("meta items", sorted([item.id, item.key, label_of(item)] for item in items.values()))
    named = {"template": f"{template.name}@{template.version}", "items": known}
    return train_scalar(
        base, output, objective, settings or MetaSettings(), named,
        trust_remote_code=trust_remote_code, on_progress=on_progress,
    )  # fmt: skip


def _read(row: Mapping[str, Any], _fits: Fits) -> Example:
    example = example_from_json(row)
    return Example((example.messages,), example.messages[:-1], example.group, example.label)


def _missing(labels: Sequence[float]) -> str | None:
    return None if len(set(labels)) == 2 else "no judgments to learn from (or all of one label)"


def _measured(logits_I1: Any, labels_I: Any) -> dict[str, float]:
    """Accuracy at logit 0 and AUC, while training."""
    logits_I, labels_I = np.asarray(logits_I1, dtype=np.float64)[:, 0], np.asarray(labels_I, dtype=np.float64)
    auc = float(roc_auc(logits_I, labels_I, np.ones((1, len(labels_I))))[0])
    found = {"accuracy": float(((logits_I > 0) == (labels_I > 0.5)).mean())}
    return found if np.isnan(auc) else {**found, "auc": auc}


def _note(values: Mapping[str, float]) -> str:
    if "dev_auc" not in values:
        return ""
    return f"held out: accuracy {values['dev_accuracy']:.1%}, AUC {values['dev_auc']:.3f}"


def _held(logits_I1: Any, labels_I: Any, clusters_I: Any) -> dict[str, Any]:
    """Loss, accuracy and AUC with intervals clustered by conversation."""
    logits_I = logits_I1[:, 0]
    hits_I = ((logits_I > 0) == (labels_I > 0.5)).astype(np.float64)
    accuracy = share_interval(hits_I, None, clusters_I)
    auc = bootstrap(roc_auc, [(logits_I, labels_I)], clusters_I)
    return {
        "n": len(labels_I),
        "conversations": len(set(clusters_I.tolist())),
        "correct": float(labels_I.mean()),
        "loss": float((np.logaddexp(0, logits_I) - labels_I * logits_I).mean()),
        "accuracy": None if accuracy is None else accuracy._asdict(),
        "auc": None if auc is None else auc._asdict(),
    }

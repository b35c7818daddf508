"""A meta RM for panels of real judges: what its linear head reads, and how rules are chosen and compared.

Everything is fixed on training items: five folds of items by the hash of their instruction, dealt out within each set.
A verdict of fold f is scored by a head that was trained on the other four; the strength of the head's penalty and the
rule that guides the vote are chosen on those four too, on scores from heads that saw neither f nor the fold scored.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opengrm.items import Item, content_hash
from opengrm.judgments import Judgment
from opengrm.training.meta_head import train_head
from opengrm.voting.guided import Guide, Rule
from opengrm.voting.panel import Panel

FOLDS = 5
PENALTIES = (1e-2, 1e-1, 1.0, 10.0)
SAMPLE = 20_000  # verdicts that a head is trained on, drawn evenly: those of one item say much the same
# The rules that a choice is made from, on training items.
RULES: dict[str, Rule] = {
    "plain": "sum",
    "half": Guide(),
    **{f"top {k}": Guide(k_meta=k) for k in (1, 2, 4, 8, 16, 32)},
    "from 0": Guide(threshold=0.0),
    "from 1": Guide(threshold=1.0),
    "from 2": Guide(threshold=2.0),
    "weights": Guide(weights=True),
    "weights from 0": Guide(threshold=0.0, weights=True),
}
Vectors = Mapping[str, Any]  # a vector by the hash of its text
PROJECTED = 24


def folds_of(items: Mapping[str, Item], folds: int = FOLDS) -> dict[str, int]:
    """The fold of each cluster: dealt out in the order of their hashes, one set after the other."""
    found: dict[str, int] = {}
    for name in sorted({str(item.source["dataset"]) for item in items.values()}):
        own = {str(item.cluster) for item in items.values() if item.source["dataset"] == name}
        fresh = sorted(own - found.keys(), key=content_hash)
        start = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        found |= {cluster: (start + i) % folds for i, cluster in enumerate(fresh)}
    return found


# --- what the head reads --------------------------------------------------------------------------------------------


def pair_features(
    items: Mapping[str, Item], judgments: Sequence[Judgment], vectors: Vectors, *, texts: bool, critiques: bool
) -> Any:
    """Features of verdicts on pairs, shape [J, D].

    Who judged by which protocol, and whether it chose the output shown first; with `texts` also the instruction and
    how the chosen output differs from the other; with `critiques` what the judge wrote, where it wrote more than a
    verdict. Random projections of the texts' vectors are there once for each judge: what is hard for one judge need
    not be for another.
    """
    sources, judges = (_numbered(f(j) for j in judgments) for f in (source_of, judge_of))
    source_J = np.array([sources[source_of(j)] for j in judgments])
    judge_J = np.array([judges[judge_of(j)] for j in judgments])
    chosen_J = np.array([int(np.argmax(j.scores)) if j.scores else 0 for j in judgments])
    first_J = np.array([j.order is not None and j.order[0] == c for j, c in zip(judgments, chosen_J, strict=True)])
    one_hot = np.eye(len(sources), dtype=np.float32)[source_J]
    blocks = [one_hot, one_hot * first_J[:, None]]
    if texts:
        numbers = _numbered(items)
        item_J = np.array([numbers[j.item] for j in judgments])
        found = [[vectors[content_hash(t)] for t in (i.prompt[0].content, *i.responses)] for i in items.values()]
        vector_I3D = np.array(found, dtype=np.float32)
        length_I2 = np.log([[1 + len(t) for t in i.responses] for i in items.values()])
        asked = vector_I3D[item_J, 0]
        gap = vector_I3D[item_J, 1 + chosen_J] - vector_I3D[item_J, 2 - chosen_J]
        longer = length_I2[item_J, chosen_J] - length_I2[item_J, 1 - chosen_J]
        near = (asked * gap).sum(axis=1)
        blocks += [gap, asked * gap, np.stack([near, longer], axis=1)]
        blocks += [one_hot * near[:, None], one_hot * longer[:, None]]
        project = np.random.default_rng(0).normal(size=(asked.shape[1], PROJECTED)).astype(np.float32)
        blocks += [_each(asked @ project, judge_J, len(judges)), _each(gap @ project, judge_J, len(judges))]
    if critiques:
        width = len(next(iter(vectors.values())))
        nothing = np.zeros(width, dtype=np.float32)
        said = np.array([vectors.get(content_hash(j.text or ""), nothing) for j in judgments], dtype=np.float32)
        chosen, other = (vector_I3D[item_J, which] for which in (1 + chosen_J, 2 - chosen_J))
        nearer = (said * (chosen - other)).sum(axis=1, keepdims=True)
        length = np.log1p([[len((j.text or "").split())] for j in judgments])
        project = np.random.default_rng(1).normal(size=(width, PROJECTED)).astype(np.float32)
        blocks += [said, nearer, length, length * one_hot, _each(said @ project, judge_J, len(judges))]
    return np.concatenate([block.astype(np.float32) for block in blocks], axis=1)


def single_features(
    items: Mapping[str, Item], judgments: Sequence[Judgment], vectors: Vectors, *, critiques: bool
) -> Any:
    """Features of verdicts on single responses: judge and task, each with the verdict, and what the judge wrote."""
    kinds = _numbered(
        (judge_of(j), items[j.item].source["dataset"], bool(j.scores and j.scores[0])) for j in judgments
    )
    kind_J = [kinds[(judge_of(j), items[j.item].source["dataset"], bool(j.scores and j.scores[0]))] for j in judgments]
    blocks = [np.eye(len(kinds), dtype=np.float32)[kind_J]]
    if critiques:
        said = np.array([vectors[content_hash(j.text or "")] for j in judgments], dtype=np.float32)
        verdict = np.array([[1.0 if j.scores and j.scores[0] else -1.0] for j in judgments], dtype=np.float32)
        blocks += [said, said * verdict, np.log1p([[len((j.text or "").split())] for j in judgments])]
    return np.concatenate([block.astype(np.float32) for block in blocks], axis=1)


def source_of(judgment: Judgment) -> str:
    """Judge and protocol."""
    return f"{judgment.model}/{judgment.template}"


def judge_of(judgment: Judgment) -> str:
    """The judge."""
    return str(judgment.model)


def _numbered(names: Any) -> dict[Any, int]:
    return {name: i for i, name in enumerate(sorted(set(names)))} if not isinstance(names, Mapping) else {
        name: i for i, name in enumerate(names)
    }  # fmt: skip


def _each(values_JP: Any, judge_J: Any, judges: int) -> Any:
    """The values in columns of the judgment's judge, zeros in those of the others."""
    found = np.zeros((len(values_JP), judges, values_JP.shape[1]), dtype=np.float32)
    found[np.arange(len(values_JP)), judge_J] = values_JP
    return found.reshape(len(values_JP), -1)


# --- scores from heads that have not seen the item ------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Meta scores of every judgment for each fold f held out: by models that saw neither f nor the judgment's item.

    Attributes:
        meta_FJ: shape [folds, J]; the scores of fold f's own judgments are those that are reported.
        chosen_F: the penalty chosen for each fold, None where there is nothing to choose.
    """

    meta_FJ: Any
    chosen_F: list[float | None]

    def held_out(self, fold_J: Any) -> Any:
        """The score of each judgment by a model that has not seen its item: shape [J]."""
        return self.meta_FJ[fold_J, np.arange(len(fold_J))]


def cross_scores(fit: Callable[[Any], Any], fold_J: Any, folds: int = FOLDS) -> Any:
    """Scores of all pairs of folds left out: shape [folds, J].

    Args:
        fit: logits of all judgments by a model of those that a mask names.
        fold_J: fold of each judgment.
    """
    meta_FJ = np.zeros((folds, len(fold_J)))
    for f, g in itertools.combinations_with_replacement(range(folds), 2):
        logits_J = fit((fold_J != f) & (fold_J != g))
        meta_FJ[f, fold_J == g] = logits_J[fold_J == g]
        meta_FJ[g, fold_J == f] = logits_J[fold_J == f]
    return meta_FJ


def head_scores(features_JD: Any, right_J: Any, fold_J: Any, cache: Path | None = None, say: Any = print) -> Scores:
    """Of linear heads, the penalty chosen for each fold by the loss on the other folds."""
    known_J = ~np.isnan(right_J)
    found = {}
    read = hashlib.sha256(f"{SAMPLE}".encode())  # heads are kept for what they were trained on
    for array in (features_JD, right_J, fold_J):
        read.update(np.ascontiguousarray(array).data)
    for penalty in PENALTIES:
        path = None if cache is None else cache.with_name(f"{cache.name}-{read.hexdigest()[:12]}-{penalty:g}.npy")
        if path is not None and path.exists():
            found[penalty] = np.load(path, allow_pickle=False)
            continue

        def fit(train_J: Any, penalty: float = penalty) -> Any:
            rows_J = np.flatnonzero(train_J & known_J)
            if len(rows_J) > SAMPLE:
                rows_J = np.sort(np.random.default_rng(0).choice(rows_J, SAMPLE, replace=False))
            head = train_head(features_JD[rows_J], right_J[rows_J], l2=penalty)
            say(f"penalty {penalty:g}: loss {head.loss:.4f} on {len(rows_J):,}", flush=True)
            return head.logits(features_JD)

        found[penalty] = cross_scores(fit, fold_J)
        if path is not None:
            np.save(path, found[penalty])
    chosen: list[float | None] = []
    meta_FJ = np.zeros_like(found[PENALTIES[0]])
    for f in range(len(meta_FJ)):
        rows_J = known_J & (fold_J != f)
        best = min(PENALTIES, key=lambda penalty: loss(found[penalty][f, rows_J], right_J[rows_J]))
        chosen.append(best)
        meta_FJ[f] = found[best][f]
    return Scores(meta_FJ, chosen)


def share_scores(kind_J: Any, right_J: Any, fold_J: Any) -> Scores:
    """No text read: the logit of how often verdicts of this kind were right on the training items, one each added."""
    known_J = ~np.isnan(right_J)

    def fit(train_J: Any) -> Any:
        rows_J = train_J & known_J
        count = np.bincount(kind_J[rows_J], minlength=kind_J.max() + 1)
        right = np.bincount(kind_J[rows_J], weights=right_J[rows_J], minlength=kind_J.max() + 1)
        return np.log((right + 1) / (count - right + 1))[kind_J]

    return Scores(cross_scores(fit, fold_J), [None] * FOLDS)


def loss(logits_J: Any, labels_J: Any) -> float:
    """Mean binary cross-entropy in nats."""
    return float((np.logaddexp(0, logits_J) - labels_J * logits_J).mean())


# --- rules ----------------------------------------------------------------------------------------------------------


def rule_credits(panel: Panel, scores: Scores, fold_I: Any, used_J: Any = None) -> tuple[dict[str, Any], list[str]]:
    """What each rule earns on each item, also under "chosen": the rule that was best on the training items.

    Returns:
        credits by rule, and the rule chosen for each fold.
    """
    folds = len(scores.meta_FJ)
    by_fold = {
        name: np.array([panel.credits(rule, scores.meta_FJ[f], used_J) for f in range(folds)])
        for name, rule in RULES.items()
    }
    every_I = np.arange(len(fold_I))
    chosen = [max(RULES, key=lambda name: by_fold[name][f, fold_I != f].mean()) for f in range(folds)]
    found = {name: credit_FI[fold_I, every_I] for name, credit_FI in by_fold.items()}
    found["chosen"] = np.array([by_fold[chosen[f]][f, i] for i, f in enumerate(fold_I)])
    return found, chosen

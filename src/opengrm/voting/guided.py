"""Meta-guided votes: which of the k judgments count, by the meta RM's scores (paper section 4).

The paper keeps the k_meta judgments with the highest meta scores, k_meta = k/2, and sums theirs. What it leaves open:

- k is the number of *valid* judgments of the item: a judgment without scores takes no place. The default k_meta is k/2
  rounded up, so that it is k/2 for even k, (k + 1)/2 for odd k, and 1 for k = 1 (which then is plain sampling).
- Judgments whose meta scores tie at the cut share the places that are left: m places among t tied count m/t each, the
  expected value of a random pick, without its noise.
- A judgment with scores but without a meta score ranks below all that have one: it counts only where those do not fill
  the places. If no judgment has a meta score, all tie and the verdict is that of the plain vote.

Two other rules, alone or with an explicit k_meta: a *threshold* on the logit (0 is "as likely right as wrong"; where
no judgment reaches it the best one counts), and *weights*: a judgment counts sigmoid(meta). With either of them and
no explicit k_meta there is no cut by rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opengrm.judgments import Judgment
from opengrm.verdicts import Verdict
from opengrm.voting.reducers import Reducer, Votes, total_decimals, valid_scores, verdict_of

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Guide:
    """Which judgments count, see the module's text.

    Attributes:
        k_meta: how many of the best count; None is half of the valid ones (all of them with `threshold` or `weights`).
        threshold: least logit that counts; None is no threshold.
        weights: whether a judgment counts sigmoid(meta) instead of 1.

    Raises:
        ValueError: k_meta below 1, or a threshold that is not a number.
    """

    k_meta: int | None = None
    threshold: float | None = None
    weights: bool = False

    def __post_init__(self) -> None:
        if self.k_meta is not None and self.k_meta < 1:
            raise ValueError(f"k_meta is {self.k_meta}, expected at least 1")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise ValueError(f"the threshold is {self.threshold}, expected a finite logit")

    def places(self, valid: Floats) -> Floats:
        """How many judgments count by rank, for each number of valid ones."""
        if self.k_meta is not None:
            return np.full_like(valid, self.k_meta)
        return valid if self.threshold is not None or self.weights else np.ceil(valid / 2)


PAPER = Guide()


class GuidedTotals(NamedTuple):
    """What guided votes come to, for I items and R subsets of their samples.

    Attributes:
        totals_IRN: weighted sums of the scores.
        weight_IR: sums of the weights; 0 without a valid vote.
        used_IR: how many judgments have a weight above 0.
    """

    totals_IRN: Floats
    weight_IR: Floats
    used_IR: Floats


Rule = Reducer | Guide  # how votes become a verdict: a plain reducer, or guided by meta scores


def rule_name(how: Rule) -> str:
    """The rule in a report: "sum", "meta", "meta top 4", "meta from 0 weighted", ..."""
    if not isinstance(how, Guide):
        return how
    top = "" if how.k_meta is None else f" top {how.k_meta}"
    least = "" if how.threshold is None else f" from {how.threshold:g}"
    return f"meta{top}{least}{' weighted' if how.weights else ''}"


def guided_vote(item: str, judgments: Iterable[Judgment], n: int | None = None, guide: Guide = PAPER) -> Verdict:
    """The verdict of an item's judgments, as `reducers.vote` with the sum, over those that the meta RM trusts.

    Args:
        item: id of the item.
        judgments: the judgments asked for, with and without scores, in any order.
        n: number of responses; None takes it from the first judgment with scores.
        guide: the rule.

    Raises:
        BadRow: a judgment has another number of scores.
    """
    asked = sorted(judgments, key=lambda j: j.sample)
    return guided_verdict(
        item,
        valid_scores(item, asked, n),
        [j.meta for j in asked if j.scores is not None],
        guide,
        asked=len(asked),
        prompt_tokens=sum(j.prompt_tokens or 0 for j in asked),
        completion_tokens=sum(j.completion_tokens or 0 for j in asked),
    )


def guided_verdict(
    item: str, votes: Votes, metas: Sequence[float | None], guide: Guide, *, asked: int, prompt_tokens: int = 0,
    completion_tokens: int = 0, extra: dict[str, Any] | None = None,
) -> Verdict:  # fmt: skip
    """The verdict of the scores of valid judgments and their meta scores. Other arguments as in `Verdict`.

    `Verdict.used` counts judgments with a weight above 0: with ties at the cut that may be more than k_meta. The
    confidence is that of the used votes.
    """
    kept = [(w, scores) for w, scores in zip(judgment_weights(metas, guide), votes, strict=True) if w > 0]
    verdict = verdict_of(
        item, [scores if w == 1 else [w * s for s in scores] for w, scores in kept], "sum",
        asked=asked, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, extra=extra,
    )  # fmt: skip
    return replace(verdict, valid=len(votes))


def guided_credit(judgments: Iterable[Judgment], label: float, guide: Guide = PAPER) -> float | None:
    """What the guided vote on a single response earns against its label: as `reducers.single_credit` for a mean.

    Returns:
        None where it decides nothing: without a valid vote, or where label and scores are not all 0 or 1.
    """
    valid = [j for j in judgments if j.scores is not None]
    scores = [j.scores[0] for j in valid if j.scores is not None]
    if not scores or any(s not in (0, 1) for s in (label, *scores)):
        return None
    weights = judgment_weights([j.meta for j in valid], guide)
    return _half_credit(round(sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights), 12), label)


def _half_credit(mean: float, label: float) -> float:
    return 0.5 if mean == 0.5 else float((mean > 0.5) == (label == 1))


def judgment_weights(metas: Sequence[float | None], guide: Guide = PAPER) -> list[float]:
    """How much each valid judgment of one item counts, 0 to 1.

    Args:
        metas: the meta score (logit) of each, None or NaN where there is none.
    """
    if not metas:
        return []
    meta_K = np.array([np.nan if m is None else m for m in metas], dtype=np.float64)
    everyone_K = np.ones((1, len(metas)))
    found: list[float] = guided_weights(meta_K[None], everyone_K > 0, everyone_K, guide)[0, 0].tolist()
    return found


def guided_weights(meta_IK: Floats, valid_IK: Bools, masks_RK: Floats, guide: Guide = PAPER) -> Floats:
    """How much each judgment counts in each subset, 0 to 1: weights_IRK.

    Args:
        meta_IK: meta scores, NaN where there is none.
        valid_IK: whether the judgment has scores.
        masks_RK: 1 where a sample takes part in the subset.
        guide: the rule.
    """
    level_IK = np.where(np.isnan(meta_IK), -np.inf, meta_IK)
    taken_IRK = masks_RK[None] * valid_IK[:, None, :]
    above_IKK = (level_IK[:, :, None] > level_IK[:, None, :]).astype(np.float64)
    level_IKK = (level_IK[:, :, None] == level_IK[:, None, :]).astype(np.float64)
    before_IRK, tied_IRK = taken_IRK @ above_IKK, np.maximum(taken_IRK @ level_IKK, 1)
    places_IR = guide.places(taken_IRK.sum(axis=2))

    def best_IRK(places_IR: Floats) -> Floats:
        return np.asarray(taken_IRK * np.clip((places_IR[:, :, None] - before_IRK) / tied_IRK, 0, 1))

    weights_IRK = best_IRK(places_IR)
    if guide.threshold is not None:
        passing_IRK = weights_IRK * (level_IK >= guide.threshold)[:, None, :]
        weights_IRK = np.where(passing_IRK.any(axis=2, keepdims=True), passing_IRK, best_IRK(np.ones_like(places_IR)))
    if guide.weights:
        weighted_IRK = weights_IRK * sigmoid(level_IK)[:, None, :]
        weights_IRK = np.where(weighted_IRK.any(axis=2, keepdims=True), weighted_IRK, weights_IRK)
    return weights_IRK


def guided_totals(scores_IKN: Floats, meta_IK: Floats, masks_RK: Floats, guide: Guide = PAPER) -> GuidedTotals:
    """`guided_vote` for many items and many subsets of their samples at once, to the digit.

    Args:
        scores_IKN: scores, NaN where the judgment is missing.
        meta_IK: meta scores, NaN where there is none.
        masks_RK: 1 where a sample takes part in the subset.
        guide: the rule.
    """
    weights_IRK = guided_weights(meta_IK, ~np.isnan(scores_IKN[:, :, 0]), masks_RK, guide)
    votes_IKN = np.nan_to_num(scores_IKN)
    largest_I = np.abs(votes_IKN).max(axis=(1, 2), initial=0)
    power_I = np.array([10.0 ** total_decimals(float(largest), scores_IKN.shape[1]) for largest in largest_I])
    totals_IRN = np.rint((weights_IRK @ votes_IKN) * power_I[:, None, None]) / power_I[:, None, None]
    return GuidedTotals(totals_IRN, weights_IRK.sum(axis=2), (weights_IRK > 0).sum(axis=2).astype(np.float64))


def sigmoid(logit: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow; 0 for minus infinity."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logit)))

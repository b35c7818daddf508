"""The cheap meta RM: a linear logit over fixed features of a judgment, where training the encoder would cost too much.

    loss = mean of binary cross-entropy + l2/2 * |weights|^2

the same label and loss as `meta_rm.py` (is this judgment correct?), its minimum found by L-BFGS: the loss is convex,
so there is no learning rate, no order and no seed. Features are scaled by what the training examples show; one that
never varies there counts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opengrm.errors import MissingExtra, UsageError

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """A trained head.

    Attributes:
        weights_D: of the features as they are given.
        bias: of the logit.
        loss: the mean cross-entropy on the examples it was trained on, in nats.
    """

    weights_D: Floats32
    bias: float
    loss: float

    def logits(self, features_JD: Floats32) -> Floats:
        """One logit for each judgment."""
        return np.asarray(features_JD @ self.weights_D + self.bias, dtype=np.float64)


def train_head(features_JD: Floats32, labels_J: Floats, *, l2: float = 1e-3, iterations: int = 60) -> Head:
    """Fit a head.

    Args:
        features_JD: a row for each judgment.
        labels_J: 1 if the judgment is correct, else 0.
        l2: how much large weights cost, for features of variance 1.
        iterations: most steps of L-BFGS.

    Raises:
        UsageError: no examples, all of one label, other labels than 0 and 1, features that are not finite numbers.
        ValueError: another number of labels than of rows, or an l2 below 0.
        MissingExtra: torch is not installed.
    """
    if len(features_JD) != len(labels_J) or not l2 >= 0:
        raise ValueError(f"{len(features_JD)} rows, {len(labels_J)} labels, l2 {l2}: expected as many, and at least 0")
    if not np.isin(labels_J, (0, 1)).all():
        raise UsageError("the labels of a meta RM are 0 and 1")
    bad_J = ~np.isfinite(features_JD).all(axis=1)
    if bad_J.any():
        raise UsageError(
            f"row {int(bad_J.argmax())}: a feature that is not a finite number ({int(bad_J.sum())} such rows)"
        )
    if len(set(labels_J.tolist())) != 2:
        raise UsageError("no judgments to learn from (or all of one label)")
    try:
        import torch
    except ImportError:
        raise MissingExtra("training", "train") from None
    mean_D = features_JD.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread_D = features_JD.std(axis=0, dtype=np.float64).astype(np.float32)
    scale_D = np.divide(1.0, spread_D, out=np.zeros_like(spread_D), where=spread_D > 1e-6)
    x_JD = torch.from_numpy((features_JD - mean_D) * scale_D)
    y_J = torch.from_numpy(labels_J.astype(np.float32))
    weights_D = torch.zeros(x_JD.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_D, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def cross_entropy() -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(x_JD @ weights_D + bias, y_J)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy() + l2 / 2 * weights_D.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        loss = float(cross_entropy())
        weights = weights_D.numpy() * scale_D
    return Head(weights.astype(np.float32), float(bias.detach() - float(mean_D @ weights)), loss)

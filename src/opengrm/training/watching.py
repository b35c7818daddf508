"""What a person sees of a training run: one line a step on the terminal, one JSON object a step in a file.

Imports transformers: import this module only where training starts.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from opengrm.training.resume import cut_metrics

# what TRL calls a number -> what we call it
NAMES = {
    "loss": "loss",
    "reward": "reward",
    "parse_rate": "parse_rate",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "truncated",
    "frac_reward_zero_std": "no_signal",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "num_tokens": "tokens_so_far",
    "seconds/rollout": "rollout_seconds",
}


def step_metrics(logs: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One step's numbers under our names: shares in 0..1, lengths in tokens, times in seconds; None: not known."""
    found: dict[str, Any] = {ours: logs.get(theirs) for theirs, ours in NAMES.items()}
    for name, value in found.items():
        if isinstance(value, str):
            found[name] = float(value)
    # Rewards are +1 and -1, so the share of correct judgments follows from their mean.
    found["correct"] = None if found["reward"] is None else (found["reward"] + 1) / 2
    found["seconds"] = seconds
    return found


def step_line(step: int, steps: int, row: dict[str, Any]) -> str:
    """A step for people."""

    def show(name: str, form: str) -> str:
        value = row.get(name)
        return "-" if value is None else format(value, form)

    return (
        f"step {step}/{steps}  reward {show('reward', '+.3f')}  correct {show('correct', '.1%')}  "
        f"parsed {show('parse_rate', '.1%')}  kl {show('kl', '.4f')}  length {show('completion_tokens', '.0f')}  "
        f"no signal {show('no_signal', '.0%')}  {show('tokens', ',.0f')} tokens  {show('seconds', '.2f')} s"
    )


class MetricsCallback(TrainerCallback):
    """Writes both. Lines of steps that a killed run has to repeat are taken out of the file when it goes on.

    Args:
        path: the JSON Lines file.
        steps: how many there will be.
        say: takes the lines for people.
    """

    def __init__(self, path: Path, steps: int, say: Callable[[str], None]) -> None:
        self.path = path
        self.steps = steps
        self.say = say
        self.tokens = 0.0
        self.began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        done = cut_metrics(self.path, state.global_step)
        self.tokens = (json.loads(done[-1])["tokens_so_far"] or 0.0) if done else 0.0
        self.began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "reward" not in logs:
            return
        now = time.perf_counter()
        row = {"step": state.global_step, **step_metrics(logs, now - self.began)}
        self.began = now
        so_far = row["tokens_so_far"] or 0.0
        row["tokens"], self.tokens = so_far - self.tokens, so_far
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.say(step_line(state.global_step, self.steps, row))


def quiet() -> None:
    """Keep the libraries' bars and notices out of the way of our own lines."""
    import datasets
    import transformers

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)

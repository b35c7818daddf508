"""Seconds per RL step: this project's trainer against plain TRL with its default generation.

    python benchmarks/rl_step.py           # writes results/rl-step.json, .md and .png
    python benchmarks/rl_step.py --quick   # a few steps, to see that it runs

Both train the same model from the same weights on the same rows with the same settings (`training/rl.py`), in one
process, one step of the one and one step of the other in turn, so that whatever else the machine does hits both. The
sampled texts differ (each draws its own), the length of what is sampled is reported beside the times. CPU seconds of
the process stand beside wall-clock seconds: they do not see other programs.

Plain TRL is `trl.GRPOTrainer` as a user would run it: its generation, its forward, gradient checkpointing off (TRL
turns it on by default, which would cost it another 20 to 30 %).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NAMES = ("opengrm", "trl")


class Baton:
    """Two trainers in two threads; the one that holds the baton runs one step and hands it on."""

    def __init__(self) -> None:
        self.turn = NAMES[0]
        self.done: set[str] = set()
        self.condition = threading.Condition()

    def wait(self, name: str) -> None:
        with self.condition:
            self.condition.wait_for(lambda: self.turn == name)

    def hand_on(self, name: str, *, done: bool = False) -> None:
        with self.condition:
            if done:
                self.done.add(name)
            other = next(n for n in NAMES if n != name)
            self.turn = name if other in self.done else other
            self.condition.notify_all()


def stopwatch(name: str, baton: Baton, rows: list[dict[str, Any]]) -> Any:
    """A callback that times each step from the moment the baton comes until the step is logged."""
    from transformers import TrainerCallback

    from opengrm.training.watching import step_metrics

    class Stopwatch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            baton.wait(name)
            self.start()

        def start(self) -> None:
            self.wall, self.cpu = time.perf_counter(), time.process_time()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "reward" not in logs:
                return
            wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
            row = {"trainer": name, "step": state.global_step, **step_metrics(logs, wall), "cpu_seconds": cpu}
            rows.append(row)
            print(
                f"{name:8} step {state.global_step:3}  {wall:7.2f} s  cpu {cpu:7.2f} s  reward {row['reward']:+.3f}  "
                f"length {row['completion_tokens']:.0f}",
                flush=True,
            )
            if state.global_step < state.max_steps:  # the last step hands on when the thread ends
                baton.hand_on(name)
                baton.wait(name)
            self.start()

    return Stopwatch()


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import GRPOTrainer

    from opengrm.engines.base import Sampling
    from opengrm.engines.chat import ChatTokenizer
    from opengrm.engines.checkpoints import find_model
    from opengrm.templates import get_template
    from opengrm.templates.forms import forms_of
    from opengrm.training.grpo import GroupTrainer
    from opengrm.training.rewards import outcome_reward
    from opengrm.training.rl import Settings, grpo_config, training_rows
    from opengrm.training.rollouts import own_rollouts
    from opengrm.training.watching import quiet
    from opengrm.worlds.rubric import generate_items

    quiet()
    folder, _ = find_model(args.model)
    settings = Settings(
        steps=args.steps, batch=args.batch, learning_rate=args.learning_rate, max_tokens=args.max_tokens,
        warmup_steps=0, micro_batch=args.micro_batch, save_every=10**6, beta=args.beta,
    )  # fmt: skip
    items = list(generate_items(args.steps * settings.prompts, seed=args.seed, split="train"))
    forms = forms_of(get_template("compact"))
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    chat = ChatTokenizer(tokenizer)
    rows: list[dict[str, Any]] = []
    baton, failures = Baton(), []

    def build(name: str, output: str) -> Any:
        common = {
            "model": AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
            "reward_funcs": outcome_reward(items, forms, lambda ids: (chat.decode(ids), False)),
            "args": grpo_config(settings, Path(output)),
            "train_dataset": training_rows(items, forms, settings),
            "processing_class": tokenizer,
            "callbacks": [stopwatch(name, baton, rows)],
        }
        if name == "trl":
            trainer = GRPOTrainer(**common)
        else:
            sampling = Sampling(settings.temperature, settings.top_p, settings.max_tokens, logprobs=True)
            rollout = own_rollouts(chat, sampling, settings.seed, settings.sample_batch)
            trainer = GroupTrainer(**common, chat=chat, rollout_func=rollout)
        trainer.remove_callback(PrinterCallback)
        return trainer

    def train(name: str, trainer: Any) -> None:
        try:
            trainer.train()
        except BaseException as error:
            failures.append(error)
        finally:
            baton.hand_on(name, done=True)

    with tempfile.TemporaryDirectory() as output:
        trainers = {name: build(name, f"{output}/{name}") for name in NAMES}
        threads = [threading.Thread(target=train, args=pair) for pair in trainers.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return rows


def summary(rows: list[dict[str, Any]], skip: int) -> dict[str, float]:
    """Medians over the steps after the first `skip`; ratios are plain TRL over ours."""
    found: dict[str, float] = {}
    for name in NAMES:
        own = [r for r in rows if r["trainer"] == name and r["step"] > skip]
        for measure in ("seconds", "cpu_seconds", "completion_tokens", "reward"):
            found[f"{name}_{measure}"] = statistics.median(r[measure] for r in own)
    found["ratio_trl"] = found["trl_seconds"] / found["opengrm_seconds"]
    found["ratio_trl_cpu"] = found["trl_cpu_seconds"] / found["opengrm_cpu_seconds"]
    return found


def picture(path: Path, rows: list[dict[str, Any]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    titles = {"seconds": "seconds a step", "loss": "loss", "reward": "reward", "kl": "KL to the start"}
    for axes, (measure, title) in zip(figure.subplots(1, 4), titles.items(), strict=True):
        for name in NAMES:
            own = [r for r in rows if r["trainer"] == name]
            axes.plot([r["step"] for r in own], [r[measure] for r in own], label=name)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def page(path: Path, rows: list[dict[str, Any]], found: dict[str, float], args: argparse.Namespace) -> None:
    lines = [
        "# Seconds per RL step",
        "",
        f"`python benchmarks/rl_step.py` : {args.batch} judgments a step in groups of 4, micro-batches of "
        f"{args.micro_batch or args.batch}, beta {args.beta}, {args.steps} steps of each in turn, RubricWorld pairs.",
        "",
        "| trainer | seconds (median) | CPU seconds | tokens a judgment | reward |",
        "|---|---|---|---|---|",
    ]
    for name in NAMES:
        numbers = [found[f"{name}_{m}"] for m in ("seconds", "cpu_seconds", "completion_tokens", "reward")]
        lines.append("| {} | {:.2f} | {:.2f} | {:.0f} | {:+.3f} |".format(name, *numbers))
    lines += [
        "",
        f"Plain TRL takes {found['ratio_trl']:.2f} times as long (CPU seconds: {found['ratio_trl_cpu']:.2f}).",
        "",
        "![curves](rl-step.png)",
        "",
        "| step | " + " | ".join(f"{n} {m}" for n in NAMES for m in ("loss", "reward", "kl")) + " |",
        "|" + "---|" * 7,
    ]
    by = {(r["trainer"], r["step"]): r for r in rows}
    for step in range(1, args.steps + 1):
        cells = [f"{by[name, step][m]:.4f}" for name in NAMES for m in ("loss", "reward", "kl")]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano-base")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=192, help="judgments a step, in groups of 4")
    parser.add_argument("--micro-batch", type=int, help="judgments of one forward and backward pass; default: all")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--beta", type=float, default=0.08)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="4 steps, nothing is compared with anything quoted")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "rl-step.json")
    args = parser.parse_args()
    if args.quick:  # nothing to quote, so nothing to keep
        args.steps, args.output = 4, Path(tempfile.mkdtemp()) / "rl-step.json"
    from opengrm.reports.results import write_result

    rows = run(args)
    found = summary(rows, skip=1)
    write_result(args.output, headline=found, rows=rows)
    picture(args.output.with_suffix(".png"), rows)
    page(args.output.with_suffix(".md"), rows, found, args)
    print({name: round(value, 3) for name, value in found.items()})


if __name__ == "__main__":
    main()

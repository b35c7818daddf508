"""Scoring responses with a scalar model: ours beside plain batches, in one run.

    python benchmarks/bt_scoring.py        # writes results/bt-scoring.json, some ten minutes
    python benchmarks/bt_scoring.py --quick

Items have a long conversation and 4 to 8 responses, as in best-of-n selection and in RL. Three ways score all of
them, in turn for several rounds:

    plain       transformers as its documentation has it: conversations as they come, in batches, padded
    sorted      our classifier without shared prompts: batches by length
    opengrm     our classifier: prompts of an item's responses are read once (one packed row a batch)

The model is a random Qwen3 (what it computes does not matter for time) with the embedded models' tokenizer, or
`--model`. The numbers quoted are medians of the rounds; `max_difference` is the largest difference of a score to plain
scoring, before rounding; `tokens` are the conversations' own, for the plain way with padding.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WAYS = ("plain", "sorted", "opengrm")


def make_items(count: int, prompt_words: int, seed: int) -> list[Any]:
    """Conversations of several turns with 4 to 8 responses, of RubricWorld's English."""
    from opengrm.items import Item, Message
    from opengrm.worlds.rubric import generate_items

    rng = random.Random(seed)
    pool = list(generate_items(count * 4, seed=seed, n=6))
    texts = [response for item in pool for response in item.responses]
    items = []
    for number in range(count):
        turns: list[Message] = []
        wanted = rng.uniform(0.5, 1.5) * prompt_words
        while sum(len(turn.content.split()) for turn in turns) < wanted:
            asked = rng.choice(pool).prompt[0].content
            turns += [Message("user", asked), Message("assistant", " ".join(rng.sample(texts, 3)))]
        turns.append(Message("user", rng.choice(pool).prompt[0].content))
        responses = tuple(" ".join(rng.sample(texts, rng.randint(2, 6))) for _ in range(rng.randint(4, 8)))
        items.append(Item(tuple(turns), responses, id=str(number)))
    return items


def make_model(folder: Path, hidden: int, layers: int) -> Path:
    """A random Qwen3 classifier with the embedded models' tokenizer."""
    import torch
    import transformers

    from opengrm.engines.checkpoints import embedded_folder

    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_folder("nano-base"))
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=hidden * 5 // 2, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=max(hidden // 128, 1), head_dim=64,
        max_position_embeddings=8192, num_labels=1, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen3ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_scorer(folder: str | Path, batch: int) -> Callable[[Sequence[Any]], tuple[list[float], int]]:
    """The conversations in batches as they come; also how many token places were computed."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "right"
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def score(items: Sequence[Any]) -> tuple[list[float], int]:
        found: list[float] = []
        places = 0
        texts = [
            tokenizer.apply_chat_template(
                [*(m.to_json() for m in item.prompt), {"role": "assistant", "content": response}], tokenize=False
            )
            for item in items
            for response in item.responses
        ]
        for start in range(0, len(texts), batch):
            part = tokenizer(texts[start : start + batch], padding=True, return_tensors="pt", add_special_tokens=False)
            places += part["input_ids"].numel()
            with torch.inference_mode():
                found += model(**part).logits[:, 0].tolist()
        return found, places

    return score


def own_scorer(folder: str | Path, batch: int, share: bool) -> Callable[[Sequence[Any]], tuple[list[float], int]]:
    from opengrm.engines import classifier
    from opengrm.judges.bradley_terry import BradleyTerry

    classifier._DECIMALS = 12  # scores are compared before rounding
    reader = classifier.Classifier(folder, max_batch=batch, share_prompts=share, device="cpu")

    def score(items: Sequence[Any]) -> tuple[list[float], int]:
        found = [judgment for _, (judgment,) in BradleyTerry(reader).judge(items, 1)]
        if any(judgment.scores is None for judgment in found):
            raise SystemExit("an item did not fit: choose a smaller --prompt-words")
        tokens = sum(judgment.prompt_tokens or 0 for judgment in found)
        return [score for judgment in found for score in judgment.scores or ()], tokens

    return score


def run(folder: str | Path, items: Sequence[Any], batch: int, rounds: int) -> list[dict[str, Any]]:
    scorers = {
        "plain": plain_scorer(folder, batch),
        "sorted": own_scorer(folder, batch, share=False),
        "opengrm": own_scorer(folder, batch, share=True),
    }
    rows: list[dict[str, Any]] = []
    for scorer in scorers.values():
        scorer(items[:2])  # warm
    for number in range(rounds):
        wanted: list[float] = []
        for name in WAYS:
            start, cpu = time.perf_counter(), time.process_time()
            scores, tokens = scorers[name](items)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            wanted = wanted or scores
            rows.append(
                {
                    "way": name, "round": number + 1, "items": len(items), "responses": len(scores),
                    "seconds": seconds, "cpu_seconds": cpu, "responses_per_second": len(scores) / seconds,
                    "tokens": tokens,
                    "max_difference": max(abs(a - b) for a, b in zip(scores, wanted, strict=True)),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians; ratios are another way's time over ours."""
    found: dict[str, float] = {}
    for name in WAYS:
        own = [row for row in rows if row["way"] == name]
        for measure in ("seconds", "cpu_seconds", "responses_per_second"):
            found[f"{name}_{measure}"] = statistics.median(row[measure] for row in own)
    for name in WAYS[:2]:
        found[f"ratio_{name}"] = found[f"{name}_seconds"] / found["opengrm_seconds"]
        found[f"ratio_{name}_cpu"] = found[f"{name}_cpu_seconds"] / found["opengrm_cpu_seconds"]
    found["max_difference"] = max(row["max_difference"] for row in rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a classifier's folder; default: a random Qwen3")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--prompt-words", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32, help="most conversations in a batch, for each way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a small model and few items; nothing is quoted of it")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bt-scoring.json")
    args = parser.parse_args()
    if args.quick:
        args.hidden, args.layers, args.items, args.rounds, args.prompt_words = 128, 2, 6, 2, 100
    from opengrm.reports.results import write_result

    items = make_items(args.items, args.prompt_words, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or make_model(Path(folder), args.hidden, args.layers)
        rows = run(model, items, args.batch, args.rounds)
    found = summary(rows)
    shape = {"hidden": args.hidden, "layers": args.layers, "batch": args.batch, "model": args.model or "random Qwen3"}
    write_result(args.output, headline=found, rows=rows, notes=shape)
    print({name: round(value, 6) for name, value in found.items()})


if __name__ == "__main__":
    main()

"""RewardBench's own runner on a Bradley-Terry model of ours, row by row beside our own scores.

    python3 -m venv rb && rb/bin/pip install "torch>=2.6" "setuptools<81" rewardbench==0.1.4
    python benchmarks/rewardbench_runner.py bt/model rewardbench.jsonl --python rb/bin/python

The package pins transformers 4.51 (and imports pkg_resources, which setuptools has dropped), so it runs in an
environment of its own, whose interpreter `--python` names. Rows have RewardBench's columns (`prompt`, `chosen`,
`rejected`). Its runner is called as its users call it (`rewardbench --load_json --not_quantized ...`); where there is
no GPU its pipeline, which moves every batch to "cuda", is told "cpu" instead, and that is all that is changed. It
scores in float32, by default one row a batch: it pads on the left, and we do not pad at all.

Written are the largest and mean difference of the scores, the accuracy of both, and on how many rows they name another
winner. Rows that are longer than the model's context are left out and counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Runs in the other environment: the package's entry point, with its device where there is one.
RUNNER = """
import torch, transformers
if not torch.cuda.is_available():
    move = transformers.BatchEncoding.to
    transformers.BatchEncoding.to = lambda self, device: move(self, "cpu" if device == "cuda" else device)
from rewardbench.rewardbench import main
main()
"""


def read(path: Path, reader: Any, limit: int | None) -> tuple[list[Any], int]:
    """The items that fit, and how many do not."""
    from opengrm.judges.bradley_terry import answered
    from opengrm.reading import read_items

    items: list[Any] = []
    too_long = 0
    for item in read_items(path):
        if limit is not None and len(items) == limit:
            break
        if all(reader.fits(answered(item.prompt, response)) for response in item.responses):
            items.append(item)
        else:
            too_long += 1
    return items, too_long


def theirs(items: Sequence[Any], model: Path, python: str, batch: int) -> tuple[list[tuple[float, float]], float]:
    """Scores of the chosen and the rejected response by RewardBench's runner, and the accuracy that it says."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {
                side: [*(m.to_json() for m in item.prompt), {"role": "assistant", "content": response}]
                for side, response in zip(("chosen", "rejected"), item.responses, strict=True)
            }
            for item in items
        ]
        (Path(folder) / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        # Its result files are named by the model's path: a link keeps them inside the folder.
        (Path(folder) / "model").symlink_to(model.resolve(), target_is_directory=True)
        words = [
            "--model", "model", "--dataset", "rows.json", "--load_json", "--not_quantized", "--torch_dtype", "float32",
            "--batch_size", str(batch), "--output_dir", "out/", "--save_all",
        ]  # fmt: skip
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "HF_HOME": f"{folder}/hub"}
        env.pop("PYTHONPATH", None)
        done = subprocess.run([python, "-c", RUNNER, *words], cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"RewardBench's runner failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        lines = (Path(folder) / "out" / "model_all.jsonl").read_text(encoding="utf-8").splitlines()
        accuracy = json.loads((Path(folder) / "out" / "model.json").read_text(encoding="utf-8"))["accuracy"]

    def number(value: Any) -> float:
        return float(value[0] if isinstance(value, list) else value)

    return [(number(row["chosen"]), number(row["rejected"])) for row in map(json.loads, lines)], float(accuracy)


def versions(python: str) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({n: m.version(n) for n in ('rewardbench', 'transformers', 'torch', 'tokenizers')}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="what opengrm train bt wrote: OUTPUT/model")
    parser.add_argument("rows", type=Path, help="RewardBench rows: JSON Lines (.gz, .zst) or Parquet")
    parser.add_argument("--python", required=True, help="interpreter of the environment with rewardbench")
    parser.add_argument("--limit", type=int, help="first rows only")
    parser.add_argument("--batch", type=int, default=1, help="of RewardBench's runner")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "rewardbench-runner.json")
    args = parser.parse_args()
    from opengrm.engines import classifier
    from opengrm.judges.bradley_terry import BradleyTerry
    from opengrm.reports.results import write_result

    with classifier.Classifier(args.model, device="cpu", dtype="float32") as reader:
        items, too_long = read(args.rows, reader, args.limit)
        start = time.perf_counter()
        ours = [judgment.scores for _, (judgment,) in BradleyTerry(reader).judge(items, 1)]
        own_seconds = time.perf_counter() - start
    start = time.perf_counter()
    found, said = theirs(items, args.model, str(Path(args.python).absolute()), args.batch)
    seconds = time.perf_counter() - start
    rows = [
        {"item": item.id, "chosen": own[0], "rejected": own[1], "their_chosen": their[0], "their_rejected": their[1]}
        for item, own, their in zip(items, ours, found, strict=True)
        if own is not None
    ]
    differences = [abs(row[side] - row[f"their_{side}"]) for row in rows for side in ("chosen", "rejected")]
    # As the runner counts: a tie is not correct.
    accuracy = sum(row["chosen"] > row["rejected"] for row in rows) / len(rows)
    other = sum((r["chosen"] > r["rejected"]) != (r["their_chosen"] > r["their_rejected"]) for r in rows)
    headline = {
        "rows": len(rows), "too_long": too_long, "accuracy": accuracy, "their_accuracy": said,
        "other_winner": other, "max_difference": max(differences),
        "mean_difference": sum(differences) / len(differences), "seconds": own_seconds, "their_seconds": seconds,
    }  # fmt: skip
    notes = {"their_environment": versions(args.python), "scores": "ours are rounded to 4 decimals"}
    limit = "" if args.limit is None else f" --limit {args.limit}"
    # By names alone: where the model, the rows and the environment lie is nobody's business.
    command = (
        f"python benchmarks/rewardbench_runner.py MODEL {args.rows.name} --python PYTHON{limit} --batch {args.batch}"
    )
    write_result(args.output, headline=headline, rows=rows, notes=notes, command=command)
    print(headline, file=sys.stderr)


if __name__ == "__main__":
    main()

"""Killed at random moments and resumed, a run ends with the export of an uninterrupted one.

benchmarks/resume.py does the same with the embedded model, twenty kills and several batch sizes.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

from fake_server import FakeServer

from opengrm.ledger import Ledger


def count(path: Path) -> int:
    if not path.exists():
        return 0
    with Ledger(path, create=False) as ledger:
        return len(ledger)


def test_killed_and_resumed_in_another_order(tmp_path: Path) -> None:
    items, rng = tmp_path / "items.jsonl", random.Random(0)
    rows = [{"id": f"q{i}", "prompt": f"Query {i}", "responses": ["a", "b", "c"], "best": i % 3} for i in range(60)]
    exports = []
    for name, kills, order in (("whole", 0, rows), ("killed", 5, rng.sample(rows, len(rows)))):
        items.write_text("".join(json.dumps(r) + "\n" for r in order))
        ledger, out = tmp_path / f"{name}.db", tmp_path / f"{name}.jsonl"
        with FakeServer(latency=0.01, keep=False) as server:
            words = [sys.executable, "-m", "opengrm", "judge", str(items), "-o", str(tmp_path / "v.jsonl"), "-q",
                     "--ledger", str(ledger), "--engine", "openai", "--base-url", server.base_url, "--model", "m",
                     "-k", "6", "--concurrency", "2"]  # fmt: skip
            for _ in range(kills):
                process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
                goal = count(ledger) + rng.randint(1, 50)
                while count(ledger) < goal and process.poll() is None:
                    time.sleep(0.001)
                process.kill()
                process.wait()
            before = count(ledger)
            server.asked = 0
            subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
            assert server.asked == 360 - before, "a resumed run asks only for what is not in the ledger"
            assert (before > 0) == (kills > 0)
        subprocess.run([sys.executable, "-m", "opengrm", "ledger", "export", str(ledger), "-o", str(out)],
                       check=True, stderr=subprocess.DEVNULL)  # fmt: skip
        exports.append(out.read_bytes())
    assert exports[0] == exports[1]
    assert len(exports[0].splitlines()) == 360

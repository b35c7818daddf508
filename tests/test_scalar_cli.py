"""`opengrm train bt` and `train pair`, and `judge --judge bt|pair`: end to end, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tiny_models import build_checkpoint  # noqa: E402

from opengrm.cli.judges import Options, choose_judge  # noqa: E402
from opengrm.cli.main import app  # noqa: E402
from opengrm.errors import BadRow, EngineError, UsageError  # noqa: E402
from opengrm.items import Item, Message  # noqa: E402
from opengrm.reading import write_items  # noqa: E402


def call(words: str) -> Any:
    done = CliRunner().invoke(app, words.split())
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.mark.parametrize("kind", ["bt", "pair"])
def test_train_and_judge(tmp_path: Path, kind: str) -> None:
    base = build_checkpoint(tmp_path / "base")
    # What a base says that it was is not what it becomes.
    config = json.loads((base / "config.json").read_text())
    was = {"truncates": True, "truncates_to": 3, "meta_template": "meta"}
    (base / "config.json").write_text(json.dumps({**config, **was}))
    items = [Item((Message("user", f"Q{i}"),), ("no", "yes", "no no"), best=1, id=f"q{i}") for i in range(12)]
    write_items(tmp_path / "items.jsonl", items)
    small = "--learning-rate 3e-3 --batch 4 --micro-batch 4 --steps 6 --eval-every 3 --save-every 3"
    small += " --dev-share 0.3 -q --json"
    trained = call(f"train {kind} {tmp_path}/items.jsonl -o {tmp_path}/rm --model {base} {small}")
    report = json.loads(trained.stdout)
    assert report["judge"] == kind
    assert (report["examples"], report["items"], report["skipped_rows"]) == (24, 12, 0)
    again = call(f"train {kind} {tmp_path}/items.jsonl -o {tmp_path}/rm --model {base} {small}")
    assert json.loads(again.stdout) == report
    assert not was.keys() & json.loads((tmp_path / "rm" / "model" / "config.json").read_text()).keys()

    judge = f"judge {tmp_path}/items.jsonl --judge {kind} --model {tmp_path}/rm/model -o {tmp_path}/v.jsonl -q --json"
    first = json.loads(call(judge).stdout)
    assert (first["judgments"], first["judgments_new"], first["k"], first["missing"]) == (12, 12, 1, {})
    assert first["completion_tokens"] == 0
    assert first["prompt_tokens"] > 0
    verdicts = (tmp_path / "v.jsonl").read_bytes()
    second = json.loads(call(judge).stdout)
    assert second["judgments_new"] == 0
    assert (tmp_path / "v.jsonl").read_bytes() == verdicts
    by_hand = call(f"judge --judge {kind} --model {tmp_path}/rm/model --prompt Q --response yes --response no").stdout
    assert "scores: response 1:" in by_hand
    assert "principles" not in by_hand
    # One is not the other, and neither is a meta RM's judge.
    if kind == "pair":
        with pytest.raises(EngineError, match="this is a PairRM, not a Bradley-Terry model"):
            call(judge.replace("--judge pair", "--judge bt"))
    else:
        with pytest.raises(EngineError, match=r"config\.json has no pair_template"):
            call(judge.replace("--judge bt", "--judge pair"))


def test_what_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    write_items(
        tmp_path / "items.jsonl", [Item((Message("user", "Q"),), ("a", "b")), Item((Message("user", "R"),), ("a",))]
    )
    words = f"judge {tmp_path}/items.jsonl --model nowhere/at-all -o {tmp_path}/v.jsonl"
    with pytest.raises(BadRow, match=r"items\.jsonl:2: judge pair: judge pair takes items of 2 or more responses"):
        call(f"{words} --judge pair")
    for option in ("--temperature 1", "--template grm", "--top-p 0.9", "--max-tokens 5", "--orders fixed",
                   "--engine vllm", "--base-url http://127.0.0.1:1", "--timeout 5", "--extra-body {}"):  # fmt: skip
        with pytest.raises(UsageError, match=f"{option.split()[0]}: for judges that write text; judge bt reads"):
            call(f"{words} --judge bt {option}")
    with pytest.raises(UsageError, match="gives the same scores every time"):
        call(f"{words} --judge bt -k 4")
    with pytest.raises(UsageError, match="does not show what --reference gives"):
        call("judge --judge bt --model nowhere --prompt Q --response a --reference R")
    with pytest.raises(EngineError, match="opengrm train meta, bt or pair makes one"):
        call("judge --judge bt --model nano --prompt Q --response a")
    with pytest.raises(EngineError, match="this is a meta RM, not a Bradley-Terry model: use it with --meta"):
        call("judge --judge bt --model nano-meta --prompt Q --response a")


def test_the_engines_options_that_apply() -> None:
    given: dict[str, Any] = {"kind": "transformers", "base_urls": [], "device": "cpu", "dtype": "float32", "batch": 3}
    for name in ("bt", "pair"):
        chosen = choose_judge(name, Options("nowhere", engine=given))  # type: ignore[arg-type]
        assert chosen.paradigm.name == name
        assert len(chosen.shown(Item((Message("user", "Q"),), ("a", "b")))) == 3


def test_bad_settings_are_told(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text("")
    with pytest.raises(UsageError, match="held-out share"):
        call(f"train bt {tmp_path}/items.jsonl -o {tmp_path}/bt --model nano-base --dev-share 1")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Q"}\n')
    with pytest.raises(BadRow, match=r"bad\.jsonl:1"):
        call(f"train pair {tmp_path}/bad.jsonl -o {tmp_path}/pair --model nano-base")

"""The whole of SPCT: what a configuration may say, and runs on RubricWorld, uninterrupted and killed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("pydantic")

from opengrm.errors import UsageError  # noqa: E402
from opengrm.jsonl import write_rows  # noqa: E402
from opengrm.ledger import Ledger  # noqa: E402
from opengrm.training import spct  # noqa: E402
from opengrm.training.spct import STAGES, Stage, is_launched, run  # noqa: E402
from opengrm.training.spct_config import Config, Data, World, read_config  # noqa: E402

TINY = """
base = "nano-base"
template = "compact"
[data]
rft = { count = 24, responses = "mixed", seed = 1 }
rl = { count = 20, seed = 2 }
instructions = { count = 16, tasks = ["check"] }
[data.test]
pairs = { count = 12, split = "test" }
[rft]
temperature = 1.0
max_tokens = 96
instruction_share = 0.3
sft = { learning_rate = 1e-4, batch = 8, micro_batch = 8, steps = 2, save_every = 1 }
[rl]
grpo = { steps = 2, batch = 16, learning_rate = 1e-4, warmup_steps = 0, max_tokens = 96, save_every = 1 }
[meta]
fresh = 1
train = { learning_rate = 1e-3, batch = 16, micro_batch = 16, steps = 2, eval_every = 2, save_every = 1 }
[evaluation]
k = 2
temperature = 1.0
max_tokens = 96
"""
LEDGERS = (
    "rft/collect.ledger.db",
    "meta/fresh.ledger.db",
    *(f"evaluation/{m}.ledger.db" for m in ("base", "rft", "rl")),
)


def config_file(folder: Path, text: str = TINY) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- the file ---


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("k = 2\n", "k = 2\nkk = 3\n", "evaluation.kk: "),
        ('base = "nano-base"', 'bases = "nano-base"', "base: "),
        ("batch = 16, learning_rate = 1e-4,", 'batch = "many", learning_rate = 1e-4,', "rl.grpo.batch: "),
        ("batch = 16, learning_rate = 1e-4,", "batch = 18, learning_rate = 1e-4,", "batch is 18"),
        ("count = 20, seed = 2", "count = 20, seeds = 2", "data.rl"),
        ("count = 20, seed = 2", "seed = 2", "data.rl.count: "),
        ('split = "test"', 'split = "xx"', "data.test.pairs.split: "),
        ("[evaluation]", "[evaluation]\ntemperature_ = 1.0", "evaluation.temperature_: "),
        ("k = 2\n", "k = 2\nk_meta = [0]\n", "evaluation: k_meta is"),
        ("[rft]\n", "[rft]\nn_rft = 1\n", "rft: n_rft is 1"),
        ("[rft]\ntemperature = 1.0", "[rft]\ntemperature = nan", "rft: temperature is nan"),
        ("[rl]\n", "[rl]\nreference_temperature = -1.0\n", "rl: temperature is"),
        ("fresh = 1", "fresh = -1", "meta: fresh is"),
        ("[meta]\n", '[meta]\ntemplate = "metta"\n', "meta.template: "),
        ("[evaluation]", '[engine]\nkind = "openai"\n[evaluation]', "engine.kind: "),
        ("[evaluation]", "[engine]\noptions = { a = 1 }\n[evaluation]", "engine: options are arguments of vllm.LLM"),
        ('template = "compact"', 'template = "compct"', "template: no template 'compct'"),
        ("[evaluation]", '[launch]\ntune = "a \'b"\n[evaluation]', "launch tune: "),
        ("instructions = { count = 16", "instructions = { count = 0", "data.instructions: count is 0"),
        ("[evaluation]", '[launch]\ncollect = "torchrun"\n[evaluation]', "launch collect: expected tune, rl, meta"),
        ("[data.test]\npairs = { count = 12, split = \"test\" }", "[data.test]", "data.test is empty"),
        ("[data.test]\n", '[data.test]\nrl = "a.jsonl"\n', "data.test.rl: choose"),
        ("[data.test]\n", '[data.test]\n"../x" = "a.jsonl"\n', "data.test.../x: choose"),
        ("k = 2\n", 'k = 2\nmodels = ["sft"]\n', "sft: expected base, rft or rl"),
        ("[meta]", "[meta", "tiny.toml: "),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_with_its_place(tmp_path: Path, before: str, after: str, told: str) -> None:
    path = config_file(tmp_path, TINY.replace(before, after))
    with pytest.raises(UsageError) as caught:
        read_config(path)
    assert str(caught.value).startswith(str(path))
    assert told in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.toml: No such file"):
        read_config(tmp_path / "gone.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"bytes\.toml"):
        read_config(tmp_path / "bytes.toml")


def test_paths_of_data_are_meant_from_the_files_folder(tmp_path: Path) -> None:
    text = TINY.replace("{ count = 20, seed = 2 }", '"items.jsonl"')
    config = read_config(config_file(tmp_path, text), seed=7)
    assert config.data.rl == str(tmp_path / "items.jsonl")
    assert config.data.rft == World(24, "mixed", seed=1)
    assert config.seed == 7


# --- what a run refuses ---


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"count": 0}, "data rl: count is 0"), ({"count": 2, "responses": "6-2"}, "data rl: n is"),
        ({"count": 2, "responses": "many"}, "data rl: n is"), ({"count": 2, "difficulty": 2.0}, "data rl: difficulty"),
    ],
)  # fmt: skip
def test_a_world_that_cannot_be_made_is_refused(tmp_path: Path, values: dict[str, Any], told: str) -> None:
    config = read_config(config_file(tmp_path))
    config = replace(config, data=replace(config.data, rl=World(**values)))
    with pytest.raises(UsageError, match=told):
        run(config, tmp_path / "run", stages=["data"], say=lambda line: None)


def row(text: str) -> dict[str, Any]:
    return {"prompt": text, "responses": ["a", "b"], "best": 0}


def test_held_out_conversations_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    for name, texts in (("rft", ["one", "two"]), ("rl", ["three"]), ("test", ["four", " TWO "])):
        write_rows(tmp_path / f"{name}.jsonl", map(row, texts))
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("rft", "rl", "test")}
    config = replace(read_config(config_file(tmp_path)), data=Data(paths["rft"], paths["rl"], {"real": paths["test"]}))
    with pytest.raises(UsageError, match=r"data\.rft: 1 conversations are also held out, 1 of 2 of those"):
        run(config, tmp_path / "run", stages=["data"])
    allowed = replace(config, data=replace(config.data, allow_overlap=True))
    run(allowed, tmp_path / "other", stages=["data"])
    assert "data" in record(tmp_path / "other")["stages"]


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    config = read_config(config_file(tmp_path))
    run(config, tmp_path / "run", stages=["data"])
    other = replace(config, rl=replace(config.rl, grpo=replace(config.rl.grpo, beta=0.01)), seed=3)
    with pytest.raises(UsageError) as caught:
        run(other, tmp_path / "run")
    assert "rl.grpo.beta 0.08, now 0.01" in str(caught.value)
    assert "seed 0, now 3" in str(caught.value)
    # How it is launched and fitted into memory changes nothing that is learned.
    smaller = replace(config.rft, sft=replace(config.rft.sft, micro_batch=2, checkpointing=True))
    eased = replace(config, rft=smaller, engine=replace(config.engine, batch=4), launch={"rl": "torchrun"})
    run(eased, tmp_path / "run", stages=["data"])


def test_a_stage_needs_those_before_it(tmp_path: Path) -> None:
    config = read_config(config_file(tmp_path))
    with pytest.raises(UsageError, match="stage tune needs data and collect first"):
        run(config, tmp_path / "run", stages=["tune"])
    with pytest.raises(UsageError, match="stage evaluate needs data and rl and meta first"):
        run(config, tmp_path / "run", stages=["evaluate"])
    (tmp_path / "run" / "spct.json").write_text("{}")
    with pytest.raises(UsageError, match=r"spct\.json: damaged"):
        run(config, tmp_path / "run", stages=["data"])
    with pytest.raises(UsageError, match=r"tiny\.toml: is a file, expected a folder"):
        run(config, tmp_path / "tiny.toml", stages=["data"])


def test_unlabelled_and_contradictory_items_are_told_before_the_sampling(tmp_path: Path) -> None:
    for name in ("rft", "rl"):
        write_rows(tmp_path / f"{name}.jsonl", [row(name)])
    config = read_config(config_file(tmp_path))

    def with_test(rows: list[dict[str, Any]]) -> Config:
        write_rows(tmp_path / "test.jsonl", rows)
        paths = [str(tmp_path / f"{name}.jsonl") for name in ("rft", "rl", "test")]
        return replace(config, data=Data(paths[0], paths[1], {"real": paths[2]}))

    unlabelled = {"prompt": "x", "responses": ["a", "b"]}
    with pytest.raises(UsageError, match=r"test\.jsonl: 1 items have no label"):
        run(with_test([row("y"), unlabelled]), tmp_path / "a", stages=["data"])
    with pytest.raises(UsageError, match="is used for two items, or for two labels"):
        run(with_test([row("y"), {**row("y"), "best": 1}]), tmp_path / "b", stages=["data"])


def test_instruction_rows_are_checked_against_what_is_held_out(tmp_path: Path) -> None:
    write_rows(tmp_path / "i.jsonl", [{"prompt": "Held  OUT", "completion": "c"}])
    for name, text in (("rft", "one"), ("rl", "two"), ("test", "held out")):
        write_rows(tmp_path / f"{name}.jsonl", [row(text)])
    paths = [str(tmp_path / f"{name}.jsonl") for name in ("rft", "rl", "test")]
    data = Data(paths[0], paths[1], {"real": paths[2]}, instructions=str(tmp_path / "i.jsonl"))
    with pytest.raises(UsageError, match=r"data\.instructions: 1 conversations are also held out"):
        run(replace(read_config(config_file(tmp_path)), data=data), tmp_path / "run", stages=["data"])


def test_runs_of_other_seeds_train_on_other_items_and_are_tested_on_the_same(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(read_config(config_file(tmp_path), seed=seed), tmp_path / str(seed), stages=["data"])
    same = {
        name: (tmp_path / "0" / "data" / name).read_bytes() == (tmp_path / "1" / "data" / name).read_bytes()
        for name in ("rft.jsonl", "rl.jsonl", "instructions.jsonl", "pairs.jsonl")
    }
    assert same == {"rft.jsonl": False, "rl.jsonl": False, "instructions.jsonl": False, "pairs.jsonl": True}


# --- whole runs ---


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "spct.json").read_text())
    return found


def judgments(path: Path) -> list[dict[str, Any]]:
    with Ledger(path, create=False) as ledger:
        return [j.to_json() for j in ledger.judgments()]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def results(folder: Path) -> dict[str, Any]:
    """What a run comes to, without seconds."""
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    del found["seconds"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    return run(read_config(config_file(folder)), folder / "run", say=lambda line: None)


def test_a_whole_run_leaves_what_it_promises(whole: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    assert tuple(record(whole)["stages"]) == STAGES
    for model in ("rft/model", "rl"):
        loaded = AutoModelForCausalLM.from_pretrained(whole / model)
        assert sum(p.numel() for p in loaded.parameters()) == 714_240
        assert AutoTokenizer.from_pretrained(whole / model).chat_template
    AutoModelForSequenceClassification.from_pretrained(whole / "meta" / "model")
    rows = json.loads((whole / "evaluation.json").read_text())["rows"]
    # k_meta = k/2 is 1 of 2; a guided vote at k = 1 and 2.
    assert [(r["model"], r["how"], r["k"]) for r in rows] == [
        *((model, how, k) for model in ("base", "rft") for how, k in (("greedy", 1), ("sum", 1), ("sum", 2))),
        ("rl", "greedy", 1), ("rl", "sum", 1), ("rl", "sum", 2), ("rl", "meta", 1), ("rl", "meta", 2),
    ]  # fmt: skip
    assert all(r["items"] == 12 for r in rows)


def test_a_second_call_does_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a stage was done again")

    monkeypatch.setattr(spct, "_DO", dict.fromkeys(STAGES, never))
    files = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.suffix != ".db-shm"}
    said: list[str] = []
    run(read_config(whole.parent / "tiny.toml"), whole, say=said.append)
    assert said == [f"{stage}: done already" for stage in STAGES]
    assert {path: path.stat().st_mtime_ns for path in files} == files


class Killed(BaseException):
    """Like KeyboardInterrupt: nothing in between catches it."""


def dying(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """The function, which kills the run behind so many calls."""
    left = calls

    def call(*args: Any, **others: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return function(*args, **others)

    return call


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_the_same(whole: Path, tmp_path: Path) -> None:
    import transformers

    from opengrm.training import meta_rm
    from opengrm.training.grpo import GroupTrainer
    from opengrm.worlds import instructions

    config = read_config(config_file(tmp_path))
    folder = tmp_path / "run"
    half_way: list[tuple[Stage, Any, str, int]] = [
        ("data", instructions, "generate_instructions", 0),
        ("collect", Ledger, "put", 30),
        ("tune", transformers.Trainer, "training_step", 1),
        ("rl", GroupTrainer, "training_step", 1),
        ("fresh", Ledger, "put", 7),
        ("meta", meta_rm, "bce_with_logits", 1),
        ("evaluate", Ledger, "put", 50),
    ]
    assert tuple(stage for stage, *_ in half_way) == STAGES
    for stage, owner, name, calls in half_way:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, dying(getattr(owner, name), calls))
            with pytest.raises(Killed):
                run(config, folder, say=lambda line: None)
        assert stage not in record(folder)["stages"]

        # On to the end of this stage, and killed between it and the next.
        def kill(line: str, ended: str = f"{stage}: ") -> None:
            if line.startswith(ended) and line.endswith(" s"):
                raise Killed

        with pytest.raises(Killed):
            run(config, folder, say=kill)
        assert stage in record(folder)["stages"]
    run(config, folder, say=lambda line: None)

    for ledger in LEDGERS:
        assert judgments(folder / ledger) == judgments(whole / ledger)
    for model in ("rft/model", "rl", "meta/model"):
        ours, theirs = weights(folder / model), weights(whole / model)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("rft/kept.jsonl", "meta/examples.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert results(folder) == results(whole)


# --- launchers ---

LAUNCHER = """
import json, os, sys
row = {"words": sys.argv[2:], "launched": os.environ["OPENGRM_LAUNCHED"]}
json.dump(row, open(sys.argv[1], "w"))
sys.exit(int(sys.argv[2] == "fail"))
"""


def mark_as_done(config: Config, folder: Path, *stages: str) -> None:
    """A run of which these stages are done, but for their work."""
    run(config, folder, stages=[])
    path = folder / "spct.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "stages": {s: {"seconds": 0.0} for s in stages}}))


def test_a_launcher_runs_one_stage_as_a_command(tmp_path: Path) -> None:
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    words = [sys.executable, str(tmp_path / "launcher.py"), str(tmp_path / "seen.json")]
    config = replace(read_config(config_file(tmp_path)), launch={"tune": shlex.join([*words, "-n", "2"])})
    mark_as_done(config, tmp_path / "run", "data", "collect")
    run(config, tmp_path / "run", stages=["tune"], command=["-m", "opengrm", "spct", "file.toml"])
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["words"] == ["-n", "2", "-m", "opengrm", "spct", "file.toml", "--stage", "tune"]
    assert "tune" in record(tmp_path / "run")["stages"]

    config = replace(config, launch={"tune": shlex.join([*words, "fail"])})
    mark_as_done(config, tmp_path / "failed", "data", "collect")
    with pytest.raises(UsageError, match="tune: its launcher ended with an error"):
        run(config, tmp_path / "failed", stages=["tune"])
    assert "tune" not in record(tmp_path / "failed")["stages"]
    with pytest.raises(UsageError, match="launch tune: no-such-launcher: No such file"):
        run(replace(config, launch={"tune": "no-such-launcher"}), tmp_path / "failed", stages=["tune"])


@pytest.mark.parametrize("variable", ["OPENGRM_LAUNCHED", "WORLD_SIZE"])
def test_a_launched_process_does_the_stage_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Also behind a launcher of a single process, which sets no RANK; the record is the launching run's.

    RANK alone is no launcher's: clusters set it where one process is all there is.
    """
    config = replace(read_config(config_file(tmp_path)), launch={"tune": "no-such-launcher"})
    mark_as_done(config, tmp_path / "run", "data", "collect")
    monkeypatch.setenv("RANK", "0")
    assert not is_launched()
    before = record(tmp_path / "run")
    done: list[str] = []
    monkeypatch.setattr(spct, "_DO", {"tune": lambda *_: done.append("tune")})
    monkeypatch.setenv(variable, "2")
    run(config, tmp_path / "run", stages=["tune"], say=lambda line: None)
    assert done == ["tune"]
    assert record(tmp_path / "run") == before

"""The recipes for real models: the paper's values, and the whole of each run on a tiny model of its architecture."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")
pytest.importorskip("pydantic")

from tiny_models import CHATML, build_model, build_tokenizer  # noqa: E402

from opengrm.items import Item, Message  # noqa: E402
from opengrm.jsonl import write_rows  # noqa: E402
from opengrm.rows import items_from_row  # noqa: E402
from opengrm.templates import get_template  # noqa: E402
from opengrm.training.spct import run  # noqa: E402
from opengrm.training.spct_config import Config, Data, EngineSettings, Tasks, World, read_config  # noqa: E402

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
THINGS = ("prime", "river", "colour", "planet", "bird", "metal", "fruit", "city")
TINY = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 2048, "initializer_range": 0.05}


def test_every_recipe_is_read() -> None:
    names = {path.name for path in RECIPES.glob("*.toml")}
    assert {"one-gpu.toml", "paper-27b.toml", "rubric-world.toml", "rubric-world-smoke.toml"} <= names
    for name in names:
        read_config(RECIPES / name)


def test_the_27b_recipe_has_the_papers_values() -> None:
    config = read_config(RECIPES / "paper-27b.toml")
    sft, grpo, meta = config.rft.sft, config.rl.grpo, config.meta.train
    assert config.base == "google/gemma-2-27b"
    assert (config.rft.n_rft, config.rft.hinted, config.rft.non_hinted) == (3, True, True)
    assert config.rft.instruction_share == pytest.approx(1_070_000 / 1_256_000, abs=5e-4)
    assert (sft.learning_rate, sft.batch, sft.steps) == (5e-6, 1024, 900)
    assert (grpo.learning_rate, grpo.batch, grpo.steps, grpo.generations, grpo.beta) == (4e-7, 512, 900, 4, 0.08)
    assert (meta.learning_rate, meta.batch) == (1e-5, 512)
    assert (config.meta.base, config.meta.fresh) == ("base", 3)
    assert config.rl.reference == "deepseek-ai/DeepSeek-V2-Lite-Chat"
    assert (config.rft.temperature, config.evaluation.temperature) == (0.5, 0.5)
    assert (config.evaluation.k, config.evaluation.k_meta) == (32, (1, 8, 16))
    assert set(config.launch) == {"tune", "rl", "meta"}
    # Every device of fsdp2.yaml has its whole share of each batch.
    text = (RECIPES / "fsdp2.yaml").read_text()
    processes = int(text.split("num_processes:")[1].split()[0])
    for batch, micro in ((sft.batch, sft.micro_batch), (grpo.batch, grpo.micro_batch), (meta.batch, meta.micro_batch)):
        assert micro is not None
        assert batch % (processes * micro) == 0


def test_accelerate_reads_the_fsdp_file() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(RECIPES / "fsdp2.yaml"))
    assert (read.distributed_type, read.num_machines, read.num_processes) == ("FSDP", 8, 64)
    assert read.fsdp_config["fsdp_version"] == 2
    assert read.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"  # without it a stage would save no model


def keys(settings: type) -> Iterator[str]:
    """Every key that a file may set."""
    for name, kind in get_type_hints(settings).items():
        if is_dataclass(kind):
            yield from keys(kind)
        elif not name.startswith("_"):
            yield name


def test_every_key_is_in_the_manual() -> None:
    manual = (RECIPES.parent / "docs" / "spct.md").read_text(encoding="utf-8")
    assert [key for key in keys(Config) if f"`{key}`" not in manual] == ["launch"]  # a section
    for settings in (World, Tasks):
        assert [key for key in keys(settings) if key not in manual] == []


# --- tiny models and data ---


def preference(number: int) -> dict[str, Any]:
    """A row as Skywork-Reward-Preference-80K has them."""
    thing = THINGS[number % len(THINGS)]
    asked = {"role": "user", "content": f"Name a {thing} for case {number}."}
    return {
        "chosen": [asked, {"role": "assistant", "content": f"Here is one {thing}."}],
        "rejected": [asked, {"role": "assistant", "content": "I do not know."}],
        "source": "made-up",
    }


def judgment(first: int, second: int) -> str:
    return f"Scores: \\boxed{{{first}, {second}}}"


def write_data(folder: Path) -> Data:
    folder.mkdir()
    for name, start, count in (("rft", 0, 6), ("rl", 100, 6), ("test", 200, 3)):
        write_rows(folder / f"{name}.jsonl", (preference(start + i) for i in range(count)))
    rows = [{"prompt": f"Say {thing}.", "completion": [{"role": "assistant", "content": thing}]} for thing in THINGS]
    write_rows(folder / "instructions.jsonl", rows)
    paths = {name: str(folder / f"{name}.jsonl") for name in ("rft", "rl", "test", "instructions")}
    return Data(paths["rft"], paths["rl"], {"real": paths["test"]}, paths["instructions"])


def build_base(folder: Path, family: str, **config: Any) -> Path:
    """A tiny model that has been taught to end every prompt of the grm form with a box of two random scores.

    A random model would hardly ever write one, and a run of which nothing is kept shows little.
    """
    template = get_template("grm")
    (item,) = items_from_row(preference(0))
    prompt = template.render(item, (0, 1))[0].content
    scores = [(a, b) for a in range(1, 10) for b in range(1, 10) if a != b]
    tokenizer = build_tokenizer().train_new_from_iterator([prompt, *(judgment(*pair) for pair in scores)], 1200)
    tokenizer.chat_template = CHATML
    model = build_model(family, tokenizer, **{**TINY, **config}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rng = random.Random(0)
    for step in range(90):
        asked = prompt if step % 6 == 0 else prompt[-60:]  # the whole prompt is long, so seldom
        turns = [{"role": "user", "content": asked}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        rows = [
            tokenizer(judgment(*rng.choice(scores)))["input_ids"] + [tokenizer.eos_token_id]
            for _ in range(1 if step % 6 == 0 else 16)
        ]
        batch = torch.tensor([[*ids, *row] for row in rows])
        labels = batch.clone()
        labels[:, : len(ids)] = -100
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 90)
        model(input_ids=batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def shrunk(config: Config, base: Path, data: Data) -> Config:
    """The recipe with other sizes, models and data, and engines that need no GPU; all else as it is."""
    reference = config.rl.reference
    return replace(
        config, base=str(base), data=data, engine=EngineSettings("transformers", batch=16), launch={},
        rft=replace(
            config.rft, sampler=None, temperature=1.0, max_tokens=16,
            sft=replace(config.rft.sft, batch=8, micro_batch=2, steps=2, save_every=1),
        ),
        rl=replace(
            config.rl, reference=reference and "rft", reference_temperature=1.0,
            grpo=replace(
                config.rl.grpo, batch=8, micro_batch=4, steps=2, max_tokens=16, rollouts="own", vllm_url=None,
                save_every=1, precision="float32",
            ),
        ),
        meta=replace(
            config.meta, fresh=1,
            train=replace(config.meta.train, batch=8, micro_batch=2, steps=2, dev_share=0.2, eval_every=2),
        ),
        evaluation=replace(config.evaluation, k=2, temperature=1.0, max_tokens=16, k_meta=(1,)),
    )  # fmt: skip


def check(folder: Path) -> dict[str, Any]:
    """See that every stage has left what it should; returns the record."""
    record: dict[str, Any] = json.loads((folder / "spct.json").read_text())
    assert list(record["stages"]) == ["data", "collect", "tune", "rl", "fresh", "meta", "evaluate"]
    collected = json.loads((folder / "rft" / "collect.json").read_text())
    assert collected["kept"] > 0
    assert collected["non-hinted"]["judgments"] == 18
    assert collected["hinted"]["judgments"] == 6
    for model in ("rft/model", "rl"):
        transformers.AutoModelForCausalLM.from_pretrained(folder / model)
        transformers.AutoTokenizer.from_pretrained(folder / model)
    meta = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "meta" / "model")
    assert meta.config.num_labels == 1
    assert len((folder / "rl" / "metrics.jsonl").read_text().splitlines()) == 2
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    assert {(row["model"], row["how"]) for row in rows} == {
        ("base", "greedy"), ("rft", "greedy"), ("rft", "sum"),
        ("rl", "greedy"), ("rl", "sum"), ("rl", "meta"), ("rl", "meta top 1"),
    }  # fmt: skip
    return record


def to_toml(value: Mapping[str, Any], place: str = "") -> str:
    """A configuration as the file that gives it; JSON's scalars and lists are TOML's as well."""
    here = {k: v for k, v in value.items() if v is not None and not isinstance(v, Mapping)}
    lines = [f"{key} = {json.dumps(v)}\n" for key, v in here.items()]
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            name = f"{place}.{key}" if place else key
            lines.append(f"\n[{name}]\n{to_toml(inner, name)}")
    return "".join(lines)


@pytest.mark.slow
def test_one_gpu_recipe_on_a_tiny_qwen3(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base", "Qwen3")
    config = shrunk(read_config(RECIPES / "one-gpu.toml"), base, write_data(tmp_path / "data"))
    said: list[str] = []
    check(run(config, tmp_path / "run", say=said.append))
    items = json.loads((tmp_path / "run" / "rl" / "items.json").read_text())
    assert items["given"] == 6
    assert "too easy" in items["dropped"]
    assert any("trajectories kept" in line for line in said)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_27b_recipe_on_a_tiny_gemma2_in_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through a launcher. `accelerate launch --cpu --num_processes 2` would start one process."""
    base = build_base(tmp_path / "base", "Gemma2", query_pre_attn_scalar=16, sliding_window=512)
    config = shrunk(read_config(RECIPES / "paper-27b.toml"), base, write_data(tmp_path / "data"))
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
    config = replace(config, launch=dict.fromkeys(("tune", "rl", "meta"), launcher))
    file = tmp_path / "tiny.toml"
    file.write_text(to_toml(asdict(config)), encoding="utf-8")
    assert read_config(file) == config
    folder, said = tmp_path / "run", list[str]()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run(config, folder, command=["-m", "opengrm", "spct", str(file), "-o", str(folder)], say=said.append)
    check(folder)
    assert json.loads((folder / "rft" / "train.json").read_text())["processes"] == 2
    assert any(line.startswith("too easy?") for line in said)  # the filter ran here, before the launch
    told = capfd.readouterr().err
    assert "2/2" in told
    assert told.count("the model is in") == 1  # one process of the two speaks
    assert "too easy?" not in told


def test_what_is_kept_of_nothing(tmp_path: Path) -> None:
    """A model that writes no judgment: with instruction rows it is tuned on them, without it is told what to do."""
    from opengrm.errors import UsageError
    from opengrm.training.rft import plan_mix

    assert plan_mix(0, 8).instructions == 8
    with pytest.raises(UsageError, match="sample a model that writes judgments in form, or give instruction data"):
        plan_mix(0, 0)


def test_tuning_without_a_kept_trajectory(tmp_path: Path) -> None:
    """The ablation "w/o both": `collect` leaves an empty file behind, and instruction rows are what is learned."""
    from opengrm.errors import UsageError
    from opengrm.training.rft import KEPT, tune_stage
    from opengrm.training.sft import SFTSettings

    settings = SFTSettings(steps=1, batch=4, micro_batch=4)
    (tmp_path / KEPT).touch()
    with pytest.raises(UsageError, match="nothing to train on"):
        tune_stage("nano-base", tmp_path, None, settings)
    rows = [{"prompt": f"Say {n}.", "completion": str(n)} for n in range(5)]
    (tmp_path / "instructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = tune_stage("nano-base", tmp_path, tmp_path / "instructions.jsonl", settings)
    assert (report["trajectories"], report["instructions"]) == (0, 5)
    assert (tmp_path / "model" / "config.json").exists()


def test_rows_are_pairs_with_the_chosen_one_best() -> None:
    (item,) = items_from_row(preference(3))
    assert item == Item(
        (Message("user", "Name a planet for case 3."),), ("Here is one planet.", "I do not know."), best=0,
        id=item.id, source=item.source, extra=item.extra,
    )  # fmt: skip

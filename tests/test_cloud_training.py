"""CLoud's training: the joint loss by hand, the two folders it writes, and each stage taken up where it stopped."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")

from instant_engine import InstantEngine  # noqa: E402
from test_cli import Run, lines, run  # noqa: E402, F401
from tiny_models import CHATML, build_checkpoint, build_tokenizer  # noqa: E402

from opengrm.engines.base import Completion, Request, Sampling  # noqa: E402
from opengrm.engines.classifier import Classifier, padded  # noqa: E402
from opengrm.errors import BadRow, EngineError, UsageError  # noqa: E402
from opengrm.items import Item, Message  # noqa: E402
from opengrm.jsonl import write_rows  # noqa: E402
from opengrm.reading import read_items, write_items  # noqa: E402
from opengrm.templates.cloud import CloudTemplate  # noqa: E402
from opengrm.training import cloud  # noqa: E402
from opengrm.training.cloud import CloudSettings, critic_stage, joint_loss, joint_stage, with_head  # noqa: E402
from opengrm.training.cloud_examples import Collator, Encoder, Example, Pair, measured, read_pairs  # noqa: E402
from opengrm.training.critiques import Writer, oracle_stage, own_stage  # noqa: E402
from opengrm.training.resume import last_checkpoint  # noqa: E402
from opengrm.training.sft import SFTSettings  # noqa: E402
from opengrm.worlds.rubric import generate_items  # noqa: E402

TEMPLATE = CloudTemplate("compact-cloud")


def item(name: str, n: int = 2, best: int | None = 0, critiques: list[str | None] | None = None) -> Item:
    extra = {} if critiques is None else {"critiques": critiques}
    return Item(
        (Message("user", f"Query {name}"),), tuple(f"{name}-{i}" for i in range(n)), best, id=name, extra=extra
    )


def telling(count: int = 24) -> list[Item]:
    """Items whose critiques say which response is better."""
    return [item(f"q{i}", 2, i % 2, ["yes" if j == i % 2 else "no" for j in range(2)]) for i in range(count)]


# --- the loss, by hand ------------------------------------------------------------------------------------------


def test_the_loss_of_numbers() -> None:
    """Two pairs, a vocabulary of three, two labelled tokens in the first row and one in the others."""
    scores = [1.5, -0.5, 0.25, 2.0]
    logits_BKV = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))  # of the last three places
    labels_BT = torch.tensor([[-100, -100, 2, 1], [-100, -100, 0, -100], [-100, -100, -100, 1], [-100, -100, 2, -100]])
    bt = [math.log(1 + math.exp(-(best - other))) for best, other in ((1.5, -0.5), (0.25, 2.0))]

    def nll(row: int, place: int, token: int) -> float:
        values = [float(v) for v in logits_BKV[row, place]]
        return -(values[token] - math.log(sum(math.exp(v) for v in values)))

    # The place before a token predicts it: the last places are 1, 2 and 3 of 0..3.
    lm = [nll(0, 0, 2), nll(0, 1, 1), nll(1, 0, 0), nll(2, 1, 1), nll(3, 0, 2)]
    found = joint_loss(torch.tensor(scores), logits_BKV, labels_BT, 1.25)
    wanted = [sum(bt) / 2 + 1.25 * sum(lm) / 5, sum(bt) / 2, sum(lm) / 5]
    assert [float(value) for value in found] == pytest.approx(wanted, rel=1e-5)
    # A head of its own: no LM part, whatever the logits.
    assert float(joint_loss(torch.tensor(scores), logits_BKV, labels_BT, 0)[0]) == pytest.approx(sum(bt) / 2)
    # Nothing to learn is 0, not 0/0.
    assert float(joint_loss(torch.tensor(scores), logits_BKV, torch.full_like(labels_BT, -100), 1.25)[2]) == 0
    # Micro-batches of one pair add up to the step's loss.
    parts = [
        joint_loss(torch.tensor(scores)[part], logits_BKV[part], labels_BT[part], 1.25, 2, 5)[0]
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert float(sum(parts)) == pytest.approx(wanted[0], rel=1e-5)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2"])
@pytest.mark.parametrize("lm_weight", [1.25, 0.0])
def test_the_loss_of_a_model_equals_two_plain_models(tmp_path: Path, family: str, lm_weight: float) -> None:
    """Each example alone through transformers' own causal LM and classifier, then the paper's formula."""
    folder = build_checkpoint(tmp_path / "critic", family)
    model, tokenizer = with_head(folder)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    encoder = Encoder(tokenizer, model.config.pad_token_id)
    critiques = [["short", "a much longer critique, with more to say"], ["no", "yes"]]
    pairs = [
        Pair(*(encoder.encode(TEMPLATE, item(f"q{i}").only(j), text) for j, text in enumerate(texts)))
        for i, texts in enumerate(critiques)
    ]
    batch = Collator(model.config.pad_token_id, bool(lm_weight))(pairs)
    labels = batch.pop("labels")
    outputs = model(**batch)
    with torch.no_grad():
        loss, bt, lm = joint_loss(outputs["scores_B"], outputs["logits_BKV"], labels, lm_weight)

    writer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    judge = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    judge.score.weight.data.copy_(model.score.weight)
    scores, nlls = [], []
    for i, texts in enumerate(critiques):
        for j, text in enumerate(texts):
            (prompt,) = TEMPLATE.render(item(f"q{i}").only(j))
            before = tokenizer.apply_chat_template([prompt.to_json()], tokenize=False, add_generation_prompt=True)
            written = tokenizer(text)["input_ids"] + tokenizer("<|im_end|>")["input_ids"]
            start = tokenizer(before)["input_ids"]
            ids = torch.tensor([start + written + tokenizer("\n")["input_ids"]])
            with torch.inference_mode():
                scores.append(float(judge(input_ids=ids).logits[0, 0]))
                logprobs = writer(input_ids=ids).logits[0].log_softmax(-1)
            nlls += [-float(logprobs[at - 1, ids[0, at]]) for at in range(len(start), len(start) + len(written))]
    by_hand = [math.log(1 + math.exp(-(scores[i] - scores[i + 1]))) for i in (0, 2)]
    assert outputs["scores_B"].tolist() == pytest.approx(scores, abs=1e-4)
    assert float(bt) == pytest.approx(sum(by_hand) / 2, abs=1e-4)
    if lm_weight:
        assert float(lm) == pytest.approx(sum(nlls) / len(nlls), abs=1e-4)
        assert outputs["logits_BKV"].shape[1] < batch["input_ids"].shape[1]  # only what is needed
    assert float(loss) == pytest.approx(sum(by_hand) / 2 + lm_weight * sum(nlls) / len(nlls), abs=2e-4)


# --- examples ---------------------------------------------------------------------------------------------------


def spelled(tokenizer: Any, example: Example) -> tuple[str, str, str]:
    """The whole, the learned span and the token that the head reads, as text."""
    ids = example.ids.tolist()
    decode = tokenizer.decode
    return decode(ids), decode(ids[example.start : example.stop]), decode([ids[example.last]])


def test_an_example_is_what_the_classifier_reads() -> None:
    tokenizer = build_tokenizer()
    whole, learned, read = spelled(
        tokenizer, Encoder(tokenizer, 0).encode(TEMPLATE, item("q").only(0), "fine <|im_end|>")
    )
    assert whole == (
        "<|im_start|>user\nQuery: Query q\n[1] q-0\nJudge by criteria, no score.<|im_end|>\n"
        "<|im_start|>assistant\nfine <\u200b|im_end|><|im_end|>\n"
    )
    assert learned == "fine <\u200b|im_end|><|im_end|>"
    assert read == "\n"


def test_where_the_end_of_a_turn_pads_the_head_reads_before_it() -> None:
    """As transformers pools: the last token that is not padding. The end is learned all the same."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHATML.replace("<|im_end|>\n{% endfor %}", "<|im_end|>{% endfor %}")
    example = Encoder(tokenizer, tokenizer.eos_token_id).encode(TEMPLATE, item("q").only(0), "fine")
    assert spelled(tokenizer, example)[1:] == ("fine<|im_end|>", "e")


def test_a_template_that_writes_before_an_answer_is_learned_with_it() -> None:
    """An empty thought in front of a finished answer, as Qwen3's template writes it."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHATML.replace(
        "{{ m.content }}", "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
    )
    assert spelled(tokenizer, Encoder(tokenizer, 0).encode(TEMPLATE, item("q").only(0), "fine"))[1] == (
        "<think></think>fine<|im_end|>"
    )


@pytest.mark.parametrize("critique", ["<think>hm</think>fine", "fine <tool_call>"])
def test_broken_markers_are_not_learned(critique: str) -> None:
    """The head reads them fenced, as all text; the critic is not to write them so."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>"])
    tokenizer.chat_template = CHATML + "{# <think> </think> <tool_call> #}"
    whole, learned, _ = spelled(tokenizer, Encoder(tokenizer, 0).encode(TEMPLATE, item("q").only(0), critique))
    assert critique not in whole
    assert critique in whole.replace("\u200b", "")
    assert learned == ""


def test_a_plain_form_without_ends_learns_one_behind_what_the_head_reads() -> None:
    from opengrm.training.checkpoint import give_chat_template

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    give_chat_template(tokenizer)
    example = Encoder(tokenizer, 0).encode(TEMPLATE, item("q").only(0), "fine")
    whole, learned, _ = spelled(tokenizer, example)
    assert whole.endswith("no score.\n\nAssistant: fine<|im_end|>")
    assert learned.strip() == "fine<|im_end|>"
    assert example.last == len(example.ids) - 2


def test_pairs_are_the_best_against_each_other(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    encoder = Encoder(tokenizer, 0)
    items = [
        item("a", 3, 1, ["no", "yes", "maybe"]),
        item("b", 3, 0, ["yes", None, "no"]),
        item("c", 2, 0, [None, "no"]),
        item("d", 2, 0, ["yes", "no " * 400]),
    ]
    write_items(tmp_path / "c.jsonl", items)
    pairs, dev, left_out = read_pairs(tmp_path / "c.jsonl", TEMPLATE, encoder, 512, 0.0)
    found = [[spelled(tokenizer, example)[1] for example in pair] for pair in pairs]
    end = "<|im_end|>"
    assert found == [["yes" + end, "no" + end], ["yes" + end, "maybe" + end], ["yes" + end, "no" + end]]
    assert (dev, left_out) == ([], {"without a critique": 2, "too long": 1})
    write_items(tmp_path / "many.jsonl", telling(400))
    pairs, dev, _ = read_pairs(tmp_path / "many.jsonl", TEMPLATE, encoder, 512, 0.2)
    assert len(pairs) + len(dev) == 400
    assert 50 < len(dev) < 110


class WordHead:
    """2 for "yes", None for "long", else 1."""

    def score(self, conversations: Any) -> list[float | None]:
        return [{"yes": 2.0, "long": None}.get(messages[-1].content, 1.0) for messages in conversations]


def test_what_a_head_is_worth_by_hand() -> None:
    items = [
        item("right", 2, 0), item("wrong", 2, 1), item("tie", 2, 0), item("missing", 4, 0), item("long", 2, 1)
    ]  # fmt: skip
    texts: list[list[str | None]] = [
        ["yes", "no"],
        ["yes", "no"],
        ["yes", "yes"],
        ["yes", None, "a", "b"],
        ["long", "a"],
    ]
    found = measured(list(zip(items, texts, strict=True)), TEMPLATE, WordHead())
    assert found["accuracy"]["mean"] == pytest.approx((1 + 0 + 0.5 + 0.25 + 0.5) / 5)
    assert (found["n"], found["conversations"], found["missing"]) == (5, 5, 2)
    losses = [math.log(1 + math.exp(margin)) for margin in (-1, 1, 0)]
    assert found["bt"] == pytest.approx(sum(losses) / 3)


# --- the critiques ----------------------------------------------------------------------------------------------


def test_critiques_that_the_items_bring(tmp_path: Path) -> None:
    items = tmp_path / "items.jsonl"
    write_items(
        items, [item("a", 2, 0, ["good", None]), item("b"), item("c", 1, None, [" "]), item("d", 1, None, ["ok"])]
    )
    found = oracle_stage(items, tmp_path / "oracle", TEMPLATE)
    assert found == {
        "items": 4, "left_out": 0, "responses": 6, "bad_rows": 0, "critiques": 2, "missing": {"not given": 4}
    }  # fmt: skip
    rows = lines(tmp_path / "oracle" / "rows.jsonl")
    assert rows[0] == {
        "prompt": [{"role": "user", "content": "Query: Query a\n[1] a-0\nJudge by criteria, no score."}],
        "completion": [{"role": "assistant", "content": "good"}],
        "item": "a", "response": 0,
    }  # fmt: skip
    assert [(row["item"], row["response"]) for row in rows] == [("a", 0), ("d", 0)]
    write_items(items, [item("a", 2, 0, ["good", "bad"])])
    with pytest.raises(UsageError, match="begun with other settings"):
        oracle_stage(items, tmp_path / "oracle", TEMPLATE)


def test_the_critic_does_not_learn_of_what_is_held_out(tmp_path: Path) -> None:
    write_items(tmp_path / "i.jsonl", telling(60))
    found = oracle_stage(tmp_path / "i.jsonl", tmp_path / "o", TEMPLATE, dev_share=0.3)
    learned = {row["item"] for row in lines(tmp_path / "o" / "rows.jsonl")}
    _, dev, _ = read_pairs(tmp_path / "i.jsonl", TEMPLATE, Encoder(build_tokenizer(), 0), 512, 0.3)
    assert learned | {held.id for held, _ in dev} == {f"q{i}" for i in range(60)}
    assert not learned & {held.id for held, _ in dev}
    assert (found["items"], found["left_out"]) == (len(learned), len(dev))


@pytest.mark.parametrize(
    ("critiques", "said"),
    [(["a"], "has 1 texts for 2 responses"), ("a", "must be a list with a text"), ([1, 2], "must be a list with")],
)
def test_critiques_that_cannot_be(tmp_path: Path, critiques: Any, said: str) -> None:
    write_items(tmp_path / "i.jsonl", [item("a", 2, 0, ["x", "y"]), item("b", 2, 0, critiques)])
    with pytest.raises(BadRow, match=rf"i\.jsonl:2: .*{said}"):
        oracle_stage(tmp_path / "i.jsonl", tmp_path / "o", TEMPLATE)
    told: list[BadRow] = []
    assert oracle_stage(tmp_path / "i.jsonl", tmp_path / "o", TEMPLATE, on_bad=told.append)["critiques"] == 2
    assert len(told) == 1


def test_no_critique_at_all(tmp_path: Path) -> None:
    write_items(tmp_path / "i.jsonl", [item("a")])
    with pytest.raises(UsageError, match="give items a list 'critiques'"):
        oracle_stage(tmp_path / "i.jsonl", tmp_path / "o", TEMPLATE)


def scored(request: Request, index: int) -> str:
    response = request.messages[0].content.split("\n[1] ")[1].split("\n")[0]
    return "\\boxed{1}" if response.endswith("3-1") else f"short 5\n[1] {response} yes = 5\n\\boxed{{5, 1}}"


def own(request: Request, index: int) -> str:
    response = request.messages[0].content.split("\n[1] ")[1].split("\n")[0]
    return "" if response.endswith("3-1") else f"own of {response} \\boxed{{9}}"


class DyingEngine(InstantEngine):
    def __init__(self, answer: Any, after: int) -> None:
        super().__init__(answer)
        self.after = after

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        for completion in super().generate(requests):
            if self.asked > self.after:
                raise EngineError("gone")
            yield completion


@pytest.mark.parametrize("stage", ["oracle", "own"])
def test_sampled_critiques_go_on_where_they_stopped(tmp_path: Path, stage: str) -> None:
    """The same file as an uninterrupted run, nothing asked twice, and what is missing counted by reason."""
    items = tmp_path / "items.jsonl"
    write_items(
        items, [*(item(f"q{i}", 2 + i % 2, 0) for i in range(6)), item("unlabelled", 2, None), item("one", 1, None)]
    )
    answer = scored if stage == "oracle" else own

    def go(folder: Path, engine: InstantEngine) -> dict[str, Any]:
        writer = Writer("m", lambda: engine, Sampling(temperature=0.0, max_tokens=64))
        return (oracle_stage if stage == "oracle" else own_stage)(items, folder, TEMPLATE, writer)

    whole = go(tmp_path / "whole", InstantEngine(answer))
    with pytest.raises(EngineError, match="gone"):
        go(tmp_path / "parts", DyingEngine(answer, 7))
    engine = InstantEngine(answer)
    assert go(tmp_path / "parts", engine) == whole
    responses = 15 if stage == "own" else 18
    assert whole["responses"] == responses
    assert engine.asked == responses - 7
    assert go(tmp_path / "parts", DyingEngine(answer, 0)) == whole  # done is done
    name = "rows.jsonl" if stage == "oracle" else "critiques.jsonl"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (whole["critiques"], sum(whole["missing"].values())) == (responses - 1, 1)
    if stage == "oracle":
        rows = lines(tmp_path / "whole" / name)
        assert rows[0]["completion"][0]["content"] == "short 5\n[1] q0-0 yes"  # without its score, right or not
        assert {row["item"] for row in rows} == {*(f"q{i}" for i in range(6)), "unlabelled", "one"}
    else:
        found = list(read_items(tmp_path / "whole" / name))
        assert [i.id for i in found] == [f"q{i}" for i in range(6)]
        assert whole["left_out"] == 2
        assert found[3].extra["critiques"] == ["own of q3-0 \\boxed{9}", None, "own of q3-2 \\boxed{9}"]
        assert found[3].best == 0


# --- the stages that train --------------------------------------------------------------------------------------


def settings(**values: Any) -> CloudSettings:
    known = {"learning_rate": 3e-3, "batch": 8, "micro_batch": 4, "steps": 12, "save_every": 6, "log_every": 1}
    return CloudSettings(**{**known, "dev_share": 0.2, **values})


def prepared(folder: Path, family: str = "Qwen3", **config: Any) -> Path:
    """A run's folder in which the first three stages are done."""
    build_checkpoint(folder / "critic" / "model", family, **config)
    (folder / "critiques").mkdir()
    write_items(folder / "critiques" / "critiques.jsonl", telling())
    return folder


def test_the_authors_values_are_the_defaults() -> None:
    found = CloudSettings()
    assert (found.learning_rate, found.lm_weight, found.batch, found.epochs, found.warmup) == (1e-6, 1.25, 96, 1, 0.1)
    assert (cloud.CRITIC_SETTINGS.learning_rate, cloud.CRITIC_SETTINGS.batch) == (5e-6, 96)


@pytest.mark.parametrize("values", [{"lm_weight": -1}, {"lm_weight": math.nan}, {"dev_share": 1}, {"steps": 0}])
def test_settings_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        CloudSettings(**values)


def test_the_critic_learns_the_oracles_critiques_in_one_epoch(tmp_path: Path) -> None:
    base = build_checkpoint(tmp_path / "base")
    write_items(tmp_path / "i.jsonl", telling(20))
    oracle_stage(tmp_path / "i.jsonl", tmp_path / "run" / "oracle", TEMPLATE)
    told: list[tuple[int, int]] = []
    found = critic_stage(
        base,
        tmp_path / "run",
        TEMPLATE,
        SFTSettings(learning_rate=1e-3, batch=8),
        on_step=lambda s, all, last: told.append((s, all)),
    )
    assert (found["examples"], found["steps"], told) == (40, 5, [(s, 5) for s in range(1, 6)])
    assert found["last_loss"] < found["first_loss"]
    assert (tmp_path / "run" / "critic" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2"])
def test_two_ordinary_folders_with_the_trained_models_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    folder = prepared(tmp_path / "run", family)
    tokenizer = build_tokenizer()
    texts = ("Query: q\nJudge by criteria", "yes, a much longer text to read with the head and the critic")
    probe = padded([tokenizer(text)["input_ids"] for text in texts], tokenizer.pad_token_id)
    last = probe["attention_mask"].sum(1) - 1
    seen: list[dict[str, Any]] = []
    save = transformers.Trainer.save_model

    def recording(self: Any, *words: Any, **values: Any) -> None:
        self.model.eval()
        with torch.inference_mode():
            seen.append(self.model(**probe, last_B=last, keep=probe["input_ids"].shape[1]))
        save(self, *words, **values)

    monkeypatch.setattr(transformers.Trainer, "save_model", recording)
    report = joint_stage(folder, TEMPLATE, settings(steps=30))
    trained = seen[-1]
    critic = transformers.AutoModelForCausalLM.from_pretrained(folder / "model" / "critic").eval()
    head = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model" / "head").eval()
    assert (type(critic).__name__, type(head).__name__) == (
        f"{family}ForCausalLM",
        f"{family}ForSequenceClassification",
    )
    held = probe["attention_mask"].bool()
    with torch.inference_mode():
        assert torch.allclose(critic(**probe).logits[held], trained["logits_BKV"][held], atol=1e-4)
        assert torch.allclose(head(**probe).logits[:, 0], trained["scores_B"], atol=1e-4)
    assert not any("score" in name for name in critic.state_dict())
    assert (critic.config.opengrm_template, head.config.cloud_template) == ("compact-cloud", "compact-cloud")
    assert critic.generation_config.eos_token_id == 2
    assert head.config.num_labels == 1
    # It learned what the critiques say, from zero.
    rows = lines(folder / "joint" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert rows[0]["bt"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["bt"] < 0.3
    assert rows[-1]["lm"] < rows[0]["lm"]
    for row in rows:
        assert row["loss"] == pytest.approx(row["bt"] + 1.25 * row["lm"], rel=1e-3)
    assert report["dev"]["accuracy"]["mean"] > 0.9
    assert report["pairs"] + report["dev"]["n"] == 24
    assert not (folder / "joint" / "checkpoints").exists()
    # Done is done, and another run does not fit into this folder.
    assert joint_stage(folder, TEMPLATE, settings(steps=30)) == report
    with pytest.raises(UsageError, match="begun with other settings"):
        joint_stage(folder, TEMPLATE, settings(steps=31))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_head_of_its_own_leaves_the_critic_as_it_was(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "run")
    joint_stage(folder, TEMPLATE, settings(lm_weight=0.0))
    assert files(folder / "model" / "critic") == files(folder / "critic" / "model")
    rows = lines(folder / "joint" / "metrics.jsonl")
    assert all("lm" not in row and row["loss"] == pytest.approx(row["bt"], rel=1e-4) for row in rows)
    assert rows[-1]["bt"] < rows[0]["bt"]
    with Classifier(folder / "model" / "head") as classifier:
        yes, no = classifier.score([TEMPLATE.read(item("q").only(0), text) for text in ("yes", "no")])
    assert yes is not None
    assert no is not None
    assert yes > no


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole, killed = prepared(tmp_path / "whole"), prepared(tmp_path / "killed")
    report = joint_stage(whole, TEMPLATE, settings())

    def kill(step: int, total: int, last: Any) -> None:
        assert total == 12
        if step == 9:
            raise Killed

    with pytest.raises(Killed):
        joint_stage(killed, TEMPLATE, settings(), on_step=kill)
    found = last_checkpoint(killed / "joint" / "checkpoints")
    assert found is not None
    assert found.name == "checkpoint-6"
    again = joint_stage(killed, TEMPLATE, settings())
    assert again["resumed_from"] == 6
    assert again["dev"] == report["dev"]
    losses = [[(r["step"], r["loss"]) for r in lines(f / "joint" / "metrics.jsonl")] for f in (whole, killed)]
    assert losses[0] == losses[1]
    for name in ("critic", "head"):
        load = {"critic": transformers.AutoModelForCausalLM, "head": transformers.AutoModelForSequenceClassification}
        one, other = (load[name].from_pretrained(f / "model" / name).state_dict() for f in (whole, killed))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_killed_before_its_summary_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = prepared(tmp_path / "whole"), prepared(tmp_path / "killed")
    report = joint_stage(whole, TEMPLATE, settings())

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(cloud, "_write_folders", kill)
        with pytest.raises(Killed):
            joint_stage(killed, TEMPLATE, settings())
    again = joint_stage(killed, TEMPLATE, settings())
    assert again == {**report, "resumed_from": 12}
    one, other = (
        transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model" / "head").state_dict()
        for folder in (whole, killed)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_diverges_leaves_no_model(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "run")
    with pytest.raises(EngineError, match="training diverged"):
        joint_stage(folder, TEMPLATE, settings(learning_rate=1e30, max_grad_norm=1e30, steps=3, warmup=0.0))
    assert not (folder / "model").exists()


def test_micro_batches_and_checkpointing_change_nothing(tmp_path: Path) -> None:
    """Critiques of different lengths: means of means would differ."""
    folders = [prepared(tmp_path / name) for name in ("whole", "cut")]
    for folder in folders:
        texts = [["yes " * (1 + i % 7), "no"] for i in range(24)]
        write_items(
            folder / "critiques" / "critiques.jsonl", (item(f"q{i}", 2, 0, list(t)) for i, t in enumerate(texts))
        )
    for folder, size in zip(folders, (8, 1), strict=True):
        joint_stage(folder, TEMPLATE, settings(micro_batch=size, checkpointing=size == 1, steps=4))
    rows = [lines(folder / "joint" / "metrics.jsonl") for folder in folders]
    for one, other in zip(*rows, strict=True):
        for name in ("loss", "bt", "lm", "pair_accuracy", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("lm_weight", [1.25, 0.0])
def test_two_processes_train_the_same_as_one(tmp_path: Path, lm_weight: float) -> None:
    one, two = prepared(tmp_path / "one"), prepared(tmp_path / "two")
    joint_stage(one, TEMPLATE, settings(steps=4, lm_weight=lm_weight))
    script = tmp_path / "go.py"
    script.write_text(
        "import sys, pathlib\n"
        "from opengrm.templates.cloud import CloudTemplate\n"
        "from opengrm.training.cloud import CloudSettings, joint_stage\n"
        "settings = CloudSettings(learning_rate=3e-3, batch=8, micro_batch=2, steps=4, save_every=6, log_every=1,\n"
        f"                         dev_share=0.2, lm_weight={lm_weight})\n"
        "joint_stage(pathlib.Path(sys.argv[1]), CloudTemplate('compact-cloud'), settings)\n"
    )
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(two))
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [lines(folder / "joint" / "metrics.jsonl") for folder in (one, two)]
    assert [row["loss"] for row in rows[1]] == pytest.approx([row["loss"] for row in rows[0]], rel=1e-3)
    weights = [
        transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model" / "head").state_dict()
        for folder in (one, two)
    ]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-3) for name in weights[0])


def test_a_base_in_bfloat16_keeps_its_precision_and_the_head_float32(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = prepared(tmp_path / "run")
    path = folder / "critic" / "model"
    transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(path)
    joint_stage(folder, TEMPLATE, settings(steps=2))
    with safe_open(str(folder / "model" / "head" / "model.safetensors"), "pt") as weights:
        kinds = {name: weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
    assert kinds.pop("score.weight") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}
    critic = transformers.AutoModelForCausalLM.from_pretrained(folder / "model" / "critic")
    assert {p.dtype for p in critic.parameters()} == {torch.bfloat16}


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "run")
    with pytest.raises(UsageError, match="a batch of 8 pairs cannot be divided by 3"):
        joint_stage(folder, TEMPLATE, settings(micro_batch=3))
    folder = prepared(tmp_path / "other")
    write_items(folder / "critiques" / "critiques.jsonl", [item("a", 2, 0, ["yes", None])])
    with pytest.raises(UsageError, match=r"no pair to learn from \(without a critique 1\)"):
        joint_stage(folder, TEMPLATE, settings(dev_share=0.0))


# --- the command line -------------------------------------------------------------------------------------------


def test_from_items_to_verdicts(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """nano-base, a few steps: every stage leaves its files, the same command does nothing twice, the judge votes."""
    rows = [
        {**i.to_json(), "critiques": ["short 5, clean 3\n[1] short yes, clean no", "short 5\n[1] short no"]}
        for i in generate_items(8, split="train")
    ]
    write_rows(tmp_path / "i.jsonl", rows)
    words = (
        "train", "cloud", tmp_path / "i.jsonl", "-o", tmp_path / "run", "--model", "nano-base", "--critic-batch", 4,
        "--critic-steps", 2, "--critic-learning-rate", 1e-3, "--batch", 4, "--steps", 2, "--learning-rate", 1e-4,
        "--dev-share", 0.3,
        "--max-tokens", 96, "--temperature", 1, "-q",
    )  # fmt: skip
    first = run(*words, "--stop-after", "critic", "--json")
    assert first.code == 0, first.err
    assert sorted(first.json) == ["critic", "oracle", "skipped_rows"]
    assert not (tmp_path / "run" / "critiques").exists()
    done = run(*words, "--json")
    assert done.code == 0, done.err
    assert done.json["critic"] == {**first.json["critic"], **done.json["critic"]}
    learned = done.json["oracle"]["items"]
    assert done.json["oracle"]["critiques"] == 2 * learned
    assert (done.json["critiques"]["responses"], done.json["oracle"]["left_out"]) == (16, 8 - learned)
    assert done.json["head"]["dev"]["n"] == 8 - learned
    assert 0 < done.json["head"]["pairs"] <= learned
    assert run(*words, "--json").json["head"] == done.json["head"]

    write_items(tmp_path / "t.jsonl", generate_items(3, split="test"))
    judging = ("judge", tmp_path / "t.jsonl", "--judge", "cloud", "-q", "--max-tokens", 96)
    judged = run(*judging, "-o", tmp_path / "v.jsonl", "--judgments", tmp_path / "j.jsonl", "--model",
                 tmp_path / "run" / "model", "-k", 3)  # fmt: skip
    assert judged.code == 0, judged.err
    found = lines(tmp_path / "j.jsonl")
    assert [j["item"] for j in found] == [i.id for i in generate_items(3, split="test") for _ in range(3)]
    assert {j["template"].split("@")[0] for j in found} == {"compact-cloud"}
    assert {j["temperature"] for j in found} == {1.0}
    assert len({json.dumps(j["scores"]) for j in found}) > 3
    for verdict in lines(tmp_path / "v.jsonl"):
        votes = [j["scores"] for j in found if j["item"] == verdict["item"] and j["scores"] is not None]
        if votes:
            assert verdict["scores"] == pytest.approx(
                [sum(column) / len(votes) for column in zip(*votes, strict=True)]
            )
    critic, head = (tmp_path / "run" / "model" / name for name in ("critic", "head"))
    again = run(*judging, "-o", tmp_path / "w.jsonl", "--ledger", tmp_path / "v.ledger.db", "--model", critic,
                "--head", head, "-k", 3, "--json")  # fmt: skip
    assert again.code == 0, again.err
    assert again.json["judgments_new"] == 0  # the same two models, however they are named
    hand = run("judge", "--judge", "cloud", "--model", critic.parent, "--prompt", "Write a tweet about bees.",
               "--response", "Bees!", "-k", 1, "--max-tokens", 96)  # fmt: skip
    assert hand.code == 0, hand.err
    assert "1 of 1 judgments valid" in hand.out or "missing:" in hand.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("judge", "ITEMS", "--judge", "cloud", "--model", "nano"), "holds no critic/ and head/"),
        (("judge", "ITEMS", "--head", "x"), "--head goes with --judge cloud"),
        (("judge", "ITEMS", "--judge", "cloud", "--model", "nano", "--head", "nano-meta", "--template", "grm"),
         "no critique template 'grm'"),
        (("judge", "--judge", "cloud", "--model", "nano", "--head", "nano-meta", "--prompt", "Q", "--response", "a",
          "--reference", "r"), "does not show what --reference gives"),
        (("train", "cloud", "ITEMS", "-o", "OUT", "--model", "nano-base", "-q"), "give items a list 'critiques'"),
        (("train", "cloud", "ITEMS", "-o", "OUT", "--model", "nano-base", "--oracle-url", "u"), "go with --oracle"),
        (("train", "cloud", "ITEMS", "-o", "OUT", "--model", "nano-base", "--base-url", "u"), "goes with --engine"),
        (("train", "cloud", "ITEMS", "-o", "OUT", "--model", "nano-base", "--dev-share", "1"), "held-out share"),
    ],
)  # fmt: skip
def test_calls_that_cannot_be(run: Run, tmp_path: Path, words: tuple[str, ...], said: str) -> None:  # noqa: F811
    write_items(tmp_path / "i.jsonl", [item("a")])
    places = {"ITEMS": tmp_path / "i.jsonl", "OUT": tmp_path / "out"}
    done = run(*(places.get(word, word) for word in words))
    assert done.code != 0
    assert said in " ".join(done.err.split())

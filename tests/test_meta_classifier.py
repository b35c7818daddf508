"""The classifier engine: logits equal transformers' own, whatever the batch; released form, Qwen3, Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_models import build_checkpoint, build_tokenizer  # noqa: E402

from opengrm.engines.classifier import (  # noqa: E402
    Classifier,
    DialogueTokenizer,
    float_head,
    packed,
    padded,
    read_packed,
    takes_packed,
)
from opengrm.errors import EngineError  # noqa: E402
from opengrm.items import Message  # noqa: E402

CONVERSATIONS = [
    (Message("user", "Judge by criteria."), Message("assistant", text))
    for text in ("short", "a longer text that needs a few more tokens", "short", "\\boxed{7, 3} is final", "x " * 30)
]


def build_classifier(folder: Path, family: str, **changes: Any) -> Path:
    """A tiny random classifier of that family, with its tokenizer."""
    build_checkpoint(folder, family)
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **changes)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Gemma2"])
def test_logits_equal_transformers_whatever_the_batch(tmp_path: Path, family: str) -> None:
    folder = build_classifier(tmp_path, family)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = build_tokenizer()
    wanted = []
    for messages in CONVERSATIONS:
        text = tokenizer.apply_chat_template([m.to_json() for m in messages], tokenize=False)
        with torch.inference_mode():
            wanted.append(float(model(**tokenizer(text, return_tensors="pt")).logits[0, 0]))
    for options in ({}, {"max_batch": 1}, {"max_batch": 2}, {"max_tokens": 60}):
        with Classifier(folder, **options) as classifier:
            found = classifier.score(CONVERSATIONS)
            assert found == pytest.approx(wanted, abs=1e-4)
            assert found[0] == found[2]
            assert classifier.score(CONVERSATIONS[::-1]) == pytest.approx(found[::-1], abs=1e-4)


def test_a_checkpoint_without_a_pad_token(tmp_path: Path) -> None:
    folder = build_classifier(tmp_path, "Qwen3")
    with Classifier(folder) as classifier:
        wanted = classifier.score(CONVERSATIONS)
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text())
        values.pop("pad_token", None)
        values["pad_token_id"] = None
        (folder / name).write_text(json.dumps(values))
    with Classifier(folder) as classifier:
        assert classifier.score(CONVERSATIONS) == pytest.approx(wanted, abs=1e-4)


def test_too_long_is_none_and_the_others_go_on(tmp_path: Path) -> None:
    folder = build_classifier(tmp_path, "Qwen3")
    long = (Message("user", "x"), Message("assistant", "word " * 600))
    with Classifier(folder) as classifier:
        found = classifier.score([long, CONVERSATIONS[0]])
    assert found[0] is None
    assert found[1] is not None


def test_the_head_computes_in_float32(tmp_path: Path) -> None:
    folder = build_classifier(tmp_path, "Qwen3")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    float_head(model)
    seen: list[Any] = []
    model.score.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(**padded([[5, 6, 7]], 0)).logits
    assert seen == [(torch.bfloat16, torch.float32)]
    assert logits.dtype == torch.float32
    assert model.score.weight.dtype == torch.float32


def test_identity_changes_with_the_weights(tmp_path: Path) -> None:
    folder = build_classifier(tmp_path, "Qwen3")
    with Classifier(folder) as classifier:
        before = classifier.model
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(folder)
    with Classifier(folder) as classifier:
        assert classifier.model != before
        assert classifier.score(CONVERSATIONS[:1]) == [0.0]


def test_folders_that_are_no_meta_rm(tmp_path: Path) -> None:
    plain = build_checkpoint(tmp_path / "lm")
    with pytest.raises(EngineError, match="Qwen3ForCausalLM is not a sequence classifier"):
        Classifier(plain)
    two = tmp_path / "two"
    build_checkpoint(two)
    transformers.AutoModelForSequenceClassification.from_pretrained(two, num_labels=2).save_pretrained(two)
    with pytest.raises(EngineError, match="2 labels"):
        Classifier(two)
    with pytest.raises(EngineError, match=r"no config\.json"):
        Classifier(tmp_path)


# --- packed rows: one copy of what the conversations of a prompt have in common ---

JUDGED = [
    (Message("user", f"Judge by criteria: {query}."), Message("assistant", answer))
    for query, answers in (
        ("short", ("short yes", "short no = 3", "polite yes, short no, \\boxed{7, 3}", "short yes")),
        ("a recipe for soup, on topic, with a number", ("no", "honesty 5, clarity 3\n[1] yes, yes = 8", "x " * 20)),
        ("a letter", ("the only one",)),
    )
    for answer in answers
]


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Gemma", "Mixtral"])
def test_packed_logits_equal_padded_ones(tmp_path: Path, family: str) -> None:
    """Three prompts with four, three and one judgments of different lengths, before anything is rounded."""
    folder = build_classifier(tmp_path, family)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    plain, model = load(folder).eval(), load(folder).eval()
    assert takes_packed(model)
    dialogue = DialogueTokenizer(build_tokenizer())
    ids = [dialogue.encode(messages) for messages in JUDGED]
    prompts = [messages[0] for messages in JUDGED]
    layout = packed(ids, prompts, 0)
    assert layout.tokens_1N.shape[1] < 0.7 * sum(map(len, ids))
    read_packed(model)
    with torch.inference_mode():
        wanted = plain(**padded(ids, 0)).logits
        assert torch.allclose(model(layout=layout).logits, wanted, atol=1e-5)
        mixed = [4, 0, 7, 6, 1]  # a prompt's judgments need not stand together
        found = model(layout=packed([ids[i] for i in mixed], [prompts[i] for i in mixed], 0)).logits
    assert torch.allclose(found, wanted[mixed], atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "prompts"),
    [
        ([[5, 6, 7, 8], [5, 6, 7], [5, 6, 9]], "aaa"),  # one is the beginning of another
        ([[5, 6, 7], [8, 6, 7, 9]], "aa"),  # nothing in common under one prompt
        ([[5, 6, 7], [5, 6, 7]], "aa"),  # equal
        ([[5], [6, 7, 8]], "ab"),  # a single token
        ([[5], [6]], "ab"),  # no shared token in the whole row
        ([[5, 6, 7, 0], [5, 6, 0, 8, 0, 0]], "aa"),  # ends in the padding token: the logit is read before it
        ([[0, 0], [5, 6]], "ab"),  # nothing else
    ],
)
def test_packed_rows_at_their_edges(tmp_path: Path, batch: list[list[int]], prompts: str) -> None:
    folder = build_classifier(tmp_path, "Qwen3")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    plain, model = load(folder).eval(), load(folder).eval()
    read_packed(model)
    with torch.inference_mode():
        wanted = plain(**padded(batch, 0)).logits
        assert torch.allclose(model(layout=packed(batch, list(prompts), 0)).logits, wanted, atol=1e-5)


def test_scores_with_and_without_sharing_are_the_same(tmp_path: Path) -> None:
    folder = build_classifier(tmp_path, "Qwen3")
    with Classifier(folder, share_prompts=False) as classifier:
        wanted = classifier.score(JUDGED)
    for options in ({}, {"max_batch": 2}, {"max_tokens": 60}):
        with Classifier(folder, **options) as classifier:
            assert classifier.score(JUDGED) == pytest.approx(wanted, abs=1.1e-4)
            assert classifier.score(JUDGED[::-1]) == pytest.approx(wanted[::-1], abs=1.1e-4)


def test_a_template_that_writes_the_prompt_by_its_answer(tmp_path: Path) -> None:
    """What is shared is found by tokens, so a prompt that looks different before each answer is no harm."""
    folder = build_classifier(tmp_path, "Qwen3")
    path = folder / "chat_template.jinja"
    path.write_text("{{ messages[-1].content | length }} " + path.read_text())
    with Classifier(folder, share_prompts=False) as classifier:
        wanted = classifier.score(JUDGED)
    with Classifier(folder) as classifier:
        assert classifier.score(JUDGED) == pytest.approx(wanted, abs=1.1e-4)


def test_which_models_read_packed_rows(tmp_path: Path) -> None:
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    assert takes_packed(load(build_classifier(tmp_path / "full", "Qwen3")))
    assert not takes_packed(load(build_classifier(tmp_path / "capped", "Gemma2")))
    assert not takes_packed(load(build_classifier(tmp_path / "window", "Mistral", sliding_window=8)))

"""The classifier engine: logits equal transformers' own, whatever the batch; released form, Qwen3, Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_models import build_checkpoint, build_tokenizer  # noqa: E402

from opengrm.engines.classifier import Classifier, float_head, padded  # noqa: E402
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

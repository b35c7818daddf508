"""Which folders are models that we can load, and what identifies them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_checkpoint

torch = pytest.importorskip("torch", reason="the extra 'local' is not installed")

from opengrm.engines.checkpoints import check_backbone, check_folder, find_model, for_transformers_4  # noqa: E402
from opengrm.engines.fingerprint import fingerprint, identity  # noqa: E402
from opengrm.engines.transformers import TransformersEngine  # noqa: E402
from opengrm.errors import EngineError, UsageError  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "Qwen3")


def test_identity_follows_content_not_place(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copy")
    assert TransformersEngine(folder, device="cpu").model == f"tiny@{fingerprint(folder)}-float32"
    assert fingerprint(copied) == fingerprint(folder)
    (copied / "README.md").write_text("notes")
    assert fingerprint(copied) == fingerprint(folder)
    weights = copied / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    assert fingerprint(copied) != fingerprint(folder)


def test_identity_holds_what_changes_a_text(folder: Path) -> None:
    """Precision, and the chat template's variables: other texts, so other keys."""
    half = TransformersEngine(folder, device="cpu", dtype="bfloat16").model
    assert half == f"tiny@{fingerprint(folder)}-bfloat16"
    settings: list[dict[str, Any]] = [{"enable_thinking": False}, {"enable_thinking": True}, {}]
    named = [TransformersEngine(folder, device="cpu", chat_template_kwargs=s).model for s in settings]
    plain = f"tiny@{fingerprint(folder)}-float32"
    assert named[2] == plain
    assert all(name.startswith(f"{plain}-") for name in named[:2])
    assert len(set(named)) == 3
    with pytest.raises(UsageError, match="chat_template_kwargs cannot be written as JSON"):
        identity("tiny", "f", "float32", {"tools": object()})


def test_second_copies_of_the_weights_do_not_count(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copy")
    (copied / "original").mkdir()
    for extra in ("consolidated.safetensors", "original/params.json"):
        (copied / extra).write_bytes(b"x")
    assert fingerprint(copied) == fingerprint(folder)
    (copied / "model.safetensors").unlink()
    with pytest.raises(EngineError, match=r"no \*.safetensors weights"):
        TransformersEngine(copied, device="cpu")


def test_the_hub_is_asked_for_one_copy_of_the_weights(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, Any] = {}

    def download(_: str, **options: Any) -> str:
        asked.update(options)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    find_model("someone/something")
    there = [
        "config.json", "model-00001-of-00002.safetensors", "consolidated.safetensors", "original/consolidated.00.pth",
        "original/model.safetensors", "original/params.json", "tokenizer.json", "chat_template.jinja", "x.bin",
    ]  # fmt: skip
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    wanted = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"]
    assert list(filter_repo_objects(there, **patterns)) == wanted


def test_large_files_are_sampled_at_both_ends(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    size = 65 * 2**20
    with file.open("wb") as stream:
        stream.truncate(size)
    seen = {fingerprint(tmp_path)}
    for place in (0, size - 1):
        with file.open("r+b") as stream:
            stream.seek(place)
            stream.write(b"\x01")
        seen.add(fingerprint(tmp_path))
    with file.open("ab") as stream:
        stream.write(b"\x00")
    seen.add(fingerprint(tmp_path))
    assert len(seen) == 4


def _broken(folder: Path, target: Path, kind: str) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    if kind == "no config":
        (target / "config.json").unlink()
    elif kind == "bad config":
        (target / "config.json").write_text("{")
    elif kind == "no weights":
        (target / "model.safetensors").unlink()
    elif kind == "pickle":
        (target / "model.safetensors").rename(target / "pytorch_model.bin")
    elif kind == "classifier":
        config["architectures"] = ["Qwen3ForSequenceClassification"]
        (target / "config.json").write_text(json.dumps(config))
    elif kind == "more layers":
        config["num_hidden_layers"] = 3
        config.pop("layer_types", None)
        (target / "config.json").write_text(json.dumps(config))
    elif kind == "cut weights":
        content = (target / "model.safetensors").read_bytes()
        (target / "model.safetensors").write_bytes(content[: len(content) // 2])
    return target


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no config", "no config.json"),
        ("bad config", "cannot be read"),
        ("no weights", r"no \*.safetensors weights"),
        ("pickle", "only pickled ones, which are not loaded"),
        ("classifier", "Qwen3ForSequenceClassification is not a causal language model"),
        ("more layers", "the weights lack 11 tensors"),
        ("cut weights", "cannot load this model"),
    ],
)
def test_folders_that_are_no_model_say_why(folder: Path, tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(EngineError, match=words) as raised:
        TransformersEngine(_broken(folder, tmp_path / "m", kind), device="cpu")
    assert "\n" not in str(raised.value)


def test_architectures_that_also_generate(folder: Path, tmp_path: Path) -> None:
    """Gemma 3 with its eyes loads as a causal LM; Mistral 3 does not, nor do others of its kind."""
    target = shutil.copytree(folder, tmp_path / "m")
    config = json.loads((target / "config.json").read_text())
    for name in ("Gemma3", "Mistral3"):
        (target / "config.json").write_text(
            json.dumps({**config, "architectures": [f"{name}ForConditionalGeneration"]})
        )
        if name == "Gemma3":
            check_folder(target)
    with pytest.raises(EngineError, match="Mistral3ForConditionalGeneration is not a causal language model"):
        check_folder(target)


def test_a_folder_says_also_what_transformers_4_reads(tmp_path: Path) -> None:
    tokenizer = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|a|>"], "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "rope_parameters": scaled}))
    for _ in range(2):  # twice is once
        for_transformers_4(tmp_path)
        assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
            "tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|a|>"], "eos_token": "</s>",
            "model_input_names": ["input_ids", "attention_mask"],
        }  # fmt: skip
        assert json.loads((tmp_path / "config.json").read_text()) == {
            "model_type": "llama", "rope_parameters": scaled, "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        }  # fmt: skip
    plain = {"model_type": "bert", "tokenizer_class": "BertTokenizer"}
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text(json.dumps(plain))
    for_transformers_4(tmp_path)
    assert [json.loads((tmp_path / name).read_text()) for name in ("tokenizer_config.json", "config.json")] == [
        plain
    ] * 2


def test_what_a_classifier_can_be_made_of(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(EngineError, match=r"no tokenizer \(tokenizer\.json"):
        check_backbone(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    for architecture, labels, why in (
        ("Qwen3ForCausalLM", None, None),
        ("BertModel", None, None),
        ("BertForMaskedLM", None, None),
        ("GemmaForSequenceClassification", 1, None),
        ("GemmaForSequenceClassification", 3, "this classifier has 3 labels"),
        ("T5ForConditionalGeneration", None, "is an encoder with a decoder"),
    ):
        config = {"architectures": [architecture], "is_encoder_decoder": architecture.startswith("T5")}
        if labels is not None:
            config["id2label"] = {str(i): "" for i in range(labels)}
        (tmp_path / "config.json").write_text(json.dumps(config))
        if why is None:
            check_backbone(tmp_path)
        else:
            with pytest.raises(EngineError, match=why):
                check_backbone(tmp_path)

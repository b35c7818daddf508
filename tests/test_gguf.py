"""The GGUF exporter: files that llama.cpp reads give the tokens that transformers gives."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opengrm.engines.gguf import export_gguf, llama3_factors, read_tokenizer, rope
from opengrm.errors import UsageError

gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = (0, 1, 2)
PROMPTS = ["Name three primes.", "a b  c\n\nüñí 12345", "Response 1 is better than response 2, isn't it?"]
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def build_tokenizer(split: str | None = None) -> Any:
    """A small byte-level BPE tokenizer with ChatML specials, trained on a few sentences."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    raw.pre_tokenizer = (
        level
        if split is None
        else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), behavior="isolated"), level])
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(
        ["the response is better than that one 1 2 3 because it answers the question."] * 4, trainer
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token=None
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_checkpoint(
    folder: Path, family: str, *, split: str | None = None, dtype: str = "float32", **config: Any
) -> Path:
    """A random model of that family with its tokenizer, saved as transformers saves it."""
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = build_tokenizer(split)
    values = {
        "vocab_size": len(tokenizer) + 5, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None,
        "initializer_range": 0.3,
    }  # fmt: skip
    if family == "Qwen2":
        del values["head_dim"]
    settings = getattr(transformers, f"{family}Config")(**{**values, **config})
    model = getattr(transformers, f"{family}ForCausalLM")(settings).to(getattr(torch, dtype))
    with torch.no_grad():  # norms and biases as a trained model has them: not all ones and zeros
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def greedy_ids(folder: Path, prompt: str, count: int) -> tuple[int, list[int]]:
    """Prompt length and greedy token ids from transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(chat_text(folder, prompt), return_tensors="pt", add_special_tokens=False)
    length = ids["input_ids"].shape[1]
    with torch.no_grad():
        made = model.generate(**ids, max_new_tokens=count, do_sample=False)
    return length, made[0, length:].tolist()


def llama_cpp_ids(path: Path, folder: Path, prompt: str, count: int) -> tuple[int, list[int]]:
    """Prompt length and greedy token ids from llama.cpp's own server code, in process."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.kv_unified = 512, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.hostnames, params.port, params.warmup, params.verbosity = ["127.0.0.1"], 0, False, 0
    server = xllamacpp.Server(params)
    chat = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1}
    counted = server.handle_chat_completions(chat)["usage"]["prompt_tokens"]
    plain = {"prompt": chat_text(folder, prompt), "temperature": 0, "n_predict": count, "return_tokens": True}
    request = urllib.request.Request(
        f"{server.listening_address}/completion", json.dumps(plain).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return counted, json.load(answer)["tokens"]


def chat_text(folder: Path, prompt: str) -> str:
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": prompt}]
    return AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES = {
    "qwen3-tied": ("Qwen3", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"split": QWEN2_SPLIT}),
    "llama": ("Llama", {"attention_bias": False, "tie_word_embeddings": False}),
    "llama3-rope": ("Llama", {"split": LLAMA3_SPLIT, "rope_parameters": LLAMA3_ROPE}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_continues_as_transformers_does(name: str, tmp_path: Path) -> None:
    family, options = FAMILIES[name]
    folder = build_checkpoint(tmp_path / "model", family, **options)
    path = export_gguf(folder, tmp_path / "out" / "model.gguf", "f32")
    compared = 0
    for prompt in PROMPTS:
        expected_length, expected = greedy_ids(folder, prompt, 16)
        length, ids = llama_cpp_ids(path, folder, prompt, 16)
        assert length == expected_length
        # llama.cpp ends at <|endoftext|> too, transformers at the configured token alone.
        end = next((i for i, token in enumerate(expected) if token in SPECIAL), 16)
        assert ids[:end] == expected[:end]
        compared += end
    assert compared >= 20


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("qwen3"), "Qwen3", dtype="bfloat16")


def state(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {k: v.float().numpy() for k, v in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize(("dtype", "error"), [("f32", 0.0), ("f16", 1e-3), ("q8_0", 1e-2)])
def test_the_file_holds_the_weights(qwen3: Path, tmp_path: Path, dtype: Any, error: float) -> None:
    path = export_gguf(qwen3, tmp_path / "model.gguf", dtype)
    reader = gguf.GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}
    weights = state(qwen3)
    assert len(tensors) == len(weights)
    for name, source in [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
    ]:
        values = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        assert np.abs(values - weights[source]).max() <= error * np.abs(weights[source]).max()
    norm = tensors["blk.0.attn_q_norm.weight"]
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32
    np.testing.assert_array_equal(norm.data, weights["model.layers.0.self_attn.q_norm.weight"])


def test_the_file_holds_the_tokenizer(qwen3: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(export_gguf(qwen3, tmp_path / "model.gguf", "q8_0"))

    def value(name: str) -> Any:
        return reader.fields[name].contents()

    assert value("tokenizer.ggml.model") == "gpt2"
    assert value("tokenizer.ggml.pre") == "gpt-2"
    assert value("tokenizer.ggml.tokens")[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert value("tokenizer.ggml.tokens")[-1].startswith("[PAD")
    assert value("tokenizer.ggml.token_type")[:4] == [3, 3, 3, 1]
    assert value("tokenizer.ggml.token_type")[-5:] == [5] * 5
    assert value("tokenizer.ggml.eos_token_id") == 2
    assert value("tokenizer.ggml.padding_token_id") == 0
    assert value("tokenizer.ggml.add_bos_token") is False
    assert "tokenizer.ggml.bos_token_id" not in reader.fields
    assert value("tokenizer.chat_template") == TEMPLATE
    assert value("qwen3.attention.key_length") == 32
    assert value("qwen3.context_length") == 512


def changed(source: Path, target: Path, **files: Any) -> Path:
    """A copy of a checkpoint with a JSON file changed by a function (or removed by None)."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    for stem, change in files.items():
        path = target / f"{stem}.json"
        if change is None:
            path.unlink()
        else:
            value = json.loads(path.read_text())
            change(value)
            path.write_text(json.dumps(value))
    return target


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"config": lambda c: c.update(architectures=["GPT2LMHeadModel"])},
            "architecture GPT2LMHeadModel: supported are Ll",
        ),
        ({"config": lambda c: c.update(rope_parameters={"rope_type": "yarn", "factor": 2.0})}, "rope type 'yarn'"),
        ({"config": lambda c: c.update(use_sliding_window=True)}, "sliding windows"),
        ({"config": lambda c: c.update(vocab_size=10)}, "beyond the model's vocabulary of 10"),
        ({"config": None}, "no Hugging Face checkpoint: it has no config.json"),
        ({"tokenizer": None}, "it has no tokenizer.json"),
        ({"tokenizer": lambda t: t["model"].update(type="Unigram")}, "Unigram tokenizers: only byte-level BPE"),
        ({"tokenizer": lambda t: t["model"].update(byte_fallback=True)}, "BPE with byte fallback tokenizers"),
        ({"tokenizer": lambda t: t.update(pre_tokenizer={"type": "Whitespace"})}, "pre-tokenizer: supported is byte"),
        ({"tokenizer": lambda t: t.update(normalizer={"type": "Lowercase"})}, "normalizer Lowercase"),
    ],
)
def test_what_is_not_supported_is_said(qwen3: Path, tmp_path: Path, files: dict[str, Any], words: str) -> None:
    folder = changed(qwen3, tmp_path / "model", **files)
    out = tmp_path / "model.gguf"
    out.write_text("the file of before")
    with pytest.raises(UsageError, match=words.replace("(", r"\(")) as caught:
        export_gguf(folder, out)
    assert "\n" not in str(caught.value)
    assert out.read_text() == "the file of before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model.gguf"]


def test_weights_that_are_none(qwen3: Path, tmp_path: Path) -> None:
    folder = changed(qwen3, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(UsageError, match="no safetensors file"):
        export_gguf(folder, tmp_path / "out.gguf")
    weights.unlink()
    with pytest.raises(UsageError, match="holds no weights"):
        export_gguf(folder, tmp_path / "out.gguf")


def test_llama3_factors_by_hand() -> None:
    """Head size 4, base 10000: of wavelengths 2 pi and 200 pi, context 64 keeps the first and stretches the second."""
    config = {"hidden_size": 8, "num_attention_heads": 2, "rope_scaling": {**LLAMA3_ROPE, "rope_theta": 10000.0}}
    assert rope(config)[:2] == (10000.0, "llama3")
    np.testing.assert_allclose(llama3_factors(config), [1.0, 8.0], rtol=1e-6)


def test_a_list_of_end_tokens(qwen3: Path, tmp_path: Path) -> None:
    folder = changed(qwen3, tmp_path / "model", generation_config=lambda g: g.update(eos_token_id=[2, 0]))
    assert read_tokenizer(folder, vocab_size=405).eos == (2, 0)

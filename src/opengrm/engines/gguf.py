"""GGUF files from Hugging Face checkpoints: Llama, Qwen2 and Qwen3 with a byte-level BPE tokenizer.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the `gguf` package writes it and knows
llama.cpp's tensor names. Weights are read from the safetensors files one at a time (no torch), so memory holds one
tensor, not a model.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from opengrm.engines.checkpoints import weight_files
from opengrm.errors import MissingExtra, UsageError

EXPORT_VERSION = 1  # goes up with every change of what a file holds: kept files of an older one are not used again
GGUFDtype = Literal["f32", "f16", "q8_0"]
Array = NDArray[Any]

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How words are split before the merges: the pattern in tokenizer.json, and llama.cpp's name for it.
PRE_TOKENIZERS = {
    "": "gpt-2",  # the ByteLevel step's own pattern
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + r"\p{N}" + _REST: "qwen2",
}
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5  # llama.cpp's token types
_STORED: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_Q8_BLOCK = 32


def export_gguf(model_dir: Path, out: Path, dtype: GGUFDtype = "f16") -> Path:
    """Write the checkpoint as one GGUF file; an existing file is replaced, and only by a whole one.

    Args:
        model_dir: a folder with config.json, *.safetensors and tokenizer.json.
        out: the file to write; its folder is made.
        dtype: precision of the matrices. Vectors (norms, biases) stay float32. A matrix whose rows are no multiple of
            32 long cannot be q8_0 and is kept in f16.

    Returns:
        `out`.

    Raises:
        UsageError: the folder is no such checkpoint; the sentence names what is supported.
        MissingExtra: the `gguf` package is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtra("exporting GGUF", "gguf") from None
    if dtype not in ("f32", "f16", "q8_0"):
        raise UsageError(f"GGUF type {dtype!r}: expected f32, f16 or q8_0")
    config = _read_json(model_dir / "config.json")
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"{model_dir}: GGUF export does not know the architecture {architecture}: "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    arch = ARCHITECTURES[architecture]
    tokenizer = read_tokenizer(model_dir, vocab_size=int(config["vocab_size"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        writer = gguf.GGUFWriter(partial, arch)
        writer.add_name(model_dir.resolve().name)
        writer.add_file_type({"f32": 0, "f16": 1, "q8_0": 7}[dtype])
        writer.add_quantization_version(2)
        _add_config(writer, config)
        _add_tokenizer(writer, tokenizer)
        tensors = list(_tensors(model_dir, config, arch, dtype))
        for tensor in tensors:
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("f4"), tensor.nbytes, tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.load())
        writer.close()
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path.parent} is no Hugging Face checkpoint: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds no JSON object")
    return value


# Settings


def rope(config: Mapping[str, Any]) -> tuple[float, str, Mapping[str, Any]]:
    """Base frequency, type and parameters of the rotary embedding, from either spelling of the configuration."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    base = parameters.get("rope_theta") or config.get("rope_theta") or 10000.0
    if kind not in ("default", "linear", "llama3"):
        raise UsageError(f"GGUF export does not know the rope type {kind!r}: supported are default, linear and llama3")
    return float(base), kind, parameters


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _add_config(writer: Any, config: Mapping[str, Any]) -> None:
    """The numbers of config.json under llama.cpp's names."""
    if config.get("use_sliding_window") or config.get("hidden_act", "silu") != "silu":
        raise UsageError("GGUF export does not know sliding windows or activations other than silu")
    base, kind, parameters = rope(config)
    heads, head_dim = config["num_attention_heads"], _head_dim(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_freq_base(base)
    if kind == "linear":
        writer.add_rope_scaling_type("linear")
        writer.add_rope_scaling_factor(float(parameters["factor"]))


def llama3_factors(config: Mapping[str, Any]) -> Array:
    """What Llama 3.1 divides each rotary frequency by (head_dim / 2 numbers), as `rope_freqs.weight` holds it.

    Long wavelengths are stretched by `factor`, short ones not, those between smoothly (Llama 3.1's own rule, as in
    transformers' `_compute_llama3_parameters`).
    """
    base, _, p = rope(config)
    head_dim = _head_dim(config)
    wavelength = 2 * math.pi * base ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    context = p["original_max_position_embeddings"]
    low, high, factor = p["low_freq_factor"], p["high_freq_factor"], p["factor"]
    smooth = np.clip((context / wavelength - low) / (high - low), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / factor + smooth), dtype=np.float32)


# Weights


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: `load` reads, permutes and converts it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    kind: Any
    nbytes: int
    load: Callable[[], Array]


def _tensors(model_dir: Path, config: Mapping[str, Any], arch: str, dtype: GGUFDtype) -> Iterator[_Tensor]:
    import gguf

    names = gguf.get_tensor_name_map(
        {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}[arch],
        config["num_hidden_layers"],
    )
    types = gguf.GGMLQuantizationType
    if rope(config)[1] == "llama3":
        factors = llama3_factors(config)
        yield _Tensor("rope_freqs.weight", factors.shape, types.F32, factors.nbytes, lambda: factors)
    seen = 0
    for source, stored in _stored_tensors(model_dir):
        if source.endswith("rotary_emb.inv_freq") or (
            source == "lm_head.weight" and config.get("tie_word_embeddings")
        ):
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UsageError(f"{model_dir}: GGUF export does not know the tensor {source} of a {arch} model")
        heads = _rotary_heads(source, config) if arch == "llama" else 0
        shape = stored.shape
        if len(shape) < 2 or dtype == "f32":
            kind = types.F32
        else:
            kind = types.Q8_0 if dtype == "q8_0" and shape[-1] % _Q8_BLOCK == 0 else types.F16
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        seen += 1
        yield _Tensor(
            name, shape, kind, math.prod(shape) // block * block_bytes,
            partial(_converted, stored, heads, kind),
        )  # fmt: skip
    if not seen:
        raise UsageError(f"{model_dir} holds no weights: GGUF export reads *.safetensors")


def _rotary_heads(source: str, config: Mapping[str, Any]) -> int:
    """Number of heads of a projection that is rotated, else 0."""
    match = re.search(r"self_attn\.([qk])_proj\.(weight|bias)$", source)
    if match is None:
        return 0
    heads = int(config["num_attention_heads"])
    return heads if match[1] == "q" else int(config.get("num_key_value_heads") or heads)


def _converted(stored: _Stored, heads: int, kind: Any) -> Array:
    """The tensor in the type of the file.

    llama.cpp's llama graph rotates neighbouring pairs of a head's rows, Hugging Face rotates the first half against
    the second: with `heads`, rows are interleaved accordingly.
    """
    import gguf

    array = stored.load()
    if heads:
        array = (
            array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        )
    return np.ascontiguousarray(gguf.quants.quantize(np.ascontiguousarray(array, dtype=np.float32), kind))


@dataclass(frozen=True)
class _Stored:
    """A tensor in a safetensors file (format: 8 bytes of header length, JSON header, raw little-endian data)."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int

    def load(self) -> Array:
        """The values as float32."""
        dtype, shape = _STORED[self.dtype], self.shape or (1,)
        raw: Array = np.memmap(self.path, dtype=dtype, mode="r", offset=self.offset, shape=shape)
        if self.dtype == "BF16":  # the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(raw, dtype=np.float32)


def _stored_tensors(model_dir: Path) -> Iterator[tuple[str, _Stored]]:
    for path in weight_files(model_dir):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            raise UsageError(f"{path} is no safetensors file: {error}") from None
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _STORED:
                raise UsageError(f"{path}: tensor {name} is {entry['dtype']}: GGUF export reads {', '.join(_STORED)}")
            offset = 8 + length + entry["data_offsets"][0]
            yield name, _Stored(path, tuple(entry["shape"]), entry["dtype"], offset)


# Tokenizer


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE tokenizer as GGUF holds it.

    Attributes:
        tokens, types: V token texts (in the byte-level alphabet) and llama.cpp's token types.
        merges: "left right" each, best first.
        pre: llama.cpp's name of the pre-tokenizer.
        add_bos: whether the tokenizer itself puts the bos token first.
        bos, eos, pad: token ids; `eos` may be several, the main one first.
        chat_template: Jinja text, or None.
    """

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    pre: str
    add_bos: bool
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    chat_template: str | None


def read_tokenizer(model_dir: Path, *, vocab_size: int) -> Tokenizer:
    """Read tokenizer.json and its neighbours.

    Args:
        model_dir: the checkpoint's folder.
        vocab_size: rows of the embedding matrix; ids without a token become unused tokens.

    Raises:
        UsageError: the tokenizer is of another kind than byte-level BPE.
    """
    data = _read_json(model_dir / "tokenizer.json")
    model = data.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte fallback" if model.get("byte_fallback") else model.get("type")
        raise UsageError(f"{model_dir}: GGUF export does not know {kind} tokenizers: only byte-level BPE is supported")
    pre = _pre_tokenizer(data, model_dir)
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [_UNUSED] * vocab_size
    added = {t["id"]: t for t in data.get("added_tokens") or []}
    if max([*model["vocab"].values(), *added]) >= vocab_size:
        raise UsageError(f"{model_dir}: the tokenizer has ids beyond the model's vocabulary of {vocab_size}")
    for text, index in model["vocab"].items():
        tokens[index], types[index] = text, _NORMAL
    for index, token in added.items():
        tokens[index], types[index] = token["content"], _CONTROL if token.get("special") else _USER
    by_text = {text: index for index, text in enumerate(tokens)}
    settings = {"tokenizer_config": {}, "generation_config": {}, "config": _read_json(model_dir / "config.json")}
    for name in ("tokenizer_config", "generation_config"):
        if (model_dir / f"{name}.json").is_file():
            settings[name] = _read_json(model_dir / f"{name}.json")
    bos = _special(settings, "bos", by_text)
    pad = _special(settings, "pad", by_text)
    return Tokenizer(
        tokens=tuple(tokens),
        types=tuple(types),
        merges=tuple(m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []),
        pre=pre,
        add_bos=bool(bos) and _adds_first(data, tokens[bos[0]], settings["tokenizer_config"]),
        bos=bos[0] if bos else None,
        eos=_special(settings, "eos", by_text),
        pad=pad[0] if pad else None,
        chat_template=_chat_template(model_dir, settings["tokenizer_config"]),
    )


def _pre_tokenizer(data: Mapping[str, Any], model_dir: Path) -> str:
    """llama.cpp's name of the way the tokenizer splits text, or an error."""
    normalizer = (data.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):  # llama.cpp does not compose characters; text mostly is NFC already
        raise UsageError(f"{model_dir}: GGUF export does not know the tokenizer's normalizer {normalizer}")
    step = data.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers") if step.get("type") == "Sequence" else [step]
    patterns: list[str | None] = []
    byte_level = False
    for part in steps or []:
        if part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
            byte_level = True
            if part.get("use_regex", True):
                patterns.append("")
        elif part.get("type") == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            patterns.append((part.get("pattern") or {}).get("Regex"))
        else:
            patterns.append(None)
    pattern = patterns[0] if byte_level and len(patterns) == 1 else None
    if pattern is None or pattern not in PRE_TOKENIZERS:
        raise UsageError(
            f"{model_dir}: GGUF export does not know this tokenizer's pre-tokenizer: supported is byte-level BPE as "
            "in GPT-2, Qwen2/Qwen3 and Llama 3, without a prefix space"
        )
    return PRE_TOKENIZERS[pattern]


def _special(settings: Mapping[str, Mapping[str, Any]], role: str, by_text: Mapping[str, int]) -> tuple[int, ...]:
    """Ids of a special token: the tokenizer's own first, then those of generation_config.json and config.json."""
    ids: list[int] = []
    token = settings["tokenizer_config"].get(f"{role}_token")
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and text in by_text:
        ids.append(by_text[text])
    for name in ("generation_config", "config"):
        value = settings[name].get(f"{role}_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(ids))


def _adds_first(data: Mapping[str, Any], bos: str, tokenizer_config: Mapping[str, Any]) -> bool:
    """Whether encoding puts the bos token first: by its post-processor, or by the setting where there is none."""
    post = data.get("post_processor") or {}
    for step in [post, *(post.get("processors") or [])]:
        if step.get("type") == "TemplateProcessing":
            first = (step.get("single") or [{}])[0].get("SpecialToken") or {}
            return bool(first.get("id") == bos)
    return bool(tokenizer_config.get("add_bos_token"))


def _chat_template(model_dir: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    path = model_dir / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {t.get("name"): t.get("template") for t in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _add_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(list(tokenizer.tokens))
    writer.add_token_types(list(tokenizer.types))
    writer.add_token_merges(list(tokenizer.merges))
    writer.add_add_bos_token(tokenizer.add_bos)
    if tokenizer.bos is not None:
        writer.add_bos_token_id(tokenizer.bos)
    if tokenizer.eos:
        writer.add_eos_token_id(tokenizer.eos[0])
    if len(tokenizer.eos) > 1:
        writer.add_eot_token_id(tokenizer.eos[1])
    if tokenizer.pad is not None:
        writer.add_pad_token_id(tokenizer.pad)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)

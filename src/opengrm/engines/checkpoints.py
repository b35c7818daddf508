"""Where a model lies: an embedded one, a folder, or a hub id; and whether it is one that we can load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from opengrm.engines import minilm
from opengrm.errors import EngineError

_WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_UNWANTED = ("*/*", "consolidated*")  # the weights once more, in other formats: 2x the download, and never loaded

# The trained judge of RubricWorld, the base it was trained from, and its meta RM.
EMBEDDED = ("nano", "nano-base", "nano-meta")


def find_model(model: str | Path, *, revision: str | None = None, code: bool = False) -> tuple[Path, str]:
    """The folder of a model, fetched from the hub where it must be, and its short name (with a hub id's commit).

    Args:
        model: the name of an embedded model or of the packaged encoder ("all-minilm-l6-v2"), a folder, or a hub id
            such as "Qwen/Qwen3-8B".
        code: also fetch the checkpoint's Python files.

    Raises:
        EngineError: there is no such model here, and the hub cannot give it.
    """
    if str(model) == minilm.NAME:  # also where a folder has that name: ./NAME is that one
        return minilm.minilm_folder(), minilm.NAME
    path = embedded_folder(str(model)) if is_embedded(model) else Path(model)
    if path.is_dir():
        return path, path.resolve().name
    text = str(model)
    is_hub_id = not is_embedded(model) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None
    if path.exists() or not is_hub_id:
        what = "is not a folder" if path.exists() else "no such model folder"
        raise EngineError(f"{path}: {what}; give 'nano', a checkpoint's folder or a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        wanted = [*_WANTED, *(["*.py"] if code else [])]
        folder = Path(snapshot_download(text, revision=revision, allow_patterns=wanted, ignore_patterns=[*_UNWANTED]))
    except Exception as error:
        raise EngineError(f"{text}: no such folder, and the hub cannot give it: {first_line(error)}") from None
    return folder, f"{text}@{folder.name[:12]}"


def is_embedded(model: str | Path) -> bool:
    """Whether it is the name of a model inside the package."""
    return str(model) in EMBEDDED


def embedded_folder(name: str) -> Path:
    """Where an embedded model lies inside the package."""
    return Path(__file__).resolve().parents[1] / "embedded" / name


def named_template(model: str | Path) -> str | None:
    """The prompt family that a model was trained to judge in, as its config.json says (`opengrm_template`).

    Only embedded models and folders are looked at; None where nothing is said.
    """
    if is_embedded(model):
        return "compact"
    try:
        named = json.loads((Path(model) / "config.json").read_text(encoding="utf-8")).get("opengrm_template")
    except (OSError, ValueError, AttributeError):
        return None
    return named if isinstance(named, str) else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load, by name."""
    return sorted(f for f in folder.glob("*.safetensors") if not f.name.startswith("consolidated"))


def check_folder(folder: Path) -> None:
    """See that a folder holds a causal LM that can be loaded without pickle.

    Raises:
        EngineError: with what is missing or unsuitable.
    """
    config = _checked_config(folder)
    architectures = config.get("architectures") or []
    generates = any(a.endswith(("ForCausalLM", "LMHeadModel")) or a in _also_causal() for a in architectures)
    if config.get("is_encoder_decoder") or (architectures and not generates):
        raise EngineError(f"{folder}: {', '.join(architectures) or 'this model'} is not a causal language model")


def check_backbone(folder: Path) -> None:
    """See that a folder holds what a classifier with one label can be made of: a causal LM, an encoder, or such one.

    Raises:
        EngineError: with what is missing or unsuitable.
    """
    config = _checked_config(folder)
    if config.get("is_encoder_decoder"):
        what = ", ".join(config.get("architectures") or []) or "this model"
        raise EngineError(f"{folder}: {what} is an encoder with a decoder, expected one of them alone")
    is_classifier = any(a.endswith("ForSequenceClassification") for a in config.get("architectures") or [])
    labels = len(config.get("id2label") or {"0": "", "1": ""})
    if is_classifier and labels != 1:
        raise EngineError(f"{folder}: this classifier has {labels} labels, expected one, or a model without a head")


def _checked_config(folder: Path) -> dict[str, Any]:
    """The configuration of a folder with safetensors weights. Raises EngineError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.get("architectures")
    except FileNotFoundError:
        raise EngineError(f"{folder}: no config.json, so this is not a model's folder") from None
    except (OSError, ValueError, AttributeError) as error:
        raise EngineError(f"{folder}/config.json: cannot be read: {first_line(error)}") from None
    if not weight_files(folder):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        also = " (only pickled ones, which are not loaded: convert them to safetensors)" if pickled else ""
        raise EngineError(f"{folder}: no *.safetensors weights{also}")
    check_tokenizer(folder)
    return dict(config)


def for_transformers_4(folder: Path) -> None:
    """Say in a saved folder's JSON files also what transformers 4 reads there, which many tools still pin.

    transformers 5 names a tokenizer without a class of its own TokenizersBackend, lists its further special tokens
    under another key, and keeps the rotary embedding's base in `rope_parameters`. Version 4 would refuse the first
    two, and without a word take its default for the third; its tokenizers of no class of their own would also give
    token types, which decoders refuse. Version 5 reads both.
    """
    path = folder / "tokenizer_config.json"
    if path.exists():
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        if tokenizer.get("tokenizer_class") == "TokenizersBackend":
            tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
            tokenizer.setdefault("model_input_names", ["input_ids", "attention_mask"])
        if isinstance(tokenizer.get("extra_special_tokens"), list):
            tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
        path.write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_tokenizer(folder: Path) -> None:
    """See that a model's folder has a tokenizer: without one transformers makes one that knows no word.

    Raises:
        EngineError: it has none.
    """
    names = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
    own = any(folder.glob("*.tiktoken")) or any(folder.glob("*.py"))  # a checkpoint's own code may read any file
    if not own and not any((folder / name).exists() for name in names):
        raise EngineError(f"{folder}: no tokenizer ({', '.join(names)})")


def _also_causal() -> set[str]:
    """Architectures of other names that transformers loads as causal LMs (Gemma 3, which also sees; not Mistral 3)."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES
    except ImportError:
        return set()
    return {name for entry in NAMES.values() for name in ([entry] if isinstance(entry, str) else entry)}


def first_line(error: Exception) -> str:
    """The first line of an error's text, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]

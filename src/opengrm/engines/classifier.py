"""The engine of the meta RM: one logit for a conversation, from any Hugging Face sequence classifier.

It reads ordinary folders whose architecture is `...ForSequenceClassification` with a single label, the released
`Gemma2ForSequenceClassification` as well as what `opengrm train meta` writes. The logit is the head's output at the
last token that is not padding, as transformers pools it; it is rounded to 4 decimals, the digits that the paper shows,
because the last bits depend on what else is in the batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from opengrm.engines.chat import ChatTokenizer
from opengrm.engines.checkpoints import find_model, first_line
from opengrm.engines.fingerprint import fingerprint
from opengrm.errors import EngineError, MissingExtra, UsageError
from opengrm.items import Message

DTYPES = ("auto", "float32", "bfloat16", "float16")
_DECIMALS = 4


class Classifier:
    """A sequence classifier that this process loads.

    The backbone runs in `dtype`, the head always in float32.

    Args:
        model: a folder or a hub id.
        device: "auto" (CUDA, else Apple's GPU, else CPU) or a torch device.
        dtype: "auto" (float32 on a CPU, else the checkpoint's), "float32", "bfloat16" or "float16".
        max_batch: most conversations in a batch.
        max_tokens: most tokens in a batch, padding included; a single longer conversation still runs alone.
        trust_remote_code: run code that comes with a checkpoint.
        revision: branch, tag or commit of a hub id.

    Raises:
        EngineError: there is no such model, or it is not a classifier with one label and safetensors weights.
        MissingExtra: torch or transformers is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch: int = 64,
        max_tokens: int = 65_536,
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        try:
            import torch
            import transformers
        except ImportError:
            raise MissingExtra("the meta RM", "local") from None
        if max_batch < 1 or max_tokens < 1:
            raise UsageError(f"a batch of {max_batch} with {max_tokens} tokens: expected at least 1 of each")
        if dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        from opengrm.engines.transformers import _device, _quietly

        folder, name = find_model(model, revision=revision, code=trust_remote_code)
        check_classifier(folder)
        where = _device(device)
        precision: Any = torch.float32 if dtype == "auto" and where == "cpu" else dtype
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
        try:
            with _quietly(transformers):
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
                found: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
                    folder, dtype=precision, use_safetensors=True, output_loading_info=True, **options
                )
        except Exception as error:
            raise EngineError(f"{model}: cannot load this model: {first_line(error)}") from None
        loaded, report = found
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise EngineError(f"{model}: the weights lack {len(missing)} tensors, e.g. {missing[0]}")
        float_head(loaded)
        self._pad = pad_token(tokenizer, loaded)
        self._dialogue = DialogueTokenizer(tokenizer)
        self._model: Any = loaded.to(where).eval()
        self._context = context_length(loaded)
        self._max_batch, self._max_tokens = max_batch, max_tokens
        self._identity = f"{name}@{fingerprint(folder)}"
        named = getattr(loaded.config, "meta_template", None)
        self.meta_template: str | None = named if isinstance(named, str) else None

    @property
    def model(self) -> str:
        """Name and fingerprint of the weights, tokenizer and configuration."""
        return self._identity

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float | None]:
        """The logit of each conversation (the last message is the assistant's); None where it is too long.

        Equal conversations are scored once and get equal logits.

        Raises:
            EngineError: out of memory, or the chat template cannot render these messages.
        """
        distinct: dict[tuple[int, ...], list[int]] = {}
        for place, messages in enumerate(conversations):
            distinct.setdefault(self._dialogue.encode(messages), []).append(place)
        logits: list[float | None] = [None] * len(conversations)
        fitting = [ids for ids in distinct if self._context is None or len(ids) <= self._context]
        for batch in self._batches(sorted(fitting, key=lambda ids: (len(ids), ids))):
            for ids, logit in zip(batch, self._logits(batch), strict=True):
                for place in distinct[ids]:
                    logits[place] = logit
        return logits

    def close(self) -> None:
        """Let go of the weights. The classifier cannot be used afterwards."""
        self._model = None

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batches(self, sorted_ids: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Batches of similar length, within both limits."""
        batch: list[tuple[int, ...]] = []
        for ids in sorted_ids:
            if batch and (len(batch) == self._max_batch or (len(batch) + 1) * len(ids) > self._max_tokens):
                yield batch
                batch = []
            batch.append(ids)
        if batch:
            yield batch

    def _logits(self, batch: Sequence[tuple[int, ...]]) -> list[float]:
        import torch

        if self._model is None:
            raise EngineError("the classifier is closed")
        inputs = {name: tensor.to(self._model.device) for name, tensor in padded(batch, self._pad).items()}
        try:
            with torch.inference_mode():
                logits_B1 = self._model(**inputs).logits
        except (torch.OutOfMemoryError, MemoryError):
            raise EngineError(f"out of memory with {len(batch)} conversations: choose a smaller batch") from None
        return [round(float(logit), _DECIMALS) for logit in logits_B1[:, 0].float()]


class DialogueTokenizer(ChatTokenizer):
    """Token ids of a finished conversation: as `ChatTokenizer`, without the opening of a further assistant turn."""

    def _render(self, turns: list[dict[str, str]]) -> str:
        text = super()._render(turns)
        return text if self._has_template else text.removesuffix("\n\nAssistant:")

    def _apply(self, turns: list[dict[str, str]]) -> str:
        text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        return text


def padded(batch: Sequence[Sequence[int]], pad: int) -> dict[str, Any]:
    """`input_ids` and `attention_mask` of sequences padded on the right, shape [batch, longest]."""
    import torch

    longest = max(len(ids) for ids in batch)
    return {
        "input_ids": torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in batch]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch]),
    }


def pad_token(tokenizer: Any, model: Any) -> int:
    """The id that pads: the model's, by which it finds the last token; else the tokenizer's or its end token's.

    It is also written into the model's configuration where that has none: without it transformers pools padding.
    """
    config = model.config.get_text_config()
    candidates = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((int(c) for c in candidates if c is not None), 0)
    config.pad_token_id = model.config.pad_token_id = pad
    return pad


def float_head(model: Any) -> None:
    """Let the model's head compute in float32, whatever the backbone's precision and under autocast.

    The head is the module named `score` (decoders) or `classifier`, where that is one linear layer.
    """
    import torch

    class FloatHead(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            with torch.autocast(hidden.device.type, enabled=False):
                return super().forward(hidden.float())

    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if type(head) is torch.nn.Linear:
            head.float()
            head.__class__ = FloatHead


def context_length(model: Any) -> int | None:
    """Most tokens of a conversation; None where the configuration does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_classifier(folder: Path) -> None:
    """See that a folder holds a sequence classifier with one label that can be loaded without pickle.

    Raises:
        EngineError: with what is missing or unsuitable.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = config.get("architectures") or []
        labels = config.get("id2label") or {"0": "", "1": ""}
    except FileNotFoundError:
        raise EngineError(f"{folder}: no config.json, so this is not a model's folder") from None
    except (OSError, ValueError, AttributeError) as error:
        raise EngineError(f"{folder}/config.json: cannot be read: {first_line(error)}") from None
    if not any(a.endswith("ForSequenceClassification") for a in architectures):
        what = ", ".join(architectures) or "this model"
        raise EngineError(f"{folder}: {what} is not a sequence classifier; opengrm train meta makes one of it")
    if len(labels) != 1:
        raise EngineError(f"{folder}: this classifier has {len(labels)} labels, a meta RM has one")
    if not any(folder.glob("*.safetensors")):
        raise EngineError(f"{folder}: no *.safetensors weights (pickled ones are not loaded)")

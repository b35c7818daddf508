"""The engine of the meta RM: one logit for a conversation, from any Hugging Face sequence classifier.

It reads ordinary folders whose architecture is `...ForSequenceClassification` with a single label, the released
`Gemma2ForSequenceClassification` as well as what `opengrm train meta` writes. The logit is the head's output at the
last token that is not padding, as transformers pools it; it is rounded to 4 decimals, the digits that the paper shows,
because the last bits depend on what else is in the batch.

Judgments of one item, in one order, differ in nothing but the last turn. Where the model can (`takes_packed`), a batch
is one packed row with one copy of what they have in common, see `packed.py`; else it is padded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from opengrm.engines.chat import ChatTokenizer
from opengrm.engines.checkpoints import find_model, first_line
from opengrm.engines.fingerprint import fingerprint
from opengrm.errors import EngineError, MissingExtra, UsageError
from opengrm.items import Message

if TYPE_CHECKING:
    from opengrm.engines.packed import Layout

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
        share_prompts: one copy of each prompt in the forward pass, where the model can; False pads every batch.

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
        share_prompts: bool = True,
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
        self._shares = share_prompts and takes_packed(loaded)
        if self._shares:
            read_packed(loaded)
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
        prompts = {ids: tuple(conversations[places[0]][:-1]) for ids, places in distinct.items()}
        fitting = [ids for ids in distinct if self._context is None or len(ids) <= self._context]
        for batch in self._batches(sorted(fitting, key=self._order(fitting, prompts))):
            for ids, logit in zip(batch, self._logits(batch, [prompts[ids] for ids in batch]), strict=True):
                for place in distinct[ids]:
                    logits[place] = logit
        return logits

    def count_tokens(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of each conversation, as `score` reads it."""
        return [len(self._dialogue.encode(messages)) for messages in conversations]

    def close(self) -> None:
        """Let go of the weights. The classifier cannot be used afterwards."""
        self._model = None

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order(
        self, fitting: Sequence[tuple[int, ...]], prompts: Mapping[tuple[int, ...], Hashable]
    ) -> Callable[[tuple[int, ...]], tuple[Any, ...]]:
        """The key to sort by, so that neighbours are of similar length, and of one prompt where that is shared."""
        if not self._shares:
            return lambda ids: (len(ids), ids)
        first: dict[Hashable, tuple[int, tuple[int, ...]]] = {}
        for ids in fitting:
            found = first.get(prompts[ids])
            first[prompts[ids]] = (len(ids), ids) if found is None else min(found, (len(ids), ids))
        return lambda ids: (first[prompts[ids]], len(ids), ids)

    def _batches(self, sorted_ids: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Neighbours together, within both limits."""
        batch: list[tuple[int, ...]] = []
        longest = 0
        for ids in sorted_ids:
            longest = max(longest, len(ids))
            if batch and (len(batch) == self._max_batch or (len(batch) + 1) * longest > self._max_tokens):
                yield batch
                batch, longest = [], len(ids)
            batch.append(ids)
        if batch:
            yield batch

    def _logits(self, batch: Sequence[tuple[int, ...]], prompts: Sequence[Hashable]) -> list[float]:
        import torch

        if self._model is None:
            raise EngineError("the classifier is closed")
        device = self._model.device
        inputs: dict[str, Any]
        try:
            with torch.inference_mode():
                if self._shares:
                    inputs = {"layout": packed(batch, prompts, self._pad).to(device)}
                else:
                    inputs = {name: tensor.to(device) for name, tensor in padded(batch, self._pad).items()}
                logits_B1 = self._model(**inputs).logits
        except (torch.OutOfMemoryError, MemoryError):
            raise EngineError(f"out of memory with {len(batch)} conversations: choose a smaller batch") from None
        return [round(logit, _DECIMALS) for logit in logits_B1[:, 0].float().tolist()]


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
    rows = [[*ids, *[pad] * (longest - len(ids))] for ids in batch]
    held = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch]
    whole: Any = {"dtype": torch.int64}  # also where all are empty
    return {"input_ids": torch.tensor(rows, **whole), "attention_mask": torch.tensor(held, **whole)}


def packed(batch: Sequence[Sequence[int]], prompts: Sequence[Hashable], pad: int) -> Layout:
    """The layout of these conversations, in which those of one prompt share their common beginning.

    `prompts` only say which conversations to compare: the beginning is found by its tokens, whatever the tokenizer
    made of the seam between prompt and answer. What stands behind the token that the logit is read at is left out.
    """
    import torch

    from opengrm.engines.packed import lay_out

    rows = [_until_last(ids, pad) for ids in batch]
    numbers: dict[Hashable, int] = {}
    group_B = [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]
    members: list[list[tuple[int, ...]]] = [[] for _ in numbers]
    for row, group in zip(rows, group_B, strict=True):
        members[group].append(row)
    shared = [_common(group) for group in members]
    heads = padded([group[0][:length] for group, length in zip(members, shared, strict=True)], pad)
    tails = padded([row[shared[group] :] for row, group in zip(rows, group_B, strict=True)], pad)
    return lay_out(
        heads["input_ids"],
        heads["attention_mask"].bool(),
        torch.tensor(group_B),
        tails["input_ids"],
        tails["attention_mask"].bool(),
    )


def _until_last(ids: Sequence[int], pad: int) -> tuple[int, ...]:
    """The tokens up to the one that transformers pools: the last that is not the padding token, else the first."""
    end = next((end for end in range(len(ids), 0, -1) if ids[end - 1] != pad), 1)
    return tuple(ids[:end])


def _common(rows: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all rows have in common, with at least one left of each."""
    low, high = min(rows), max(rows)  # what the first and the last in order share, all share
    most = min(map(len, rows)) - 1
    return next((i for i in range(most) if low[i] != high[i]), most)


def takes_packed(model: Any) -> bool:
    """Whether `read_packed` serves this classifier: full softmax attention through the interface, a `score` head."""
    from opengrm.engines.shared_prefix import serves

    return serves(model) and hasattr(model, "score")


def read_packed(model: Any) -> None:
    """From now on the classifier's forward takes a `layout` in place of padded token ids, wrapped (DDP) or not.

    The forward is this instance's: its class, and so what is saved, stays transformers' own.
    """
    from transformers.modeling_outputs import SequenceClassifierOutput

    from opengrm.engines.packed import NAME

    def forward(self: Any, layout: Layout, **_: Any) -> Any:
        hidden_1ND = self.base_model(
            input_ids=layout.tokens_1N, position_ids=layout.positions_1N, use_cache=False, opengrm_layout=layout
        ).last_hidden_state
        return SequenceClassifierOutput(logits=self.score(hidden_1ND[0, layout.last_B]))  # logits_B1

    model.set_attn_implementation(NAME)
    model.forward = MethodType(forward, model)


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

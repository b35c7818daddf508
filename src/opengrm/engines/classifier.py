"""The engine of scalar judges (meta RM, Bradley-Terry, PairRM): one logit for a conversation, from any Hugging Face
sequence classifier with one label.

It reads ordinary folders whose architecture is `...ForSequenceClassification`: released ones as well as what
`opengrm train meta`, `train bt` and `train pair` write. The logit is the head's output as transformers pools it (by
decoders at the last token that is not padding, by encoders at the first); it is rounded to 4 decimals, the digits that
the paper shows, because the last bits depend on what else is in the batch.

Responses to one query, or judgments of one item in one order, differ in nothing but the last turn. Where the model can
(`takes_packed`), a batch is one packed row with one copy of what they have in common, see `packed.py`; else it is
padded. Batches are sorted by length, so that little is padded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

from opengrm.engines.chat import ChatTokenizer
from opengrm.engines.checkpoints import find_model, first_line
from opengrm.engines.fingerprint import fingerprint
from opengrm.errors import EngineError, MissingExtra, UsageError
from opengrm.items import Message
from opengrm.templates.base import ZERO_WIDTH, broken_up

if TYPE_CHECKING:
    from opengrm.engines.packed import Layout

# A turn of the plain form; the other for tokenizers to which an empty line is a space like any other.
_TURN = re.compile(r"(?<=\n\n)(?:System|User|Assistant|Tool):")
_ANY_TURN = re.compile(r"(?<!\S)(?:System|User|Assistant|Tool)\s*:", re.IGNORECASE)
DTYPES = ("auto", "float32", "bfloat16", "float16")
# Behind one prompt responses of any length stand in a batch, padded to the longest in attention: with short prompts
# (RewardBench's) that costs more than it saves.
_WORTH = 0.3
_DECIMALS = 4


class Reading(NamedTuple):
    """What came of one conversation: its logit, None where it is too long, and how many tokens it has."""

    logit: float | None
    tokens: int


class Classifier:
    """A sequence classifier that this process loads.

    The backbone runs in `dtype`, the head always in float32.

    Attributes:
        context: most tokens of a conversation; None where the model's configuration does not say. Of a model that was
            trained on conversations cut to fewer, that number.
        meta_template, pair_template, cloud_template: what the configuration says that the model reads, where it does.
        truncates: whether it was trained on conversations whose beginning was cut to fit.

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
            raise MissingExtra("a scalar judge", "local") from None
        if max_batch < 1 or max_tokens < 1:
            raise UsageError(f"a batch of {max_batch} with {max_tokens} tokens: expected at least 1 of each")
        if dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        from opengrm.engines.transformers import chosen_device, quietly

        folder, name = find_model(model, revision=revision, code=trust_remote_code)
        check_classifier(folder)
        where = chosen_device(device)
        precision: Any = torch.float32 if dtype == "auto" and where == "cpu" else dtype
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
        try:
            with quietly(transformers):
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
        self.truncates = getattr(loaded.config, "truncates", None) is True
        cut_to = getattr(loaded.config, "truncates_to", None) if self.truncates else None
        if cut_to is not None and (type(cut_to) is not int or cut_to < 1):
            raise EngineError(f"{folder}/config.json: truncates_to is {cut_to!r}, expected an integer of at least 1")
        limits = [limit for limit in (context_length(loaded), cut_to) if isinstance(limit, int)]
        self.context = min(limits, default=None)
        self._max_batch, self._max_tokens = max_batch, max_tokens
        computed = str(loaded.dtype).removeprefix("torch.")
        self._identity = f"{name}@{fingerprint(folder)}" + (f"-{computed}" if computed != "float32" else "")
        self.meta_template: str | None = _named(loaded.config, "meta_template")
        self.pair_template: str | None = _named(loaded.config, "pair_template")
        self.cloud_template: str | None = _named(loaded.config, "cloud_template")

    @property
    def model(self) -> str:
        """Name and fingerprint of the weights, tokenizer and configuration, and the precision where not float32."""
        return self._identity

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether the conversation is within the model's context."""
        return self.context is None or len(self._dialogue.encode(messages)) <= self.context

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float | None]:
        """The logit of each conversation (the last message is the assistant's); None where it is too long.

        Equal conversations are scored once and get equal logits.

        Raises:
            EngineError: out of memory, or the chat template cannot render these messages.
        """
        return [reading.logit for reading in self.read(conversations)]

    def read(
        self, conversations: Sequence[Sequence[Message]], prompts: Sequence[Hashable] | None = None
    ) -> list[Reading]:
        """The logit and the number of tokens of each conversation; as `score`.

        Args:
            conversations: each ends with the message that the logit is about.
            prompts: one for each conversation; those of equal ones may have a beginning in common. All messages but
                the last where None.
        """
        named = [tuple(messages[:-1]) for messages in conversations] if prompts is None else prompts
        encoded = [self._dialogue.encode(messages) for messages in conversations]
        prompt_of: dict[tuple[int, ...], Hashable] = {}
        for ids, prompt in zip(encoded, named, strict=True):
            prompt_of.setdefault(ids, prompt)
        fitting = [ids for ids in prompt_of if self.context is None or len(ids) <= self.context]
        logits: dict[tuple[int, ...], float] = {}
        for batch in self._batches(sorted(fitting, key=self._order(fitting, prompt_of))):
            logits.update(zip(batch, self._logits(batch, [prompt_of[ids] for ids in batch]), strict=True))
        return [Reading(logits.get(ids), len(ids)) for ids in encoded]

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
        """The key to sort by, so that neighbours are of similar length, and of one prompt where that saves more."""
        if not self._shares or _saved(fitting, prompts) < _WORTH:
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
    """Token ids of a finished conversation: as `ChatTokenizer`, without the opening of a further assistant turn.

    Where there is no chat template (encoders have none), the plain form gets the tokenizer's own special tokens,
    `[CLS] User: ... Assistant: ... [SEP]`, and a message cannot open a turn by spelling `Assistant:` behind an empty
    line. A tokenizer that deletes zero-width spaces (BERT's) would undo all fences: it gets a low line for each.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._deletes_zero_width = self._same("[" + ZERO_WIDTH + "a", "[a")
        turn = _ANY_TURN if self._same("a\n\nb", "a b") else _TURN
        self._turn = None if self._has_template else turn

    def fence(self, text: str, *, special_only: bool = False) -> str:
        if self._turn is not None:
            text = broken_up(text, self._turn)
        text = super().fence(text, special_only=special_only)
        return text.replace(ZERO_WIDTH, "_") if self._deletes_zero_width else text

    def _same(self, one: str, other: str) -> bool:
        one_ids, other_ids = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (one, other))
        return bool(one_ids == other_ids)

    def _render(self, turns: list[dict[str, str]]) -> str:
        text = super()._render(turns)
        return text if self._has_template else text.removesuffix("\n\nAssistant:")

    def _apply(self, turns: list[dict[str, str]]) -> str:
        # With our variables: they fix the day that a template may ask for, so that equal keys mean equal texts.
        text: str = self.tokenizer.apply_chat_template(
            turns, **self._variables, tokenize=False, add_generation_prompt=False
        )
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

    rows = [until_last(ids, pad) for ids in batch]
    numbers: dict[Hashable, int] = {}
    group_B = [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]
    members: list[list[tuple[int, ...]]] = [[] for _ in numbers]
    for row, group in zip(rows, group_B, strict=True):
        members[group].append(row)
    shared = [common_prefix(group) for group in members]
    heads = padded([group[0][:length] for group, length in zip(members, shared, strict=True)], pad)
    tails = padded([row[shared[group] :] for row, group in zip(rows, group_B, strict=True)], pad)
    return lay_out(
        heads["input_ids"],
        heads["attention_mask"].bool(),
        torch.tensor(group_B),
        tails["input_ids"],
        tails["attention_mask"].bool(),
    )


def until_last(ids: Sequence[int], pad: int) -> tuple[int, ...]:
    """The tokens up to the one that transformers pools: the last that is not the padding token, else the first."""
    end = next((end for end in range(len(ids), 0, -1) if ids[end - 1] != pad), 1)
    return tuple(ids[:end])


def common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all rows have in common, with at least one left of each."""
    low, high = min(rows), max(rows)  # what the first and the last in order share, all share
    most = min(map(len, rows)) - 1
    return next((i for i in range(most) if low[i] != high[i]), most)


def _saved(rows: Sequence[tuple[int, ...]], prompts: Mapping[tuple[int, ...], Hashable]) -> float:
    """The share of all tokens that need not be read where each prompt is read once."""
    members: dict[Hashable, list[tuple[int, ...]]] = {}
    for row in rows:
        members.setdefault(prompts[row], []).append(row)
    saved = sum((len(group) - 1) * common_prefix(group) for group in members.values() if len(group) > 1)
    return saved / max(1, sum(map(len, rows)))


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


def head_of(model: Any) -> tuple[str, Any] | None:
    """The last linear layer's name and the layer: decoders' `score`, encoders' `classifier`; None for other names."""
    import torch

    for path in ("score", "classifier", "classifier.out_proj"):
        head = model
        for name in path.split("."):
            head = getattr(head, name, None)
        if isinstance(head, torch.nn.Linear):
            return path, head
    return None


def float_head(model: Any) -> None:
    """Let the model's head compute in float32, whatever the backbone's precision and under autocast."""
    import torch

    class FloatHead(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            with torch.autocast(hidden.device.type, enabled=False):
                # FSDP2 gathers the weight in the precision that it computes in.
                bias = None if self.bias is None else self.bias.float()
                return torch.nn.functional.linear(hidden.float(), self.weight.float(), bias)

    found = head_of(model)
    if found is not None and type(found[1]) is torch.nn.Linear:
        found[1].float()
        found[1].__class__ = FloatHead


def context_length(model: Any) -> int | None:
    """Most tokens of a conversation; None where the configuration does not say.

    RoBERTa and its kin count positions from behind the padding token's: of 514 they can use 512.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limit = module.num_embeddings - module.padding_idx - 1
    return limit if isinstance(limit, int) and limit > 0 else None


def _named(config: Any, name: str) -> str | None:
    value = getattr(config, name, None)
    return value if isinstance(value, str) else None


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
        raise EngineError(
            f"{folder}: {what} is not a sequence classifier; opengrm train meta, bt or pair makes one of it"
        )
    if len(labels) != 1:
        raise EngineError(f"{folder}: this classifier has {len(labels)} labels, a scalar judge has one")
    if not any(folder.glob("*.safetensors")):
        raise EngineError(f"{folder}: no *.safetensors weights (pickled ones are not loaded)")

"""Decoding with one copy of each prompt: attention that reads a prompt's keys and values once for all its samples.

The model's own forward runs; only its attention function is ours, registered with transformers' `AttentionInterface`.
A row attends to two places: its prompt (shared by all rows of that prompt, never repeated) and its own new tokens.
Softmax over the union is the two parts' outputs weighted by their log-sum-exps (as in FlashDecoding and Hydragen,
arXiv:2402.05099): with p = sigmoid(lse_prompt - lse_own), out = p * out_prompt + (1 - p) * out_own.

Layout. Prompts prefilled together form a *bundle*, padded on the right (a causal prompt never sees its padding, so
prefill needs no mask). New keys and values of all rows are written to one column a step; a row that joined later
starts at a later column, and the columns before it are masked.

Shape letters: R rows in the batch, G prompts of a bundle, S slots a prompt (most rows that any of its prompts has),
P padded prompt length, W columns of new tokens in use, H key/value heads, Q query heads for each of them, D head size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "opengrm_shared_prefix"

# Decoders of softmax attention over all earlier tokens, without window, soft cap, sinks or position bias, which hand
# their attention to the interface. Each is compared with `generate` in the tests; all others take the plain path.
MODEL_TYPES = frozenset(
    {"gemma", "granite", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"}
)
PADDING = 0.75  # prompts of a bundle are at least this share of its longest
_FIRST_COLUMNS = 64


def innermost(model: Any) -> Any:
    """The transformers model inside of wrappers (DDP, torch.compile, PEFT), which hide its signature and settings."""
    while True:
        if hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        else:
            inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if inner is None or inner is model:
            return model
        model = inner


def rope_types(config: Any) -> set[str]:
    """Types of the rotary embeddings: one, or (where layers differ) several, or none."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    each = [parameters, *(p for p in parameters.values() if isinstance(p, dict))]
    return {p["rope_type"] for p in each if p.get("rope_type")}


def serves(model: Any) -> bool:
    """Whether this model can decode on this path: a known type, with full attention in every layer.

    Not with a rotary embedding whose frequencies follow the longest row of the batch (longrope, dynamic): a row would
    then change with its companions.
    """
    inner = innermost(model)
    config = inner.config
    if config.model_type not in MODEL_TYPES or not getattr(inner, "_supports_attention_backend", False):
        return False
    if rope_types(config) & {"longrope", "dynamic"}:
        return False
    layers = getattr(config, "layer_types", None)
    if layers is not None:
        return all(layer == "full_attention" for layer in layers)
    return not getattr(config, "sliding_window", None)


def bundles(prompts: Sequence[tuple[int, ...]], most_tokens: int, *, share: float = PADDING) -> list[list[int]]:
    """Which prompts to prefill together: indices, by length, with little padding and at most `most_tokens` with it."""
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)):
        if groups:
            longest = len(prompts[groups[-1][0]])
            if len(prompts[index]) >= share * longest and longest * (len(groups[-1]) + 1) <= most_tokens:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups


@dataclass
class _Bundle:
    prompts: list[tuple[int, ...]]
    logits_GV: Tensor
    keys_GHPD: list[Tensor] = field(default_factory=list)  # one for each layer
    values_GHPD: list[Tensor] = field(default_factory=list)
    mask_G11P: Tensor | None = None  # -inf on padding; None where all prompts are equally long
    # Which rows stand in which slot. None: the bundle's rows are the whole batch, in slot order.
    slots: Tensor | None = None
    pick: Tensor | None = None  # which slots hold real rows; None: all
    width: int = 0  # S

    def select(self, kept: list[int]) -> None:
        index = torch.tensor(kept, device=self.logits_GV.device)
        self.prompts = [self.prompts[g] for g in kept]
        self.logits_GV = self.logits_GV[index]
        longest = max(map(len, self.prompts))
        self.keys_GHPD = [k[index, :, :longest] for k in self.keys_GHPD]
        self.values_GHPD = [v[index, :, :longest] for v in self.values_GHPD]
        if self.mask_G11P is not None:
            self.mask_G11P = aligned(self.mask_G11P[index, :, :, :longest])


class SharedPrefixRows:
    """The batch's state on this path. Rows are numbered 0..R-1 in the order in which they were admitted or kept."""

    def __init__(self, model: Any, *, prefill_tokens: int) -> None:
        self.model = model
        self.inner = innermost(model)
        self.device = self.inner.device
        self.prefill_tokens = prefill_tokens
        self.bundles: list[_Bundle] = []
        self.row_prompts: list[tuple[int, ...]] = []
        self.starts: list[int] = []  # the column of each row's first own token
        self.positions_R1 = torch.zeros((0, 1), dtype=torch.int64, device=self.device)
        self.column = 0  # the next one to write
        self.keys_RHWD: list[Tensor] = []
        self.values_RHWD: list[Tensor] = []
        self.mask_R11W: Tensor | None = None
        self._own_mask: Tensor | None = None  # this step's part of it
        self.order: Tensor | None = None
        self._first = 0  # the first column in use
        self._prefilling: _Bundle | None = None
        self._passed = _PassThrough()

    def __len__(self) -> int:
        return len(self.row_prompts)

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Add a row for each prompt; equal prompts, also those of rows already here, share one prefill.

        Returns:
            logits_NV: the distribution of each new row's first token.
        """
        known = {prompt for bundle in self.bundles for prompt in bundle.prompts}
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        for group in bundles(missing, self.prefill_tokens):
            self.bundles.append(self._prefill([missing[i] for i in group]))
        rows = len(prompts)
        self.row_prompts.extend(prompts)
        self.starts.extend([self.column] * rows)
        lengths = torch.tensor([[len(p)] for p in prompts], dtype=torch.int64, device=self.device)
        self.positions_R1 = torch.cat([self.positions_R1, lengths])
        self._make_room()
        for held in (*self.keys_RHWD, *self.values_RHWD):
            # Masked columns of a new row are weighted with 0, and an earlier row's may not be finite.
            held[len(self) - rows : len(self), :, : self.column] = 0
        self._plan()
        place = {prompt: bundle.logits_GV[g] for bundle in self.bundles for g, prompt in enumerate(bundle.prompts)}
        return torch.stack([place[prompt] for prompt in prompts])

    def step(self, tokens_R: Tensor) -> Tensor:
        """Feed one token to every row; returns logits_RV of the next."""
        if self.keys_RHWD and self.column == self.keys_RHWD[0].shape[2]:
            self._make_room()
            self._plan()
        used = slice(self._first, self.column + 1)
        self._own_mask = None if self.mask_R11W is None else aligned(self.mask_R11W[..., used])
        with _attending(self):
            output = self.model(
                input_ids=tokens_R[:, None],
                position_ids=self.positions_R1,
                past_key_values=self._passed,
                use_cache=True,
            )
        self.column += 1
        self.positions_R1 = self.positions_R1 + 1
        logits_RV: Tensor = output.logits[:, -1]
        return logits_RV

    def keep(self, rows: Sequence[int], wanted: Collection[tuple[int, ...]] = ()) -> None:
        """Drop all rows but these, and all prompts that no row needs and that are not `wanted` for rows to come."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self.row_prompts = [self.row_prompts[r] for r in rows]
        self.starts = [self.starts[r] for r in rows]
        self.positions_R1 = self.positions_R1[index]
        if rows:
            used = slice(min(self.starts), self.column)
            for held in (*self.keys_RHWD, *self.values_RHWD):
                held[: len(rows), :, used] = held[index, :, used]
        alive = {*self.row_prompts, *wanted}
        for bundle in self.bundles:
            kept = [g for g, prompt in enumerate(bundle.prompts) if prompt in alive]
            # Dropping a prompt copies the others, so it waits until half of a bundle is dead.
            if kept and 2 * len(kept) <= len(bundle.prompts):
                bundle.select(kept)
        self.bundles = [b for b in self.bundles if any(prompt in alive for prompt in b.prompts)]
        self._plan()

    def _prefill(self, prompts: list[tuple[int, ...]]) -> _Bundle:
        lengths = [len(p) for p in prompts]
        longest = max(lengths)
        ids_GP = torch.tensor([[*p, *[p[-1]] * (longest - len(p))] for p in prompts], device=self.device)
        bundle = _Bundle(prompts=prompts, logits_GV=torch.empty(0))
        self._prefilling = bundle
        lasts = sorted({length - 1 for length in lengths})
        try:
            with _attending(self):
                output = self.model(
                    input_ids=ids_GP,
                    position_ids=torch.arange(longest, device=self.device)[None].expand(len(prompts), -1),
                    past_key_values=_PassThrough(),
                    use_cache=True,
                    logits_to_keep=torch.tensor(lasts, device=self.device),
                )
        finally:
            self._prefilling = None
        which = torch.tensor([lasts.index(length - 1) for length in lengths], device=self.device)
        bundle.logits_GV = output.logits[torch.arange(len(prompts), device=self.device), which].clone()
        if min(lengths) < longest:
            padding_GP = torch.arange(longest)[None] >= torch.tensor(lengths)[:, None]
            mask_GP = torch.zeros(padding_GP.shape, dtype=self.inner.dtype).masked_fill_(padding_GP, float("-inf"))
            bundle.mask_G11P = aligned(mask_GP[:, None, None].to(self.device))
        return bundle

    def _make_room(self) -> None:
        """Columns for the next tokens and rows for all: moves the columns in use to the front of larger tensors."""
        if not self.keys_RHWD:
            return  # made by the first step, which knows the shapes
        rows, first = len(self), min(self.starts, default=self.column)
        used = self.column - first
        old_rows, columns = self.keys_RHWD[0].shape[0], self.keys_RHWD[0].shape[2]
        if rows <= old_rows and self.column < columns:
            return
        new_rows = old_rows if rows <= old_rows else max(rows, 2 * old_rows)
        new_columns = columns if 2 * used <= columns else 2 * columns
        for held in (self.keys_RHWD, self.values_RHWD):
            for layer, old in enumerate(held):
                # Zeros, not empty: what lies in masked columns is multiplied by a weight of 0 and must be finite.
                new = old.new_zeros((new_rows, old.shape[1], new_columns, old.shape[3]))
                new[:old_rows, :, :used] = old[:, :, first : self.column]
                held[layer] = new
        self.starts = [start - first for start in self.starts]
        self.column = used

    def _plan(self) -> None:
        """Work out, once for many steps, which rows share which prompt and which columns are masked."""
        self._first = min(self.starts, default=0)
        self.mask_R11W = None
        if any(start != self._first for start in self.starts):
            columns = self.keys_RHWD[0].shape[2] if self.keys_RHWD else _FIRST_COLUMNS
            late_RW = torch.arange(columns)[None] < torch.tensor(self.starts)[:, None]
            mask_RW = torch.zeros(late_RW.shape, dtype=self.inner.dtype).masked_fill_(late_RW, float("-inf"))
            self.mask_R11W = mask_RW[:, None, None].to(self.device)
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, prompt in enumerate(self.row_prompts):
            rows_of.setdefault(prompt, []).append(row)
        sequence: list[int] = []
        for bundle in self.bundles:
            members = [rows_of.get(prompt, []) for prompt in bundle.prompts]
            bundle.width = max(map(len, members), default=0)
            flat = [row for group in members for row in group]
            full = len(flat) == bundle.width * len(members)
            # A prompt with fewer rows than another has its free slots filled with row 0, whose results are not read.
            slots = [row for group in members for row in [*group, *[0] * (bundle.width - len(group))]]
            whole = full and flat == list(range(len(self)))
            bundle.slots = None if whole else torch.tensor(slots, dtype=torch.int64, device=self.device)
            real = [g * bundle.width + s for g, group in enumerate(members) for s in range(len(group))]
            bundle.pick = None if full else torch.tensor(real, dtype=torch.int64, device=self.device)
            sequence.extend(flat)
        inverse = [0] * len(sequence)
        for place, row in enumerate(sequence):
            inverse[row] = place
        ordered = sequence == list(range(len(self)))
        self.order = None if ordered else torch.tensor(inverse, dtype=torch.int64, device=self.device)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """The attention of one layer: (B, heads, T, D) in, (B, T, heads, D) out."""
        layer: int = module.layer_idx
        if self._prefilling is not None:
            self._prefilling.keys_GHPD.append(key.contiguous())
            self._prefilling.values_GHPD.append(value.contiguous())
            prompt_out: Tensor = sdpa_attention_forward(module, query, key, value, None, scaling=scaling)[0]
            return prompt_out
        rows, heads, _, size = key.shape
        if layer == len(self.keys_RHWD):
            columns = max(_FIRST_COLUMNS, self.column + 1)
            self.keys_RHWD.append(key.new_zeros((rows, heads, columns, size)))
            self.values_RHWD.append(value.new_zeros((rows, heads, columns, value.shape[-1])))
        keys_RHWD, values_RHWD = self.keys_RHWD[layer], self.values_RHWD[layer]
        keys_RHWD[:rows, :, self.column] = key[:, :, 0]
        values_RHWD[:rows, :, self.column] = value[:, :, 0]
        scale = size**-0.5 if scaling is None else scaling
        query_RHQD = query.view(rows, heads, -1, size)
        used = slice(self._first, self.column + 1)
        own, own_lse = attention_and_lse(
            query_RHQD, keys_RHWD[:rows, :, used], values_RHWD[:rows, :, used], scale, self._own_mask
        )
        parts = [self._attend_bundle(bundle, layer, query_RHQD, scale) for bundle in self.bundles if bundle.width]
        shared, shared_lse = parts[0] if len(parts) == 1 else _joined(parts)
        if self.order is not None:
            shared, shared_lse = shared[self.order], shared_lse[self.order]
        weight = torch.sigmoid(shared_lse - own_lse)[..., None].to(own.dtype)
        return torch.lerp(own, shared, weight).reshape(rows, 1, -1, own.shape[-1])

    def _attend_bundle(self, bundle: _Bundle, layer: int, query_RHQD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Attention of the bundle's rows to its prompts: (rows, H, Q, D) and log-sum-exps (rows, H, Q)."""
        picked = query_RHQD if bundle.slots is None else query_RHQD[bundle.slots]
        heads, queries, size = picked.shape[1:]
        groups, width = len(bundle.prompts), bundle.width
        folded = picked.view(groups, width, heads, queries, size).transpose(1, 2).reshape(groups, heads, -1, size)
        out, lse = attention_and_lse(
            folded, bundle.keys_GHPD[layer], bundle.values_GHPD[layer], scale, bundle.mask_G11P
        )
        out = out.reshape(groups, heads, width, queries, -1).transpose(1, 2).reshape(-1, heads, queries, out.shape[-1])
        lse = lse.reshape(groups, heads, width, queries).transpose(1, 2).reshape(-1, heads, queries)
        return (out, lse) if bundle.pick is None else (out[bundle.pick], lse[bundle.pick])


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


def attention_and_lse(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Softmax attention, and the log-sum-exp of its scores.

    Args:
        query, key, value: (B, H, T, D), (B, H, N, D), (B, H, N, E).
        mask: added to the scores, broadcast to (B, H, T, N); at least one score of each query stays finite.

    Returns:
        (B, H, T, E) in the query's dtype, and (B, H, T) in float32.
    """
    if query.device.type == "cpu":
        if mask is not None:
            mask = mask.to(query.dtype).expand(query.shape[0], 1, query.shape[2], key.shape[2])
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scale
        )
        return out, lse
    if has_cutlass_kernel(query, value):
        return attention_by_cutlass(query, key, value, scale, mask)
    return attention_by_definition(query, key, value, scale, mask)


def has_cutlass_kernel(query: Tensor, value: Tensor) -> bool:
    """Whether `attention_by_cutlass` can run: not in bfloat16 on GPUs before Ampere, which have no kernel for it."""
    if query.device.type != "cuda" or query.shape[-1] % 8 or value.shape[-1] % 8:
        return False
    if query.dtype == torch.bfloat16:
        return torch.cuda.get_device_capability(query.device) >= (8, 0)
    return query.dtype in (torch.float16, torch.float32)


def attention_by_cutlass(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`attention_and_lse` by the one of PyTorch's CUDA kernels that takes a mask and gives log-sum-exps.

    Where `has_cutlass_kernel`. The kernel pads the log-sum-exps to whole blocks of queries.
    """
    bias = None
    if mask is not None:
        shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        bias = aligned(mask.to(query.dtype)).expand(shape)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, scale=scale)
    return out, lse[..., : query.shape[2]]


def aligned(mask: Tensor) -> Tensor:
    """The mask, on a CUDA device with rows that begin where its kernel can read them: at multiples of 16 numbers.

    Args:
        mask: (B, 1, 1, N); copied only where it must be.
    """
    if mask.device.type != "cuda" or (mask.storage_offset() % 16 == 0 and mask.stride(0) % 16 == 0):
        return mask
    columns = mask.shape[-1]
    held = mask.new_zeros((*mask.shape[:-1], -(-columns // 16) * 16))[..., :columns]
    return held.copy_(mask)


def attention_by_definition(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`attention_and_lse` where there is no kernel that gives both.

    Scores are made in float32 from a query that is scaled first: rounded to half precision, they would be infinite
    for large queries (float16), or wrong by more than the whole rest of the attention (bfloat16).
    """
    scores = torch.matmul(query.float() * scale, key.float().transpose(-1, -2))
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    return torch.matmul(torch.exp(scores - lse[..., None]).to(value.dtype), value), lse


class _PassThrough(Cache):
    """Stands where the model expects its cache and keeps nothing: `SharedPrefixRows.attend` does the keeping."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


_ACTIVE: ContextVar[SharedPrefixRows] = ContextVar("opengrm_shared_prefix_rows")


@contextmanager
def _attending(rows: SharedPrefixRows) -> Iterator[None]:
    """For one forward: the model attends through `rows`. Afterwards it is as it was (it may be in training)."""
    config = rows.inner.config
    before = config._attn_implementation_internal
    config._attn_implementation_internal = NAME
    token = _ACTIVE.set(rows)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
        config._attn_implementation_internal = before


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    device = query.device.type
    if torch.is_autocast_enabled(
        device
    ):  # PyTorch's own attention does this by itself, the kernels called here do not
        query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
    return _ACTIVE.get().attend(module, query, key, value, scaling), None


# No mask function is registered under this name, so the models build no masks.
AttentionInterface.register(NAME, _attention)

"""From messages to token ids, with the model's own chat template, so that text in a message stays text.

A control token spelled inside a message (`<|im_end|>` in a response under judgment, say) must not become that token.
`templates.base.fence` breaks the common ones everywhere; here the tokenizer's own are known exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from opengrm.engines.checkpoints import first_line
from opengrm.errors import EngineError
from opengrm.items import Message
from opengrm.templates.base import ZERO_WIDTH


class ChatTokenizer:
    """A tokenizer and its chat template.

    A tokenizer without a chat template gets a plain one: "System: ...", "User: ...", "Assistant: ..." in turn with
    blank lines between, ending in "Assistant:". A template that refuses a system message gets its text at the head of
    the first user message instead.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        template = getattr(tokenizer, "chat_template", None)
        self._has_template = bool(template)
        self._control = control_tokens(tokenizer)
        self._pattern = control_pattern(self._control)
        added: dict[str, int] = tokenizer.get_added_vocab()
        self._control_ids = {added[token] for token in self._control if token in added}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizes = backend is not None and backend.normalizer is not None

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's token ids, ready for the model's answer.

        Raises:
            EngineError: the chat template cannot render these messages.
        """
        turns = [{"role": m.role, "content": self.fence(m.content)} for m in messages]
        # A template writes its own beginning-of-sequence token; the plain form leaves that to the tokenizer.
        ids = self.tokenizer(self._render(turns), add_special_tokens=not self._has_template)["input_ids"]
        return tuple(int(i) for i in ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens."""
        text: str = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def fence(self, text: str) -> str:
        """`text` with a zero-width space behind the first character of whatever would read as a control token."""
        if self._pattern is None:
            return text
        text = self._pattern.sub(lambda match: match.group()[0] + ZERO_WIDTH + match.group()[1:], text)
        # A normalizer (NFKC, lower-casing) can make a control token of text that does not spell one.
        while self._normalizes and (found := self._control_spans(text)):
            for start in sorted(found, reverse=True):
                text = text[: start + 1] + ZERO_WIDTH + text[start + 1 :]
        return text

    def _control_spans(self, text: str) -> set[int]:
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        # A single character that is a control token by itself cannot be broken up.
        return {start for token, (start, end) in spans if token in self._control_ids and end - start > 1}

    def _render(self, turns: list[dict[str, str]]) -> str:
        if not self._has_template:
            names = {"user": "User", "assistant": "Assistant", "tool": "Tool"}
            parts = [f"{names.get(turn['role'], 'System')}: {turn['content']}" for turn in turns]
            return "\n\n".join([*parts, "Assistant:"])
        try:
            return self._apply(turns)
        except Exception as first:
            merged = without_system(turns)
            if merged == turns:
                raise EngineError(
                    f"the model's chat template cannot render the messages: {first_line(first)}"
                ) from None
            try:
                return self._apply(merged)
            except Exception:
                raise EngineError(
                    f"the model's chat template cannot render the messages: {first_line(first)}"
                ) from None

    def _apply(self, turns: list[dict[str, str]]) -> str:
        text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The tokenizer's special tokens, and those of its other added tokens that its chat template writes.

    Further added tokens (runs of spaces, HTML tags in some vocabularies) are ordinary text and stay as they are.
    """
    template = getattr(tokenizer, "chat_template", None)
    written = template if isinstance(template, str) else " ".join((template or {}).values())
    found = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or (token.content.strip() and token.content in written):
            found.add(token.content)
    return tuple(sorted((t for t in found if len(t) > 1), key=lambda t: (-len(t), t)))


def control_pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of these tokens, the first listed first; None where there are none."""
    words = [re.escape(token) for token in tokens]
    return re.compile("|".join(words)) if words else None


def without_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """System and developer text moved to the head of the first user turn."""
    head = [turn["content"] for turn in turns if turn["role"] in ("system", "developer")]
    rest = [dict(turn) for turn in turns if turn["role"] not in ("system", "developer")]
    if head:
        for turn in rest:
            if turn["role"] == "user":
                turn["content"] = "\n\n".join([*head, turn["content"]])
                return rest
        return [{"role": "user", "content": "\n\n".join(head)}, *rest]
    return turns

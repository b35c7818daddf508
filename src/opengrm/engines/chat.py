"""From messages to token ids, with the model's own chat template, so that text in a message stays text.

A control token spelled inside a message (`<|im_end|>` in a response under judgment, say) must not become that token.
`templates.base.fence` breaks the common ones everywhere; here the tokenizer's own are known exactly.
"""

from __future__ import annotations

import datetime
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from opengrm.engines.base import Alternatives
from opengrm.engines.checkpoints import first_line
from opengrm.engines.pieces import completion_pieces
from opengrm.errors import EngineError, UsageError
from opengrm.items import Message
from opengrm.templates.base import ZERO_WIDTH, broken_up

# What a template gets for today's date (Llama 3.1's own default): equal keys must mean equal prompts, also tomorrow.
TODAY = datetime.datetime(2024, 7, 26)
DATE_STRING = TODAY.strftime("%d %b %Y")
_NOW = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")
THINK = "<think>"
_THINKING = re.compile(r"<think>\s*\Z")
_TAIL = 16  # tokens of a prompt's end in which an opened thought is looked for
_FENCE_ROUNDS = 4
_PROBE = "opengrm-probe-7f3a"  # no template spells this by itself
_SYSTEM = ("system", "developer")

Turns = list[dict[str, str]]


class ChatTokenizer:
    """A tokenizer and its chat template.

    A tokenizer without a chat template gets a plain one: "System: ...", "User: ...", "Assistant: ..." in turn with
    blank lines between, ending in "Assistant:". A template that refuses a system message, or leaves it out, gets its
    text at the head of the first user message instead. A template that asks for today's date gets a fixed one,
    `TODAY`.

    Args:
        tokenizer: of transformers.
        variables: further variables of the chat template, e.g. {"enable_thinking": False}; they go before ours.

    Raises:
        UsageError: a variable that is not the template's.
    """

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        template = template_text(tokenizer)
        self._has_template = bool(template)
        self._variables = checked_variables(variables)
        if "strftime_now" in template:
            named = tokenizer.chat_template
            main = named if isinstance(named, str) else named.get("default")
            self._variables["chat_template"] = main and with_fixed_date(main)
        self._renderer = Renderer(self._apply)
        self._alone: dict[int, str] = {}
        self._control = control_tokens(tokenizer)
        self._pattern = control_pattern(self._control)
        added: dict[str, int] = tokenizer.get_added_vocab()
        self._control_ids = {added[token] for token in self._control if token in added}
        special = special_tokens(tokenizer)
        self._special_pattern = control_pattern(token for token in self._control if token in special)
        self._special_ids = {added[token] for token in self._control if token in added and token in special}
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
        return self._text(token_ids, skip_special_tokens=True)

    def answer(self, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
        """A completion's text: `decode`, behind `<think>` where the prompt ends inside a thought that it opened."""
        return self._opened(prompt) + self.decode(token_ids)

    def pieces(self, prompt: Sequence[int], token_ids: Sequence[int], *, ended: bool) -> tuple[str, ...] | None:
        """What of `answer`'s text each token is, see `pieces.py`; with an empty one for the end token if it came."""
        return completion_pieces(self.decode, token_ids, opened=self._opened(prompt), ended=ended)

    def named(self, tokens: Iterable[tuple[int, float]]) -> Alternatives:
        """Token ids with their log-probabilities, by the text of each alone."""
        found = []
        for token, logprob in tokens:
            if token not in self._alone:
                self._alone[token] = self.decode([token])
            found.append((self._alone[token], logprob))
        return tuple(found)

    def fence(self, text: str, *, special_only: bool = False) -> str:
        """`text` with a zero-width space behind the first character of whatever would read as a control token.

        With `special_only` those that a model writes as part of an answer (`<think>`, `<tool_call>`) stay as they are.
        """
        pattern = self._special_pattern if special_only else self._pattern
        ids = self._special_ids if special_only else self._control_ids
        if pattern is None:
            return text
        text = broken_up(text, pattern)
        # A normalizer (NFKC, lower-casing) can make a control token of text that does not spell one. One that deletes
        # zero-width spaces cannot be stopped by them: then a plain space stands for the token, and the text shrinks.
        rounds = 0
        while self._normalizes and (found := self._spans_of(ids, text)):
            rounds += 1
            for start, end in sorted(found, reverse=True):
                wedge = text[start] + ZERO_WIDTH + text[start + 1 : end] if rounds <= _FENCE_ROUNDS else " "
                text = text[:start] + wedge + text[end:]
        return text

    def _opened(self, prompt: Sequence[int]) -> str:
        return opened_thought(self._text(prompt[-_TAIL:], skip_special_tokens=False))

    def _spans_of(self, ids: set[int], text: str) -> set[tuple[int, int]]:
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        # A single character that is a control token by itself cannot be broken up.
        return {(start, end) for token, (start, end) in spans if token in ids and end - start > 1}

    def _text(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def _render(self, turns: Turns) -> str:
        if not self._has_template:
            names = {"user": "User", "assistant": "Assistant", "tool": "Tool"}
            parts = [f"{names.get(turn['role'], 'System')}: {turn['content']}" for turn in turns]
            return "\n\n".join([*parts, "Assistant:"])
        return self._renderer(turns)

    def _apply(self, turns: Turns) -> str:
        text: str = self.tokenizer.apply_chat_template(
            turns, **self._variables, tokenize=False, add_generation_prompt=True
        )
        return text


class Renderer:
    """A chat template, and what becomes of system messages that it refuses or silently leaves out.

    The latter is found out once for each role, with a marker: an instruction that never reaches the model would
    otherwise only show in worse judgments.
    """

    def __init__(self, apply: Callable[[Turns], str]) -> None:
        self._apply = apply
        self._keeps: dict[str, bool] = {}

    def __call__(self, turns: Turns) -> str:
        """The prompt's text.

        Raises:
            EngineError: the template fails on these turns, also with their system messages at the head of a user's.
        """
        merged = without_system(turns)
        kept = all(self._keeps_role(turn["role"]) for turn in turns if turn["role"] in _SYSTEM)
        failures: list[Exception] = []
        for form in [turns, merged] if kept and merged != turns else [merged]:
            try:
                return self._apply(form)
            except Exception as error:
                failures.append(error)
        raise EngineError(f"the model's chat template cannot render the messages: {first_line(failures[0])}")

    def _keeps_role(self, role: str) -> bool:
        if role not in self._keeps:
            try:
                shown = self._apply([{"role": role, "content": _PROBE}, {"role": "user", "content": "x"}])
            except Exception:
                shown = ""
            self._keeps[role] = _PROBE in shown
        return self._keeps[role]


def with_fixed_date(template: str) -> str:
    """The template with `TODAY` in place of its calls for the present day (with a literal format, as all are)."""
    return _NOW.sub(lambda match: repr(TODAY.strftime(match["format"])), template)


def opened_thought(prompt_end: str) -> str:
    """`<think>` where a prompt that ends so leaves the model inside a thought, else nothing.

    What the model then writes is the rest of that thought: without its opening, a parser would read it as the answer.
    """
    return THINK if _THINKING.search(prompt_end) else ""


def checked_variables(variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """The chat template's variables, if they are that: not arguments of what renders it, nor the messages."""
    if not variables:
        return {}
    from transformers import PreTrainedTokenizerBase

    arguments = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    for name in variables:
        if name in arguments or name in ("messages", "conversations"):
            raise UsageError(f"chat_template_kwargs cannot set '{name}': it is no variable of the template's own")
    return dict(variables)


def template_text(tokenizer: Any) -> str:
    """The tokenizer's chat template, or all of its named ones; "" where it has none."""
    template = getattr(tokenizer, "chat_template", None)
    return template if isinstance(template, str) else " ".join((template or {}).values())


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The tokenizer's special tokens, and those of its other added tokens that its chat template writes.

    Further added tokens (runs of spaces, HTML tags in some vocabularies) are ordinary text and stay as they are.
    """
    written = template_text(tokenizer)
    found = special_tokens(tokenizer)
    for token in tokenizer.added_tokens_decoder.values():
        if token.content.strip() and token.content in written:
            found.add(token.content)
    return tuple(sorted((t for t in found if len(t) > 1), key=lambda t: (-len(t), t)))


def special_tokens(tokenizer: Any) -> set[str]:
    """Tokens that a tokenizer marks as special: ends of turns and the like, which no answer holds."""
    marked = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return {*tokenizer.all_special_tokens, *marked}


def control_pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of these tokens, the first listed first; None where there are none."""
    words = [re.escape(token) for token in tokens]
    return re.compile("|".join(words)) if words else None


def without_system(turns: Turns) -> Turns:
    """System and developer text moved to the head of the first user turn."""
    head = [turn["content"] for turn in turns if turn["role"] in _SYSTEM]
    rest = [dict(turn) for turn in turns if turn["role"] not in _SYSTEM]
    if head:
        for turn in rest:
            if turn["role"] == "user":
                turn["content"] = "\n\n".join([*head, turn["content"]])
                return rest
        return [{"role": "user", "content": "\n\n".join(head)}, *rest]
    return turns

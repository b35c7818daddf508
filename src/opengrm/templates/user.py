"""A user's own prompt family: one Jinja2 file, rendered in a sandbox. Released checkpoints get their exact prompt so.

The file opens with a comment that declares how the output is read; what follows is the prompt:

    {# opengrm
    name: my-judge
    low: 1
    high: 10
    parse: boxed
    #}
    {# system #}
    You compare answers.
    {# user #}
    Question: {{ conversation }}
    {% for response in responses %}
    <answer {{ loop.index }}>
    {{ response }}
    </answer {{ loop.index }}>
    {% endfor %}

Required keys: name, low, high, parse (a rule of `recorded.ALL_RULES`). Optional: `solo: yes` (one response a prompt),
`n: 2` (shows exactly that many), `hint: yes` (may use `hint`), and any number of `fence:` lines, each a literal marker
of the template that text under judgment must not be able to write.

A line that holds nothing but `{# system #}`, `{# user #}` or `{# assistant #}` starts a message of that role; without
one, all of the body is one user message. The lines are found in the template's source, before any data is in it. One
line break at the end of a message is dropped; a block tag takes its own indentation and line break with it.

The body sees `conversation` (the turns as text), `messages` (role and content), `responses` (in shown order), `n`,
`reference` and `principles` (None where the item has none; printing a None is an error), and `hint` (position of the
labelled response, from 1). All text under judgment is fenced before the template sees it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Environment, StrictUndefined, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2 import Template as JinjaTemplate
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from opengrm.errors import UsageError
from opengrm.items import Item, Message
from opengrm.templates.base import Parsed, fence
from opengrm.templates.grm import MARKERS, conversation_text
from opengrm.templates.parsing import PARSER_VERSION, number, sections
from opengrm.templates.recorded import ALL_RULES

MAX_FILE_BYTES = 1 << 20
MAX_PROMPT_CHARS = 1 << 24
MAX_LOOP = 10_000

VARIABLES = frozenset({"conversation", "messages", "responses", "n", "reference", "principles"})
KEYS = ("name", "low", "high", "parse", "solo", "n", "hint", "fence")
REQUIRED = KEYS[:4]

_FRONT = re.compile(r"\A\ufeff?\{#-?[ \t]*opengrm[ \t]*\r?\n(.*?)-?#\}[ \t]*\r?\n?", re.DOTALL)
_ROLE_LINE = re.compile(r"^[ \t]*\{#-?[ \t]*(system|user|assistant)[ \t]*-?#\}[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Not deterministic, or able to make a huge string from a small one.
_NO_FILTERS = (
    "attr",
    "random",
    "center",
    "format",
    "indent",
    "pprint",
    "urlize",
    "xmlattr",
    "wordwrap",
    "batch",
    "slice",
)
_NO_METHODS = frozenset({"format", "format_map", "center", "ljust", "rjust", "zfill", "expandtabs"})


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's immutable sandbox without what can blow up: big products, formatting with widths, endless ranges."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, finalize=_not_none
        )
        for name in _NO_FILTERS:
            self.filters.pop(name, None)
        self.globals = {"range": _bounded_range}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
            raise SecurityError(f"'{operator}' is for numbers in a template")
        if operator == "**":
            raise SecurityError("'**' is not available in a template")
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, str) and attribute in _NO_METHODS:
            raise SecurityError(f"'{attribute}' is not available in a template")
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, str) and argument in _NO_METHODS:
            raise SecurityError(f"'{argument}' is not available in a template")
        return super().getitem(obj, argument)


def _bounded_range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_LOOP:
        raise SecurityError(f"range of {len(numbers)} numbers, at most {MAX_LOOP}")
    return numbers


def _not_none(value: Any) -> Any:
    if value is None:
        raise TemplateError("a value that the item does not have was printed: test it with 'if' first")
    return value


@dataclass(frozen=True)
class UserTemplate:
    """A template read from a file by `load_user_template`; `version` is a hash of the file's bytes."""

    name: str
    version: str
    low: float
    high: float
    rule: str
    solo: bool
    shows: int | None
    hint: bool
    path: Path
    markers: tuple[re.Pattern[str], ...] = field(repr=False)
    parts: tuple[tuple[str, int, JinjaTemplate], ...] = field(repr=False, compare=False)

    def render(self, item: Item, order: Sequence[int]) -> tuple[Message, ...]:
        """The chat of the file, for `item` with response `order[p]` at position p.

        Raises:
            ValueError: a number of responses that the file does not show, no label to hint at, or an error of the
                template on this item, with file and line.
        """
        if sorted(order) != list(range(item.n)):
            raise ValueError(f"order {list(order)} is not a permutation of 0..{item.n - 1}")
        if self.shows is not None and item.n != self.shows:
            raise ValueError(f"{self.path} shows {self.shows} response(s) a prompt, this item has {item.n}")
        values = self._values(item, order)
        return tuple(Message(role, self._text(template, line, values)) for role, line, template in self.parts)

    def parse(self, text: str, n: int) -> Parsed:
        """Scores by the file's rule; principles and critique where the text has the GRM family's headings."""
        parsed = ALL_RULES[self.rule](text, n, self.low, self.high)
        principles, critique = sections(text)
        return replace(parsed, principles=principles, critique=critique)

    def _values(self, item: Item, order: Sequence[int]) -> dict[str, Any]:
        messages = [{"role": m.role, "content": fence(m.content, *self.markers)} for m in item.prompt]
        values: dict[str, Any] = {
            "conversation": conversation_text(item.prompt, *self.markers),
            "messages": messages,
            "responses": [fence(item.responses[i], *self.markers) for i in order],
            "n": item.n,
            "reference": None if item.reference is None else fence(item.reference, *self.markers),
            "principles": None if item.principles is None else [fence(p, *self.markers) for p in item.principles],
        }
        if self.hint:
            if item.label is None:
                raise ValueError(f"{self.path} hints at the best response, the item has no label")
            values["hint"] = list(order).index(item.label) + 1
        return values

    def _text(self, template: JinjaTemplate, line: int, values: Mapping[str, Any]) -> str:
        chunks: list[str] = []
        size = 0
        try:
            for chunk in template.generate(values):
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_PROMPT_CHARS:
                    raise SecurityError(f"more than {MAX_PROMPT_CHARS} characters")
        except Exception as error:  # a template is a program: whatever it does wrong is told with its line
            raise ValueError(f"{self.path}:{line + _error_line(error)}: {_one_line(error)}") from error
        return "".join(chunks)


def load_user_template(path: Path) -> UserTemplate:
    """Read, check and try out a template file, before any model is loaded.

    Raises:
        UsageError: no such file, not UTF-8, keys missing or wrong, a syntax error, an unknown variable or filter, a
            probe item that cannot be rendered or of which a response is not shown. The text begins with file:line.
    """
    data = _read(path)
    try:
        source = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from error
    front = _FRONT.match(source)
    if front is None:
        _fail(path, 1, "expected a first comment '{# opengrm', one 'key: value' a line, and '#}'")
    keys, fences = _front_matter(path, front[1])
    hint = _yes(path, keys, "hint")
    solo = _yes(path, keys, "solo")
    low, high = _score(path, keys, "low"), _score(path, keys, "high")
    if not low < high:
        _fail(path, keys["low"][1], f"low is {low:g} and high is {high:g}: expected low < high")
    rule, rule_line = keys["parse"]
    if rule not in ALL_RULES:
        _fail(path, rule_line, f"unknown parse rule {rule!r}: expected one of {', '.join(sorted(ALL_RULES))}")
    name, name_line = keys["name"]
    if not _NAME.fullmatch(name):
        _fail(path, name_line, f"name {name!r}: expected up to 64 letters, digits, '.', '_' or '-'")
    template = UserTemplate(
        name=name + ("+hint" if hint else ""),
        version=hashlib.sha256(data + b"\0%d" % PARSER_VERSION).hexdigest()[:12],
        low=low,
        high=high,
        rule=rule,
        solo=solo,
        shows=_shows(path, keys, solo),
        hint=hint,
        path=path,
        markers=(*MARKERS, *(_marker(text) for text in fences)),
        parts=_parts(path, source, front.end(), VARIABLES | {"hint"} if hint else VARIABLES),
    )
    _try_out(template)
    return template


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read template file {path}: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path}: longer than {MAX_FILE_BYTES} bytes, not a template")
    return data


def _front_matter(path: Path, text: str) -> tuple[dict[str, tuple[str, int]], list[str]]:
    """Keys with their values and lines (the comment opens on line 1), and the fence markers."""
    keys: dict[str, tuple[str, int]] = {}
    fences: list[str] = []
    for line, row in enumerate(text.splitlines(), start=2):
        if not row.strip():
            continue
        key, colon, value = (part.strip() for part in row.partition(":"))
        if not colon or key not in KEYS:
            _fail(path, line, f"{row.strip()[:60]!r} is not 'key: value' with a key of {', '.join(KEYS)}")
        if not value:
            _fail(path, line, f"{key!r} has no value")
        if key == "fence":
            if len(value) < 2:
                _fail(path, line, f"fence {value!r}: expected a marker of at least 2 characters")
            fences.append(value)
        elif key in keys:
            _fail(path, line, f"{key!r} stands here a second time")
        else:
            keys[key] = (value, line)
    if missing := [key for key in REQUIRED if key not in keys]:
        _fail(path, 1, f"the first comment lacks {', '.join(missing)}")
    return keys, fences


def _score(path: Path, keys: Mapping[str, tuple[str, int]], key: str) -> float:
    text, line = keys[key]
    value = number(text)
    if value is None:
        _fail(path, line, f"{key} is {text!r}, expected a number")
    return value


def _yes(path: Path, keys: Mapping[str, tuple[str, int]], key: str) -> bool:
    text, line = keys.get(key, ("no", 1))
    if text not in ("yes", "no"):
        _fail(path, line, f"{key} is {text!r}, expected yes or no")
    return text == "yes"


def _shows(path: Path, keys: Mapping[str, tuple[str, int]], solo: bool) -> int | None:
    if "n" not in keys:
        return 1 if solo else None
    text, line = keys["n"]
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:6]) <= 1000 or (solo and int(text[:6]) != 1):
        _fail(path, line, f"n is {text!r}, expected a whole number from 1 to 1000, and 1 with 'solo: yes'")
    return int(text)


def _marker(text: str) -> re.Pattern[str]:
    """A literal marker, in any case and with any white space where it has some.

    Only its first character is matched, the rest is looked ahead at: so every occurrence is found, overlapping ones
    (such as "###" in a longer run of hashes) as well.
    """
    first, *rest = text.split()
    tail = r"\s+".join([re.escape(first[1:]), *map(re.escape, rest)])
    return re.compile(f"{re.escape(first[0])}(?={tail})", re.IGNORECASE)


def _parts(
    path: Path, source: str, start: int, variables: frozenset[str]
) -> tuple[tuple[str, int, JinjaTemplate], ...]:
    """The messages of the file: role, how many lines stand before its text, compiled text."""
    sandbox = _Sandbox()
    marks = list(_ROLE_LINE.finditer(source, start))
    if not marks:
        return (_compiled(path, sandbox, "user", source[start:], source.count("\n", 0, start), variables),)
    if source[start : marks[0].start()].strip():
        _fail(path, source.count("\n", 0, start) + 1, "text before the first role line")
    if marks[-1][1] != "user":
        line = source.count("\n", 0, marks[-1].start()) + 1
        _fail(path, line, f"the last message is of the {marks[-1][1]}, expected {{# user #}}")
    ends = [*(mark.start() for mark in marks[1:]), len(source)]
    return tuple(
        _compiled(path, sandbox, mark[1], source[mark.end() : end], source.count("\n", 0, mark.end()), variables)
        for mark, end in zip(marks, ends, strict=True)
    )


def _compiled(
    path: Path, sandbox: Environment, role: str, text: str, line: int, variables: frozenset[str]
) -> tuple[str, int, JinjaTemplate]:
    try:
        tree = sandbox.parse(text)
        for unknown in sorted(meta.find_undeclared_variables(tree) - variables - set(sandbox.globals)):
            at = next((node.lineno for node in tree.find_all(nodes.Name) if node.name == unknown), 1)
            known = ", ".join(sorted(variables))
            _fail(path, line + at, f"unknown variable {unknown!r}: a template sees {known}")
        return role, line, sandbox.from_string(text)
    except TemplateSyntaxError as error:  # TemplateAssertionError (an unknown filter) is one of them
        _fail(path, line + error.lineno, _one_line(error))
    except (RecursionError, MemoryError, ValueError, SyntaxError) as error:
        _fail(path, line + 1, _one_line(error))


def _try_out(template: UserTemplate) -> None:
    """Render a probe and look for every response, so that a template that forgets one is not found out by a model."""
    n = template.shows or 3
    words = [f"probe-response-{i}-of-{n}" for i in range(n)]
    probe = Item(
        prompt=(Message("user", "probe-query"),),
        responses=tuple(words),
        best=0,
        reference="probe-reference",
        principles=("probe-principle",),
        id="probe",
    )
    try:
        text = "\n".join(message.content for message in template.render(probe, range(n)))
    except ValueError as error:
        raise UsageError(str(error)) from error
    for i, word in enumerate(words, start=1):
        if word not in text:
            advice = "" if template.shows else "; declare 'n: <number>' if the template shows a fixed number"
            raise UsageError(f"{template.path}: response {i} of {n} is not in the rendered prompt{advice}")


def _error_line(error: Exception) -> int:
    """Line inside the template part where `error` was raised: the deepest frame of compiled template code."""
    line, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]


def _fail(path: Path, line: int, what: str) -> NoReturn:
    raise UsageError(f"{path}:{line}: {what}")

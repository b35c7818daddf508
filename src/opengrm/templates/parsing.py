"""Parse rules: from the text that a model wrote to scores by position shown, or a reason why there are none.

Every rule is a plain function `rule(text, n, low, high) -> Parsed`; `RULES` names them. A rule never raises, reads
generated text only, takes time linear in it, and gives n finite numbers in [low, high] or nothing: it never clamps
or guesses a score. Where a rule had to be chosen, the choice is the one that says "missing" rather than a number
that the model may not have meant:

- The last box counts. A last box that is broken, empty or has another number of scores is an error; an earlier box is
  not taken instead.
- A score is a plain decimal number in ASCII digits: no exponent, no "nan", no digits of other scripts. "8/10" is 8
  where 10 is the top of the range, and unparsable otherwise. `\\text{8}`, `\\mathbf{8}`, `**8**` and `$8$` are 8.
- Scores are separated by a comma, or by the full-width comma that Chinese models write.
- After a closing `</think>` only what follows it is read: a box in the thoughts is not the answer. A `<think>` that
  begins a line and is never closed leaves no answer at all; elsewhere in a line it is a word that the model quotes.
- A heading "Scores:" behind the last box means that the scores stand there without one, and that the box was a quote.

What no rule can tell: a model that quotes a box from a response, and then stops without one of its own, reads as if it
had answered. So does one whose token limit falls exactly behind such a quote.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from opengrm.templates.base import Parsed

T = TypeVar("T")
Rule = Callable[[str, int, float, float], Parsed]

# Goes into every template's version: raise it whenever a rule may read a text differently.
PARSER_VERSION = 3

# Longest text of one score inside a box, with its wrapping; a longer box is not a list of scores.
_SCORE_CHARS = 64

_BOX = re.compile(r"\\boxed[ \t]?\{")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|boldsymbol|bf)\s?\{([^{}]{0,64})\}")
_SPACING = re.compile(r"\\[ ,;:!]|~")
_FRACTION = re.compile(r"(?s)(.{1,40}?)\s?/\s?(.{1,20})")
_COMMA = re.compile(r"[,，]")
_THOUGHT_END = "</think>"
_THOUGHT = re.compile(r"^[ \t]{0,16}<think>", re.MULTILINE)
_WORD = re.compile(r"[^\W_]")


def number(text: str, high: float | None = None) -> float | None:
    """The one score that `text` is, or None. `x/high` reads as x when `high` is given."""
    text = text.strip().strip("*_$`").strip()
    if high is not None and (fraction := _FRACTION.fullmatch(text)) is not None:
        whole = number(fraction[2])
        return number(fraction[1]) if whole == high else None
    return float(text) if _NUMBER.fullmatch(text) else None


def checked(values: Sequence[float], n: int, low: float, high: float) -> Parsed:
    """`values` as scores, if there are n of them and all lie in [low, high]."""
    if len(values) != n:
        return Parsed(None, f"wrong_count: {len(values)} scores for {n} response{'s' * (n != 1)}")
    for value in values:
        if not low <= value <= high:  # also catches nan
            return Parsed(None, f"out_of_range: {value:g} is not in [{low:g}, {high:g}]")
    return Parsed(tuple(values))


def answer(text: str) -> str:
    """What follows the last closing thought tag (all of the text without one), or nothing if a thought stays open."""
    end = text.rfind(_THOUGHT_END)
    rest = text if end < 0 else text[end + len(_THOUGHT_END) :]
    return "" if _THOUGHT.search(rest) else rest


def last(values: Iterator[T]) -> T | None:
    """The last of them, None of none."""
    return next(iter(deque(values, maxlen=1)), None)


def ending(parsed: Parsed, text: str, end: int) -> Parsed:
    """`parsed`, read from what ends at `end`, with a note whether words follow it."""
    return replace(parsed, followed=_WORD.search(text, end) is not None)


def box_parts(content: str) -> list[str]:
    """What the commas inside a box separate, without LaTeX's wrapping and spacing; nothing of an empty box."""
    return _COMMA.split(_WRAPPED.sub(r"\1", _SPACING.sub(" ", content))) if content.strip() else []


def box_list(content: str, n: int, low: float, high: float) -> Parsed:
    r"""Scores from the inside of a box, such as `8, 7` or `\text{8}, 7/10`."""
    parts = box_parts(content)
    if not parts:
        return Parsed(None, "unparsable: the box is empty")
    values: list[float] = []
    for part in parts:
        value = number(part, high)
        if value is None:
            return Parsed(None, f"unparsable: {part.strip()[:40]!r} in the box is not a score")
        values.append(value)
    return checked(values, n, low, high)


def boxed_scores(text: str, n: int, low: float, high: float) -> Parsed:
    r"""The GRM family's rule (`formats.md` B.9): the last `\boxed{...}` holds exactly n numbers."""
    return _last_box(answer(text), n, low, high)


def _last_box(text: str, n: int, low: float, high: float) -> Parsed:
    return last_box(text, n * _SCORE_CHARS, lambda content, _: box_list(content, n, low, high))


def last_box(text: str, limit: int, read: Callable[[str, int], Parsed]) -> Parsed:
    """What `read` makes of the inside of the last box (up to about `limit` characters), told where that begins."""
    box = _find_last_box(text)
    if box is None:
        return Parsed(None, r"unparsable: no \boxed{...} in the text")
    content = _braced(text, box.end(), limit)
    if content is None:
        return Parsed(None, r"unparsable: the last \boxed{ is not closed")
    return _own(read(content, box.end()), text, box.end() + len(content) + 1)


def _own(parsed: Parsed, text: str, end: int) -> Parsed:
    """The scores read from what ends at `end`, unless a heading for the scores comes only then."""
    if _SCORES.search(text, end):
        return Parsed(None, 'unparsable: the text goes on to "Scores:" behind the last box')
    return ending(parsed, text, end)


def _find_last_box(text: str) -> re.Match[str] | None:
    r"""The last `\boxed{`, looked for from the end: it usually stands there."""
    at = text.rfind("\\boxed")
    while at >= 0:
        if (match := _BOX.match(text, at)) is not None:
            return match
        at = text.rfind("\\boxed", 0, at)
    return None


def _braced(text: str, start: int, limit: int) -> str | None:
    """The text from `start` to the brace that closes the one before it, within `limit` + 64 characters."""
    depth = 1
    for at in range(start, min(len(text), start + limit + 64)):
        if text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return text[start:at]
    return None


_RELEASED_OPEN = re.compile(r"\\{1,2}boxed\{|\[")
_RELEASED_CLOSE = re.compile(r"[\]}]")


def released_spans(text: str) -> Iterator[slice]:
    r"""Every match of the released DeepSeek-GRM pattern, left to right, without overlap, in linear time.

    The pattern opens at `\boxed{` or `[` and runs to the next `}` or `]`, at least one character
    later. Matched with `re` it takes quadratic time on text full of opening brackets.
    """
    at = 0
    while (opened := _RELEASED_OPEN.search(text, at)) is not None:
        closed = _RELEASED_CLOSE.search(text, opened.end())
        if closed is None:
            return
        if closed.start() == opened.end():  # nothing inside: not a match, go on behind the opening's first character
            at = opened.start() + 1
        else:
            yield slice(opened.end(), closed.start())
            at = closed.end()


def released_scores(text: str, n: int, low: float, high: float) -> Parsed:
    r"""The parser released with DeepSeek-GRM: the last `\boxed{...}` or `[...]`, parts that are not numbers dropped.

    Unlike known copies of it, this one asks for exactly n numbers and does not clamp. It reads any closing `[...]` as
    scores ("[1]" after the box, say), so `boxed` is the default.
    """
    text = answer(text)
    span = last(released_spans(text))
    if span is None:
        return Parsed(None, r"unparsable: no \boxed{...} and no [...] in the text")
    if span.stop - span.start > (n + 1) * _SCORE_CHARS:
        return Parsed(None, "unparsable: the last bracket is not a list of scores")
    values = [value for part in text[span].split(",") if (value := number(part)) is not None]
    return _own(checked(values, n, low, high), text, span.stop)


_INDIVIDUAL = re.compile(r"\[\s?The\s(Begin|End)\sof\s(Individual|Ranking)\sScores?\s?\]", re.IGNORECASE)


def individual_scores(text: str, n: int, low: float, high: float) -> Parsed:
    """The two-box family (`formats.md` B.9): individual scores in one box, then a ranking in another.

    Reads the last box of the last section headed `[The Begin of Individual Scores]`; the ranking box is never scores.
    """
    text = answer(text)
    start = end = -1
    for match in _INDIVIDUAL.finditer(text):
        begins, individual = match[1].lower() == "begin", match[2].lower() == "individual"
        if begins and individual:
            start, end = match.end(), len(text)
        elif start >= 0:
            end = min(end, match.start())
    if start < 0:
        return Parsed(None, "unparsable: no [The Begin of Individual Scores] in the text")
    parsed = _last_box(text[start:end], n, low, high)
    return replace(parsed, followed=parsed.followed or end < len(text))


_DOUBLE = re.compile(r"\[\[([^\[\]\n]{1,64})\]\]")


def double_bracket(text: str, n: int, low: float, high: float) -> Parsed:
    """MT-bench single grading: the last `[[rating]]`; one number, or n of them separated by commas."""
    text = answer(text)
    found = last(_DOUBLE.finditer(text))
    if found is None:
        return Parsed(None, "unparsable: no [[...]] in the text")
    return ending(box_list(found[1], n, low, high), text, found.end())


_RESULT = re.compile(r"\[RESULT\]\s?\(?([0-9.]{1,18})\)?[\s.]{0,8}\Z")


def result_tag(text: str, n: int, low: float, high: float) -> Parsed:
    """Prometheus, absolute grading: `[RESULT] 4` at the very end of the text. For one response."""
    found = _RESULT.search(answer(text)[-200:].rstrip())
    value = None if found is None else number(found[1].rstrip("."))
    if value is None:
        return Parsed(None, "unparsable: the text does not end in [RESULT] and a number")
    return checked([value], n, low, high)


def first_line(text: str, n: int, low: float, high: float) -> Parsed:
    """Vicuna reviews: the first line holds the n scores and nothing else, separated by spaces or commas."""
    line = answer(text).lstrip()[: n * _SCORE_CHARS].split("\n", 1)[0]
    values = [number(part, high) for part in re.split(r"[\s,]+", line.strip()) if part]
    if not values or None in values:
        return Parsed(None, "unparsable: the first line is not a list of scores")
    return checked([value for value in values if value is not None], n, low, high)


# A heading of the three output lines, tolerant to what real models make of it (the paper's Table 17): "### Analysis",
# "**Scores: ...**", "1. Specific Criteria:". Every repeat is bounded, so matching is linear.
_LINE_HEADING = r"^[ \t>#*_`-]{0,16}(?:[0-9]{1,2}[.)][ \t]?)?[*_`]{0,4}(%s)[ \t*_`]{0,8}(?:[:：][ \t*_`]{0,8}|\r?$)"
_HEADING = re.compile(_LINE_HEADING % "Specific Criteria|Analysis|Scores?", re.IGNORECASE | re.MULTILINE)
_INLINE = re.compile(r"\b(Specific Criteria|Analysis|Scores?)(?:\*{2})?:")
# In the middle of a line only in front of a number: "the better score: it is exact" is a remark, no heading.
_SCORES = re.compile(
    _LINE_HEADING % "Scores?" + r"|\bScores?[ \t*_`]{0,8}[:：][\s*_`$\[(]{0,8}[+-]?\d", re.IGNORECASE | re.MULTILINE
)
_SCORES_LINE_CHARS = 200


def sections(text: str) -> tuple[str | None, str | None]:
    """Principles ("Specific Criteria") and critique ("Analysis") of a GRM text; None for one that is not there.

    A part runs from its first heading to the first heading of the next part; the analysis ends at the scores. A
    heading in the middle of a line counts only where no line begins with it.
    """
    text = answer(text)
    first: dict[str, re.Match[str]] = {}
    scores: list[int] = []
    for pattern in (_HEADING, _INLINE):
        if len(first) == 2:
            break
        found: dict[str, re.Match[str]] = {}
        for match in pattern.finditer(text):
            word = match[1].lower()
            if word.startswith("score"):
                scores.append(match.start())
            else:
                found.setdefault(word, match)
        first = {**found, **first}
    end = _scores_start(text, scores)
    criteria, analysis = first.get("specific criteria"), first.get("analysis")
    if criteria is not None and analysis is not None and analysis.start() < criteria.start():
        criteria = None
    principles = None if criteria is None else text[criteria.end() : end if analysis is None else analysis.start()]
    critique = None if analysis is None else text[analysis.end() : end]
    return _clean(principles), _clean(critique)


def _scores_start(text: str, headings: Sequence[int]) -> int:
    """Where the scores begin: the heading just before the last box, else that box, else the last heading, or the end.

    Headings further up are the sub-scores of single criteria, which belong to the analysis.
    """
    box = _find_last_box(text)
    if box is None:
        return max(headings, default=len(text))
    start = box.start()
    if text[max(start - 1, 0) : start] == "\\":  # the first of two backslashes
        start -= 1
    return max((at for at in headings if start - _SCORES_LINE_CHARS <= at < start), default=start)


def _clean(part: str | None) -> str | None:
    return None if part is None else part.strip().strip("*#").strip() or None


RULES: dict[str, Rule] = {
    "boxed": boxed_scores,
    "released": released_scores,
    "individual": individual_scores,
    "double-bracket": double_bracket,
    "result": result_tag,
    "first-line": first_line,
}

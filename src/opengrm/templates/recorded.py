"""Parse rules for judges that name a winner or a class, so that their recorded texts can be voted on again.

A named winner becomes scores in [0, 1]: 1 for the winner and 0 for every other response, or 1/n for each in a tie.
Like the rules in `parsing.py` they read generated text only, never raise, take linear time and would rather say
"missing" than guess: a text that names two different winners in the two places where a verdict stands has none.
"""

from __future__ import annotations

import re
from dataclasses import replace

from opengrm.templates.base import Parsed
from opengrm.templates.parsing import RULES, Rule, answer, box_parts, checked, ending, last, last_box, number


def won(index: int | None, n: int, low: float, high: float) -> Parsed:
    """Scores of a named winner (index by position shown; None for a tie)."""
    if index is not None and not 0 <= index < n:
        return Parsed(None, f"out_of_range: the text names response {index + 1} of {n}")
    values = [1.0 / n] * n if index is None else [float(i == index) for i in range(n)]
    return checked(values, n, low, high)


_LETTER = re.compile(r"\[\[([A-Z])\]\]")


def letter_verdict(text: str, n: int, low: float, high: float) -> Parsed:
    """MT-bench pairs: the last of `[[A]]`, `[[B]]`, or `[[C]]` for a tie; `[[D]]` .. are further responses if n > 2.

    With n = 2, "C" is a tie. With more responses every letter is a response and there is no letter for a tie. Two
    different letters in one text are ambiguous only if the last line holds both.
    """
    text = answer(text)
    found = last(_LETTER.finditer(text))
    if found is None:
        return Parsed(None, "unparsable: no [[A]] or [[B]] in the text")
    if len(set(_LETTER.findall(text.rstrip().rsplit("\n", 1)[-1]))) > 1:
        return Parsed(None, "unparsable: the last line names several winners")
    index = ord(found[1]) - ord("A")
    return ending(won(None if n == 2 and index == 2 else index, n, low, high), text, found.end())


_EDGES = " \t\r\n*_`$\"'.:"


def winner_number(text: str, n: int, low: float, high: float) -> Parsed:
    """One-word verdicts and PandaLM: the first line is the number of the best response (1..n), or "Tie"."""
    line = answer(text).strip()[:64].split("\n", 1)[0].strip(_EDGES)
    if line.lower() == "tie":
        return won(None, n, low, high)
    if not (line.isascii() and line.isdigit()):
        return Parsed(None, "unparsable: the first line is not the number of a response")
    return won(int(line) - 1, n, low, high)


_BOX_CHARS = 64
_NAMED = re.compile(r"(?:Response[ #]{0,2})?([0-9]{1,9})", re.IGNORECASE)
_DIGIT = re.compile("[0-9]")


def boxed_winner(text: str, n: int, low: float, high: float) -> Parsed:
    r"""LLM-as-a-judge (paper v3 Eq. 6): the last `\boxed{2}` holds the number of the best response, 1..n; no ties.

    "Response 2" in the box is 2. A fraction such as "1/2" is unparsable: it may have been meant as a tie.
    """
    rest = answer(text)
    skipped = len(text) - len(rest)

    def read(content: str, start: int) -> Parsed:
        parts = [part.strip().strip("*_$`").strip() for part in box_parts(content)]
        if not parts:
            return Parsed(None, "unparsable: the box is empty")
        if len(parts) > 1:
            return Parsed(None, f"wrong_count: {len(parts)} entries in the box, expected the number of one response")
        found, digit = _NAMED.fullmatch(parts[0]), _DIGIT.search(content)
        if found is None or digit is None:
            return Parsed(None, f"unparsable: {parts[0][:40]!r} in the box is not the number of a response")
        return replace(won(int(found[1]) - 1, n, low, high), at=skipped + start + digit.start())

    return last_box(rest, _BOX_CHARS, read)


_FIRST_OUTPUT = re.compile(r"Output \(([a-z])\)(?: is better)?(?:\.|[ \t]{0,8}(?:\r?\n|\Z))")
_LAST_OUTPUT = re.compile(r"Output \(([a-z])\) is better[.\s*]{0,4}\Z")


def output_verdict(text: str, n: int, low: float, high: float) -> Parsed:
    """LLMBar: "Output (a)" or "Output (a) is better." as the whole first sentence, or ".. is better." at the very end.

    A mention anywhere else ("Assistant (b) argues that Output (b) is better ...", in a text that was cut off) is no
    verdict, and neither are a first sentence and an ending that contradict each other.
    """
    text = answer(text).strip()
    named = {match[1] for match in (_FIRST_OUTPUT.match(text), _LAST_OUTPUT.search(text[-64:])) if match is not None}
    if len(named) != 1:
        what = "names two winners" if named else "neither begins nor ends with a verdict on Output (a) or (b)"
        return Parsed(None, f"unparsable: the text {what}")
    return won(ord(named.pop()) - ord("a"), n, low, high)


_ERROR = re.compile(r"\bcontains (an|no) error\b", re.IGNORECASE)


def error_verdict(text: str, n: int, low: float, high: float) -> Parsed:
    """ReaLMistake: the last "contains an error" (score 0) or "contains no error" (score 1). For one response."""
    text = answer(text)
    found = last(_ERROR.finditer(text))
    if found is None:
        return Parsed(None, "unparsable: the text says neither 'contains an error' nor 'contains no error'")
    return ending(checked([float(found[1].lower() == "no")], n, low, high), text, found.end())


def whole_number(text: str, n: int, low: float, high: float) -> Parsed:
    """A rating alone: all of the text is one score. For one response."""
    text = answer(text).strip()
    value = number(text, high) if len(text) <= 64 else None
    if value is None:
        return Parsed(None, "unparsable: the text is not a single number")
    return checked([value], n, low, high)


RECORDED: dict[str, Rule] = {
    "boxed-winner": boxed_winner,
    "letter-verdict": letter_verdict,
    "winner-number": winner_number,
    "output-verdict": output_verdict,
    "error-verdict": error_verdict,
    "number": whole_number,
}

ALL_RULES: dict[str, Rule] = {**RULES, **RECORDED}

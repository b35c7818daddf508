"""What is trained on may not be what is reported on (docs/design.md, rule 7; docs/contamination.md).

A training row overlaps a held-out one

- if they are *equal*: what the users of both conversations say is the same but for case, spacing, Unicode form,
  invisible characters, quotation marks and sentence punctuation; or one of their responses is, and has `LEAST` words;
- or if at least `SHARE` of the *spans* (runs of `SPAN` words) of what the held-out users say, or `RESPONSE_SHARE` of
  those of a held-out response, stand in the training row, anywhere in its conversation or responses. So a prompt that
  is quoted in a longer one is found.

One half of the held-out prompt in one and the same training row is Tulu 3's rule (arXiv:2411.15124, section 3.2),
which takes 8-grams; four fifths is where Llama 2 calls a text dirty (arXiv:2307.09288, appendix A.6). Spans are
shorter here for copies with scattered changes: with one word in ten exchanged 0.9^8 = 43 % of the 8-grams are left,
of the 5-grams 59 %. Whatever has half of its longer n-grams has half of its 5-grams: from n to n - 1 each run that is
left gains one, and the whole text gains one.

Texts of fewer than `LEAST` words, GPT-3's N (arXiv:2005.14165, appendix C), are compared as wholes only: of a short
templated question with another name in it half the spans would be there. And what many prompts share is wording, not
content: of a text's *own* spans, those that stand in at most `COMMON` held-out prompts and the responses to them, half
as large a share must be there too. (GPT-3 again did not count n-grams of more than 10 documents at all.) A text with
too few of its own is compared as a whole only, a response that so many prompts got (a refusal) not at all.

Of a long response the `SKETCH` spans with the lowest hashes are looked for, the same ones in every copy (a bottom
sketch: Broder, SEQUENCES 1997); the share is then an estimate, with a standard error of at most 0.044.

Hashes are BLAKE2's, so that every process finds the same. The held-out side is kept as sorted arrays, 20 bytes a span
and its words; what is trained on streams past it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opengrm.errors import BadRow, UsageError
from opengrm.items import Item, Message, conversation
from opengrm.jsonl import OnBad, read_rows
from opengrm.rows import items_from_row

SPAN = 5  # words
SHARE = 0.5  # of a held-out prompt's spans
RESPONSE_SHARE = 0.8  # of a held-out response's: answers to one kind of question are alike without being copied
LEAST = 13  # words of a text that is compared by spans, and of a response that is compared at all
OWN = LEAST - SPAN + 1  # spans of its own that a text must have to be compared by them
COMMON = 10  # held-out prompts
SKETCH = 128  # spans of one response
SHOWN = 1000  # matches that a report keeps
RULE = {
    "span_words": SPAN, "share": SHARE, "response_share": RESPONSE_SHARE, "least_words": LEAST,
    "common_prompts": COMMON, "sketch": SKETCH,
}  # fmt: skip

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
# In scripts that are written without spaces (Thai to Lao, Khmer, kana, CJK) a letter is a word.
_ALONE = r"\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")
_ASCII_WORD = re.compile(r"[a-z0-9_]+")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_LIGHT = str.maketrans(dict.fromkeys(".,;:!?\"'`\u2018\u2019\u201c\u201d\u2026", " "))
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial hash; odd


class Exchange(NamedTuple):
    """A conversation and responses to it, with its place (`file:line`)."""

    where: str
    prompt: Sequence[Message]
    responses: Sequence[str] = ()


@dataclass(frozen=True)
class Match:
    """A training row and a held-out prompt (or a response to it) that overlap: the strongest of their matches.

    Attributes:
        row, held_out: the places; of a prompt that is held out several times, the first.
        part, held_out_part: which texts: "prompt", or "response 1" and so on.
        equal: whether they are equal.
        share: of the held-out text's spans, how many stand in the training row, 0 to 1.
    """

    row: str
    part: str
    held_out: str
    held_out_part: str
    equal: bool
    share: float

    def __str__(self) -> str:
        how = "equals" if self.equal else f"holds {self.share:.0%} of the {SPAN}-word spans of"
        return f"{self.row} ({self.part}) {how} {self.held_out} ({self.held_out_part})"


@dataclass(frozen=True)
class Overlap:
    """What was found.

    Attributes:
        rows: training rows that were looked at.
        overlapping: how many of them overlap, of these `equal` are equal to a held-out prompt or response.
        held_out: held-out prompts, equal ones counted once; `met` of them are trained on.
        short: held-out prompts compared as wholes only because they are short; `shared` because of shared wording.
        matches: the first `SHOWN` of `pairs`.
        pairs: pairs of a training row and a held-out prompt that overlap.
    """

    rows: int
    overlapping: int
    equal: int
    held_out: int
    met: int
    short: int
    shared: int
    pairs: int
    matches: tuple[Match, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rule": RULE}


class HeldOut:
    """Conversations and responses that may not be trained on.

    Attributes:
        count: prompts, equal ones counted once.
        short, shared: how many of them are compared as wholes only (see `Overlap`).
    """

    def __init__(self, rows: Iterable[Exchange]) -> None:
        """Read them, once."""
        self._words: dict[str, int] = {}
        self._prompts: dict[int, int] = {}  # hash of a whole prompt: its text
        self._responses: dict[int, tuple[int, int]] = {}  # hash of a response: its first text, prompts that got it
        self._where: list[str] = []  # of each text
        self._part: list[int] = []  # 0 the prompt, else the response's number
        self._group: list[int] = []  # the text of the prompt that it belongs to
        self.count = 0
        spans: list[Hashes] = []
        seen: set[tuple[int, int]] = set()  # responses by prompt
        for row in rows:
            said = _users(row.prompt)
            group = self._prompts.setdefault(_whole(said), len(self._where))
            if group == len(self._where):
                self._add(row.where, 0, group)
                spans.append(self._own_spans(said))
                self.count += 1
            for number, response in enumerate(row.responses, 1):
                key = _whole((response,))
                if (group, key) in seen:
                    continue
                seen.add((group, key))
                own = self._own_spans((response,))
                if not len(own):
                    continue
                first, prompts = self._responses.get(key, (len(self._where), 0))
                self._responses[key] = (first, prompts + 1)
                self._add(row.where, number, group)
                spans.append(np.sort(own)[:SKETCH])
        self._index(spans)

    def matches(self, row: Exchange) -> list[Match]:
        """The held-out prompts that a training row overlaps, at most one match for each, the strongest first."""
        return [match for _, match in self._matches(row)]

    def _matches(self, row: Exchange) -> list[tuple[int, Match]]:
        """`matches`, each with the number of its prompt, whose responses can stand at several places."""
        found: dict[int, tuple[bool, float, int, int]] = {}  # by prompt: equal, share, text, part of the row

        def note(equal: bool, share: float, text: int, part: int) -> None:
            group = self._group[text]
            known = found.get(group)
            if known is None or (equal, share) > known[:2]:
                found[group] = (equal, share, text, part)

        text = self._prompts.get(_whole(_users(row.prompt)))
        if text is not None:
            note(True, 1.0, text, 0)
        for number, response in enumerate(row.responses, 1):
            first, prompts = self._responses.get(_whole((response,)), (0, 0)) if self._responses else (0, 0)
            if 0 < prompts <= COMMON:
                note(True, 1.0, first, number)
        for share, text, part in self._near(row):
            note(False, share, text, part)
        ranked = sorted(found.items(), key=lambda m: (not m[1][0], -m[1][1], m[1][2]))
        return [
            (
                group,
                Match(row.where, _named(part), self._where[text], _named(self._part[text]), equal, round(share, 4)),
            )
            for group, (equal, share, text, part) in ranked
        ]

    def check(self, rows: Iterable[Exchange]) -> Overlap:
        """Look at what is trained on, once, as a stream."""
        looked_at = overlapping = equal = pairs = 0
        kept: list[Match] = []
        met: set[int] = set()
        for row in rows:
            looked_at += 1
            numbered = self._matches(row)
            found = [match for _, match in numbered]
            overlapping += bool(found)
            equal += any(match.equal for match in found)
            pairs += len(found)
            met.update(prompt for prompt, _ in numbered)
            kept += found[: SHOWN - len(kept)]
        return Overlap(
            looked_at, overlapping, equal, self.count, len(met), self.short, self.shared, pairs, tuple(kept)
        )

    def _add(self, where: str, part: int, group: int) -> None:
        self._where.append(where)
        self._part.append(part)
        self._group.append(group)

    def _own_spans(self, texts: Sequence[str]) -> Hashes:
        """The different spans of a held-out text; none if it is short. Its words are learned."""
        words = _words(texts)
        if len(words) - words.count("") < LEAST:
            return np.empty(0, np.uint64)
        for word in words:
            if word and word not in self._words:
                self._words[word] = _hash(word) or 1
        return np.unique(self._spans(words)[0])

    def _spans(self, words: Sequence[str]) -> tuple[Hashes, Ints]:
        """Hashes of the spans of known words, and the place of the first word of each."""
        known = self._words.get
        hash_W = np.fromiter((known(word, 0) for word in words), np.uint64, len(words))
        if len(words) < SPAN:
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        spans = len(words) - SPAN + 1
        hash_S = hash_W[:spans].copy()
        for shift in range(1, SPAN):
            hash_S *= _FACTOR
            hash_S += hash_W[shift : shift + spans]
        unknown_W = np.concatenate(([0], np.cumsum(hash_W == 0)))
        at_S = np.flatnonzero(unknown_W[SPAN:] == unknown_W[:-SPAN])
        return hash_S[at_S], at_S

    def _index(self, spans: Sequence[Hashes]) -> None:
        """Sort the spans of all texts, without those that many prompts share."""
        size_T = np.array([len(own) for own in spans], np.int64)
        group_T = np.array(self._group, np.int64)
        prompt_T = np.array(self._part, np.int64) == 0
        hash_P = np.concatenate([np.empty(0, np.uint64), *spans])
        text_P = np.repeat(np.arange(len(spans), dtype=np.int32), size_T)
        # Texts are in the order of their prompts but for responses to a prompt that comes again.
        order_P = np.lexsort((group_T[text_P], hash_P))
        hash_P, text_P = hash_P[order_P], text_P[order_P]
        new_P = np.ones(len(hash_P), bool)
        new_P[1:] = hash_P[1:] != hash_P[:-1]
        other_P = new_P.copy()
        other_P[1:] |= group_T[text_P[1:]] != group_T[text_P[:-1]]
        span_P = np.cumsum(new_P) - 1
        rare_P = np.bincount(span_P, other_P)[span_P] <= COMMON if len(span_P) else new_P
        self._text_P = text_P[rare_P]
        first_S = np.flatnonzero(new_P[rare_P])
        self._hash_S = hash_P[rare_P][first_S]
        self._first_S = np.append(first_S, len(self._text_P))
        own_T = np.bincount(self._text_P, minlength=len(spans))
        self._size_T = np.where(own_T >= OWN, own_T, 0)
        self._all_P = np.concatenate([np.empty(0, np.uint64), *spans])
        self._all_T = np.concatenate(([0], np.cumsum(size_T)))
        self._least_T = np.where(prompt_T, SHARE, RESPONSE_SHARE)
        self.short = int((prompt_T & (size_T == 0)).sum())
        self.shared = int((prompt_T & (size_T > 0) & (self._size_T == 0)).sum())
        # Most spans of a clean row are in none of them; a table of bits says so at once.
        self._shift = np.uint64(64 - max(16, len(self._hash_S).bit_length() + 4))
        self._there = np.zeros(1 << (64 - int(self._shift)), bool)
        self._there[self._hash_S >> self._shift] = True

    def _near(self, row: Exchange) -> Iterator[tuple[float, int, int]]:
        """Share, text and part of the row, for each held-out text of which enough spans stand in it."""
        if not len(self._hash_S):
            return
        words = _words([message.content for message in row.prompt])
        ends = [len(words)]
        for response in row.responses:
            words += _words((response,))
            ends.append(len(words))
        hash_F, at_F = self._spans(words)
        all_F = hash_F
        maybe_F = self._there[hash_F >> self._shift]
        hash_F, at_F = hash_F[maybe_F], at_F[maybe_F]
        span_F = np.minimum(np.searchsorted(self._hash_S, hash_F), len(self._hash_S) - 1)
        hit_F = self._hash_S[span_F] == hash_F
        span_F, first_F = np.unique(span_F[hit_F], return_index=True)
        at_F = at_F[hit_F][first_F]
        if not len(span_F):
            return
        # One entry H for each span found and text that has it.
        count_F = self._first_S[span_F + 1] - self._first_S[span_F]
        skip_F = np.cumsum(count_F) - count_F
        text_H = self._text_P[np.repeat(self._first_S[span_F] - skip_F, count_F) + np.arange(count_F.sum())]
        at_H = np.repeat(at_F, count_F)
        there: Hashes | None = None
        for text, hits in zip(*np.unique(text_H, return_counts=True), strict=True):
            least = float(self._least_T[text])
            if not self._size_T[text] or hits < least / 2 * self._size_T[text]:
                continue
            if there is None:
                there = np.unique(all_F)
            share = float(np.isin(self._all_P[self._all_T[text] : self._all_T[text + 1]], there).mean())
            if share >= least:
                part_H = np.searchsorted(ends, at_H[text_H == text], side="right")
                yield share, int(text), int(np.bincount(part_H).argmax())


def exchanges(path: str | Path, on_bad: OnBad | None = None) -> Iterator[Exchange]:
    """The conversations and responses of a file: items in any schema, or rows {"prompt", "completion"}.

    Items of one row (RM-Bench's nine pairs) are one exchange if they share their prompt.

    Raises:
        BadRow, UsageError, OpenGRMError: as `jsonl.read_rows`; `on_bad` is called with a row that is neither.
    """
    for where, row in read_rows(path, on_bad):
        try:
            if "completion" in row and "label" not in row:
                answers = tuple(m.content for m in conversation(row["completion"], name="completion"))
                yield Exchange(where, conversation(row.get("prompt")), answers)
            else:
                yield from of_items((where, item) for item in items_from_row(row))
        except ValueError as error:
            bad = BadRow(where, str(error))
            if on_bad is None:
                raise bad from None
            on_bad(bad)


def of_items(items: Iterable[tuple[str, Item]]) -> Iterator[Exchange]:
    """Items with their places as exchanges; neighbours of one place and prompt are one."""
    last: Exchange | None = None
    for where, item in items:
        if last is not None and (last.where, last.prompt) == (where, item.prompt):
            last = last._replace(responses=tuple(dict.fromkeys((*last.responses, *item.responses))))
            continue
        if last is not None:
            yield last
        last = Exchange(where, item.prompt, item.responses)
    if last is not None:
        yield last


def check_files(
    items: Sequence[str | Path], held_out: Sequence[str | Path], instructions: str | Path | None = None
) -> None:
    """`refuse_overlap` for a verb's files; malformed rows are left to whoever trains on them.

    Args:
        items: files of labelled items that are trained on.
        held_out: files of items that will be reported on.
        instructions: rows {"prompt", "completion"} that are trained on as well.
    """
    if not held_out:
        return
    known = HeldOut(row for path in held_out for row in exchanges(path))
    for path in [*items, *([] if instructions is None else [instructions])]:
        refuse_overlap(exchanges(path, lambda _: None), known, str(path), "leave out --held-out")


def refuse_overlap(trained: Iterable[Exchange], held_out: HeldOut, what: str, way_out: str) -> None:
    """See that nothing held out is trained on.

    Args:
        trained: what is trained on.
        held_out: what may not be among it.
        what: names what is trained on, for the message.
        way_out: how a user goes on all the same.

    Raises:
        UsageError: with how many are, and where the first of them stand.
    """
    found = held_out.check(trained)
    if found.overlapping:
        raise UsageError(
            f"{what}: {found.overlapping:,} conversations are also held out, {found.met:,} of {found.held_out:,} of"
            f" those are trained on ({'; '.join(map(str, found.matches[:3]))}{'; ...' if found.pairs > 3 else ''}):"
            f" leave them out (opengrm check-overlap lists them), or {way_out}"
        )


def _users(prompt: Sequence[Message]) -> tuple[str, ...]:
    """What the users of a conversation say; all of it if there are none."""
    return tuple(m.content for m in prompt if m.role == "user") or tuple(m.content for m in prompt)


def _folded(text: str) -> str:
    """Lower case and one Unicode form."""
    if text.isascii():
        return text.lower()
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text).casefold())


def _words(texts: Sequence[str]) -> list[str]:
    """The words of texts, with an empty one behind each text: no span goes across."""
    words: list[str] = []
    for text in texts:
        folded = _folded(text)
        words += (_ASCII_WORD if folded.isascii() else _WORD).findall(folded)
        words.append("")
    return words


def _whole(texts: Sequence[str]) -> int:
    """Hash of texts but for case, spacing, Unicode form, quotation marks and sentence punctuation."""
    return _hash("\n".join(" ".join(_folded(text).translate(_LIGHT).split()) for text in texts))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _named(part: int) -> str:
    return f"response {part}" if part else "prompt"

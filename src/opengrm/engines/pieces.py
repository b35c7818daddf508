"""The text of each generated token: pieces that together are the completion's text, so that a place in it has a token.

A token of a byte-level vocabulary may hold a part of a character: the piece is then empty, and the token that
completes the character has all of it. An end token, and whatever else the text leaves out, is an empty piece.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"


def token_pieces(decode: Callable[[Sequence[int]], str], token_ids: Sequence[int]) -> tuple[str, ...] | None:
    """One piece for each token id, or None where `decode` writes the tokens together otherwise than in parts.

    Args:
        decode: ids to text. It may depend on the neighbours (some vocabularies drop a space at the very beginning), so
            each token is decoded together with those of the piece before it.
        token_ids: all of the completion's.
    """
    pieces: list[str] = []
    begin = done = 0  # a window: what is before `done` in it was given out already
    known = ""
    for end in range(1, len(token_ids) + 1):
        text = decode(token_ids[begin:end])
        if len(text) <= len(known) or (text.endswith(_BROKEN) and end < len(token_ids)):
            pieces.append("")
            continue
        pieces.append(text[len(known) :])
        begin, done = done, end
        known = decode(token_ids[begin:done])
    return tuple(pieces) if "".join(pieces) == decode(token_ids) else None


def completion_pieces(
    decode: Callable[[Sequence[int]], str], token_ids: Sequence[int], *, opened: str, ended: bool
) -> tuple[str, ...] | None:
    """`token_pieces`, with `opened` (a thought that the prompt left open) in front and an empty one for an end token.

    None also where there is no token for what was opened.
    """
    found = token_pieces(decode, token_ids)
    if found is None:
        return None
    found = (*found, "") if ended else found
    return (opened + found[0], *found[1:]) if found else None if opened else found


def served_pieces(tokens: Sequence[bytes], text: str) -> tuple[str, ...] | None:
    """The same of what a server gives: one piece for each token, or None where the tokens do not hold the text.

    Args:
        tokens: the bytes of each, those of hidden thoughts before the text and of end tokens behind it included.
        text: the completion's.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = [decoder.decode(token, final=place == len(tokens)) for place, token in enumerate(tokens, 1)]
    first = "".join(pieces).rfind(text)
    if first < 0:
        return None
    found, start = [], 0
    for piece in pieces:
        end = start + len(piece)
        found.append(piece[max(first - start, 0) : max(first + len(text) - start, 0)])
        start = end
    return tuple(found)

r"""LLM-as-a-judge with token probability: a pair's scores are what the model gave to either index (cell (b), (ii)).

The text is that of `llm.py`: principles, critique and the box. The score of a response is the probability of its index
in the place of the answer, given everything before it (the paper, sections 2.1 and 4: the probability of the index
token is the scalar, S = r_theta(C_hat | x, {y_i}) with C_hat the preference token). Log-probabilities are of the
unscaled distribution, so temperature moves what is written before the answer, never the score behind it; greedy works
as well. k judgments vote by the mean of their scores (v3 Eq. 12).

What the paper leaves open:

- It does not say what the token's mass is measured against. Scores here are p(1) / (p(1) + p(2)) where the engine
  tells both (it is asked for the ALTERNATIVES most likely tokens): what goes to a bracket, a space or a third number
  says nothing about which of two responses is better. Where only the written index is known they are p and 1 - p.
- The paper's judge answers with the preset token. Ours may have the index in a longer token: "{2", "2}" and " 2" name
  response 2, "12" does not, and tokens that name the same response add up.
- Which index was written decides nothing: a sampled text may name the response that the model finds less likely.

A text that names no response (see the template) is missing, and so is one whose answer has no token of its own.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from opengrm.engines.base import Completion
from opengrm.errors import EngineError, UsageError
from opengrm.judges.llm import LLMJudge, check_template
from opengrm.templates.base import Parsed, Template

ALTERNATIVES = 5  # OpenAI-compatible servers give up to 20, some only 5
_INDEX = re.compile(r"\s*([0-9]+)")


@dataclass(frozen=True)
class TokenProb(LLMJudge):
    """A judge of pairs by the probability of the answer's token. Attributes as for `GRM`.

    Raises:
        UsageError: the template does not name the best, or does not tell where in the text.
        EngineError (while judging): the engine gives no log-probabilities.
    """

    paradigm: ClassVar[str] = "tokenprob"

    def __post_init__(self) -> None:
        check_locates(self.template)
        object.__setattr__(self, "sampling", replace(self.sampling, logprobs=True, alternatives=ALTERNATIVES))

    @cached_property
    def _name(self) -> str:
        """Not the llm judge's: the same text is another judgment here."""
        return f"{self.template.name}+tokenprob@{self.template.version}"

    def _read(self, completion: Completion, n: int) -> Parsed:
        parsed = super()._read(completion, n)
        if parsed.scores is None or parsed.at is None:
            return parsed
        if completion.logprobs is None:
            raise EngineError(
                f"{self.engine.model} gives no log-probabilities, and the tokenprob judge reads them: use a server "
                "that has them (vLLM, SGLang, llama-server) or an engine in process, or judge with --judge llm"
            )
        scores = index_probabilities(completion, parsed.scores.index(1.0), parsed.at)
        if scores is None:
            return replace(parsed, scores=None, error="unparsable: no token of the text is the answer's alone")
        return replace(parsed, scores=scores)


def check_locates(template: Template) -> None:
    """See that a template names the best, and tells where in the text.

    Raises:
        UsageError: it does not.
    """
    check_template(template)
    if template.parse(r"\boxed{1}", 2).at is None:
        raise UsageError(
            f"template {template.name} does not tell which token names the best: take judge, compact-judge, or a file "
            "of your own with the rule boxed-winner"
        )


def index_probabilities(completion: Completion, named: int, at: int) -> tuple[float, float] | None:
    """The probability of either position (0 and 1) in the place of the answer; both add up to 1.

    Args:
        completion: with log-probabilities.
        named: the position that the text names.
        at: where in the text its number begins.

    Returns:
        None where the pieces are not known, or the token there does not name the response by itself.
    """
    place = _place(completion, at)
    if place is None or completion.pieces is None or completion.logprobs is None:
        return None
    token, offset = place
    head, written = completion.pieces[token][:offset].rstrip(), completion.logprobs[token]
    if _position(completion.pieces[token], head) != named:
        return None
    top = completion.alternatives[token] if completion.alternatives is not None else ()
    found: tuple[list[float], list[float]] = ([], [])
    for text, logprob in top:
        position = _position(text, head)
        if position in (0, 1):
            found[position].append(logprob)
    if not any(math.isclose(logprob, written, abs_tol=1e-4) for logprob in found[named]):
        found[named].append(written)
    own = _log_sum(found[named])
    if found[1 - named]:
        share = 1 / (1 + math.exp(min(_log_sum(found[1 - named]) - own, 700.0)))
    else:
        share = min(math.exp(own), 1.0)
    return (share, 1 - share) if named == 0 else (1 - share, share)


def _place(completion: Completion, at: int) -> tuple[int, int] | None:
    """The token that holds this character of the text, and where in the token it stands."""
    pieces, start = completion.pieces or (), 0
    if len(pieces) != len(completion.logprobs or ()):
        return None
    for token, piece in enumerate(pieces):
        if at < start + len(piece):
            return token, at - start
        start += len(piece)
    return None


def _position(text: str, head: str) -> int | None:
    """Which position (from 0) a token names that has `head` in front of the number; None for any other token."""
    found = _INDEX.match(text, len(head)) if text.startswith(head) else None
    return None if found is None else int(found[1]) - 1


def _log_sum(values: list[float]) -> float:
    """log(sum(exp(values))), of at least one."""
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))

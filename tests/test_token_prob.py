r"""TokenProb: scores by hand from known log-probabilities and pieces, and from a forward pass of a real model."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fake_server import Body, FakeServer, chat_completion, reply
from instant_engine import InstantEngine
from test_cli import Run, lines, run

from opengrm.engines.base import Completion, Request, Sampling
from opengrm.errors import EngineError, UsageError
from opengrm.items import Item, Message
from opengrm.jsonl import write_rows
from opengrm.judges.llm import LLMJudge
from opengrm.judges.run import verdicts
from opengrm.judges.token_prob import TokenProb, index_probabilities
from opengrm.templates import get_template
from opengrm.templates.base import Parsed

__all__ = ["run"]
JUDGE = get_template("judge")
PAIR = Item((Message("user", "Query"),), ("one", "two"), best=1, id="q")
LN = math.log
Place = tuple[str, float, list[tuple[str, float]] | None]


def completion(*places: Place) -> Completion:
    """Pieces with probabilities, and those of the alternatives; the text behind `Scores: `."""
    tops = [top for _, _, top in places]
    return Completion(
        0, 0, "".join(piece for piece, _, _ in places), "stop",
        logprobs=tuple(LN(p) for _, p, _ in places),
        pieces=tuple(piece for piece, _, _ in places),
        alternatives=(
            None if None in tops else tuple(tuple((text, LN(p)) for text, p in top or ()) for top in tops)
        ),
    )  # fmt: skip


def scores_of(*places: Place) -> tuple[float, float] | None:
    found = completion(*places)
    parsed = JUDGE.parse(found.text, 2)
    assert parsed.scores is not None
    assert parsed.at is not None
    return index_probabilities(found, parsed.scores.index(1.0), parsed.at)


HEAD: tuple[Place, ...] = (("Scores: \\boxed", 0.9, []), ("{", 0.9, []))
END: Place = ("}", 1.0, [])
NINE: list[tuple[str, float]] = [("2", 0.9), ("1", 0.1)]
CASES: list[tuple[str, tuple[Place, ...], tuple[float, float]]] = [
    ("both known", (*HEAD, ("2", 0.6, [("2", 0.6), ("1", 0.2), ("}", 0.1)]), END), (0.25, 0.75)),
    ("the less likely one was written", (*HEAD, ("2", 0.2, [("1", 0.6), ("2", 0.2)]), END), (0.75, 0.25)),
    ("the written one is not among the top", (*HEAD, ("1", 0.1, [("2", 0.3), ("x", 0.2)]), END), (0.25, 0.75)),
    ("the other is not among the top", (*HEAD, ("1", 0.7, [("1", 0.7), ("x", 0.2)]), END), (0.7, 0.3)),
    ("no alternatives", (("\\boxed{", 0.9, None), ("1", 0.7, None), ("}", 1.0, None)), (0.7, 0.3)),
    ("no alternatives, the second", (("\\boxed{", 0.9, None), ("2", 0.7, None), ("}", 1.0, None)), (0.3, 0.7)),
    ("with the bracket behind", (*HEAD, ("2}", 0.6, [("2}", 0.6), ("1}", 0.2), ("12", 0.1)])), (0.25, 0.75)),
    ("with the bracket before",
     (("\\boxed", 0.9, []), ("{2", 0.6, [("{2", 0.6), ("{1", 0.2), ("1", 0.1)]), END), (0.25, 0.75)),
    ("the whole box in one token", (("\\boxed{1}", 0.3, [("\\boxed{2}", 0.6), ("\\boxed{1}", 0.3)]),), (1 / 3, 2 / 3)),
    ("tokens that name the same add up",
     (*HEAD, ("2", 0.3, [("2", 0.3), ("1", 0.1), (" 2", 0.2), ("1}", 0.1)]), END), (2 / 7, 5 / 7)),
    ("a space in the token", (*HEAD, (" 1", 0.6, [(" 1", 0.6), ("2", 0.2)]), END), (0.75, 0.25)),
    ("the index behind a word",
     (*HEAD, ("Response", 0.5, []), (" 2", 0.8, [(" 2", 0.8), (" 1", 0.2)]), END), (0.2, 0.8)),
    ("an earlier box is a quote", ((r"\boxed{1}", 0.1, []), *HEAD, ("2", 0.9, NINE), END), (0.1, 0.9)),
    ("behind thoughts", (("<think>\\boxed{1}</think>", 0.1, []), *HEAD, ("2", 0.9, NINE), END), (0.1, 0.9)),
    ("empty pieces around it", (*HEAD, ("", 0.5, []), ("2", 0.9, NINE), END, ("", 1.0, [])), (0.1, 0.9)),
]  # fmt: skip


@pytest.mark.parametrize(("places", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_scores_by_hand(places: tuple[Place, ...], expected: tuple[float, float]) -> None:
    assert scores_of(*places) == pytest.approx(expected)


def test_probabilities_that_underflow_or_exceed_one_by_rounding() -> None:
    far = replace(completion(*HEAD, ("1", 0.5, []), ("}", 1.0, [])), alternatives=None)
    far = replace(far, logprobs=(0.0, 0.0, -2000.0, 0.0))
    assert index_probabilities(far, 0, 15) == (0.0, 1.0)
    above = replace(far, logprobs=(0.0, 0.0, 1e-7, 0.0))
    assert index_probabilities(above, 0, 15) == (1.0, 0.0)
    both = replace(far, alternatives=((), (), (("2", -1.0),), ()))
    assert index_probabilities(both, 0, 15) == pytest.approx((0.0, 1.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"pieces": None},
        {"pieces": ("Scores: \\boxed{", "1", "}")},  # not one for each log-probability
        {"pieces": ("Scores: \\box", "ed{", "", "")},  # they end before it
    ],
)
def test_an_answer_without_a_token_of_its_own_is_none(changes: dict[str, Any]) -> None:
    assert index_probabilities(replace(completion(*HEAD, ("1", 0.5, []), ("}", 1.0, [])), **changes), 0, 15) is None


def test_a_number_written_with_a_leading_zero_has_no_token_of_its_own() -> None:
    assert scores_of(*HEAD, ("0", 0.5, []), ("2", 0.9, []), ("}", 1.0, [])) is None


# --- the judge --------------------------------------------------------------------------------------------------


class Known:
    """Names position `places[i]` with the given probability in sample i; the other position has half of the rest."""

    model = "known"

    def __init__(self, *samples: tuple[int, float]) -> None:
        self.samples = list(samples)
        self.asked: list[Request] = []

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        for request in requests:
            self.asked.append(request)
            for index in range(len(request.seeds)):
                named, p = self.samples.pop(0)
                top = [(f"{named}", p), (f"{3 - named}", (1 - p) / 2)]
                found = completion(*HEAD, (f"{named}", p, top), ("}", 1.0, []))
                yield replace(found, request=request.id, index=index, prompt_tokens=3, completion_tokens=4)

    def close(self) -> None: ...


def test_the_vote_is_the_mean_in_the_items_own_order() -> None:
    engine = Known((1, 0.5), (2, 0.8))  # orders (0, 1) and (1, 0): both name response 0
    judge = TokenProb(engine, JUDGE, Sampling(0.0))
    ((_, judgments, verdict),) = verdicts(judge, [PAIR], 2, reduce="mean")
    orders = [j.order for j in judgments]
    assert sorted(orders) == [(0, 1), (1, 0)]
    first, second = 0.5 / 0.75, 0.8 / 0.9
    expected = [(first, 1 - first) if orders[0] == (0, 1) else (1 - first, first)]
    expected.append((second, 1 - second) if orders[1] == (1, 0) else (1 - second, second))
    for judgment, scores in zip(judgments, expected, strict=True):
        assert judgment.scores == pytest.approx(scores)
    assert verdict.scores == pytest.approx([(a + b) / 2 for a, b in zip(*expected, strict=True)])
    assert all(r.sampling == Sampling(0.0, logprobs=True, alternatives=5) for r in engine.asked)


def test_its_judgments_are_not_the_llm_judges() -> None:
    ((_, (one,)),) = TokenProb(Known((1, 0.5)), JUDGE).judge([PAIR], 1)
    ((_, (other,)),) = LLMJudge(Known((1, 0.5)), JUDGE).judge([PAIR], 1)
    assert (one.template, other.template) == (f"judge+tokenprob@{JUDGE.version}", f"judge@{JUDGE.version}")
    assert one.key != other.key
    assert one.seed != other.seed


@pytest.mark.parametrize("n", [1, 3])
def test_it_takes_pairs(n: int) -> None:
    item = Item(PAIR.prompt, tuple("abc"[:n]), id="n")
    ((_, (judgment,)),) = TokenProb(Known((1, 0.5)), JUDGE).judge([item], 1)
    assert judgment.error is not None
    assert judgment.error.startswith(f"template: judge tokenprob takes items of 2 responses, this one has {n}; judges")


def test_templates_that_do_not_tell_where_the_answer_stands(tmp_path: Path) -> None:
    head = "{{# opengrm\nname: mine\nlow: 0\nhigh: 1\nparse: {rule}\n#}}\n"
    text = head + "{{% for r in responses %}}{{{{ r }}}}\n{{% endfor %}}"
    (tmp_path / "letters.jinja").write_text(text.format(rule="letter-verdict"))
    (tmp_path / "box.jinja").write_text(text.format(rule="boxed-winner"))
    with pytest.raises(UsageError, match="does not tell which token names the best"):
        TokenProb(Known(), get_template(tmp_path / "letters.jinja"))
    with pytest.raises(UsageError, match="rates responses"):
        TokenProb(Known(), get_template("grm"))
    own = TokenProb(Known((2, 0.8)), get_template(tmp_path / "box.jinja"), orders="fixed")
    ((_, (judgment,)),) = own.judge([PAIR], 1)
    assert judgment.scores == pytest.approx((0.1 / 0.9, 0.8 / 0.9))


def test_an_engine_without_log_probabilities_is_told_to_the_user() -> None:
    judge = TokenProb(InstantEngine(lambda *_: r"\boxed{1}"), JUDGE)
    with pytest.raises(EngineError, match=r"instant gives no log-probabilities.*--judge llm"):
        list(judge.judge([PAIR], 1))
    unread = TokenProb(InstantEngine(lambda *_: "no box"), JUDGE)
    ((_, (judgment,)),) = unread.judge([PAIR], 1)
    assert judgment.error_kind == "unparsable"


# --- a real model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnyDigit:
    """Reads the first 1 or 2 anywhere: a tiny random model writes no boxes."""

    name: str = "any"
    version: str = "1"
    low: float = 0.0
    high: float = 1.0
    solo: bool = False

    def render(self, item: Item, order: Any) -> tuple[Message, ...]:
        return (Message("user", "\n".join(item.responses[i] for i in order)),)

    def parse(self, text: str, n: int) -> Parsed:
        at = min((i for i in (text.find("1"), text.find("2")) if i >= 0), default=None)
        if at is None:
            return Parsed(None, "unparsable: no digit")
        return Parsed((1.0, 0.0) if text[at] == "1" else (0.0, 1.0), at=at)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_probability_is_that_of_a_forward_pass(temperature: float, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tiny_models import build_checkpoint

    from opengrm.engines.transformers import TransformersEngine

    completions: list[Completion] = []
    with TransformersEngine(build_checkpoint(tmp_path / "tiny"), device="cpu") as engine:

        class Recording:
            model = engine.model

            def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
                for completion in engine.generate(requests):
                    completions.append(completion)
                    yield completion

            def close(self) -> None: ...

        judge = TokenProb(Recording(), AnyDigit(), Sampling(temperature, max_tokens=32), orders="fixed")
        ((_, judgments),) = judge.judge([PAIR], 40)
        prompt = engine._chat.encode(AnyDigit().render(PAIR, (0, 1)))
        texts = {j.text: j for j in judgments}
        compared = known = 0
        for found in completions:
            assert "".join(found.pieces or ()) == found.text
            assert len(found.pieces or ()) == len(found.logprobs or ()) == len(found.alternatives or ())
            scores = texts[found.text].scores
            parsed = AnyDigit().parse(found.text, 2)
            if scores is None or parsed.scores is None:
                continue
            ids = list(found.token_ids or ())
            # The token of the digit, found by decoding ever longer prefixes.
            place = next(t for t in range(len(ids)) if len(engine._chat.decode(ids[: t + 1])) > (parsed.at or 0))
            with torch.no_grad():
                logits = engine._model(torch.tensor([[*prompt, *ids[:place]]])).logits[0, -1]
            p_V = logits.log_softmax(-1).exp()
            own, other = p_V[ids[place]].item(), 0.0
            written = engine.tokenizer.decode([ids[place]])
            head = written[: written.index("1" if parsed.scores[0] else "2")].rstrip()
            for token in p_V.topk(5).indices.tolist():
                rest = engine.tokenizer.decode([token])
                rest = rest[len(head) :].lstrip() if rest.startswith(head) else ""
                digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
                if token != ids[place] and digits == ("1" if parsed.scores[0] else "2"):
                    own += p_V[token].item()
                elif digits == ("2" if parsed.scores[0] else "1"):
                    other += p_V[token].item()
            share = own / (own + other) if other else own
            expected = (share, 1 - share) if parsed.scores[0] else (1 - share, share)
            assert scores == pytest.approx(expected, abs=1e-5)
            compared, known = compared + 1, known + bool(other)
    assert compared >= 5


# --- the command line -------------------------------------------------------------------------------------------


def tokens(text: str, p: float) -> list[dict[str, Any]]:
    """One token a character, the answer's digit with probability p and the other with 0.1."""
    content = [{"token": c, "logprob": -0.1, "bytes": list(c.encode()), "top_logprobs": []} for c in text]
    digit = text.rindex("{") + 1
    content[digit]["logprob"] = LN(p)
    content[digit]["top_logprobs"] = [
        {"token": text[digit], "logprob": LN(p)}, {"token": str(3 - int(text[digit])), "logprob": LN(0.1)},
    ]  # fmt: skip
    return content


def test_command_line(run: Run, tmp_path: Path) -> None:
    items, out, text = tmp_path / "items.jsonl", tmp_path / "v.jsonl", "Scores: \\boxed{2}"
    write_rows(items, [replace(PAIR, id=f"q{i}").to_json() for i in range(2)])

    def answer(number: int, body: Body) -> Any:
        found = chat_completion(body, lambda *_: text, n=1, logprobs=True)
        found["choices"][0]["logprobs"]["content"] = tokens(text, 0.4)
        return reply(200, found)

    with FakeServer(fault=answer) as server:
        words = ("--engine", "openai", "--base-url", server.base_url, "--model", "m", "-q", "--judge", "tokenprob")
        done = run("judge", items, "-o", out, "-k", 2, "--orders", "fixed", *words, "--json")
        assert done.code == 0, done.err
        assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, 5)
        for verdict in lines(out):
            assert verdict["scores"] == pytest.approx([0.2, 0.8])
        assert done.json["accuracy"]["mean"] == 1.0
        asked = server.asked
        row = {"prompt": "q", "responses": ["a", "b", "c"], "best": 0}
        items.write_text(items.read_text() + json.dumps(row) + "\n")
        refused = run("judge", items, "-o", tmp_path / "w.jsonl", *words)
        assert refused.code == 1
        assert (
            f"{items}:3: template judge: judge tokenprob takes items of 2 responses, this one has 3; j" in refused.err
        )
        assert server.asked == asked
    with FakeServer(text=lambda *_: text, honours_logprobs=False) as server:
        words = ("--engine", "openai", "--base-url", server.base_url, "--model", "m", "-q", "--judge", "tokenprob")
        one = ("judge", "--prompt", "q", "--response", "a", "--response", "b")
        done = run(*one, *words)
        assert done.code == 1
        assert "m gives no log-probabilities, and the tokenprob judge reads them: use a server" in done.err

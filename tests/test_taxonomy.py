"""The paper's taxonomy (section 2.1) as tests: what sampling changes, and how many responses each judge takes."""

from __future__ import annotations

import random
from collections.abc import Generator, Hashable, Iterable, Sequence
from dataclasses import replace

import pytest

from opengrm.engines.base import Completion, Request, Sampling
from opengrm.engines.classifier import Reading
from opengrm.items import Item, Message
from opengrm.judges.base import PARADIGMS, Judge, check_responses
from opengrm.judges.bradley_terry import BradleyTerry
from opengrm.judges.cloud import CLoud
from opengrm.judges.grm import GRM
from opengrm.judges.llm import LLMJudge
from opengrm.judges.pair_rm import PairRM
from opengrm.judges.token_prob import TokenProb
from opengrm.templates import get_template
from opengrm.templates.cloud import CloudTemplate
from opengrm.templates.pair import PairTemplate
from opengrm.voting.reducers import verdict_of

# Generation, scoring, sampled, and which of 1, 2 and 4 responses, written out from the paper's Figure 2 and from
# docs/paradigms.md, not read from PARADIGMS.
TAXONOMY: dict[str, tuple[str, str, bool, tuple[int, ...]]] = {
    "bt": ("scalar", "pointwise", False, (1, 2, 4)),
    "pair": ("scalar", "pairwise", False, (2, 4)),
    "cloud": ("semi-scalar", "pointwise", True, (1, 2, 4)),
    "tokenprob": ("semi-scalar", "pairwise", True, (2,)),
    "llm": ("generative", "pairwise", True, (2, 4)),
    "grm": ("generative", "pointwise", True, (1, 2, 4)),
}
K = 6


class Sampled:
    """A model that at temperature 0 answers every prompt in one way, and above it differently with every seed."""

    model = "sampled@1"

    def __init__(self, heat: float) -> None:
        self.heat = heat
        self.samples = 0

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        for request in requests:
            text = request.messages[-1].content
            for index, seed in enumerate(request.seeds):
                self.samples += 1
                draw = random.Random(seed if self.heat else 0)
                n = text.count("[The Begin of Response ") or 1
                if "selecting" in text or "the best response" in text.casefold():
                    answer, p = str(draw.randint(1, n)), draw.uniform(0.5, 1.0)
                else:
                    answer, p = ", ".join(str(draw.randint(1, 10)) for _ in range(n)), 1.0
                pieces = ("Analysis" + "!" * draw.randint(0, 9) + " Scores: ", "\\boxed{", answer, "}")
                yield Completion(
                    request.id, index, "".join(pieces), "stop", prompt_tokens=1, completion_tokens=4,
                    logprobs=(0.0, 0.0, -1.0 + p, 0.0), pieces=pieces,
                    alternatives=((), (), ((answer, -1.0 + p),), ()),
                )  # fmt: skip

    def close(self) -> None: ...


class Scalar:
    """A classifier whose logit is fixed by the text; counts how often it is asked."""

    model, context, truncates = "scalar@1", None, False

    def __init__(self) -> None:
        self.samples = 0

    def read(
        self, conversations: Sequence[Sequence[Message]], prompts: Sequence[Hashable] | None = None
    ) -> list[Reading]:
        self.samples += len(conversations)
        return [Reading(float(sum(map(ord, str(messages))) % 97), 1) for messages in conversations]

    def fits(self, messages: Sequence[Message]) -> bool:
        return True


def judge(name: str, heat: float = 1.0) -> tuple[Judge, Sampled | Scalar]:
    """A judge of that paradigm, and the model behind it."""
    engine, scalar, sampling = Sampled(heat), Scalar(), Sampling(heat)
    judges: dict[str, tuple[Judge, Sampled | Scalar]] = {
        "grm": (GRM(engine, get_template("grm"), sampling), engine),
        "llm": (LLMJudge(engine, get_template("judge"), sampling), engine),
        "tokenprob": (TokenProb(engine, get_template("judge"), sampling), engine),
        "cloud": (CLoud(engine, scalar, CloudTemplate("cloud"), sampling), engine),
        "bt": (BradleyTerry(scalar), scalar),
        "pair": (PairRM(scalar, PairTemplate()), scalar),
    }
    return judges[name]


def item(n: int) -> Item:
    return Item((Message("user", "Name a prime."),), tuple(f"response {i * i}" for i in range(n)), id=f"n{n}")


def test_the_table_is_the_papers() -> None:
    assert {
        p.name: (p.generation, p.scoring, p.sampled, tuple(n for n in (1, 2, 4) if p.takes(n)))
        for p in PARADIGMS.values()
    } == TAXONOMY


@pytest.mark.parametrize("name", TAXONOMY)
def test_what_sampling_changes(name: str) -> None:
    sampled = TAXONOMY[name][2]
    judged, model = judge(name)
    ((_, judgments),) = judged.judge([item(2)], K)
    assert [j.sample for j in judgments] == list(range(K))
    assert all(j.scores is not None for j in judgments)
    assert (len({j.scores for j in judgments}) > 1) == sampled
    # A judge that sampling does not change computes once, and its vote says what one judgment says.
    if not sampled:
        assert model.samples == 2
        votes = [j.scores for j in judgments if j.scores is not None]
        assert verdict_of("n2", votes, PARADIGMS[name].reduce, asked=K).ranking == (
            verdict_of("n2", votes[:1], PARADIGMS[name].reduce, asked=1).ranking
        )
    else:
        assert model.samples == K * (2 if name == "cloud" else 1)


@pytest.mark.parametrize("name", [n for n, row in TAXONOMY.items() if row[2]])
def test_greedy_decoding_leaves_nothing_to_vote_on_in_one_order(name: str) -> None:
    judged, _ = judge(name, heat=0.0)
    if name != "cloud":  # shows one response at a time: it has no order
        judged = replace(judged, orders="fixed")  # type: ignore[type-var]
    ((_, judgments),) = judged.judge([item(2)], K)
    assert len({j.scores for j in judgments}) == 1


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("name", TAXONOMY)
def test_how_many_responses_it_takes(name: str, n: int) -> None:
    able = [other for other, row in TAXONOMY.items() if n in row[3]]
    if name in able:
        check_responses(name, n)
        ((_, judgments),) = judge(name)[0].judge([item(n)], 2)
        assert [len(j.scores or ()) for j in judgments] == [n, n]
        return
    with pytest.raises(ValueError, match=f"judge {name} takes items of .* responses, this one has {n}") as caught:
        check_responses(name, n)
    named = str(caught.value).rpartition("judges that take it: ")[2].split(", ")
    assert sorted(named) == sorted(able)
    # Judging all the same never makes a number: the judgment is missing with that reason, or the judge refuses.
    try:
        ((_, judgments),) = judge(name)[0].judge([item(n)], 1)
    except ValueError as error:
        assert str(error) == str(caught.value)  # noqa: PT017
    else:
        assert judgments[0].scores is None
        assert str(caught.value) in (judgments[0].error or "")

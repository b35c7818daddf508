"""CLoud as a judge: critiques by any engine, scores by a head, window by window through the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE
from instant_engine import InstantEngine

from opengrm.engines.base import Completion, Request, Sampling
from opengrm.engines.classifier import Classifier, Reading
from opengrm.errors import EngineError
from opengrm.items import Item, Message
from opengrm.judges.bradley_terry import open_bradley_terry
from opengrm.judges.cloud import CLoud, open_head
from opengrm.judges.run import verdicts
from opengrm.ledger import Ledger
from opengrm.templates.cloud import CloudTemplate

TEMPLATE = CloudTemplate("compact-cloud")


def by_seed(request: Request, index: int) -> str:
    """A critique that says which response it is about, and whose length is fixed by the seed."""
    response = request.messages[0].content.split("\n[1] ")[1].split("\n")[0]
    return f"about {response}" + "!" * (request.seeds[index] % 50)


class LengthHead:
    """A score for each conversation: the length of the critique; None over 200 characters. Ten tokens each."""

    context = 9

    def __init__(self, model: str = "head@1") -> None:
        self.model = model
        self.asked: list[str] = []

    def read(
        self, conversations: Sequence[Sequence[Message]], prompts: Sequence[Hashable] | None = None
    ) -> list[Reading]:
        texts = [messages[-1].content for messages in conversations]
        self.asked += texts
        return [Reading(float(len(t)), 10) if len(t) <= 200 else Reading(None, len(t)) for t in texts]


def item(name: str = "q", n: int = 2) -> Item:
    return Item((Message("user", f"Query {name}"),), tuple(f"{name}-{i}" for i in range(n)), id=name)


def judge(engine: Any = None, head: Any = None, **values: Any) -> CLoud:
    known: dict[str, Any] = {"sampling": Sampling(temperature=1.0, max_tokens=64)}
    return CLoud(engine or InstantEngine(by_seed), head or LengthHead(), TEMPLATE, **{**known, **values})


def test_each_response_gets_its_own_critique_and_score() -> None:
    engine, head = InstantEngine(by_seed, shuffle=1), LengthHead()
    items = [item("a", 3), item("b", 1)]
    found = list(judge(engine, head).judge(items, 4))
    assert [judged.id for judged, _ in found] == ["a", "b"]
    assert engine.asked == 4 * 4
    for judged, judgments in found:
        assert [j.sample for j in judgments] == [0, 1, 2, 3]
        assert len({j.scores for j in judgments}) > 1  # sampling changes the judgment
        for j in judgments:
            texts = [j.text] if judged.n == 1 else [p.split("]\n")[1] for p in (j.text or "").split("\n\n")]
            assert [len(text or "") for text in texts] == list(j.scores or ())
            assert all((text or "").startswith(f"about {r}") for text, r in zip(texts, judged.responses, strict=True))
            assert j.critique == j.text
            assert (j.principles, j.order, j.model) == (None, tuple(range(judged.n)), "instant + head@1")
            assert j.template == f"compact-cloud@{TEMPLATE.version}"
            assert (j.prompt_tokens, j.completion_tokens) == (110 * judged.n, 2 * judged.n)
            assert (j.temperature, j.extra) == (1.0, {"sampling": {"top_p": 1.0, "max_tokens": 64}})
    joined = found[0][1][0].text
    assert joined is not None
    assert joined.startswith("[Response 1]\nabout a-0")


def test_votes_are_means() -> None:
    (judged,) = verdicts(judge(), [item()], 5, reduce="mean")
    scores = [j.scores or () for j in judged.judgments]
    assert judged.verdict.scores == pytest.approx([sum(column) / 5 for column in zip(*scores, strict=True)])


@pytest.mark.parametrize("change", ["critic", "head", "template", "temperature", "top_p", "max_tokens", "prompt"])
def test_everything_that_can_change_a_score_changes_the_key(change: str) -> None:
    engine, head = InstantEngine(lambda request, index: "text"), LengthHead()
    sampling, template, query = {"temperature": 1.0, "max_tokens": 64, "top_p": 1.0}, TEMPLATE, "Query"

    def key() -> str | None:
        asked = Item((Message("user", query),), ("a", "b"), id="q")
        ((_, [found]),) = CLoud(engine, head, template, Sampling(**sampling)).judge([asked], 1)  # type: ignore[arg-type]
        return found.key

    plain = key()
    assert key() == plain
    if change in ("critic", "head"):
        (engine if change == "critic" else head).model = "other"
    elif change == "template":
        template = CloudTemplate("cloud")
    elif change == "prompt":
        query = "Another"
    else:
        sampling[change] = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 32}[change]
    assert key() != plain


def test_label_and_id_do_not_change_the_key() -> None:
    same = Item(item().prompt, item().responses, best=1, id="other")
    keys = [[j.key for _, js in judge().judge([one], 2) for j in js] for one in (item(), same)]
    assert keys[0] == keys[1]


def test_a_resumed_run_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    items = [item(f"q{i}") for i in range(5)]
    whole = list(judge(ledger=Ledger(tmp_path / "whole.db")).judge(items, 4))
    with Ledger(tmp_path / "parts.db") as ledger:
        list(judge(ledger=ledger).judge(items[:3], 2))
        engine, head, told = InstantEngine(by_seed), LengthHead(), []
        found = list(judge(engine, head, ledger=ledger).judge(items, 4, lambda j, seconds: told.append(j.key)))
        assert found == whole
        assert (engine.asked, len(head.asked), len(told)) == (28, 28, 14)  # (3 x 2 + 2 x 4) judgments of two responses
        again = InstantEngine(by_seed)
        assert list(judge(again, ledger=ledger).judge(items, 4)) == whole
        assert again.asked == 0
    with Ledger(tmp_path / "whole.db") as one, Ledger(tmp_path / "parts.db") as other:
        assert list(one.judgments()) == list(other.judgments())


class DyingEngine(InstantEngine):
    """Dies after so many samples."""

    def __init__(self, after: int) -> None:
        super().__init__(by_seed)
        self.after = after

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        for completion in super().generate(requests):
            if self.asked > self.after:
                raise EngineError("gone")
            yield completion


def test_a_run_that_dies_loses_one_window_at_most() -> None:
    items = [item(f"q{i}") for i in range(6)]
    with Ledger(None) as ledger:
        with pytest.raises(EngineError, match="gone"):
            list(judge(DyingEngine(9), ledger=ledger, window=2).judge(items, 1))
        assert {j.item for j in ledger.judgments()} == {"q0", "q1", "q2", "q3"}
        engine = InstantEngine(by_seed)
        found = list(judge(engine, ledger=ledger, window=2).judge(items, 1))
        assert engine.asked == 4
    assert found == list(judge().judge(items, 1))


def test_items_are_read_a_window_at_a_time() -> None:
    pulled = 0

    def feed() -> Iterator[Item]:
        nonlocal pulled
        for i in range(10):
            pulled += 1
            yield item(f"q{i}")

    run = judge(window=4).judge(feed(), 1)
    assert next(run)[0].id == "q0"
    assert pulled == 4
    assert [judged.id for judged, _ in run] == [f"q{i}" for i in range(1, 10)]


def test_same_content_under_two_ids_is_judged_once() -> None:
    engine, head = InstantEngine(by_seed), LengthHead()
    twin = Item(item().prompt, item().responses, id="twin")
    with Ledger(None) as ledger:
        (_, one), (_, other) = judge(engine, head, ledger=ledger).judge([item(), twin], 3)
        assert (engine.asked, len(head.asked), len(ledger)) == (6, 6, 6)
    assert [j.item for j in other] == ["twin"] * 3
    assert [j.scores for j in one] == [j.scores for j in other]


def answers(second: str) -> Callable[[Request, int], str]:
    return lambda request, index: second if "-1\n" in request.messages[0].content else "fine"


@pytest.mark.parametrize(
    ("second", "finish", "error"),
    [
        ("", "stop", "unparsable: the critique is empty"),
        (" \n", "stop", "unparsable: the critique is empty"),
        ("cut", "length", "truncated: the critique did not end within 1 tokens"),
        ("x" * 201, "stop", "too_long: response 2 with its critique has 201 tokens, the model takes 9"),
    ],
)
def test_a_missing_critique_is_a_missing_judgment(second: str, finish: str, error: str) -> None:
    """Not a number, and not asked again; other items go on."""
    engine, head = InstantEngine(answers(second), finish=finish), LengthHead()
    with Ledger(None) as ledger:
        (_, [broken]), (_, [single]) = judge(engine, head, ledger=ledger).judge([item(), item("s", 1)], 1)
        assert (broken.scores, broken.error) == (None, error)
        assert (single.error is None) == (finish == "stop")
        assert broken.completion_tokens is not None
        again = InstantEngine(by_seed)
        list(judge(again, ledger=ledger).judge([item()], 1))
        assert again.asked == 0


class FailingEngine(InstantEngine):
    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        for completion in super().generate(requests):
            yield Completion(completion.request, completion.index, "", "error", "timeout: no answer within 1 s")


def test_a_critic_that_fails_is_missing_and_asked_again() -> None:
    with Ledger(None) as ledger:
        head = LengthHead()
        ((_, [failed]),) = judge(FailingEngine(by_seed), head, ledger=ledger).judge([item()], 1)
        assert (failed.error, head.asked) == ("timeout: no answer within 1 s", [])
        ((_, [found]),) = judge(ledger=ledger).judge([item()], 1)
        assert found.scores is not None
        assert list(ledger.judgments()) == [found]


@pytest.mark.parametrize("name", ["compact markers", "compact findings", "box", "fake turns", "empty", "im_end"])
def test_a_hostile_response_is_read_as_data(name: str) -> None:
    """The head gets one prompt and one critique a response, whatever a response or a critique says."""
    seen: list[Sequence[Message]] = []

    class Recording(LengthHead):
        def read(
            self, conversations: Sequence[Sequence[Message]], prompts: Sequence[Hashable] | None = None
        ) -> list[Reading]:
            seen.extend(conversations)
            return super().read(conversations, prompts)

    engine = InstantEngine(lambda request, index: "[Response 2]\n\\boxed{10}\n" + HOSTILE[name] + "!")
    asked = Item((Message("user", "Q"),), (HOSTILE[name], "fine"), id="q")
    ((_, [found]),) = judge(engine, Recording()).judge([asked], 1)
    critique = "[Response 2]\n\\boxed{10}\n" + HOSTILE[name] + "!"
    assert found.scores == (float(len(critique)),) * 2
    assert [[m.role for m in messages] for messages in seen] == [["user", "assistant"]] * 2
    assert [messages[0] for messages in seen] == [TEMPLATE.render(asked.only(i))[0] for i in range(2)]
    assert all(messages[1].content == critique for messages in seen)


def test_k_must_be_positive() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        next(judge().judge([item()], 0))


def test_scores_equal_a_forward_pass_by_hand(tmp_path: Path) -> None:
    """Two tiny models: the critic's own text, and transformers' own classifier on prompt and critique."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from test_meta_classifier import build_classifier
    from tiny_models import build_checkpoint, build_tokenizer

    from opengrm.engines.transformers import TransformersEngine

    critic, head = build_checkpoint(tmp_path / "critic", seed=3), build_classifier(tmp_path / "head", "Qwen3")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(head).eval()
    tokenizer = build_tokenizer()
    sampling = Sampling(temperature=1.5, max_tokens=12)
    with TransformersEngine(critic) as engine, Classifier(head) as classifier:
        # A tiny random model seldom ends by itself: what was cut off counts as ended here.
        class Ending:
            model = engine.model

            def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
                for found in engine.generate(requests):
                    yield replace(found, text=found.text or "-", finish="stop")

            def close(self) -> None: ...

        ((_, judgments),) = CLoud(Ending(), classifier, TEMPLATE, sampling).judge([item()], 3)
        assert len({j.text for j in judgments}) == 3
        for judgment in judgments:
            first, second = (judgment.text or "").removeprefix("[Response 1]\n").split("\n\n[Response 2]\n")
            read = 0
            for i, critique in enumerate((first, second)):
                messages = [*TEMPLATE.render(item().only(i)), Message("assistant", critique)]
                text = tokenizer.apply_chat_template([m.to_json() for m in messages], tokenize=False)
                inputs = tokenizer(text, return_tensors="pt")
                read += inputs["input_ids"].shape[1]
                with torch.inference_mode():
                    logit = float(model(**inputs).logits[0, 0])
                assert judgment.scores is not None
                assert judgment.scores[i] == pytest.approx(logit, abs=1e-4)
            prompts = [TEMPLATE.render(item().only(i)) for i in range(2)]
            asked = sum(
                len(tokenizer.apply_chat_template([m.to_json() for m in p], add_generation_prompt=True)["input_ids"])
                for p in prompts
            )
            assert judgment.prompt_tokens == asked + read


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"meta_template": "meta"}, "this is a meta RM"),
        ({"pair_template": "pair"}, "this is a PairRM"),
        ({"cloud_template": "cloud"}, "this head reads cloud, not compact-cloud"),
        ({}, None),
        ({"cloud_template": "compact-cloud"}, None),
    ],
)
def test_a_head_that_reads_something_else_is_refused(tmp_path: Path, named: dict[str, str], said: str | None) -> None:
    pytest.importorskip("torch")
    from test_meta_classifier import build_classifier

    folder = build_classifier(tmp_path, "Qwen3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **named}))
    with ExitStack() as stack:
        if said is None:
            assert isinstance(open_head(str(folder), TEMPLATE, stack), Classifier)
        else:
            with pytest.raises(EngineError, match=said):
                open_head(str(folder), TEMPLATE, stack)
        if "cloud_template" in named:
            with pytest.raises(EngineError, match="this is a CLoud head, not a Bradley-Terry model"):
                open_bradley_terry(str(folder), None, stack)

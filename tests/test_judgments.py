from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opengrm.judgments import JUDGMENT_KEYS, Judgment, judgment_from_json, own_order
from opengrm.reading import read_judgments, write_judgments

FULL = Judgment(
    "q1", (8.0, 5.5), sample=3, key="k" * 64, order=(1, 0), text="... \\boxed{5.5, 8}", principles="Clarity (5)",
    critique="The first is clear.", meta=-0.25, model="m", template="grm", temperature=0.5, seed=2**31 - 1,
    prompt_tokens=300, completion_tokens=90, extra={"mine": {"a": [1]}},
)  # fmt: skip
MISSING = Judgment("q1", None, error="unparsable: no box", order=(0, 1), text="I cannot say. 日本")
MINIMAL = Judgment("q2", (7.0,))


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "json.zst", "parquet"])
def test_files_come_back_equal(tmp_path: Path, ending: str) -> None:
    assert write_judgments(tmp_path / f"j.{ending}", [FULL, MISSING, MINIMAL]) == 3
    back = list(read_judgments(tmp_path / f"j.{ending}"))
    assert back == [FULL, MISSING, MINIMAL]
    assert back[0].extra == FULL.extra


def test_rows_have_every_key_in_the_documented_order() -> None:
    assert list(FULL.to_json()) == [*JUDGMENT_KEYS, "mine"]
    assert judgment_from_json(FULL.to_json()) == FULL


def test_votes_of_other_systems(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text(
        '{"item": "a", "scores": [1]}\n'
        '{"item": 7, "scores": [2, 3]}\n'
        '{"item": "a", "scores": null}\n'
        '{"item": "a", "scores": [2], "rater": "x"}\n'
        '{"item": 7, "scores": [0.5, 1e3], "sample": 9, "error": null}\n'
    )
    votes = list(read_judgments(tmp_path / "j.jsonl"))
    assert [(v.item, v.sample, v.scores) for v in votes] == [
        ("a", 0, (1.0,)), ("7", 0, (2.0, 3.0)), ("a", 1, None), ("a", 2, (2.0,)), ("7", 9, (0.5, 1000.0)),
    ]  # fmt: skip
    assert (votes[2].error, votes[2].error_kind) == ("unparsable: not said", "unparsable")
    assert votes[3].extra == {"rater": "x"}


def test_scores_or_an_error_never_both() -> None:
    with pytest.raises(ValueError, match="either scores or an error"):
        Judgment("q", (1.0,), error="timeout: 5 s")
    with pytest.raises(ValueError, match="either scores or an error"):
        Judgment("q", None)
    assert judgment_from_json({"item": "q", "scores": [1], "error": "retried once"}).error is None


@pytest.mark.parametrize("name", ["sample", "seed", "prompt_tokens", "completion_tokens"])
@pytest.mark.parametrize("value", [-1, 2**63, 10**20, 10**400])
def test_whole_numbers_fit_where_they_are_kept(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is out of bounds: expected a whole number from 0 to"):
        judgment_from_json({"item": "q", "scores": [1], name: value})
    assert getattr(judgment_from_json({"item": "q", "scores": [1], name: 2**63 - 1}), name) == 2**63 - 1


@pytest.mark.parametrize("value", [1e308, -1.1e100, 10**400, float("inf"), float("nan")])
def test_scores_can_be_added_up(value: float) -> None:
    for row in ({"scores": [1, value]}, {"scores": [1, 2], "meta": value}, {"scores": [1, 2], "temperature": value}):
        with pytest.raises(ValueError, match="not finite, or beyond 1e\\+100 either way"):
            judgment_from_json({"item": "q", **row})
    assert judgment_from_json({"item": "q", "scores": [1e100, -1e100]}).scores == (1e100, -1e100)


@settings(max_examples=50, deadline=None)
@given(scores=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=6), data=st.data())
def test_scores_by_position_and_by_response(scores: list[float], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(scores))))
    shown = [scores[i] for i in order]
    assert list(own_order(shown, order)) == scores

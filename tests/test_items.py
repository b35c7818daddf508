from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opengrm.items import Item, Message, item_from_json
from opengrm.reading import _Seen, read_items, write_items

FULL = Item(
    (Message("system", "s"), Message("user", "u")), ("a", "", "c"), best=2, rewards=(1.0, -0.5, 2.0), reference="r",
    principles=("p", "q"), id="7", source={"set": "x"}, extra={"mine": [1]},
)  # fmt: skip


@st.composite
def items(draw: st.DrawFn) -> Item:
    n = draw(st.integers(1, 5))
    text = st.text(max_size=20)
    rewards = draw(st.none() | st.tuples(*[st.floats(-1e6, 1e6)] * n))
    best = [i for i in range(n) if rewards is None or rewards[i] == max(rewards)]
    return Item(
        prompt=tuple(
            Message(r, draw(text))
            for r in draw(st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=3))
        ),
        responses=tuple(draw(text) for _ in range(n)),
        best=draw(st.none() | st.sampled_from(best)),
        rewards=rewards,
        reference=draw(st.none() | text),
        principles=draw(st.none() | st.tuples(text)),
    )


@settings(max_examples=50, deadline=None)
@given(item=items(), data=st.data())
def test_permute_and_back(item: Item, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(item.n)))
    moved = item.permute(order)
    assert [moved.responses[p] for p in range(item.n)] == [item.responses[i] for i in order]
    assert (moved.best is None) == (item.best is None)
    if item.best is not None and moved.best is not None:
        assert moved.responses[moved.best] == item.responses[item.best]
        assert order[moved.best] == item.best
    back = [order.index(i) for i in range(item.n)]
    assert moved.permute(back) == item
    assert moved.permute(back).key == item.key
    assert moved.id == item.id


@settings(max_examples=50, deadline=None)
@given(items())
def test_rows_come_back_equal(item: Item) -> None:
    back = item_from_json(item.to_json())
    assert back == item
    assert back.key == item.key


@settings(max_examples=50, deadline=None)
@given(items())
def test_the_key_is_what_a_judge_sees(item: Item) -> None:
    same = dataclasses.replace(item, best=None, rewards=None, id="other", source={"a": 1}, extra={"b": 2})
    assert same.key == item.key
    assert dataclasses.replace(item, responses=(*item.responses, "one more"), rewards=None).key != item.key
    assert dataclasses.replace(item, reference=(item.reference or "") + "!").key != item.key
    assert dataclasses.replace(item, principles=(*(item.principles or ()), "!")).key != item.key


def test_the_key_follows_order_roles_and_borders() -> None:
    pair = Item((Message("user", "p"),), ("a", "b"))
    assert pair.swap().key != pair.key
    assert pair.swap().swap().key == pair.key
    assert Item((Message("system", "p"),), ("a", "b")).key != pair.key
    assert Item((Message("user", "p"),), ("ab", "")).key != pair.key
    assert pair.id == pair.key
    assert len(pair.key) == 64


def test_labels() -> None:
    prompt = (Message("user", "p"),)
    assert Item(prompt, ("a", "b"), best=1).label == 1
    assert Item(prompt, ("a", "b", "c"), rewards=(1, 3, 2)).label == 1
    assert Item(prompt, ("a", "b"), rewards=(1, 1)).label is None  # a tie at the top
    assert Item(prompt, ("a",), rewards=(1,)).label is None  # for n = 1 the label is the reward
    assert Item(prompt, ("a", "b")).label is None
    assert Item(prompt, ("a", "b"), best=0, rewards=(1, 1)).label == 0  # one of several that are right
    with pytest.raises(ValueError, match="'best' is 0, but 'rewards' has a higher one elsewhere"):
        Item(prompt, ("a", "b"), best=0, rewards=(0, 1))
    with pytest.raises(ValueError, match=r"'rewards' holds a number beyond 1e\+100"):
        Item(prompt, ("a", "b"), rewards=(0, -1e101))


def test_labels_of_a_data_frame_with_missing_ones(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    columns = {"prompt": ["p", "q", "r"], "responses": [["a", "b"]] * 3, "best": [1.0, float("nan"), None]}
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), tmp_path / "i.parquet")
    assert [item.best for item in read_items(tmp_path / "i.parquet")] == [1, None, None]
    assert item_from_json({"prompt": "p", "responses": ["a", "b"], "best": 1.0}).best == 1
    with pytest.raises(ValueError, match=r"'best' must be an index, not 0\.5"):
        item_from_json({"prompt": "p", "responses": ["a", "b"], "best": 0.5})


def test_one_response_alone() -> None:
    one = FULL.only(1)
    assert (one.responses, one.rewards, one.best, one.reference) == (("",), (-0.5,), None, "r")


@pytest.mark.parametrize(
    ("order", "said"), [((0, 1), "not a permutation of 0..2"), ((0, 0, 1), "not a permutation"), ((1, 2, 3), "not")]
)
def test_what_is_no_permutation(order: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FULL.permute(order)
    with pytest.raises(ValueError, match="swap needs exactly 2 responses, this item has 3"):
        FULL.swap()


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "json.gz", "parquet"])
def test_files_come_back_equal(tmp_path: Path, ending: str) -> None:
    several = [FULL, dataclasses.replace(FULL, id="8", best=None, rewards=None, reference=None, principles=None)]
    assert write_items(tmp_path / f"i.{ending}", several) == 2
    back = list(read_items(tmp_path / f"i.{ending}"))
    assert back == several
    assert [(dict(i.source), dict(i.extra)) for i in back] == [({"set": "x"}, {"mine": [1]})] * 2


def test_text_parts_and_numbered_ids() -> None:
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a prime."}]
    item = item_from_json({"id": 12, "prompt": [{"role": "user", "content": parts}], "responses": ["7"], "tag": "x"})
    assert item.prompt == (Message("user", "Name a prime."),)
    assert (item.id, item.extra) == ("12", {"tag": "x"})


def test_the_same_item_twice_is_read_twice(tmp_path: Path) -> None:
    write_items(tmp_path / "i.jsonl", [FULL, FULL])
    assert list(read_items(tmp_path / "i.jsonl")) == [FULL, FULL]


def test_the_table_of_ids_grows() -> None:
    seen = _Seen()
    assert not any(seen.clashes(str(i), f"content {i}") for i in range(20_000))
    assert not any(seen.clashes(str(i), f"content {i}") for i in range(0, 20_000, 7))
    assert all(seen.clashes(str(i), "other") for i in range(0, 20_000, 7))


def test_unknown_keys_never_shadow_ours() -> None:
    row: dict[str, Any] = {**FULL.to_json(), "mine": {"deep": [1]}}
    assert item_from_json(row).extra == {"mine": {"deep": [1]}}

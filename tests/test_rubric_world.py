from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from opengrm.items import item_from_json
from opengrm.templates.compact import Compact
from opengrm.worlds.english import CRITERIA, DESCRIPTIONS, TOPICS, meets, write
from opengrm.worlds.process import measure, read, summarise
from opengrm.worlds.rubric import AUDIENCES, KINDS, Query, generate_items, query_of, true_reward
from opengrm.worlds.teacher import BELIEFS, FLAWLESS, MISREADINGS, Teacher

LONG = " ".join(["word"] * 19)


@pytest.mark.parametrize(
    ("criterion", "met", "broken"),
    [
        ("topic", "Our bees work.", "Our beeswax works."),
        ("short", " ".join(["word"] * 18), LONG),
        ("polite", "Kindly go!", "Go!"),
        ("clean", "A good day", "A lousy day"),
        ("number", "for 3 days", "for several days"),
        ("stop", "It ends here. ", "It ends here!"),
        ("example", "sweets such as honey", "sweets like honey"),
        ("greet", "Dear friends, go.", "My dear friends, go."),
        ("plain", "It will help.", "It will henceforth help."),
        ("reason", "Go because it helps", "Go while it helps"),
    ],
)
def test_checks(criterion: str, met: str, broken: str) -> None:
    assert meets(criterion, met, "bees")
    assert not meets(criterion, broken, "bees")


def test_every_criterion_is_described_and_others_are_refused() -> None:
    assert set(DESCRIPTIONS) == set(CRITERIA)
    with pytest.raises(ValueError, match="not a criterion"):
        meets("witty", "text", "bees")


def test_write_meets_exactly_what_is_wanted() -> None:
    rng = random.Random(3)
    everything_but_short = set(CRITERIA) - {"short"}
    for wish in (set(), set(CRITERIA), {"short"}, everything_but_short, {"short", "greet", "reason", "number"}):
        for _ in range(20):
            text = write(rng, "tea", wish)
            assert {c for c in CRITERIA if meets(c, text, "tea")} == wish, text


def test_any_wish_can_be_written() -> None:
    rng = random.Random(4)
    for bits in range(2 ** len(CRITERIA)):
        wish = {c for i, c in enumerate(CRITERIA) if bits >> i & 1}
        assert write(rng, "tea", wish)


def test_criteria_of_a_query() -> None:
    assert Query("tweet", "bees", "parents").criteria == (("short", 5), ("clean", 3), ("polite", 2))
    # The audience wants what the kind already has: the kind's own third criterion stands in.
    assert Query("tweet", "bees", "workers").criteria == (("short", 5), ("clean", 3), ("topic", 2))
    for kind in KINDS:
        for audience in AUDIENCES:
            criteria = Query(kind, "tea", audience).criteria
            assert [weight for _, weight in criteria] == [5, 3, 2]
            assert len({name for name, _ in criteria}) == 3
    assert {c for kind in KINDS.values() for c in kind} <= set(CRITERIA)
    assert set(AUDIENCES.values()) == set(CRITERIA)


def test_true_reward_by_hand() -> None:
    query = Query("tweet", "bees", "parents")
    assert true_reward(query, "Bees help, thanks.") == 10
    assert true_reward(query, "Lousy bees help.") == 5
    assert true_reward(query, f"Thanks. {LONG}") == 5
    assert true_reward(query, f"Lousy {LONG}") == 0


def test_source_holds_the_truth() -> None:
    for item in generate_items(200, seed=1, n="mixed"):
        query = query_of(item)
        assert item.source["criteria"] == [[name, weight] for name, weight in query.criteria]
        assert item.source["rewards"] == [true_reward(query, r) for r in item.responses]
        for met, reward in zip(item.source["met"], item.source["rewards"], strict=True):
            assert sum(w for (_, w), m in zip(query.criteria, met, strict=True) if m) == reward
        rewards = item.source["rewards"]
        if item.n >= 2:
            assert item.best == rewards.index(max(rewards))
            assert rewards.count(max(rewards)) == 1
            assert item.rewards is None
        else:
            assert item.rewards == (float(rewards[0]),)
        assert query.topic in item.prompt[0].content
        assert item_from_json(item.to_json()) == item


def test_truth_is_no_part_of_what_a_judge_sees() -> None:
    (item,) = generate_items(1, principles=True, reference=True)
    bare = replace(item, best=None, source={}, id="x")
    assert bare.key == item.key
    assert item.principles == tuple(f"{name} {weight}" for name, weight in query_of(item).criteria)
    assert item.reference is not None
    assert true_reward(query_of(item), item.reference) == 10


def test_deterministic_across_processes_and_counts() -> None:
    here = [item.key for item in generate_items(5, seed=9, split="dev", n="mixed")]
    assert here == [item.key for item in islice(generate_items(10**9, seed=9, split="dev", n="mixed"), 5)]
    code = (
        "from opengrm.worlds.rubric import generate_items\n"
        "print(' '.join(i.key for i in generate_items(5, seed=9, split='dev', n='mixed')))"
    )
    for salt in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": salt}
        )
        assert out.stdout.split() == here
    assert here != [item.key for item in generate_items(5, seed=10, split="dev", n="mixed")]


def test_splits_are_disjoint() -> None:
    prompts: dict[str, set[str]] = {}
    keys: dict[str, set[str]] = {}
    for split in ("train", "dev", "test"):
        items = list(generate_items(1500, seed=2, split=split))  # type: ignore[arg-type]
        assert {query_of(item).split for item in items} == {split}
        prompts[split] = {f"{i.source['kind']} {i.source['topic']} {i.source['audience']}" for i in items}
        keys[split] = {item.key for item in items}
        assert len(keys[split]) == 1500
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not prompts[a] & prompts[b]
        assert not keys[a] & keys[b]
    shares = Counter(Query(k, t, a).split for k in KINDS for t in TOPICS for a in AUDIENCES)
    assert 0.75 < shares["train"] / shares.total() < 0.85


def test_difficulty_is_how_close_the_rewards_are() -> None:
    def margin(difficulty: float) -> float:
        items = list(generate_items(300, seed=5, difficulty=difficulty))
        return sum(max(i.source["rewards"]) - min(i.source["rewards"]) for i in items) / len(items)

    assert margin(0.0) > margin(0.5) + 0.5 > margin(1.0) + 1.0


def test_label_noise() -> None:
    items = list(generate_items(500, seed=6, label_noise=0.3))
    wrong = sum(i.source["rewards"][i.best or 0] < max(i.source["rewards"]) for i in items)
    assert 110 <= wrong <= 190
    clean = list(generate_items(500, seed=6))
    assert [i.key for i in items] == [i.key for i in clean]  # noise changes labels and nothing else
    singles = list(generate_items(300, seed=6, n=1, label_noise=1.0))
    assert all(i.rewards is not None and i.rewards[0] != i.source["rewards"][0] for i in singles)


def test_binary() -> None:
    items = list(generate_items(300, seed=7, n=1, binary=True))
    assert all(item.rewards == (float(item.source["rewards"][0] >= 7),) for item in items)
    assert {item.rewards for item in items} == {(0.0,), (1.0,)}


def test_sizes() -> None:
    assert {i.n for i in generate_items(300, n="mixed")} == {1, 2, 3, 4, 5, 6}
    assert {i.n for i in generate_items(100, n=(3, 4))} == {3, 4}


@pytest.mark.parametrize(
    "arguments",
    [
        {"n": 7}, {"n": 0}, {"n": (4, 2)}, {"n": "some"}, {"split": "all"}, {"difficulty": 1.5}, {"label_noise": -1},
        {"binary": True}, {"n": (2, 3), "binary": True},
    ],
)  # fmt: skip
def test_arguments_out_of_range(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected|only single responses"):
        next(generate_items(1, **arguments))  # type: ignore[arg-type]


def test_flawless_teacher_is_right_and_sound() -> None:
    template, rng = Compact(), random.Random(0)
    for item in generate_items(150, seed=8, n=(2, 6)):
        order = rng.sample(range(item.n), item.n)
        process = measure(item, order, FLAWLESS.judge(rng, item, order, template))
        assert process.sound
        assert process.principle_precision == process.principle_recall == process.critique_accuracy == 1


def test_teacher_faults_show_where_they_are_meant_to() -> None:
    """Belief faults in the kinds of BELIEFS only, misreadings in the criteria of MISREADINGS only."""
    teacher = replace(FLAWLESS, belief=0.75, misread=0.75, beliefs=BELIEFS, misreadings=MISREADINGS)
    template, rng = Compact(), random.Random(1)
    exact: dict[bool, list[bool]] = {True: [], False: []}
    true: dict[str, list[bool]] = {c: [] for c in CRITERIA}
    for item in generate_items(600, seed=8):
        text = teacher.judge(rng, item, (0, 1), template)
        process, reading = measure(item, (0, 1), text), read(text, 2)
        assert reading is not None
        exact[item.source["kind"] in BELIEFS].append(bool(process.principles_exact))
        for response, findings in zip(item.responses, reading.findings, strict=True):
            for name, found in findings:
                true[name].append(found == meets(name, response, item.source["topic"]))
    assert all(exact[False])
    assert 0.19 < sum(exact[True]) / len(exact[True]) < 0.31
    for criterion in CRITERIA:
        assert all(true[criterion]) == (criterion not in MISREADINGS)


def test_random_faults() -> None:
    template, rng = Compact(), random.Random(2)
    broken = replace(FLAWLESS, broken=1.0)
    (item,) = generate_items(1)
    texts = [broken.judge(rng, item, (0, 1), template) for _ in range(60)]
    kinds = {(template.parse(t, 2).error or "none").split(":")[0] for t in texts}
    assert kinds == {"unparsable", "wrong_count"}
    reversed_ = replace(FLAWLESS, finding=1.0).judge(rng, item, (0, 1), template)
    assert measure(item, (0, 1), reversed_).critique_accuracy == 0


def test_hinted_teacher_agrees_with_the_hint() -> None:
    template, rng = Compact(hint=True), random.Random(3)
    teacher = replace(Teacher(), broken=0.0)
    agreed = [
        bool(measure(item, (1, 0), teacher.judge(rng, item, (1, 0), template), template).correct)
        for item in generate_items(200, seed=3)
    ]
    assert sum(agreed) / len(agreed) > 0.85


def test_process_measures_by_hand() -> None:
    (item,) = [i for i in generate_items(2000, seed=0) if i.source["kind"] == "tweet"][:1]
    (a, b, c), (first, second) = [n for n, _ in query_of(item).criteria], item.source["met"]
    word = {True: "yes", False: "no"}

    def line(position: int, met: list[bool], total: int) -> str:
        return f"[{position}] {a} {word[met[0]]}, {b} {word[met[1]]}, {c} {word[met[2]]} = {total}"

    totals = item.source["rewards"]
    other = next(n for n in CRITERIA if n not in (a, b, c))
    head, box = f"{a} 5, {b} 3, {c} 2", f"\\boxed{{{totals[0]}, {totals[1]}}}"
    right = "\n".join([head, line(1, first, totals[0]), line(2, second, totals[1]), box])
    assert measure(item, (0, 1), right).sound

    wrong_finding = [not first[0], *first[1:]]
    process = measure(item, (0, 1), "\n".join([head, line(1, wrong_finding, totals[0]), *right.split("\n")[2:]]))
    assert process.correct
    assert not process.sound  # right verdict, wrong reasons
    assert process.critique_accuracy == pytest.approx(5 / 6)
    assert process.sums_right == 0.5

    swapped = right.replace(f"{a} 5", f"{other} 5", 1)
    process = measure(item, (0, 1), swapped)
    assert process.principle_precision == process.principle_recall == pytest.approx(2 / 3)
    assert process.principles_exact is False

    summary = summarise([measure(item, (0, 1), right), process, measure(item, (0, 1), "nothing")])
    assert summary.judgments == 3
    assert summary.readable == pytest.approx(2 / 3)
    assert summary.sound_of_correct == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\\boxed{1, 2}",
        "short 5\n[1] short yes = 5\n\\boxed{5, 0}",
        "short 5\n[2] short yes = 5\n[1] short no = 0\n\\boxed{5, 0}",
        "witty 5\n[1] witty yes = 5\n[2] witty no = 0\n\\boxed{5, 0}",
        "short 5, short 3\n[1] short yes = 5\n[2] short no = 0\n\\boxed{5, 0}",
        "short 5\n[1] short maybe = 5\n[2] short no = 0\n\\boxed{5, 0}",
        "short 5\n[1] short yes\n[2] short no = 0\n\\boxed{5, 0}",
    ],
)
def test_read_is_strict(text: str) -> None:
    assert read(text, 2) is None


def test_process_measures_need_an_item_of_this_world() -> None:
    (item,) = generate_items(1)
    with pytest.raises(ValueError, match="no RubricWorld truth"):
        measure(replace(item, source={}), (0, 1), "")

"""What is trained on is found in what is reported on: copies, near copies, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opengrm.errors import UsageError
from opengrm.items import Message
from opengrm.jsonl import write_rows
from opengrm.training.overlap import COMMON, Exchange, HeldOut, check_files, exchanges

W = [f"w{i}" for i in range(40)]


def user(text: str, *responses: str, where: str = "t:1") -> Exchange:
    return Exchange(where, (Message("user", text),), responses)


def how(held_out: HeldOut, row: Exchange) -> list[tuple[str, str, bool, float]]:
    return [(m.part, m.held_out_part, m.equal, m.share) for m in held_out.matches(row)]


@pytest.mark.parametrize(
    "text",
    [
        "Name a prime, please",
        "  name A\nPRIME please!",
        "Name a “prime”: please",
        "Ｎａｍｅ a\u00a0prime\u200b please",
    ],
)
def test_a_prompt_is_the_same_in_another_case_spacing_or_unicode_form(text: str) -> None:
    held_out = HeldOut([user("Name a prime, please")])
    assert how(held_out, user(text)) == [("prompt", "prompt", True, 1.0)]


@pytest.mark.parametrize("text", ["Name a prime, pleas", "What is 2-2", "Name a prime please now", "naïve"])
def test_another_short_prompt_is_not(text: str) -> None:
    held_out = HeldOut([user("Name a prime, please"), user("What is 2+2"), user("naive")])
    assert how(held_out, user(text)) == []


def test_only_what_users_say_makes_a_prompt_equal() -> None:
    held_out = HeldOut([Exchange("h:1", (Message("system", "Be brief."), Message("user", "Name a prime")))])
    assert held_out.matches(user("name a prime"))
    assert not held_out.matches(Exchange("t:1", (Message("system", "name a prime"), Message("user", "Be brief."))))


def test_half_of_the_spans_of_a_prompt_is_an_overlap() -> None:
    # 20 words have 16 spans of 5: half of them are 8, which 12 words in a row hold.
    held_out = HeldOut([user(" ".join(W[:20]))])
    assert how(held_out, user("Please judge: " + ", ".join(W[3:15]) + "?")) == [("prompt", "prompt", False, 0.5)]
    assert how(held_out, user(" ".join(["other", *W[3:14]]))) == []
    # Both halves count, wherever they stand; a span does not go from one message to the next.
    assert how(held_out, user(" ".join(W[:8]), " ".join(W[10:18]))) == [("prompt", "prompt", False, 0.5)]
    parts = tuple(Message("user", " ".join(W[i : i + 4])) for i in range(0, 20, 4))
    assert not HeldOut([user(" ".join(W[:20]))]).matches(Exchange("t:1", parts))
    # A span that stands there twice counts once.
    assert how(held_out, user(" ".join([*W[:8], *W[:8], *W[:8]]))) == []


def test_a_copy_with_words_exchanged_here_and_there_is_found() -> None:
    # 40 words have 36 spans; three exchanged words break five each. Of the 33 spans of 8 words nine would be left.
    changed = [word if i not in (6, 20, 34) else "new" for i, word in enumerate(W)]
    assert how(HeldOut([user(" ".join(W))]), user(" ".join(changed))) == [("prompt", "prompt", False, 0.5833)]


def test_twelve_words_are_compared_as_a_whole_only() -> None:
    held_out = HeldOut([user(" ".join(W[:12]), where="h:1"), user(" ".join(W[20:33]), where="h:2")])
    assert how(held_out, user("so: " + " ".join(W[:12]))) == []
    assert how(held_out, user("so: " + " ".join(W[20:33]))) == [("prompt", "prompt", False, 1.0)]
    assert (held_out.count, held_out.short, held_out.shared) == (2, 1, 0)


def test_scripts_without_spaces_have_a_word_a_letter() -> None:
    text = "日本で一番高い山の名前を教えてください"  # 19 letters, 15 spans
    held_out = HeldOut([user(text)])
    assert how(held_out, user("質問:" + text[:12])) == [("prompt", "prompt", False, round(8 / 15, 4))]
    assert how(held_out, user(text[:10])) == []


def test_wording_that_many_prompts_share_is_no_overlap() -> None:
    frame = " ".join(W[:30])
    few = HeldOut([user(f"{frame} subject{i}") for i in range(COMMON)])
    many = HeldOut([user(f"{frame} subject{i}") for i in range(COMMON + 1)])
    assert len(few.matches(user(f"{frame} another"))) == COMMON
    assert many.matches(user(f"{frame} another")) == []
    assert (few.shared, many.shared) == (0, COMMON + 1)
    assert [m.equal for m in many.matches(user(f"{frame} SUBJECT3"))] == [True]
    # The same prompt in many rows is one prompt.
    again = HeldOut([user(frame, f"answer {i}", where=f"h:{i}") for i in range(50)])
    assert (again.count, how(again, user(f"{frame} another"))) == (1, [("prompt", "prompt", False, 1.0)])


def test_responses_are_found_too() -> None:
    answer = " ".join(W[:24])  # 20 spans, four fifths are 16: 20 words in a row
    held_out = HeldOut([user("a", "no", answer), user("b", "yes", " ".join(W[20:32]))])
    assert how(held_out, user("c", "else", answer.upper())) == [("response 2", "response 2", True, 1.0)]
    assert how(held_out, user("Is this good? " + " ".join(W[:20]))) == [("prompt", "response 2", False, 0.8)]
    assert how(held_out, user("c", " ".join(W[:19]))) == []
    # Short ones say nothing: "no" is anyone's answer, and so are 12 words.
    assert how(held_out, user("c", "no", " ".join(W[20:32]))) == []
    # The strongest match of a prompt is the one that is told.
    assert how(held_out, user("A", answer)) == [("prompt", "prompt", True, 1.0)]


def test_a_prompt_at_two_places_is_trained_on_once() -> None:
    """Two held-out rows of one prompt, whose two responses two training rows copy."""
    first, second = " ".join(W[:20]), " ".join(W[20:40])
    held_out = HeldOut([user("Write.", first, where="h:1"), user("Write.", second, where="h:2")])
    found = held_out.check([user("Other.", first), user("Another.", second), user("Third.", second)])
    assert [match.held_out for match in found.matches] == ["h:1", "h:2", "h:2"]
    assert (found.overlapping, found.pairs, found.met, found.held_out) == (3, 3, 1, 1)


def test_what_many_prompts_got_as_a_response_is_no_overlap() -> None:
    refusal = "I am sorry, but I can not help with that: it would not be safe for anyone."
    few = HeldOut([user(f"q{i}", refusal) for i in range(COMMON)])
    many = HeldOut([user(f"q{i}", refusal) for i in range(COMMON + 1)])
    assert few.matches(user("q", refusal))
    assert not many.matches(user("q", refusal))


def test_a_long_response_is_found_by_its_sketch() -> None:
    words = [f"v{i}" for i in range(1000)]
    held_out = HeldOut([user("a", " ".join(words))])
    changed = [word if i % 50 else "new" for i, word in enumerate(words)]  # 90 % of the spans are left
    ((part, held_part, equal, share),) = how(held_out, user("b", " ".join(changed)))
    assert (part, held_part, equal) == ("response 1", "response 1", False)
    assert share == pytest.approx(0.9, abs=4 * (0.9 * 0.1 / 128) ** 0.5)
    assert not held_out.matches(user("b", " ".join(words[:600])))


def test_nothing_held_out_and_empty_texts() -> None:
    assert HeldOut([]).matches(user(" ".join(W), "x")) == []
    held_out = HeldOut([user("", "")])
    assert how(held_out, user("", "")) == [("prompt", "prompt", True, 1.0)]
    assert how(held_out, user("x", "")) == []


def test_hashes_are_the_same_in_every_process() -> None:
    code = (
        "from opengrm.training.overlap import Exchange, HeldOut; from opengrm.items import Message;"
        "h = HeldOut([Exchange('h', (Message('user', ' '.join(map(str, range(20)))),))]);"
        "print(h._hash_S.tolist(), h._prompts)"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": salt},
        ).stdout
        for salt in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1


def test_files_of_items_and_of_instructions(tmp_path: Path) -> None:
    rm_bench = {"id": "1", "prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}
    write_rows(tmp_path / "rm.jsonl", [rm_bench])
    (row,) = exchanges(tmp_path / "rm.jsonl")
    assert sorted(row.responses) == list("abcdef")
    write_rows(tmp_path / "i.jsonl", [{"prompt": "q", "completion": [{"role": "assistant", "content": "a"}]}])
    assert list(exchanges(tmp_path / "i.jsonl")) == [user("q", "a", where=f"{tmp_path}/i.jsonl:1")]
    write_rows(tmp_path / "train.jsonl", [{"prompt": "p", "responses": ["a", "b"], "best": 0}])
    check_files([tmp_path / "train.jsonl"], [tmp_path / "rm.jsonl"])
    with pytest.raises(
        UsageError, match=r"i\.jsonl: 1 conversations are also held out, 1 of 1 .*i\.jsonl:1 \(prompt\)"
    ):
        check_files([tmp_path / "train.jsonl"], [tmp_path / "rm.jsonl"], tmp_path / "i.jsonl")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "opengrm", "check-overlap", *words], capture_output=True, text=True)


def item(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "responses": ["a", "b"], "best": 0}


def test_the_command_says_which_rows_and_how(tmp_path: Path) -> None:
    train, bench = str(tmp_path / "train.jsonl"), str(tmp_path / "bench.jsonl")
    write_rows(train, map(item, ["clean", "Two  words", " ".join(W[:15])]))
    write_rows(bench, map(item, ["two words", "one", " ".join(W[:20])]))
    done = run(train, bench)
    assert done.returncode == 1
    assert f"{train}:2 (prompt) equals {bench}:1 (prompt)\n" in done.stdout
    assert f"{train}:3 (prompt) holds 69% of the 5-word spans of {bench}:3 (prompt)\n" in done.stdout  # 11 of 16
    assert "2 of 3 training rows overlap (1 of them are equal) with 2 of 3 held-out prompts" in done.stdout
    found = json.loads(run(train, "--held-out", bench, "--json").stdout)
    assert [(m["row"], m["held_out"], m["equal"], m["share"]) for m in found["matches"]] == [
        (f"{train}:2", f"{bench}:1", True, 1.0), (f"{train}:3", f"{bench}:3", False, 0.6875),
    ]  # fmt: skip
    # A benchmark by name, from its own rows.
    pair = {"prompt": "Two words!", "chosen": "a", "rejected": "b", "subset": "alpacaeval-easy", "id": 1}
    write_rows(tmp_path / "rb.jsonl", [pair])
    done = run(train, "rewardbench", "--data", str(tmp_path / "rb.jsonl"))
    assert f"{train}:2 (prompt) equals {tmp_path / 'rb.jsonl'}:1 (prompt)\n" in done.stdout
    assert "rewardbench: give --data" in run(train, "rewardbench").stderr
    write_rows(train, [item("clean")])
    done = run(train, bench)
    assert (done.returncode, done.stderr) == (0, "")
    assert run(train).returncode == 2

"""Parse rules: hand-computed cases, fuzzing, linear time, and the texts of real recorded judges."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import recorded_data as recorded
from hypothesis import given, settings
from hypothesis import strategies as st

from opengrm.templates.base import Parsed
from opengrm.templates.parsing import boxed_scores, number, released_scores, released_spans, sections
from opengrm.templates.recorded import ALL_RULES, output_verdict, winner_number

BOXED = [
    (r"Scores: \boxed{8, 7}", (8.0, 7.0)),
    (r"Scores: \\boxed{8,7}", (8.0, 7.0)),
    (r"first \boxed{1, 2} then \boxed{ 9 ,10 }.", (9.0, 10.0)),
    (r"**Scores: \boxed{8.5, .5e}**", "unparsable"),
    (r"**Scores: $\boxed{8.5, 7.}$**", (8.5, 7.0)),
    (r"\boxed{\text{8}, \mathbf{7}}", (8.0, 7.0)),
    (r"\boxed{8/10, 7/10}", (8.0, 7.0)),
    (r"\boxed{8/5, 7/5}", "unparsable"),
    (r"\boxed{8，7}", (8.0, 7.0)),
    (r"\boxed{8,\ 7}", (8.0, 7.0)),
    (r"\boxed{+8, 07}", (8.0, 7.0)),
    (r"\boxed{**8**, `7`}", (8.0, 7.0)),
    ("\\boxed{8,\n7}", (8.0, 7.0)),
    ("<think>\\boxed{1, 2}</think>\\boxed{8, 7}", (8.0, 7.0)),
    ("\\boxed{8, 7}\n<think>so \\boxed{1, 2}</think> done", "unparsable"),
    ("<think>first guess \\boxed{9, 2} but wait", "unparsable"),
    ("\n <think>\nfirst guess \\boxed{9, 2}", "unparsable"),
    ("<think>a</think>\n<think>\\boxed{9, 2}", "unparsable"),
    ("Response 1 writes <think>.\nScores: \\boxed{8, 7}", (8.0, 7.0)),
    ("Analysis: Response 1 writes \\boxed{10, 1}.\nScores: 3, 8", "unparsable"),
    ("Analysis: Response 1 writes \\boxed{10, 1}. Score: 3, 8", "unparsable"),
    ("**Analysis:** it writes \\boxed{10, 1}\n\n## Scores\n3, 8", "unparsable"),
    ("Scores: \\boxed{8, 7}\nThe scores follow from the criteria.", (8.0, 7.0)),
    ("Scores: \\boxed{8, 7}\n\nIn short, response 1 has the better score: it is exact.", (8.0, 7.0)),
    ("", "unparsable"),
    ("8, 7", "unparsable"),
    ("boxed{8, 7}", "unparsable"),
    (r"\boxed{}", "unparsable"),
    (r"\boxed{x, x}", "unparsable"),
    (r"\boxed{8 7}", "unparsable"),
    (r"\boxed{8, 7,}", "unparsable"),
    (r"\boxed{8, nan}", "unparsable"),
    (r"\boxed{inf, 7}", "unparsable"),
    (r"\boxed{1e1, 7}", "unparsable"),
    (r"\boxed{1_0, 7}", "unparsable"),
    (r"\boxed{８, 7}", "unparsable"),
    (r"\boxed{eight, 7}", "unparsable"),
    (r"\boxed{Response 1: 8, Response 2: 7}", "unparsable"),
    (r"\boxed{8, 7} and finally \boxed{8", "unparsable"),
    (r"\boxed{8, \boxed{7}}", "wrong_count"),
    (r"\boxed{8}", "wrong_count"),
    (r"\boxed{8, 7, 6}", "wrong_count"),
    (r"\boxed{8, 7} hence \boxed{8}", "wrong_count"),
    (r"\boxed{8, 11}", "out_of_range"),
    (r"\boxed{0, 7}", "out_of_range"),
    (r"\boxed{-8, 7}", "out_of_range"),
    (r"\boxed{8, 999999999999999999}", "out_of_range"),
]


@pytest.mark.parametrize(("text", "expected"), BOXED)
def test_boxed(text: str, expected: tuple[float, ...] | str) -> None:
    assert outcome(boxed_scores(text, 2, 1, 10)) == expected


def outcome(parsed: Parsed) -> tuple[float, ...] | str:
    """Scores, or the kind of the error."""
    assert (parsed.scores is None) != (parsed.error is None)
    return parsed.scores if parsed.error is None else parsed.error.split(":", 1)[0]


def test_details_say_what_was_found() -> None:
    assert boxed_scores(r"\boxed{8}", 2, 1, 10).error == "wrong_count: 1 scores for 2 responses"
    assert boxed_scores(r"\boxed{8, 11}", 2, 1, 10).error == "out_of_range: 11 is not in [1, 10]"
    assert boxed_scores(r"\boxed{8, seven}", 2, 1, 10).error == "unparsable: 'seven' in the box is not a score"


@pytest.mark.parametrize(
    ("rule", "text", "n", "expected"),
    [
        ("released", r"Scores: \boxed{10, 7}", 2, (10.0, 7.0)),
        ("released", r"Scores: \boxed{10, 7} [3, 4]", 2, (3.0, 4.0)),
        ("released", r"\boxed{8, 7} as said in [1]", 2, "wrong_count"),
        ("released", r"\boxed{8, x, 7}", 2, (8.0, 7.0)),  # parts that are not numbers are dropped
        ("released", r"\boxed{8, 11}", 2, "out_of_range"),  # not clamped
        ("released", "none", 2, "unparsable"),
        ("released", "Response 1 says [10, 1].\nScores: 3, 8", 2, "unparsable"),
        (
            "individual",
            "[The Begin of Individual Scores]\n\\boxed{4, 2}\n[The End of Individual Scores]\n"
            "[The Begin of Ranking Score]\n\\boxed{1}\n[The End of Ranking Score]",
            2,
            (4.0, 2.0),
        ),
        ("individual", "[The Begin of Individual Scores] \\boxed{4} [The End of Individual Scores]", 1, (4.0,)),
        ("individual", "[The Begin of Ranking Score]\n\\boxed{1}\n[The End of Ranking Score]", 1, "unparsable"),
        ("individual", "[The Begin of Individual Scores]\n[The Begin of Ranking Score] \\boxed{1}", 1, "unparsable"),
        ("double-bracket", "Rating: [[3]] or rather [[8]]", 1, (8.0,)),
        ("double-bracket", "Rating: [8]", 1, "unparsable"),
        ("result", "Feedback: good. [RESULT] 4", 1, (4.0,)),
        ("result", "Feedback: good. [RESULT] (4).\n", 1, (4.0,)),
        ("result", "[RESULT] 4 is what I would say", 1, "unparsable"),
        ("result", "[RESULT] 14", 1, "out_of_range"),
        ("result", "<think>perhaps [RESULT] 4", 1, "unparsable"),
        ("first-line", "<think>9 1</think>\n8 9", 2, (8.0, 9.0)),
        ("first-line", "8 9\nAssistant 2 is better.", 2, (8.0, 9.0)),
        ("first-line", "8, 9.5", 2, (8.0, 9.5)),
        ("first-line", "First, let us solve the problem:\n8 9", 2, "unparsable"),
        ("first-line", "8\n9", 2, "wrong_count"),
    ],
)
def test_other_rules(rule: str, text: str, n: int, expected: tuple[float, ...] | str) -> None:
    assert outcome(ALL_RULES[rule](text, n, 1, 10)) == expected


@pytest.mark.parametrize(
    ("rule", "text", "n", "expected"),
    [
        ("letter-verdict", "so [[A]] at first, but [[B]]", 2, "unparsable"),
        ("letter-verdict", "[[A]] at first,\nbut finally [[B]]", 2, (0.0, 1.0)),
        ("letter-verdict", "[[C]]", 2, (0.5, 0.5)),
        ("letter-verdict", "[[C]]", 3, (0.0, 0.0, 1.0)),
        ("letter-verdict", "[[D]]", 2, "out_of_range"),
        ("letter-verdict", "$ERROR$", 2, "unparsable"),
        ("winner-number", "2", 2, (0.0, 1.0)),
        ("winner-number", "**1**\n\nResponse A is better", 2, (1.0, 0.0)),
        ("winner-number", "Tie", 2, (0.5, 0.5)),
        ("winner-number", "3", 2, "out_of_range"),
        ("winner-number", "0", 2, "out_of_range"),
        ("winner-number", "B", 2, "unparsable"),
        ("winner-number", "ERROR: Client error '429 Too Many Requests'", 2, "unparsable"),
        ("output-verdict", "Output (a)", 2, (1.0, 0.0)),
        ("output-verdict", "Output (b) is better. Output (a) is short.", 2, (0.0, 1.0)),
        ("output-verdict", "Output (a) is long. Therefore, Output (b) is better.", 2, (0.0, 1.0)),
        ("output-verdict", "Output (a) is better. But no: Output (b) is better.", 2, "unparsable"),
        ("output-verdict", "Assistant (a) argues that Output (a) is better because", 2, "unparsable"),
        ("output-verdict", "", 2, "unparsable"),
        ("error-verdict", "The model response contains an error.", 1, (0.0,)),
        ("error-verdict", "It contains no error", 1, (1.0,)),
        ("error-verdict", "It contains errors", 1, "unparsable"),
        ("number", " 7 ", 1, (0.7,)),
    ],
)
def test_winner_rules(rule: str, text: str, n: int, expected: tuple[float, ...] | str) -> None:
    if rule == "number":
        assert outcome(ALL_RULES[rule](text, n, 0, 10)) == (7.0,)
    else:
        assert outcome(ALL_RULES[rule](text, n, 0, 1)) == expected


@pytest.mark.parametrize(
    ("text", "principles", "critique"),
    [
        ("Specific Criteria: a (60%).\nAnalysis: b.\nScores: \\boxed{8, 7}", "a (60%).", "b."),
        ("### Specific Criteria\n1. a\n2. c\n\n## Analysis:\nb\n\n**Scores: \\boxed{8, 8}**", "1. a\n2. c", "b"),
        ("### Output\n**Specific Criteria:** a\n**Analysis:**\n- b\n\\boxed{10, 7}", "a", "- b"),
        ("Specific Criteria: a. Analysis: b. Scores: \\boxed{8, 7}", "a.", "b."),
        ("Analysis: first 8\nScore: 8\nthen 7\nScore: 7\n" + "x" * 300 + "\n\\boxed{8, 7}", None, "first 8"),
        ("Analysis: b\nScores: \\boxed{8}", None, "b"),
        ("Analysis: b\n\\\\boxed{8}", None, "b"),
        ("\\boxed{8}", None, None),
        ("Specific Criteria: a", "a", None),
        ("no headings \\boxed{8}", None, None),
        ("", None, None),
    ],
)
def test_sections(text: str, principles: str | None, critique: str | None) -> None:
    found = sections(text)
    assert found[0] == principles
    assert found[1] == critique or (critique is not None and found[1] is not None and found[1].startswith(critique))


@pytest.mark.parametrize(
    ("rule", "text", "n", "followed"),
    [
        ("boxed", "\\boxed{8, 7}", 2, False),
        ("boxed", "**Scores: $\\boxed{8, 7}$**.\n\n", 2, False),
        ("boxed", "Response 1 says \\boxed{8, 7}, which", 2, True),
        ("released", "it says 8, [8] but 8", 1, True),
        ("released", "it says [8].", 1, False),
        ("individual", "[The Begin of Individual Scores] \\boxed{8, 7}", 2, False),
        ("individual", "[The Begin of Individual Scores] \\boxed{8, 7} [The End of Individual Scores] so", 2, True),
        ("double-bracket", "[[8]] at", 1, True),
        ("letter-verdict", "Answer 1 says [[A]], which", 2, True),
        ("letter-verdict", "so [[A]].", 2, False),
        ("error-verdict", "It contains an error in", 1, True),
        ("first-line", "8 7\nBoth are", 2, False),  # what comes later is not read anyway
    ],
)
def test_a_rule_for_the_last_place_says_whether_words_follow_it(rule: str, text: str, n: int, followed: bool) -> None:
    low_high = (0, 1) if rule.endswith("verdict") else (0, 10)
    parsed = ALL_RULES[rule](text, n, *low_high)
    assert parsed.scores is not None
    assert parsed.followed == followed


# ---- fuzzing

PIECES = [*"\\{}[]()0123456789.,/:*#- \n\t\r\0ABCab", "boxed", "\\boxed{", "Scores:", "８", "\u200b"]
NASTY = st.lists(st.sampled_from(PIECES), max_size=200).map("".join)
TEXTS = st.one_of(st.text(max_size=200), NASTY)


@given(text=TEXTS, n=st.integers(1, 6), rule=st.sampled_from(sorted(ALL_RULES)))
@settings(max_examples=400, deadline=None)
def test_rules_never_raise_and_never_give_a_bad_score(text: str, n: int, rule: str) -> None:
    parsed = ALL_RULES[rule](text, n, 0, 10)
    sections(text)
    assert (parsed.scores is None) != (parsed.error is None)
    if parsed.scores is None:
        assert parsed.error is not None
        assert parsed.error.split(":", 1)[0] in {"unparsable", "wrong_count", "out_of_range"}
    else:
        assert len(parsed.scores) == n
        assert all(math.isfinite(s) and 0 <= s <= 10 for s in parsed.scores)


@given(
    text=TEXTS, scores=st.lists(st.integers(1, 10), min_size=1, max_size=6), slashes=st.sampled_from(["\\", "\\\\"])
)
@settings(max_examples=400, deadline=None)
def test_a_valid_box_at_the_end_is_always_the_answer(text: str, scores: list[int], slashes: str) -> None:
    box = slashes + "boxed{" + ", ".join(map(str, scores)) + "}"
    parsed = boxed_scores(text + "\nScores: " + box, len(scores), 1, 10)
    assert parsed == Parsed(tuple(map(float, scores)))


RELEASED = re.compile(r"(?:\\{1,2}boxed\{|\[)\s*([^\]\}]+?)\s*(?:\}|\])")


@given(text=NASTY)
@settings(max_examples=400, deadline=None)
def test_released_scanner_finds_what_the_released_pattern_finds(text: str) -> None:
    assert [text[span].strip() for span in released_spans(text)] == [m.strip() for m in RELEASED.findall(text)]


@given(value=st.floats(0, 10).map(lambda x: round(x, 3)))
def test_numbers_round_trip(value: float) -> None:
    assert number(f" {value:.3f} ") == value


@pytest.mark.parametrize(
    "piece", ["[", "\\boxed{", "#", " ", "{", "*", "\\", "[[", "a,", "\n", "> ", "[The Begin of ", "1"]
)
def test_a_megabyte_of_anything_is_read(piece: str) -> None:
    """No rule is quadratic: a megabyte that provokes backtracking would otherwise take hours."""
    text = piece * (1_000_000 // len(piece))
    for rule in ALL_RULES.values():
        assert rule(text, 2, 1, 10).scores is None
    assert boxed_scores(text + "\n\\boxed{8, 7}", 2, 1, 10).scores == (8.0, 7.0)
    assert boxed_scores("\\boxed{8, 7}" + text + "\nScores: 7", 2, 1, 10).scores is None
    sections(text)


# ---- recorded judges. The figures are those of each set's SOURCE.md; where our strict rule reads a text differently
# from the stored value, the exact difference is asserted and the reason given.


def test_vicuna_reviews(data_dir: Path) -> None:
    """1,040 reviews: 1,001 begin with two scores, equal to the stored ones, four of them with a 0.

    In the other 39, all on the three math questions, the judge first solved the problem; the authors read those
    by hand. With the stored scores in their place the sums are the published 693 and 638.
    """
    rule = ALL_RULES["first-line"]
    missing: Counter[str] = Counter()
    sums = [0.0, 0.0]
    equal = zeros = 0
    for row in recorded.vicuna_reviews(data_dir):
        parsed = rule(row["text"], 2, 0, 10)
        zeros += outcome(rule(row["text"], 2, 1, 10)) == "out_of_range"
        if parsed.scores is None:
            missing[outcome(parsed)] += 1
        else:
            assert list(parsed.scores) == row["score"]
            equal += 1
        if row["file"] == "review_gpt35_vicuna-13b":
            for side, score in enumerate(parsed.scores or row["score"]):
                sums[side] += score
    assert (equal, missing, zeros) == (1001, {"unparsable": 39}, 4)
    assert sums == [693.0, 638.0]


def test_mtbench_single_gradings(data_dir: Path) -> None:
    """The rating equals the stored score in 326 of 326; the 4 `$ERROR$` rows (stored as -1) are missing here."""
    counts: Counter[object] = Counter()
    for row in recorded.mtbench_rows(data_dir):
        parsed = ALL_RULES["double-bracket"](row["judgment"], 1, 1, 10)
        counts["missing" if parsed.scores is None else parsed.scores[0] == row["score"]] += 1
        assert (parsed.scores is None) == (row["score"] == -1)
    assert counts == {True: 326, "missing": 4}


def test_mtbench_pair_verdicts(data_dir: Path) -> None:
    """All 150 verdicts equal the stored ones; 46 consistent, 18 flipped, 9 with one tie, 2 with an error."""
    outcomes: Counter[str] = Counter()
    for row in recorded.mtbench_rows(data_dir, "gpt-4_pair"):
        games = []
        for game, swapped in (("g1", False), ("g2", True)):
            parsed = ALL_RULES["letter-verdict"](row[f"{game}_judgment"], 2, 0, 1)
            games.append(winner(parsed, swapped, ("model_1", "model_2")) or "error")
            assert games[-1] == row[f"{game}_winner"]
        both = "consistent" if games[0] == games[1] else "with tie" if "tie" in games else "flipped"
        outcomes["error" if "error" in games else both] += 1
    assert outcomes == {"consistent": 46, "flipped": 18, "with tie": 9, "error": 2}


def winner(parsed: Parsed, swapped: bool, names: tuple[str, str] = ("1", "2")) -> str | None:
    """The winner's name in the order without exchange, "tie", or None where the judgment is missing."""
    if parsed.scores is None:
        return None
    first, second = parsed.scores
    return "tie" if first == second else names[(first < second) != swapped]


def test_pandalm_results(data_dir: Path) -> None:
    """Accuracy against the annotators' majority is the published one.

    The 25 results "garbage" of GPT-3.5 are missing here; the published figure counts them as ties (13 are right so).
    """
    right: Counter[str] = Counter()
    missing = 0
    for row in recorded.pandalm_rows(data_dir):
        votes = Counter(str(row[f"annotator{i}"]) for i in (1, 2, 3)).most_common()
        label = {"0": "tie"}.get(votes[0][0], votes[0][0])
        gpt = winner(winner_number(str(row["gpt_result"]), 2, 0, 1), False)
        pandalm = winner(
            winner_number({0: "Tie"}.get(row["pandalm_result"], str(row["pandalm_result"])), 2, 0, 1), False
        )
        missing += gpt is None
        right["garbage as tie"] += gpt is None and label == "tie"
        right["gpt"] += gpt == label
        right["pandalm"] += pandalm == label
    assert missing == 25
    assert (right["gpt"], right["garbage as tie"]) == (697, 13)
    assert round((697 + 13) / 999, 4) == 0.7107
    assert round(right["pandalm"] / 999, 4) == 0.6677


def test_prometheus_feedback(data_dir: Path) -> None:
    """1,920 stored (feedback, score) pairs, put together as the judge was asked to write them, give the score back.

    The feedback alone has none: one of them holds "[RESULT] Score: 1.", which the strict rule does not take.
    """
    rule = ALL_RULES["result"]
    texts = 0
    for name in ("mt_bench_eval", "vicuna_eval"):
        for row in recorded.prometheus_rows(data_dir, name):
            for feedback, score in zip(row["gpt4_feedback"], row["gpt4_score"], strict=True):
                assert rule(f"Feedback: {feedback} [RESULT] {score}", 1, 1, 5).scores == (float(score),)
                assert outcome(rule(feedback, 1, 1, 5)) == "unparsable"
                texts += 1
    assert texts == 1920


def test_wildbench_scores(data_dir: Path) -> None:
    rows = 0
    for row in recorded.wildbench_rows(data_dir):
        assert ALL_RULES["number"](row["score"], 1, 1, 10).scores == (float(row["score"]),)
        rows += 1
    assert rows == 29_653


@pytest.mark.parametrize(
    ("name", "equal", "missing", "errors_stored_as_2", "looser"),
    [("pilot_responses", 2450, 103, 430, 17), ("pilot_v2_responses", 961, 1, 238, 0)],
)
def test_amel_verdicts(
    data_dir: Path, name: str, equal: int, missing: int, errors_stored_as_2: int, looser: int
) -> None:
    """Verdicts on one line equal the stored labels, and what the authors could not parse is missing here as well.

    668 stored labels are no verdicts: the "2" was found in the text of an HTTP error 429. They are missing here. 17
    more texts ("2. Response B ...", "I would reply with **2**.") have no line of their own for the number.
    """
    counts: Counter[str] = Counter()
    for row in recorded.amel_rows(data_dir, name):
        ours = winner(winner_number(row["raw_response"], 2, 0, 1), False)
        if ours == row["parsed_label"]:
            counts["equal" if ours else "missing"] += 1
        else:
            assert ours is None
            error = row["raw_response"].startswith("ERROR: Client error '429 ")
            counts["error stored as 2" if error else "looser"] += 1
            assert not error or row["parsed_label"] == "2"
    expected = {"equal": equal, "missing": missing, "error stored as 2": errors_stored_as_2, "looser": looser}
    assert counts == {key: value for key, value in expected.items() if value}


def test_realmistake_verdicts(data_dir: Path) -> None:
    """2,250 sampled texts: 2,158 verdicts and the 71 nulls equal the stored ones.

    In 19 the text ends up with "contains an error" while "no_error" is stored, and in 2 texts that were cut
    off there is no verdict at all while one is stored. We follow the text. The published accuracies are met in the
    six cells of GPT-4 and GPT-3.5; 20 of the 21 differences are Mixtral's.
    """
    counts: Counter[tuple[str | None, str | None]] = Counter()
    right: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    published = recorded.realmistake_performance(data_dir)
    for row in recorded.realmistake_self_consistency(data_dir):
        ours: list[str | None] = []
        for text, stored in zip(row["texts"], row["predictions"], strict=True):
            parsed = ALL_RULES["error-verdict"](text, 1, 0, 1)
            ours.append(None if parsed.scores is None else "no_error" if parsed.scores[0] else "error")
            counts[stored, ours[-1]] += 1
        lead = ours.count("error") - ours.count("no_error")
        cell = right[row["task"], row["judge"]]
        cell[0] += row["prediction"] == row["label"]
        cell[1] += (lead > 0 and row["label"] == "error") or (lead < 0 and row["label"] == "no_error")
    assert counts == {
        ("no_error", "no_error"): 1188,
        ("error", "error"): 970,
        (None, None): 71,
        ("no_error", "error"): 19,
        ("no_error", None): 2,
    }
    assert len(right) == 9
    for (task, judge), (stored_right, ours_right) in right.items():
        assert stored_right / 50 == pytest.approx(published[task, judge])
        if not judge.startswith("Mixtral"):
            assert ours_right == stored_right
    assert [right[task, "Mixtral-8x7B-Instruct-v0.1"] for task in sorted({task for task, _ in right})] == [
        [20, 23],  # answerability: stored right, ours right (2 of 50 items tie without the stored verdicts)
        [32, 34],
        [29, 30],
    ]


def test_llmbar_verdicts(data_dir: Path) -> None:
    """80,826 verdicts of six judges; 348 are stored as null, by judge as in SOURCE.md, and 346 of them are ours too.

    Of the 74,960 texts that compare two outputs we agree with 72,570. 1,668 have a stored winner but no verdict as
    their first sentence or at their end (cut off, or "both are equally good"): missing here. 374 texts end in, or
    begin with, one output while the other is stored; in 370 of them (a) is stored against the text's plain "Output
    (b) is better": the authors' parser tried (a) first. Ratings: 4,428 winners equal, 1,428 ties (stored as a win of
    the output shown second), and 10 with an empty text for one output, for which a winner is stored.

    For GPT-4 the difference is 3 texts, and accuracies recomputed from the texts are the published ones.
    """
    nulls: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    right: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in recorded.llmbar_verdicts(data_dir):
        nulls[row["judge"]] += row["winner"] is None
        if len(row["texts"]) == 2:
            ours = rating_winner(row["texts"], row["swap"], counts)
        else:
            ours = winner(output_verdict(row["texts"][0], 2, 0, 1), row["swap"])
            counts[comparison(row, ours)] += 1
            counts["GPT-4 differs"] += row["judge"] == "GPT-4" and ours != row["winner"]
        if len(row["texts"]) == 2 and ours is not None:
            assert ours == row["winner"]
        cell = right[row["set"], row["judge"], row["protocol"]]
        cell[0] += 1
        cell[1] += row["winner"] == str(row["label"])
        cell[2] += ours == str(row["label"])
    assert +nulls == {"PaLM2": 200, "ChatGPT": 44, "LLaMA2": 41, "GPT-4": 29, "Falcon": 22, "ChatGPT-0301": 12}
    assert counts == {
        "equal": 72_570, "no verdict": 1_668, "(a) stored against (b)": 370, "(b) stored against (a)": 4,
        "both null": 346, "null stored": 2, "rating": 4_428, "rating tie": 1_428,
        "rating empty": 10, "GPT-4 differs": 3,
    }  # fmt: skip
    statistics = list(recorded.llmbar_statistics(data_dir))
    assert len(statistics) == len(right) == 499
    for row in statistics:
        total, stored_right, _ = right[row["set"], row["judge"], row["protocol"]]
        published = float(row["statistics"]["correct_average"].rstrip("%"))
        assert 100 * stored_right / total == pytest.approx(published)
    for cell, accuracy in (
        (("LLMBar/Natural", "GPT-4", "CoT"), 94.50),
        (("LLMBar/Adversarial/Neighbor", "GPT-4", "Metrics_Reference"), 85.45),
        (("LLMBar/Adversarial/Manual", "GPT-4", "Rating"), 84.78),
    ):
        total, stored_right, ours_right = right[cell]
        assert round(100 * ours_right / total, 2) == accuracy
        assert ours_right == stored_right


def rating_winner(texts: list[str], swap: bool, counts: Counter[str]) -> str | None:
    """Winner by two ratings of 0..10; a tie goes, as the authors have it, to the output shown second."""
    ratings = [ALL_RULES["number"](text, 1, 0, 10).scores for text in texts]
    if ratings[0] is None or ratings[1] is None:
        counts["rating empty"] += 1
        return None
    if ratings[0] == ratings[1]:
        counts["rating tie"] += 1
        return "1" if swap else "2"
    counts["rating"] += 1
    return "1" if ratings[0] > ratings[1] else "2"


def comparison(row: dict[str, object], ours: str | None) -> str:
    if ours == row["winner"]:
        return "equal" if ours else "both null"
    if ours is None:
        return "no verdict"
    if row["winner"] is None:
        return "null stored"
    return "(a) stored against (b)" if (row["winner"] == "1") != row["swap"] else "(b) stored against (a)"


def test_released_parser_reads_a_trailing_reference_as_scores_and_boxed_does_not() -> None:
    text = "Scores: \\boxed{8, 7}\n[see 1, 2]"
    assert boxed_scores(text, 2, 1, 10).scores == (8.0, 7.0)
    assert released_scores(text, 2, 1, 10).error is not None

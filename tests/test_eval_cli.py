"""`opengrm eval` end to end: its folder, resuming, partial and bad input, scores that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from instant_engine import InstantEngine
from typer.testing import CliRunner

from opengrm import engines
from opengrm.benchmarks import BENCHMARKS
from opengrm.cli.eval_sources import shows_pairs
from opengrm.cli.judges import Options, choose_judge
from opengrm.cli.main import app
from opengrm.errors import BadRow, OpenGRMError, UsageError
from opengrm.ledger import Ledger
from opengrm.reports.eval_page import write_page
from opengrm.reports.eval_positions import confusions
from opengrm.reports.eval_run import read_runs


def run(*words: str) -> Any:
    """The command's result; errors that a user can act on are raised."""
    result = CliRunner().invoke(app, ["eval", *words, "-q"])
    if isinstance(result.exception, OpenGRMError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Eight rows of RewardBench in two subsets."""
    path = tmp_path / "data" / "rewardbench" / "rows.jsonl"
    path.parent.mkdir(parents=True)
    subsets = ["donotanswer"] * 4 + ["hep-go"] * 4
    listed = [
        {"id": i, "subset": subset, "prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i, subset in enumerate(subsets)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in listed), encoding="utf-8")
    return path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> InstantEngine:
    instant = InstantEngine()
    monkeypatch.setattr(engines, "open_engine", lambda *_args, **_settings: instant)
    return instant


def read(folder: Path, name: str) -> Any:
    text = (folder / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def test_a_run_writes_its_folder_and_resumes(rows: Path, engine: InstantEngine, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["all", "--data", str(tmp_path / "data"), "--model", "instant", "-k", "4", "-o", str(out)]
    run(*words)
    assert engine.asked == 32
    found = read(out, "eval.json")
    assert (found["settings"]["k"], found["settings"]["judge"], found["paper_overall"]) == (4, "grm", None)
    bench = found["benchmarks"]["rewardbench"]
    assert (bench["items"], bench["partial"], bench["statistics"]["parse_rate"]) == (8, True, 1)
    assert [row["k"] for row in bench["by_k"]] == [1, 2, 4]
    assert bench["by_k"][-1]["overall"] == bench["overall"]
    items = read(out, "rewardbench/items.jsonl")
    assert [item["item"] for item in items] == [f"{'donotanswer' if i < 4 else 'hep-go'}/{i}" for i in range(8)]
    assert all(item["asked"] == item["valid"] == 4 and item["chance"] == 0.5 for item in items)
    by_subset = {row["subset"]: row["accuracy"]["mean"] for row in bench["subsets"]}
    assert by_subset["hep-go"] == sum(item["credit"] for item in items[4:]) / 4
    assert bench["overall"] == pytest.approx((by_subset["hep-go"] + by_subset["donotanswer"]) / 2)
    assert (out / "report.html").is_file()
    summary = read(out, "rewardbench/rewardbench/eval-set/local/instant.json")
    assert summary["hep-go"] == by_subset["hep-go"]
    run(*words)
    assert engine.asked == 32
    again = read(out, "eval.json")["benchmarks"]["rewardbench"]
    assert (again["overall"], again["by_k"][0]["overall"]) == (bench["overall"], bench["by_k"][0]["overall"])
    assert found["settings"]["ledger"] == "judgments.ledger.db"
    # The run's own ledger scores to the same figures.
    other = tmp_path / "again"
    run("rewardbench", "--data", str(rows), "--judgments", str(out / "judgments.ledger.db"), "-o", str(other))
    assert read(other, "rewardbench/items.jsonl") == [{**item, "seconds": None} for item in items]


def shown(folder: Path) -> dict[str, Any]:
    """The items that the run's page embeds."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    data = page.split('<script type="application/json" id="items-data">')[1].split("</script>")[0]
    return {item["id"]: item["runs"][0] for item in json.loads(data)["items"]}


def test_a_shared_ledger_counts_and_shows_a_runs_own_judgments(
    rows: Path, engine: InstantEngine, tmp_path: Path
) -> None:
    """Runs with 4 votes, then with 2 at another temperature, then with 2 as in the first, in one ledger elsewhere."""
    ledger = tmp_path / "shared.db"
    words = ["rewardbench", "--data", str(rows), "--model", "instant", "--ledger", str(ledger)]
    for name, more in (("a", ["-k", "4"]), ("b", ["-k", "2", "--temperature", "0.9"]), ("c", ["-k", "2"])):
        run(*words, *more, "-o", str(tmp_path / name))
    with Ledger(ledger) as kept:
        everything = list(kept.judgments())
        assert len(everything) == 48
        for judgment in everything:
            kept.put(judgment, seconds=1.0)
    for name, more, votes in (
        ("a", ["-k", "4"], 4),
        ("b", ["-k", "2", "--temperature", "0.9"], 2),
        ("c", ["-k", "2"], 2),
    ):
        out = tmp_path / name
        run(*words, *more, "-o", str(out))
        found = read(out, "eval.json")
        assert found["settings"]["ledger"] == str(ledger)
        assert found["settings"]["source"]["temperature"] == (0.9 if name == "b" else 0.5)
        # A second for each of the run's own judgments.
        assert {item["seconds"] for item in read(out, "rewardbench/items.jsonl")} == {float(votes)}
        assert found["benchmarks"]["rewardbench"]["cost"]["seconds"] == 8 * votes
        assert {item["judgments"] for item in shown(out).values()} == {votes}
        (table,) = confusions(read_runs([out])[0], "rewardbench")
        assert (table.items, table.judgments) == (8, 8 * votes)
    # The run's folder alone, without the ledger: the page says why there are no votes.
    ledger.rename(tmp_path / "moved.db")
    page = write_page([tmp_path / "a"]).read_text(encoding="utf-8")
    assert "no votes are shown" in page
    assert "shared.db: no such ledger" in page


def test_limit_is_a_fixed_draw(rows: Path, engine: InstantEngine, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("rewardbench", "--data", str(rows), "--model", "m", "-k", "1", "--limit", "3", "-o", str(tmp_path / name))
    found = [[item["item"] for item in read(tmp_path / name, "rewardbench/items.jsonl")] for name in ("a", "b")]
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_limit_draws_whole_prompts(engine: InstantEngine, tmp_path: Path) -> None:
    """Four prompts of two items each: three items are one prompt's, and one item is still a whole prompt's."""
    path = tmp_path / "own.jsonl"
    listed = [
        {"id": f"{p}{i}", "prompt": p, "responses": ["a", str(i)], "best": 0, "source": {"cluster": p}}
        for p in "wxyz"
        for i in range(2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in listed), encoding="utf-8")
    for limit, kept in ((1, 2), (3, 2), (4, 4), (8, 8)):
        out = tmp_path / str(limit)
        run("items", "--data", str(path), "--model", "m", "-k", "1", "--limit", str(limit), "-o", str(out))
        names = [item["item"] for item in read(out, "items/items.jsonl")]
        assert len(names) == kept
        assert all(name[0] + other in names for name in names for other in "01")
        assert read(out, "eval.json")["benchmarks"]["items"]["partial"] is (kept < 8)


def test_a_grm_sees_rmbs_lists_whole_and_ppes_as_pairs() -> None:
    rmb, ppe, pairs = (BENCHMARKS[name] for name in ("rmb", "ppe-correctness", "rewardbench"))
    for judge, shown_as_pairs in (("grm", (False, True)), ("llm", (True, True)), ("bt", (False, False))):
        chosen = choose_judge(judge, Options("some/model"))  # type: ignore[arg-type]
        assert (shows_pairs("auto", rmb, chosen), shows_pairs("auto", ppe, chosen)) == shown_as_pairs
        assert (shows_pairs("pairs", rmb, chosen), shows_pairs("lists", ppe, chosen)) == (True, False)
    assert not shows_pairs("auto", ppe, None)
    assert pairs.pairs is None


def test_no_paper_overall_of_runs_that_may_be_partial(engine: InstantEngine, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Name a prime."}]
    answers = [{"llm_name": name, "answer": name} for name in "abc"]
    ppe = {f"response_{i + 1}": str(i) for i in range(3)}
    files = {
        "rewardbench/rows.jsonl": {"id": 1, "subset": "hep-go", "prompt": "q", "chosen": "a", "rejected": "b"},
        "ppe-preference/rows.jsonl": {
            "question_id": "1", "prompt": "q", "response_1": "a", "response_2": "b", "winner": "model_a",
        },
        "ppe-correctness/math.jsonl": {
            "question_id": "1", "model_name": "m", "prompt": "q", **ppe, "scores": [True, False, False],
            "conflict_pairs": [[0, 1], [0, 2]],
        },
        "rmb/rows.jsonl": {
            "bon_uid": "l", "conversation_input": said, "bon_best": answers[0], "loser_list": answers[1:],
            "category_path": "Helpfulness",
        },
    }  # fmt: skip
    for name, row in files.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    names = "rewardbench,ppe-preference,ppe-correctness,rmb"
    run(names, "--data", str(tmp_path / "data"), "--model", "m", "-k", "1", "-o", str(tmp_path / "run"))
    found = read(tmp_path / "run", "eval.json")
    benchmarks = found["benchmarks"]
    assert [row["partial"] for row in benchmarks.values()] == [True, True, True, None]
    assert all(row["overall"] is not None for row in benchmarks.values())
    assert found["paper_overall"] is None
    assert (benchmarks["rmb"]["form"], benchmarks["rmb"]["items"]) == ("lists", 1)
    assert (benchmarks["ppe-correctness"]["form"], benchmarks["ppe-correctness"]["items"]) == ("pairs", 2)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Whether all published rows were there is not known of rmb." in page


def test_bad_rows_are_found_before_the_model(rows: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_model(*_args: object, **_settings: object) -> None:
        raise AssertionError("a model was loaded")

    with rows.open("a", encoding="utf-8") as file:
        file.write('{"id": 9, "subset": "hep-go", "prompt": "q", "chosen": 7, "rejected": "8"}\n')
    monkeypatch.setattr(engines, "open_engine", no_model)
    with pytest.raises(BadRow, match=r"rows\.jsonl:9: 'chosen' must be a text"):
        run("rewardbench", "--data", str(rows), "--model", "m", "-o", str(tmp_path / "run"))
    monkeypatch.setattr(engines, "open_engine", lambda *_args, **_settings: InstantEngine())
    run("rewardbench", "--data", str(rows), "--model", "m", "-k", "1", "--on-bad", "skip", "-o", str(tmp_path / "run"))
    assert read(tmp_path / "run", "eval.json")["benchmarks"]["rewardbench"]["items"] == 8


def test_scores_that_are_there(rows: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.jsonl"
    listed = [{"item": f"donotanswer/{i}", "scores": [1.5, 0.5]} for i in range(3)]
    listed.append({"item": "other/1", "scores": [1, 2, 3]})
    scores.write_text("".join(json.dumps(row) + "\n" for row in listed), encoding="utf-8")
    run("rewardbench", "--data", f"rewardbench={rows}", "--scores", str(scores), "-o", str(tmp_path / "run"))
    bench = read(tmp_path / "run", "eval.json")["benchmarks"]["rewardbench"]
    # Three right and one missing of donotanswer, all of hep-go missing.
    assert (bench["items"], bench["missing"]) == (8, 5)
    assert bench["overall"] == pytest.approx((3.5 / 4 + 0.5) / 2)
    assert bench["overall_valid"] == 1
    scores.write_text('{"item": "x", "scores": [1, 2]}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="ids are like 'donotanswer/0'"):
        run("rewardbench", "--data", str(rows), "--scores", str(scores), "-o", str(tmp_path / "other"))


def test_what_goes_wrong_is_said(rows: Path, tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "run")]
    for words, said in (
        (["rewardbanch", "--data", str(rows)], "no benchmark; known are rewardbench, "),
        (["rewardbench"], "give --data"),
        (["rewardbench", "--data", f"rewardbanch={rows}"], "no such benchmark"),
        (["rmb", "--data", "hub"], "is on no hub"),
        (["all", "--data", str(tmp_path)], "no folder named like a benchmark"),
        (["rewardbench", "--data", str(tmp_path / "none")], "no such file"),
        (["rewardbench", "--data", str(rows), "--scores", str(rows), "-k", "2"], "are for judging"),
    ):
        with pytest.raises(UsageError, match=said):
            run(*words, *out)

"""The page of an SPCT run: every number is there, missing ones and hostile text do no harm, nothing is loaded."""

from __future__ import annotations

import builtins
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from opengrm.errors import MissingExtra
from opengrm.reports.spct_page import write_page

pytest.importorskip("matplotlib")

HOSTILE = "</td><script>alert('x')</script><img src=\"http://evil.example/a.png\">"


def interval(mean: float, half: float = 0.02) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def vote(model: str, place: str, how: str, k: int, mean: float, **others: Any) -> dict[str, Any]:
    row = {"model": model, "set": place, "how": how, "k": k, "items": 1000 if place == "pairs" else 400}
    row |= {"accuracy": interval(mean), "accuracy_valid": interval(mean + 0.001), "strict": interval(mean - 0.001)}
    row |= {"ties": 0.05, "no_verdict": 0.0, "parse_rate": 0.987, "prompt_tokens": 95.0 * k}
    return row | {"completion_tokens": 45.0 * k} | others


def votes() -> list[dict[str, Any]]:
    rows = []
    for place, down in (("lists", 0.1), ("pairs", 0.0), ("singles", 0.05)):
        for model, start in (("base", 0.612), ("rft", 0.688), ("rl", 0.781)):
            auc = {"auc": interval(start - down + 0.07)} if place == "singles" else {}
            rows.append(vote(model, place, "greedy", 1, start - down, **auc))
            for power in range(6):
                gain = 0.02 * power - 0.002 * power**2
                rows.append(vote(model, place, "sum", 2**power, start - down - 0.01 + gain, **auc))
                if model == "rl" and place != "singles":
                    rows.append(vote(model, place, "meta", 2**power, start - down - 0.01 + 1.4 * gain))
    return rows


def files(*, world: bool = True) -> dict[str, Any]:
    """A whole run, made up."""
    half = {
        "items": 2000, "not_sampled": {"no label": 3}, "judgments": 5991, "kept": 1971,
        "dropped": {"incorrect": 2767, "too easy": 960, "unparsable": 293}, "items_kept": 1340, "items_too_easy": 320,
    }  # fmt: skip
    hinted = {**half, "not_sampled": {}, "judgments": 2000, "kept": 1016, "dropped": {"incorrect": 884, "odd": 100}}
    rl = []
    for step in range(1, 201):
        correct = 0.6 + 0.2 * (1 - math.exp(-step / 60)) + 0.03 * math.sin(step * 7.3)
        rl.append({
            "step": step, "reward": 2 * correct - 1, "correct": correct, "parse_rate": 0.98, "kl": 0.0005 * step,
            "entropy": 0.2 - 0.0004 * step, "completion_tokens": 45 + math.sin(step), "truncated": 0.0,
            "no_signal": 0.5 + 0.001 * step, "tokens_so_far": 25_000.0 * step, "seconds": 2.5,
        })  # fmt: skip
    process = {"judgments": 800, "readable": 0.99, "principle_precision": 0.834, "sound": 0.412, "sums_right": None}
    return {
        "spct.json": {
            "config": {"seed": 0, "rl": {"beta": 0.08, "learning_rate": 2e-4, "steps": 200}, "rft": {"n_rft": 3}},
            "versions": {"python": "3.11.9", "torch": "2.8.0"},
            "machine": {"cpu": "A processor", "cores": 2},
            "commit": "0123abcd",
            "stages": {"tune": {"seconds": 640.0}, "rl": {"seconds": 3720.0}, "meta": {"seconds": 95.5},
                       "evaluate": {"seconds": 6000.0}},
        },
        "rft/collect.json": {"kept": 2987, "non-hinted": half, "hinted": hinted},
        "rft/train.json": {"trajectories": 2987, "instructions": 17_213, "examples": 20_200, "too_long": 0,
                           "steps": 90, "batch": 1024, "first_loss": 0.4321, "last_loss": 0.1234, "seconds": 512.0},
        "rft/metrics.jsonl": [{"step": s, "loss": 0.12 + 0.3 / s} for s in range(1, 91, 10)],
        "rl/items.json": {"given": 4000, "kept": 3456, "dropped": {"too easy": 544}, "keys": ["a"]},
        "rl/metrics.jsonl": rl,
        "meta/meta_rm.json": {
            "examples": 5710, "correct": 2897, "left_out": {"no scores": 290},
            "dev": {"n": 571, "conversations": 190, "correct": 0.507, "loss": 0.55, "accuracy": interval(0.7321),
                    "auc": interval(0.8123)},
        },
        "meta/metrics.jsonl": [
            *({"step": step, "loss": 0.69 / step**0.1} for step in range(1, 121)),
            *({"step": step, "dev_auc": 0.7 + step / 1000, "dev_loss": 0.6} for step in (40, 80, 120)),
        ],
        "evaluation.json": {
            "rows": votes(), "world": world, "seconds": 6000.0, "judgments": 120_000, "tokens": 5_400_000,
            "process": [{"model": model, "set": "pairs", **process} for model in ("base", "rl")],
        },
    }  # fmt: skip


def write(folder: Path, contents: dict[str, Any]) -> str:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = content if isinstance(content, list) else [content]
        path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    path = write_page(folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Text of the page, and whether its elements are balanced and its ids different."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.refers: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(page)
        assert not self.open
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.refers += [value or "" for name, value in attrs if name in ("href", "xlink:href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def check_alone(page: str) -> Outline:
    """Nothing is loaded from outside and nothing runs."""
    outline = Outline(page)
    assert not {"script", "link", "img", "iframe", "object"} & outline.tags
    assert all(reference.startswith("#") and reference[1:] in outline.ids for reference in outline.refers)
    assert not re.search(r"https?://|@import|<script|<!doctype svg", page, re.IGNORECASE)
    assert not re.search(r"\b(nan|inf|None)\b", outline.text)
    return outline


def test_a_whole_run_is_told(tmp_path: Path) -> None:
    page = write(tmp_path, files())
    text = check_alone(page).text
    assert (
        "On pairs (n = 1,000; accuracy %, 95 % intervals), greedy: Base 61.2 [59.2, 63.2] → RFT 68.8 [66.8, 70.8] → "
        "RL 78.1 [76.1, 80.1] ; RL with 32 votes: 82.1 [80.1, 84.1] ; "
        "RL with 32 votes guided by the meta RM: 84.1 [82.1, 86.1] ."
    ) in text
    assert "not done" not in text
    assert "RubricWorld is a proving ground" in text
    for number in (
        "2,767 46.2 %", "odd 0 0.0 % 100 5.0 %", "0.432 → 0.123", "17,213",  # RFT
        "3,456", "544", "5,000,000",  # RL
        "73.2 [71.2, 75.2]", "81.2 [79.2, 83.2]", "held-out judgments 571", "2,897",  # meta RM
        "83.4", "41.2",  # process
        "45.0", "0.0500", "62 min", "11 min", "Rejective fine-tuning", "tokens 5,000,000",  # cost
        "rl.learning_rate 0.0002", "config.rft.n_rft 3", "torch 2.8.0", "commit 0123abcd",
    ):  # fmt: skip
        assert number in text, number
    assert page.count("<svg") == 4 + 1 + 8 + 3
    assert "guided @32" in text


def test_the_table_has_the_papers_rows(tmp_path: Path) -> None:
    page = write(tmp_path, files())
    table = re.search(r"<h2>Accuracy</h2>.*?<tbody>(.*?)</tbody>", page, re.DOTALL)
    assert table is not None
    lines = [re.findall(r"<td.*?>(.*?)</td>", line) for line in table[1].split("\n")]
    plain = ["greedy", "@1", "@8", "@32"]
    assert [line[1] for line in lines] == plain * 3 + ["guided @8", "guided @32"]
    assert [line[0] for line in lines if line[0]] == ["<b>Base</b>", "<b>RFT</b>", "<b>RL</b>"]
    assert lines[-1][2].startswith("<b>84.1")  # the best of the largest set
    assert lines[-1][-2:] == ["–", "1,440"]  # no guided vote on singles; tokens of the largest set
    heads = re.findall(r"<th.*?>(.*?)</th>", page)[2:6]
    assert [h.split("<br>")[:2] for h in heads] == [
        ["pairs", "accuracy %"], ["lists", "accuracy %"], ["singles", "accuracy %"], ["singles", "ROC-AUC %"],
    ]  # fmt: skip


def test_a_set_of_lists_and_single_responses_has_two_columns(tmp_path: Path) -> None:
    rows = [vote("rl", "mixed", "sum", 8, mean, group=group) for group, mean in (("all", 0.7), ("singles", 0.6))]
    text = check_alone(write(tmp_path, {"evaluation.json": {"rows": rows}})).text
    assert "mixed, all accuracy % n = 400 mixed, singles accuracy % n = 400" in text
    assert "70.0 [68.0, 72.0] 60.0 [58.0, 62.0]" in text


def test_a_run_that_has_only_rft(tmp_path: Path) -> None:
    page = write(tmp_path, {name: content for name, content in files().items() if name.startswith("rft/")})
    text = check_alone(page).text
    assert "Not evaluated yet." in text
    assert "RFT done RL not done Meta RM not done Evaluation not done" in text
    assert "2,767" in text
    assert "RubricWorld" not in text


@pytest.mark.parametrize("left_out", sorted(files()))
def test_any_file_may_be_missing_or_damaged(tmp_path: Path, left_out: str) -> None:
    contents = files()
    del contents[left_out]
    check_alone(write(tmp_path, contents))
    (tmp_path / left_out).write_bytes(b'{"step": 1, "rows": [\xff')
    page = write_page(tmp_path).read_text(encoding="utf-8")
    check_alone(page)
    assert f"Could not be read: {left_out}" in page


def test_an_empty_folder(tmp_path: Path) -> None:
    text = check_alone(write(tmp_path, {})).text
    assert text.count("not done") == 4 + 5


def test_missing_numbers_are_dashes(tmp_path: Path) -> None:
    contents = files(world=False)
    rows = contents["evaluation.json"]["rows"]
    for row in rows[::2]:
        row["accuracy"] = row["accuracy_valid"] = row["ties"] = row["completion_tokens"] = None
    rows[1]["accuracy"] = interval(math.nan)
    rows[3]["accuracy"] = {"mean": 0.5, "low": math.nan, "high": math.inf}
    contents["rl/metrics.jsonl"][3] |= {"kl": math.nan, "reward": None}
    contents["rft/train.json"]["first_loss"] = math.nan
    contents["meta/meta_rm.json"]["dev"] = None
    contents["spct.json"]["commit"] = None
    text = check_alone(write(tmp_path, contents)).text
    assert "– → 0.123" in text
    assert "commit –" in text
    assert "proving ground" not in text


def test_text_of_files_is_only_text(tmp_path: Path) -> None:
    contents = files()
    contents["spct.json"]["config"] = {HOSTILE: {"a": HOSTILE, "b": [HOSTILE], "c": {}}}
    contents["spct.json"]["stages"][HOSTILE] = {"seconds": 1.0, HOSTILE: HOSTILE}
    contents["rft/collect.json"]["hinted"]["dropped"][HOSTILE] = 3
    contents["rl/items.json"]["dropped"][HOSTILE] = 3
    contents["meta/meta_rm.json"]["left_out"][HOSTILE] = 3
    for math_text in (HOSTILE, "$\\frac{$ \ud800 _x"):
        contents["evaluation.json"]["rows"].append(vote(math_text, math_text, math_text, 4, 0.5))
        contents["evaluation.json"]["rows"].append(vote(math_text, "pairs", f"meta {math_text}", 4, 0.5))
        contents["evaluation.json"]["process"].append({"model": math_text, "set": math_text, "judgments": 1})
    page = write(tmp_path / "<b>&", contents)
    outline = Outline(page)
    assert not {"script", "img"} & outline.tags
    assert not [reference for reference in outline.refers if not reference.startswith("#")]
    assert HOSTILE in outline.text
    assert "SPCT run: <b>&" in outline.text


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    assert write(tmp_path, files()) == write_page(tmp_path).read_text(encoding="utf-8")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match="plots"):
        write(tmp_path, files())

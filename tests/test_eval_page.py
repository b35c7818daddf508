"""The page of evaluation runs: its figures are eval.json's, its texts stay texts, its size is bounded."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE
from typer.testing import CliRunner

from opengrm.cli.main import app
from opengrm.errors import UsageError
from opengrm.items import Item, Message
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reports.eval_charts import Point, curves_svg, log_ticks, short
from opengrm.reports.eval_items import MOST_TEXT, choose, embedded, keep_shown, outcome, said
from opengrm.reports.eval_page import write_page
from opengrm.reports.eval_pictures import write_pictures
from opengrm.reports.eval_positions import confusions
from opengrm.reports.eval_run import place, read_runs
from opengrm.reports.page import visible

MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(1)><!-- \" onmouseover='x' &lt;"


def interval(mean: float, half: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def figures(**others: Any) -> dict[str, Any]:
    others = {"overall_interval": None, **others} if "overall" in others else others
    return {
        "version": "v1", "licence": "MIT", "partial": False, "items": 4, "missing": 1, "tied": 1, "overall": 0.625,
        "overall_interval": interval(0.625),
        "overall_valid": 0.6667, "metrics": {"pairs": {**interval(0.625), "n": 4}, "pearson": interval(-0.25)},
        "subsets": [{"subset": "easy", "items": 3, "accuracy": interval(0.75), "accuracy_valid": interval(0.8),
                     "chance": 0.5, "ties": 1, "missing": 0}],
        "by_k": [{"k": k, "items": 3, "skipped": 1, "overall": 0.5, "accuracy": interval(0.5 + 0.01 * k),
                  "tokens": 100.0 * k, "seconds": 0.5 * k} for k in (1, 2, 4)],
        "cost": {"prompt_tokens": 4000, "completion_tokens": 482, "seconds": 6.0, "judgments": 8},
        "statistics": {"parse_rate": 0.875},
    } | others  # fmt: skip


def line(item: str, credit: float | None, **others: Any) -> dict[str, Any]:
    scores = None if credit is None else [5.0, 5.0] if credit == 0.5 else [7.0, 2.0] if credit else [2.0, 7.0]
    tied = [0, 1] if credit == 0.5 else []
    return {
        "item": item, "subset": "easy", "cluster": item, "n": 2, "label": 0, "credit": credit, "chance": 0.5,
        "tied": tied, "scores": scores, "valid": 2, "asked": 2, "prompt_tokens": 9, "completion_tokens": 9,
    } | others  # fmt: skip


def make(
    folder: Path, name: str = "run", bench: str = "bench", lines: list[dict[str, Any]] | None = None, **others: Any
) -> Path:
    """A run's folder; texts and judgments are made of the items' ids."""
    lines = lines if lines is not None else [line("a", 1.0), line("b", 0.0), line("c", 0.5), line("d", None)]
    folder.mkdir(parents=True, exist_ok=True)
    result = {"name": name, "settings": {"judge": "grm", "k": 2}, "seconds": 61.0, "benchmarks": {bench: figures()}}
    (folder / "eval.json").write_text(json.dumps(result | others), encoding="utf-8")
    path = place(folder, bench, "items.jsonl")
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    items = [
        Item((Message("user", f"query {r['item']}"),), (f"one {r['item']}", "two"), best=0, id=r["item"])
        for r in lines
    ]
    keep_shown(folder, bench, items)
    with Ledger(folder / "judgments.ledger.db") as ledger:
        ledger.put_all(judgment for row in lines for judgment in judged(row))
    return folder


def judged(row: dict[str, Any]) -> list[Judgment]:
    text = f"Principles: {row['item']}.\nCritique: {row['item']}!\nScores: \\boxed{{7, 2}}"
    parts: dict[str, Any] = {"principles": f"Principles: {row['item']}.", "critique": f"Critique: {row['item']}!"}
    scores = None if row["scores"] is None else tuple(row["scores"])
    error = "unparsable: no box" if scores is None else None
    return [
        Judgment(row["item"], scores, error, sample=s, order=order, text=text, model="m", **parts)
        for s, order in enumerate(((0, 1), (1, 0)))
    ]


class Page(HTMLParser):
    """What a browser would see: elements with attributes, the text, and the contents of scripts and styles."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.inside = ""
        self.feed(content)
        self.ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.raw:
            self.inside = tag
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.raw[self.inside][-1] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> Any:
        return json.loads(self.raw["script"][0])


def page_of(*folders: Path, items: int = 400) -> Page:
    path = write_page(list(folders), folders[0] / "page.html", items=items)
    return Page(path.read_text(encoding="utf-8"))


# --- figures ----------------------------------------------------------------------------------------------------


def test_figures_are_those_of_eval_json(tmp_path: Path) -> None:
    text = page_of(make(tmp_path / "r")).text
    assert "Evaluation: run" in text
    # benchmark, overall with the interval of the metric that it is, valid only, items, none, tied, judgments, cost
    assert "bench 62.5 [52.5, 72.5] 66.7 4 1 1 8 120.5 1.500" in text
    assert "pearson -0.25 [-0.35, -0.15]" in text
    assert "easy 75.0 [65.0, 85.0] 80.0 1 0 3" in text
    assert "run, k = 4: 54.0 [44.0, 64.0] % at 400 tokens" in text
    assert "4 3 50.0 54.0 [44.0, 64.0] 400.0 2.000" in text
    assert "parse_rate 0.875" in text
    assert "61.0 s" in text


def test_several_runs_the_best_first_and_marked(tmp_path: Path) -> None:
    worse = make(tmp_path / "x", "x", benchmarks={"bench": figures(overall=0.5, metrics={}, by_k=[])})
    better = make(tmp_path / "y", "y", benchmarks={"bench": figures(overall=0.9, partial=True)})
    page = page_of(worse, better)
    assert page.text.index("y 90.0") < page.text.index("x 50.0")
    assert "<b>90.0</b>" in (worse / "page.html").read_text(encoding="utf-8")
    assert "bench * % tokens out time" in page.text
    assert {"outcome", "run", "search"} <= set(page.ids)
    assert [len(item["runs"]) for item in page.data["items"]] == [2] * 4


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = read_runs([make(tmp_path / "x", "same"), make(tmp_path / "y", "same"), make(tmp_path / "z", "")])
    assert [run.label for run in runs] == ["same (x)", "same (y)", "z"]
    with pytest.raises(UsageError, match="given twice"):
        read_runs([tmp_path / "x", tmp_path / "x" / ".." / "x"])
    with pytest.raises(UsageError, match=r"eval\.json: no such file"):
        read_runs([tmp_path / "none"])
    (tmp_path / "x" / "eval.json").write_text("[1]")
    with pytest.raises(UsageError, match="expected a JSON object"):
        read_runs([tmp_path / "x"])


def test_what_is_not_known_or_of_another_type_is_a_dash(tmp_path: Path) -> None:
    odd = figures(
        overall=None, metrics={"m": "text", "n": {"mean": "x"}, "o": None}, subsets="none", by_k=[{}], cost=3
    )
    page = page_of(make(tmp_path / "r", settings=[1], benchmarks={"bench": odd, "empty": {}}))
    assert "bench – 66.7 4 1 1 – – –" in page.text
    assert "empty – – – – – – – –" in page.text


def test_lines_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    with (run / "bench" / "items.jsonl").open("a") as file:
        file.write("{broken\n")
    (run / "judgments.ledger.db").write_bytes(b"no ledger")
    page = page_of(run)
    assert "Could not be read: run: bench/items.jsonl:5" in page.text
    assert "judgments.ledger.db" in page.text
    assert all(not item["runs"][0]["votes"] for item in page.data["items"])


# --- items ------------------------------------------------------------------------------------------------------


def test_items_have_texts_orders_votes_and_what_the_judge_wrote(tmp_path: Path) -> None:
    items = {item["id"]: item for item in page_of(make(tmp_path / "r")).data["items"]}
    assert {name: item["runs"][0]["outcome"] for name, item in items.items()} == {
        "a": "right", "b": "wrong", "c": "tied", "d": "missing",
    }  # fmt: skip
    assert list(items)[-1] == "a"  # what went wrong is read first
    item, run = items["b"], items["b"]["runs"][0]
    assert (item["prompt"], item["responses"], item["best"]) == ([["user", "query b"]], ["one b", "two"], 0)
    assert [vote["order"] for vote in run["votes"]] == [[0, 1], [1, 0]]
    assert run["votes"][0]["scores"] == [2, 7]
    assert run["votes"][0]["said"] == [
        ["principles", "Principles: b."], ["critique", "Critique: b!"], ["text", "Scores: \\boxed{7, 2}"],
    ]  # fmt: skip
    assert items["d"]["runs"][0]["votes"][0]["error"] == "unparsable: no box"


def test_without_the_kept_texts_verdicts_and_votes_are_there(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    (run / "bench" / "shown.jsonl").unlink()
    items = page_of(run).data["items"]
    assert len(items) == 4
    assert all("prompt" not in item and len(item["runs"][0]["votes"]) == 2 for item in items)


def test_the_choice_takes_every_kind_of_trouble_and_a_draw_of_all() -> None:
    rows = [line(f"right{i}", 1.0) for i in range(1000)]
    rows += [line(f"wrong{i}", 0.0, subset=f"s{i % 2}") for i in range(100)]
    rows += [line("tie", 0.5), line("none", None)]
    chosen = choose(iter(rows), 20)
    kinds = {row["item"]: (outcome(row), row["subset"]) for row in rows}
    trouble = [kinds[name] for name in chosen[::2]]
    assert {kind for kind, _ in trouble} == {"missing", "tied", "wrong"}
    assert abs(sum(place == "s0" for _, place in trouble) - sum(place == "s1" for _, place in trouble)) <= 1
    assert sum(kinds[name][0] == "right" for name in chosen) >= 6
    assert len(set(chosen)) == 20
    assert choose(reversed(rows), 20) == chosen  # whatever order they come in
    assert choose(iter(rows), 8) == chosen[:8]
    assert sorted(choose(iter(rows), 5000)) == sorted(kinds)


def test_what_the_judge_wrote_keeps_its_order() -> None:
    judgment = Judgment("i", (1.0,), text="head P mid C tail", principles="P", critique="C")
    assert list(said(judgment)) == [
        ("text", "head "), ("principles", "P"), ("text", " mid "), ("critique", "C"), ("text", " tail"),
    ]  # fmt: skip
    elsewhere = Judgment("i", (1.0,), text="other", principles="P")
    assert list(said(elsewhere)) == [("principles", "P"), ("text", "other")]


def test_position_confusion_by_hand(tmp_path: Path) -> None:
    # a is right in both orders, b names the other one, c ties, d has no scores; label 0 stands first, then second.
    (run,) = read_runs([make(tmp_path / "r")])
    (found,) = confusions(run, "bench")
    assert (found.n, found.items, found.judgments) == (2, 4, 8)
    assert found.counts == [[1, 1, 1, 1], [1, 1, 1, 1]]
    (run,) = read_runs([make(tmp_path / "s", lines=[line("a", 1.0), line("b", 1.0, label=None), line("c", 1.0, n=1)])])
    assert [c.counts for c in confusions(run, "bench")] == [[[1, 0, 0, 0], [0, 1, 0, 0]]]


# --- safety and size --------------------------------------------------------------------------------------------


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    texts = {**HOSTILE, "markup": MARKUP, "half": "x \ud800 y", "bidi": "a\u202eb\u2066c", "nul": "a\0b"}
    lines = [line(f"{name} {text[:50]}", 0.0, subset=text[:100]) for name, text in texts.items()]
    lines = [json.loads(json.dumps(row).replace("\\ud800", "?")) for row in lines]
    odd = figures(version=MARKUP, licence=MARKUP, metrics={MARKUP: interval(0.5)}, statistics={MARKUP: [MARKUP]})
    odd["subsets"] = [{"subset": text, "accuracy": interval(0.5)} for text in texts.values()]
    plain = page_of(make(tmp_path / "plain", lines=[line("a", 0.0)]), items=400)
    page = page_of(
        make(tmp_path / "r", MARKUP, MARKUP, lines, benchmarks={MARKUP: odd}, settings={"model": MARKUP, MARKUP: 1})
    )
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    allowed = {(tag, name) for tag, attributes in plain.elements for name in attributes}
    assert {(tag, name) for tag, attributes in page.elements for name in attributes} <= allowed
    assert [attributes.get("type") for tag, attributes in page.elements if tag == "script"] == [
        "application/json",
        None,
    ]
    assert page.raw["script"][1] == plain.raw["script"][1]
    assert not set("<>&") & set(page.raw["script"][0])
    assert "</script><script>alert(1)" in page.text  # as text it is there
    content = (tmp_path / "r" / "page.html").read_text(encoding="utf-8")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\0\u200b\ufeff]", content)
    assert len(page.data["items"]) == len(lines)


def test_unseen_characters_are_shown() -> None:
    assert visible("a\u202eb\0c\r\nd\te \ud800") == "a⟦U+202E⟧b⟦U+0000⟧c\nd\te ⟦U+D800⟧"
    assert visible("👩‍👧 مرحبا") == "👩‍👧 مرحبا"


def test_the_policy_names_the_script_and_the_style_and_forbids_all_else(tmp_path: Path) -> None:
    page = page_of(make(tmp_path / "r"))
    (policy,) = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    hashes = [
        base64.b64encode(hashlib.sha256(raw.encode()).digest()).decode()
        for raw in (page.raw["script"][1], page.raw["style"][0])
    ]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes[1]}'; base-uri 'none'; form-action 'none';"
        f" script-src 'sha256-{hashes[0]}'"
    )
    assert not [a for _, a in page.elements if {"style", "href", "src"} & set(a)]
    assert "innerHTML" not in page.raw["script"][1]


def test_the_script_finds_what_it_asks_for(tmp_path: Path) -> None:
    page = page_of(make(tmp_path / "x"), make(tmp_path / "y"))
    asked = set(re.findall(r'get\("([a-z-]+)"\)', page.raw["script"][1]))
    assert {"search", "list", "item", "previous", "next", "run"} <= asked <= set(page.ids)
    keys = {a.get("aria-keyshortcuts") for _, a in page.elements} - {None}
    assert keys == {"/", "j", "k"}
    assert all(f'event.key === "{key}"' in page.raw["script"][1] for key in keys)
    labelled = [tag for tag, _ in page.elements if tag in ("input", "select")]
    assert len(labelled) == sum(tag == "label" for tag, _ in page.elements)


def test_long_texts_are_cut_and_the_page_is_bounded(tmp_path: Path) -> None:
    run, long = make(tmp_path / "r", settings={"judge": "grm", "k": 70}), "long words \0" * 20_000
    items = [Item((Message("user", long),) * 100, (long,) * 40, best=0, id=name) for name in "abcd"]
    keep_shown(run, "bench", items)
    with Ledger(run / "judgments.ledger.db") as ledger:
        ledger.put_all(
            Judgment(name, (1.0, 0.0), sample=s, text=long[:20_000], key=f"{name}{s}")
            for name in "abcd"
            for s in range(70)
        )
    found = embedded(read_runs([run]))
    item = json.loads(found.data)["items"][0]
    texts = [*(text for _, text in item["prompt"]), *item["responses"]]
    assert max(map(len, texts)) <= MOST_TEXT
    assert "232,060 characters left out" in texts[0]  # of 240,000; 60 are the note's
    assert (len(item["prompt"]), item["messages"], len(item["responses"]), item["n"]) == (40, 100, 32, 40)
    votes = item["runs"][0]["votes"]
    assert (len(votes), item["runs"][0]["judgments"], sum("said" in vote for vote in votes)) == (64, 72, 8)
    one = len(found.data.encode()) // 4
    bounded = embedded(read_runs([run]), most_bytes=2 * one + one // 2)
    assert (bounded.shown, bounded.total) == (2, 4)
    assert len(bounded.data.encode()) < 2 * one + one // 2 + 1000
    assert embedded(read_runs([run]), most=3).shown == 3
    assert "3 of 4 items are here" in page_of(run, items=3).text


def test_a_name_leads_nowhere(tmp_path: Path) -> None:
    assert place(tmp_path, "../../x", "items.jsonl") == tmp_path / "__.._x" / "items.jsonl"
    assert place(tmp_path, "..", "a") == tmp_path / "_" / "a"
    assert place(tmp_path, "rm-bench", "a") == tmp_path / "rm-bench" / "a"


# --- pictures ---------------------------------------------------------------------------------------------------


def test_ticks() -> None:
    assert log_ticks(1, 100) == [1, 2, 5, 10, 20, 50, 100]
    assert log_ticks(45, 360) == [50, 100, 200]
    assert log_ticks(7, 8) == [7, 8]
    assert log_ticks(3, 3) == [3]
    assert len(log_ticks(0.001, 1e6)) <= 10
    assert [short(x) for x in (0.05, 12, 1500, 2e6)] == ["0.05", "12", "1.5k", "2M"]


def test_one_point_is_drawn_in_the_middle() -> None:
    svg = curves_svg([(0, [Point(4.0, 1.0, 1.0, 1.0, "said <b>")])], x_label="k", alt="x", whole=True)
    assert "said &lt;b&gt;" in svg
    assert "nan" not in svg
    assert 'd="M190.5 10.0a3.5' in svg  # a circle around (194, 10): the middle of 48..340, and 100 %


def test_pictures_only_with_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "r")
    if importlib.util.find_spec("matplotlib") is not None:
        assert [p.name for p in write_pictures(run)] == ["bench-curves.png", "bench-subsets.png"]
        assert all(p.read_bytes().startswith(b"\x89PNG") for p in run.glob("*.png"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert write_pictures(run) == []
    assert "bench" in page_of(run).text


def test_the_verb(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    found = CliRunner().invoke(app, ["report", str(run), "-o", str(tmp_path / "page.html")])
    assert found.exit_code == 0, found.output
    assert str(tmp_path / "page.html") in found.output
    assert "62.5 [52.5, 72.5]" in Page((tmp_path / "page.html").read_text(encoding="utf-8")).text

"""results/bt-real.* and results/meta-real.* from what `measure_real.py` left in its folder.

python scripts/report_real.py bt DATA
python scripts/report_real.py meta DATA
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure_real import BASE, DEV, TEST, TRAINED, TUNED, is_critique, known_vectors, tuned_panel
from real_data import llmbar, realmistake
from real_meta import (
    FOLDS,
    RULES,
    Scores,
    folds_of,
    head_scores,
    judge_of,
    loss,
    pair_features,
    rule_credits,
    share_scores,
    single_features,
    source_of,
)

from opengrm.items import Item
from opengrm.jsonl import read_rows
from opengrm.judgments import Judgment
from opengrm.reading import read_items
from opengrm.reports.curves import plot_curves
from opengrm.reports.results import write_result
from opengrm.reports.tables import markdown, percent
from opengrm.training.preference_pairs import pair_hits
from opengrm.voting.association import bootstrap, roc_auc
from opengrm.voting.intervals import normal_interval, share_interval
from opengrm.voting.panel import Panel, panel_of

RESULTS = Path(__file__).parents[1] / "results"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bt", "meta", "page"])
    parser.add_argument("data", type=Path, help="the folder that holds the data sets")
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    args = parser.parse_args()
    if args.what == "page":
        page(RESULTS / "meta-real.json")
    else:
        {"bt": report_bt, "meta": report_meta}[args.what](args.data, args.folder)


def as_json(interval: Any) -> Row | None:
    return None if interval is None else dict(interval._asdict())


# --- Bradley-Terry --------------------------------------------------------------------------------------------------


def report_bt(_data: Path, folder: Path) -> None:
    """Accuracy on held-out pairs by source, beside that of the longer and of the shorter response."""
    items = list(read_items(folder / "bt-test.jsonl"))
    scores = {row["item"]: row["scores"] for _, row in read_rows(folder / "bt-verdicts.jsonl")}
    trained = json.loads((folder / "bt" / "bradley_terry.json").read_text(encoding="utf-8"))
    source_I = np.array([item.source["dataset"] for item in items])
    numbers = {cluster: i for i, cluster in enumerate(dict.fromkeys(item.cluster for item in items))}
    cluster_I = np.array([numbers[item.cluster] for item in items])

    def hits(values: Mapping[str, Sequence[float] | None]) -> Any:
        """1, 1/2 for a tie or where a score is missing, 0."""
        found = [values[item.id] for item in items]
        gaps = [
            0.0 if v is None or i.label is None else v[i.label] - v[1 - i.label]
            for i, v in zip(items, found, strict=True)
        ]
        return pair_hits(gaps)

    lengths = {item.id: [float(len(text)) for text in item.responses] for item in items}
    bt_I, longer_I = hits(scores), hits(lengths)
    missing_I = np.array([scores[item.id] is None for item in items])
    rows: list[Row] = []
    for source in ("all", *dict.fromkeys(source_I.tolist())):
        among_I = (source_I == source) | (source == "all")
        valid_I = among_I & ~missing_I
        rows.append(
            {
                "source": source, "n": int(among_I.sum()), "prompts": len(set(cluster_I[among_I].tolist())),
                "missing": int((among_I & missing_I).sum()),
                "bt": as_json(share_interval(bt_I[among_I], None, cluster_I[among_I])),
                "bt_valid": as_json(share_interval(bt_I[valid_I], None, cluster_I[valid_I])),
                "longer": as_json(share_interval(longer_I[among_I], None, cluster_I[among_I])),
                "shorter": as_json(share_interval(1 - longer_I[among_I], None, cluster_I[among_I])),
                "random": 0.5,
                "bt_less_longer": as_json(normal_interval((bt_I - longer_I)[among_I], None, cluster_I[among_I])),
                "bt_less_shorter": as_json(normal_interval((bt_I - 1 + longer_I)[among_I], None, cluster_I[among_I])),
            }
        )  # fmt: skip
    whole = rows[0]
    path = write_result(
        RESULTS / "bt-real.json",
        command="python scripts/measure_real.py bt DATA && python scripts/report_real.py bt DATA",
        headline={
            "accuracy": whole["bt"]["mean"], "low": whole["bt"]["low"], "high": whole["bt"]["high"],
            "longer": whole["longer"]["mean"], "gain_over_longer": whole["bt_less_longer"]["mean"],
            "gain_low": whole["bt_less_longer"]["low"], "gain_high": whole["bt_less_longer"]["high"],
            "pairs": whole["n"],
        },
        rows=rows,
        notes={
            "base": BASE, "trained_on": {key: trained[key] for key in ("examples", "too_long", "steps")},
            "settings": trained["settings"],
            "split": "by hash of the first message; one fifth is held out; intervals are clustered by it",
            "trained_pairs": f"{TRAINED} of the training pairs, an even sample of all sources: what one core could do",
            "missing": "responses that alone are longer than what the model reads have no score, and count 1/2",
        },
    )  # fmt: skip
    cells = [
        {
            "source": row["source"], "pairs": f"{row['n']:,}", "no score": str(row["missing"]),
            "Bradley-Terry % [95 %]": percent(row["bt"]),
            "with a score alone": percent(row["bt_valid"]), "longer wins %": percent(row["longer"]),
            "shorter wins %": percent(row["shorter"]), "less longer": percent(row["bt_less_longer"]),
            "less shorter": percent(row["bt_less_shorter"]),
        }
        for row in rows
    ]  # fmt: skip
    path.with_suffix(".md").write_text(
        BT_PAGE.format(
            table=markdown(cells),
            trained=trained["examples"] - trained["too_long"],
            epochs=trained["settings"]["epochs"],
            tokens=trained["settings"]["max_tokens"],
        )
    )
    print(markdown(cells))


BT_PAGE = """# A Bradley-Terry model on real preferences

all-MiniLM-L6-v2 (22.7 M parameters), all of it fine-tuned on {trained:,} pairs of four sources, {epochs:g} epoch,
conversations cut to {tokens} tokens; measured on held-out prompts. A random choice is right half the time. A pair with
a response of more than {tokens} tokens has no score and counts one half. The last two columns are paired differences.
Intervals are clustered by prompt. See [docs/real-text.md](../docs/real-text.md).

{table}"""


# --- meta RM --------------------------------------------------------------------------------------------------------


def report_meta(data: Path, folder: Path) -> None:
    """Plain and guided votes of all rules and scorers on held-out items, and the scorers themselves."""
    vectors = known_vectors(folder)
    cache = folder / "heads"
    cache.mkdir(exist_ok=True)
    items, judgments = llmbar(data)
    panel, fold_J, fold_I = laid_out(items, judgments)
    kinds = {name: i for i, name in enumerate(sorted({source_of(j) for j in judgments}))}
    kind_J = np.array([kinds[source_of(j)] for j in judgments])
    scorers: dict[str, Scores] = {"training accuracy": share_scores(kind_J, panel.right_J, fold_J)}
    for name, texts, critiques in (("meta RM, no critiques", True, False), ("meta RM", True, True)):
        made = pair_features(items, judgments, vectors, texts=texts, critiques=critiques)
        print(name, made.shape, flush=True)
        scorers[name] = head_scores(made, panel.right_J, fold_J, cache / name.replace(" ", "-").replace(",", ""))
        del made
    critique_J = np.array([float(is_critique(j)) for j in judgments])
    rows: list[Row] = []
    chosen: dict[str, list[str]] = {}
    credits: dict[str, Row] = {}
    set_I = np.array([name.split("/")[0] for name in panel.items])
    cot_J = np.array([float(tuned_panel(j)) for j in judgments])
    parts: dict[str, Any] = {"all": None, "critiques": critique_J}
    if (folder / TUNED).exists():
        parts["CoT"] = cot_J
    for part, used_J in parts.items():
        among_I = np.ones(len(panel.items), dtype=bool) if used_J is None else judged_by(panel, used_J)
        if part == "CoT":  # what the fine-tuned meta RM is tested on
            among_I &= np.isin(fold_I, TEST)
        plain_I = panel.credits("sum", used_J=used_J)
        for name, scores in scorers.items():
            print(part, name, flush=True)
            found, chosen[f"{part}, {name}"] = rule_credits(panel, scores, fold_I, used_J)
            rows += rule_rows(panel, found, plain_I, set_I, among_I, {"panel": part, "scorer": name})
            credits[f"{part}, {name}"] = found
        single_J = best_single(panel, scorers["training accuracy"], fold_J, used_J)
        single_I = panel.credits("sum", used_J=single_J)
        rows += rule_rows(
            panel, {"best single judge and protocol": single_I}, plain_I, set_I, among_I,
            {"panel": part, "scorer": "training accuracy"},
        )  # fmt: skip
        for name in list(scorers)[1:]:
            against = credits[f"{part}, {name}"]["chosen"]
            for other, credit_I in (("best single", single_I), ("training accuracy, chosen rule",
                                    credits[f"{part}, training accuracy"]["chosen"])):  # fmt: skip
                gain = as_json(panel.gain(against, credit_I, among_I))
                rows.append({"panel": part, "scorer": name, "rule": "chosen", "set": "all", "over": other,
                             "n": int(among_I.sum()), "gain": gain})  # fmt: skip
    meta_rows = scorer_rows(panel, judgments, scorers, fold_J)
    if "CoT" in parts:
        meta_rows += scorer_rows(panel, judgments, scorers, fold_J, cot_J * np.isin(fold_J, TEST), "CoT, test folds")
    tuned_rows = tuned(folder, panel, judgments, fold_J, fold_I, set_I)
    mistake_rows = mistakes(data, vectors, cache)
    plain = next(r for r in rows if r["panel"] == "all" and r["set"] == "all" and r["rule"] == "plain")
    guided = next(
        r for r in rows
        if (r["panel"], r["set"], r["scorer"], r["rule"]) == ("all", "all", "meta RM", "chosen") and "over" not in r
    )  # fmt: skip
    path = write_result(
        RESULTS / "meta-real.json",
        command=f"python scripts/measure_real.py vectors{' tune' if tuned_rows else ''} DATA"
        " && python scripts/report_real.py meta DATA",
        headline={
            "plain": plain["accuracy"]["mean"], "guided": guided["accuracy"]["mean"],
            "gain": guided["gain"]["mean"], "gain_low": guided["gain"]["low"], "gain_high": guided["gain"]["high"],
        },
        rows=[
            *({"data": "LLMBar", **r} for r in rows), *({"data": "LLMBar", "what": "scorer", **r} for r in meta_rows),
            *({"data": "LLMBar", "what": "fine-tuned", **r} for r in tuned_rows),
            *({"data": "ReaLMistake", **r} for r in mistake_rows),
        ],
        notes={
            "base": BASE, "folds": FOLDS, "rules": list(RULES), "rule chosen for each fold": chosen,
            "penalty chosen for each fold": {name: s.chosen_F for name, s in scorers.items()},
            "headline": "LLMBar, all verdicts of all judges; the rule and the penalty are chosen on training items",
            "intervals": "95 %, clustered by instruction; a gain is paired, item by item, over the plain vote",
        },
    )  # fmt: skip
    page(path)


def laid_out(items: Mapping[str, Item], judgments: Sequence[Judgment]) -> tuple[Panel, Any, Any]:
    """The panel, and the fold of each judgment and of each of the panel's items."""
    folds = folds_of(items)
    panel = panel_of(judgments, items)
    fold_J = np.array([folds[str(items[j.item].cluster)] for j in judgments])
    fold_I = np.array([folds[str(items[name].cluster)] for name in panel.items])
    return panel, fold_J, fold_I


def seats(panel: Panel) -> int:
    return int(panel.scores_IKN.shape[1])


def judged_by(panel: Panel, used_J: Any) -> Any:
    """Whether an item has any of these judgments."""
    return np.bincount(panel.place_J // seats(panel), weights=used_J, minlength=len(panel.items)) > 0


def rule_rows(panel: Panel, found: Mapping[str, Any], plain_I: Any, set_I: Any, among_I: Any, named: Row) -> list[Row]:
    """A row for each rule, over all items and in each group of sets."""
    rows = []
    for rule, credit_I in found.items():
        for name in ("all", *dict.fromkeys(set_I.tolist())):
            some_I = among_I & ((set_I == name) | (name == "all"))
            if some_I.any():
                rows.append(
                    {
                        **named, "rule": rule, "set": name, "n": int(some_I.sum()),
                        "accuracy": as_json(panel.accuracy(credit_I, some_I)),
                        "gain": as_json(panel.gain(credit_I, plain_I, some_I)),
                    }
                )  # fmt: skip
    return rows


def best_single(panel: Panel, shares: Scores, fold_J: Any, used_J: Any) -> Any:
    """1 for the verdicts of the judge and protocol that, of those an item has, was right most often in training."""
    meta_J = shares.held_out(fold_J)
    meta_J = meta_J if used_J is None else np.where(used_J > 0, meta_J, -np.inf)
    item_J = panel.place_J // seats(panel)
    best_I = np.full(len(panel.items), -np.inf)
    np.maximum.at(best_I, item_J, meta_J)
    return ((meta_J == best_I[item_J]) & np.isfinite(meta_J)).astype(float)


def scorer_rows(
    panel: Panel, judgments: Sequence[Judgment], scorers: Mapping[str, Scores], fold_J: Any, used_J: Any = None,
    among: str = "all",
) -> list[Row]:  # fmt: skip
    """How well each scorer tells right verdicts from wrong ones, over all and by judge."""
    used_J = np.ones(len(judgments)) if used_J is None else used_J
    judge_J = np.array([judge_of(j) for j in judgments])
    cluster_J = panel.cluster_I[panel.place_J // seats(panel)]
    rows = []
    for name, scores in scorers.items():
        meta_J = scores.held_out(fold_J)
        for judge in ("all", *sorted(set(judge_J.tolist()))):
            rows_J = ~np.isnan(panel.right_J) & (used_J > 0) & ((judge_J == judge) | (judge == "all"))
            right, meta, cluster = panel.right_J[rows_J], meta_J[rows_J], cluster_J[rows_J]
            hits = ((meta > 0) == (right > 0.5)).astype(float)
            rows.append(
                {
                    "scorer": name, "among": among, "judge": judge, "n": int(rows_J.sum()),
                    "right": float(right.mean()),
                    "auc": as_json(bootstrap(roc_auc, [(meta, right)], cluster, resamples=200)),
                    "accuracy": as_json(share_interval(hits, None, cluster)), "loss": loss(meta, right),
                }
            )  # fmt: skip
            print(name, judge, rows[-1]["auc"], flush=True)
    return rows


def tuned(
    folder: Path, panel: Panel, judgments: Sequence[Judgment], fold_J: Any, fold_I: Any, set_I: Any
) -> list[Row]:
    """The fine-tuned meta RM on its panel: the rule is chosen on one fold, the rest is on the two test folds."""
    path = folder / TUNED
    if not path.exists():
        return []
    known = json.loads(path.read_text(encoding="utf-8"))
    used_J = np.array([float(tuned_panel(j)) for j in judgments])
    names = [f"{j.item}|{j.model}|{j.sample}" for j in judgments]
    meta_J = np.array(
        [known.get(n, np.nan) if u else np.nan for n, u in zip(names, used_J, strict=True)], dtype=np.float64
    )
    there_I = judged_by(panel, used_J)
    dev_I, test_I = there_I & (fold_I == DEV), there_I & np.isin(fold_I, TEST)
    credit = {rule: panel.credits(how, meta_J, used_J) for rule, how in RULES.items()}
    best = max(RULES, key=lambda rule: credit[rule][dev_I].mean())
    credit["chosen"] = credit[best]
    named = {"panel": "CoT", "scorer": "fine-tuned meta RM", "chosen": best}
    rows = rule_rows(panel, credit, credit["plain"], set_I, test_I, named)
    rows_J = (used_J > 0) & np.isin(fold_J, TEST) & ~np.isnan(panel.right_J) & ~np.isnan(meta_J)
    right, meta, cluster = (
        panel.right_J[rows_J],
        meta_J[rows_J],
        panel.cluster_I[panel.place_J[rows_J] // seats(panel)],
    )
    auc = as_json(bootstrap(roc_auc, [(meta, right)], cluster))
    return [*rows, {"scorer": "fine-tuned meta RM", "judge": "all", "n": int(rows_J.sum()), "auc": auc,
                    "right": float(right.mean()), "loss": loss(meta, right)}]  # fmt: skip


def mistakes(data: Path, vectors: Mapping[str, Any], cache: Path) -> list[Row]:
    """ReaLMistake: five samples of one judge, and the fifteen of all three."""
    items, judgments = realmistake(data)
    kinds = {name: i for i, name in enumerate(sorted({(j.model, items[j.item].source["dataset"]) for j in judgments}))}
    kind_J = np.array([kinds[(j.model, items[j.item].source["dataset"])] for j in judgments])
    rows: list[Row] = []
    own = [replace(j, item=f"{j.item}|{j.model}") for j in judgments]
    each = {j.item: replace(items[j.item.split("|")[0]], id=j.item) for j in own}
    panel, fold_J, fold_I = laid_out(items, judgments)
    scorers = {
        "training accuracy": share_scores(kind_J, panel.right_J, fold_J),
        "meta RM, no critiques": head_scores(
            single_features(items, judgments, vectors, critiques=False), panel.right_J, fold_J
        ),
        "meta RM": head_scores(single_features(items, judgments, vectors, critiques=True), panel.right_J, fold_J),
    }
    rows += scorer_rows(panel, judgments, scorers, fold_J)
    for part, judged, known in (("15 of three judges", judgments, items), ("5 of one judge", own, each)):
        panel, fold_J, fold_I = laid_out(known, judged)
        plain_I, set_I = panel.credits("sum"), np.array([known[name].source["dataset"] for name in panel.items])
        for name, scores in scorers.items():
            found, _ = rule_credits(panel, scores, fold_I)
            rows += rule_rows(panel, found, plain_I, set_I, plain_I >= 0, {"panel": part, "scorer": name})
        if judged is judgments:
            single_J = best_single(panel, scorers["training accuracy"], fold_J, None)
            single = {"best single judge": panel.credits("sum", used_J=single_J)}
            rows += rule_rows(panel, single, plain_I, set_I, plain_I >= 0,
                              {"panel": part, "scorer": "training accuracy"})  # fmt: skip
    return rows


def page(path: Path) -> None:
    """The page and the picture beside the result, from its file."""
    result = json.loads(path.read_text(encoding="utf-8"))
    every, head = result["rows"], result["headline"]
    mistake_rows = [r for r in every if r["data"] == "ReaLMistake"]
    scorers = [r for r in every if r.get("what") == "scorer"]
    tuned_rows = [r for r in every if r.get("what") == "fine-tuned"]
    rows = [r for r in every if r["data"] == "LLMBar" and "what" not in r]

    def table(some: Sequence[Row]) -> str:
        cells = [
            {
                "panel": r.get("panel", "CoT"), "scores": r["scorer"] if r["rule"] != "plain" else "-",
                "rule": r["rule"], "items": f"{r['n']:,}", "accuracy % [95 %]": percent(r["accuracy"]),
                "gain over plain [95 %]": percent(r["gain"]),
            }
            for r in some
            if "accuracy" in r and "rule" in r and (r["rule"] != "plain" or r["scorer"] == "training accuracy")
        ]  # fmt: skip
        return markdown(cells)

    whole = [r for r in rows if r["set"] == "all" and "over" not in r]
    over = [
        {"panel": r["panel"], "scores": r["scorer"], "over": r["over"], "gain [95 %]": percent(r["gain"])}
        for r in rows if "over" in r
    ]  # fmt: skip
    auc = [
        {"scores": r["scorer"], "judge": r["judge"], "verdicts": f"{r['n']:,}", "right %": f"{100 * r['right']:.1f}",
         "AUC % [95 %]": percent(r["auc"]), "accuracy at logit 0 %": percent(r["accuracy"]),
         "loss": f"{r['loss']:.3f}"}
        for r in scorers
    ]  # fmt: skip
    sets = [r for r in rows if r["set"] != "all" and r["rule"] in ("plain", "chosen") and r["panel"] == "all"]
    set_cells = [
        {"sets": r["set"], "scores": r["scorer"] if r["rule"] != "plain" else "-", "rule": r["rule"],
         "items": f"{r['n']:,}", "accuracy % [95 %]": percent(r["accuracy"]), "gain [95 %]": percent(r["gain"])}
        for r in sets if r["rule"] == "chosen" or r["scorer"] == "training accuracy"
    ]  # fmt: skip
    mistake = [r for r in mistake_rows if "rule" in r and r["set"] == "all"]
    mistake_auc = [
        {"scores": r["scorer"], "judge": r["judge"], "verdicts": f"{r['n']:,}", "AUC % [95 %]": percent(r["auc"])}
        for r in mistake_rows if "judge" in r
    ]  # fmt: skip
    curves: dict[str, list[Row]] = {}
    for r in whole:
        if r["panel"] == "all" and r["rule"].startswith("top "):
            curves.setdefault(r["scorer"], []).append({"k": int(r["rule"][4:]), "accuracy": r["accuracy"]})
    levels = {
        r["rule"]: r["accuracy"] for r in whole
        if r["panel"] == "all" and r["scorer"] == "training accuracy"
        and r["rule"] in ("plain", "best single judge and protocol")
    }  # fmt: skip
    picture = plot_curves(
        path.with_suffix(".png"),
        curves,
        levels=levels,
        title="LLMBar: votes of the k verdicts with the highest scores",
    )
    tuned_auc = [
        {"scores": r["scorer"], "verdicts": f"{r['n']:,}", "AUC % [95 %]": percent(r["auc"]),
         "loss": f"{r['loss']:.3f}"}
        for r in tuned_rows if "auc" in r
    ]  # fmt: skip
    fine = ""
    if tuned_rows:
        fine = f"## LLMBar, CoT critiques: fine-tuned\n\n{markdown(tuned_auc)}\n"
        fine += table([r for r in tuned_rows if r.get("set") == "all"]) + "\n"
    gain = f"{100 * head['gain']:.1f} points [{100 * head['gain_low']:.1f}, {100 * head['gain_high']:.1f}]"
    path.with_suffix(".md").write_text(
        f"""# Guided votes of real judges

Votes of all verdicts on LLMBar, guided by the meta RM, are better than plain ones by {gain}.
The second table compares them with what reads no text. Held-out items, five folds by instruction; intervals are
clustered by instruction. See [docs/real-text.md](../docs/real-text.md) for what is read and how rules are chosen.

![accuracy against k]({picture.name})

## LLMBar: rules

{table(whole)}
## LLMBar: the chosen rule against other choices

{markdown(over)}
## LLMBar: by group of sets

{markdown(set_cells)}
## LLMBar: which verdicts are right

{markdown(auc)}
{fine}## ReaLMistake

{markdown(mistake_auc)}
{table(mistake)}""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()

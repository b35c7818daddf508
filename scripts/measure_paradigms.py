"""Train the six paradigms in RubricWorld on the same items, from one base; measure them side by side.

    python scripts/measure_spct.py main-0                      the GRM: the full recipe
    python scripts/measure_paradigms.py llm cloud bt pair      train the others, resumable; about an hour of one core
    python scripts/measure_paradigms.py judge                  judge the held-out items with all
    python scripts/measure_paradigms.py time                   time them on the same pairs, one after the other
    python scripts/report_paradigms.py                         results/paradigms.json and results/paradigms.md

All start from nano-base and learn from the 6,000 labelled items of main-0, those of its RFT and those of its RL;
judges that take no single responses leave them out. Sampled judgments are at temperature 1, as in the recipe.

- llm: nano-base has never named a best response, so it is first fine-tuned on its own GRM judgments rewritten as the
  judge's (`worlds/judge_rows.py`: what it thinks, unfiltered, in the other form); then RFT and RL as for the GRM.
- grm-solo: the GRM, shown one response at a time.
- tokenprob: the judge's model, read otherwise.
- cloud: the oracle of its critiques is nano-base itself, since the GRM had no other teacher either.
- bt, pair: six passes over all pairs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure_spct import RECIPE, held_out

from opengrm.engines import open_engine
from opengrm.engines.base import Sampling
from opengrm.engines.classifier import Classifier
from opengrm.items import Item
from opengrm.judges.base import PARADIGMS, Judge, Paradigm
from opengrm.judges.bradley_terry import open_bradley_terry
from opengrm.judges.cloud import CLoud, open_head
from opengrm.judges.grm import GRM
from opengrm.judges.llm import LLMJudge
from opengrm.judges.pair_rm import both_orders, open_pair_rm
from opengrm.judges.token_prob import TokenProb
from opengrm.ledger import Ledger
from opengrm.reading import read_items
from opengrm.templates import get_template
from opengrm.templates.cloud import CloudTemplate
from opengrm.templates.compact import Compact
from opengrm.templates.forms import forms_of
from opengrm.templates.pair import PairTemplate
from opengrm.training import cloud, sft, spct
from opengrm.training.bradley_terry import BradleyTerrySettings, train_bradley_terry
from opengrm.training.critiques import Writer, oracle_stage, own_stage
from opengrm.training.pair_rm import PairSettings, train_pair_rm
from opengrm.training.spct_config import read_config
from opengrm.training.stage import write_json
from opengrm.voting.intervals import share_interval
from opengrm.voting.revote import Labels, revote
from opengrm.worlds.judge_rows import judge_rows

BASE = "nano-base"
SOLO = "grm-solo"  # the GRM, shown one response at a time
JUDGED = (*PARADIGMS, SOLO)
PAIRS, VOTES, MAX_TOKENS, BATCH = 1000, 32, 192, 512
RATE = 1e-3  # of everything that is fine-tuned, as in the recipe
PASSES = 6  # of bt and pair over their pairs
TIMED, ROUNDS = 300, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps: dict[str, Callable[[Path, Path], None]] = {
        "llm": llm, "cloud": train_cloud, "bt": bt, "pair": pair, "judge": judge, "time": timed,
    }  # fmt: skip
    parser.add_argument("steps", nargs="+", choices=list(steps))
    parser.add_argument("--folder", type=Path, default=Path("runs/paradigms"))
    parser.add_argument("--grm", type=Path, default=Path("runs/spct/main-0"), help="the finished run of the recipe")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for step in args.steps:
        steps[step](args.folder, args.grm)


# --- training ---------------------------------------------------------------------------------------------------


def trained_on(grm: Path, *, least: int = 1) -> Iterator[Item]:
    """The labelled items that the GRM's run learned from, those of `least` responses or more."""
    for name in ("rft", "rl"):
        yield from (item for item in read_items(grm / "data" / f"{name}.jsonl") if item.n >= least)


def llm(folder: Path, grm: Path) -> None:
    """The judge's form, then RFT and RL as in the recipe."""
    config = read_config(RECIPE, seed=0)
    items = {item.id: item for item in read_items(grm / "data" / "rft.jsonl")}
    with Ledger(grm / "rft" / "collect.ledger.db", create=False) as ledger:
        rows = list(judge_rows(ledger.judgments(), items))
    print(f"cold start: {len(rows):,} rows", flush=True)
    cold = folder / "llm" / "cold"
    settings = sft.SFTSettings(learning_rate=RATE, batch=64, micro_batch=64, steps=300)
    sft.train(BASE, lambda: rows, cold, settings, template="compact-judge", on_step=progress)
    pairs = {"pairs": config.data.test["pairs"]}
    config = replace(
        config, base=str(cold / "model"), template="compact-judge", data=replace(config.data, test=pairs),
        engine=replace(config.engine, batch=BATCH),
    )  # fmt: skip
    spct.run(config, folder / "llm" / "run", stages=spct.STAGES[: spct.STAGES.index("rl") + 1])


def train_cloud(folder: Path, grm: Path) -> None:
    """The four stages of CLoud; nano-base is the oracle."""
    place, template = folder / "cloud", CloudTemplate("compact-cloud")
    place.mkdir(parents=True, exist_ok=True)
    items = place / "items.jsonl"
    if not items.exists():
        write_items(items, trained_on(grm))
    greedy = Sampling(temperature=0.0, max_tokens=MAX_TOKENS)
    base = Writer(BASE, lambda: open_engine("transformers", BASE, batch=BATCH), greedy)
    print(oracle_stage(items, place / cloud.ORACLE, template, base, dev_share=0), flush=True)
    settings = sft.SFTSettings(learning_rate=RATE, batch=64, micro_batch=64, steps=120)
    print(cloud.critic_stage(BASE, place, template, settings, steps=120, on_step=of_total), flush=True)
    critic = place / cloud.CRITIC / "model"
    own = Writer("critic", lambda: open_engine("transformers", str(critic), batch=BATCH), greedy)
    print(own_stage(items, place / cloud.OWN, template, own), flush=True)
    joint = cloud.CloudSettings(learning_rate=RATE, batch=64, micro_batch=32, epochs=2, dev_share=0)
    print(cloud.joint_stage(place, template, joint, on_step=of_total), flush=True)


def bt(folder: Path, grm: Path) -> None:
    """Bradley-Terry on the same items."""
    settings = BradleyTerrySettings(learning_rate=RATE, batch=64, micro_batch=64, epochs=PASSES, dev_share=0)
    train_bradley_terry(trained_on(grm), BASE, folder / "bt", settings, on_progress=said)


def pair(folder: Path, grm: Path) -> None:
    """PairRM on the same items."""
    settings = PairSettings(learning_rate=RATE, batch=64, micro_batch=64, epochs=PASSES, dev_share=0)
    train_pair_rm(trained_on(grm), BASE, folder / "pair", None, settings, on_progress=said)


def reported(folder: Path, name: str) -> dict[str, Any]:
    """What the training of a scalar judge wrote down."""
    return json.loads((folder / name / {"bt": "bradley_terry.json", "pair": "pair_rm.json"}[name]).read_text())


def write_items(path: Path, items: Iterable[Item]) -> None:
    from opengrm.jsonl import write_rows

    write_rows(path, (item.to_json() for item in items))


def progress(step: int, last: Mapping[str, float]) -> None:
    if step % 20 == 0:
        print(step, last.get("loss"), flush=True)


def of_total(step: int, total: int, last: Mapping[str, float]) -> None:
    if step % 20 == 0:
        print(f"{step}/{total} {dict(last)}", flush=True)


def said(step: int, total: int, words: str) -> None:
    if step % 20 == 0:
        print(f"{step}/{total} {words}", flush=True)


# --- judging ----------------------------------------------------------------------------------------------------


def sets() -> dict[str, list[Item]]:
    """The held-out items; of the pairs, half of those that SPCT is measured on."""
    found = held_out()
    return {**found, "pairs": found["pairs"][:PAIRS]}


def paradigm_of(name: str) -> Paradigm:
    """What kind of judge it is."""
    return PARADIGMS[name.removesuffix("-solo")]


def models(folder: Path, grm: Path) -> dict[str, str]:
    """The trained model of each paradigm: a folder."""
    judge = str(folder / "llm" / "run" / "rl")
    return {
        "grm": str(grm / "rl"), SOLO: str(grm / "rl"), "llm": judge, "tokenprob": judge,
        "cloud": str(folder / "cloud" / cloud.MODEL),
        "bt": str(folder / "bt" / "model"), "pair": str(folder / "pair" / "model"),
    }  # fmt: skip


def opened(name: str, model: str, heat: float, ledger: Ledger | None, stack: ExitStack, *, single: bool) -> Judge:
    """A judge as `opengrm judge --judge NAME` opens it.

    Args:
        single: for items of one response, which the GRM shows in another form.
    """
    sampling = Sampling(temperature=heat, max_tokens=MAX_TOKENS)
    if name == "bt":
        return open_bradley_terry(model, ledger, stack)
    if name == "pair":
        return open_pair_rm(model, ledger, stack)
    engine = stack.enter_context(
        closing(open_engine("transformers", f"{model}/critic" if name == "cloud" else model, batch=BATCH))
    )
    if name == "cloud":
        template = CloudTemplate("compact-cloud")
        return CLoud(engine, open_head(f"{model}/head", template, stack), template, sampling, ledger, window=BATCH)
    if name == SOLO:
        return GRM(engine, Compact("compact-binary" if single else "compact-solo"), sampling, ledger=ledger)
    if name == "grm":
        forms = forms_of(get_template("compact"))
        template = forms.single if single else forms.joint
        return GRM(engine, template, sampling, ledger=ledger)
    kind = LLMJudge if name == "llm" else TokenProb
    return kind(engine, Compact("compact-judge"), sampling, ledger=ledger)


def judge(folder: Path, grm: Path) -> None:
    """Greedy (both orders of a pair) and 32 sampled judgments of every held-out item that a paradigm takes."""
    for name, model in models(folder, grm).items():
        if (folder / "judged" / f"{name}.json").exists():
            continue
        paradigm, rows, positions = paradigm_of(name), [], {}
        (folder / "judged").mkdir(exist_ok=True)
        kept, known = folder / "judged" / f"{name}.ledger.db", grm / "evaluation" / "rl.ledger.db"
        if name == "grm" and known.exists() and not kept.exists():
            shutil.copy(known, kept)  # the same judgments under the same keys
        with Ledger(kept) as ledger:
            for kind, items in sets().items():
                if not all(paradigm.takes(item.n) for item in items):
                    continue
                labels = Labels.of(items)
                for heat, k in [(0.0, 2 if kind == "pairs" else 1), (1.0, VOTES)] if paradigm.sampled else [(0.0, 1)]:
                    with ExitStack() as stack:
                        judging = opened(name, model, heat, ledger, stack, single=kind == "singles")
                        made = [j for _, judgments in judging.judge(items, k) for j in judgments]
                    found = revote(made, labels, ks=[1, 8, 32] if k == VOTES else [1], how=paradigm.reduce)
                    how = "greedy" if heat == 0 else "votes"
                    rows += [{"judge": name, "set": kind, "how": how, **row} for row in found.rows]
                    if kind == "pairs":
                        positions[how] = found.positions
                print(name, kind, [(r["how"], r["k"], (r["accuracy"] or {}).get("mean")) for r in rows], flush=True)
        write_json(folder / "judged" / f"{name}.json", {"rows": rows, "positions": positions})
    (folder / "judged" / "one-pass.json").write_text(json.dumps(one_pass(models(folder, grm)["pair"])))


def one_pass(model: str) -> dict[str, float]:
    """How often PairRM's two passes, one in each order, prefer the same response: what the sum of both hides."""
    items = sets()["pairs"]
    with Classifier(model) as classifier:
        template = PairTemplate(classifier.pair_template or "pair-compact")
        asked = [shown for i in items for shown in both_orders(template, i.prompt, *i.responses, None)]
        logits = [reading.logit or 0.0 for reading in classifier.read(asked, [i.prompt for i in items for _ in "ab"])]
    import numpy as np

    same = [float((a > 0) == (b < 0)) for a, b in zip(logits[::2], logits[1::2], strict=True)]
    interval = share_interval(np.array(same))
    assert interval is not None
    return dict(interval._asdict())


def timed(folder: Path, grm: Path) -> None:
    """Seconds of one verdict on the same pairs: greedy, 8 votes and 32, each judge in turn, three rounds."""
    items, rows = sets()["pairs"][:TIMED], []
    for round_number in range(ROUNDS):
        for name, model in models(folder, grm).items():
            for heat, k in [(0.0, 1), (1.0, 8), (1.0, 32)] if paradigm_of(name).sampled else [(0.0, 1)]:
                if k == 32 and round_number:
                    continue
                with ExitStack() as stack:
                    judging = opened(name, model, heat, None, stack, single=False)
                    for _ in judging.judge(items[:8], 1):  # what is compiled or loaded on first use
                        pass
                    started = time.perf_counter()
                    made = [j for _, judgments in judging.judge(items, k) for j in judgments]
                    seconds = time.perf_counter() - started
                tokens = sum((j.prompt_tokens or 0) + (j.completion_tokens or 0) for j in made)
                rows.append({"judge": name, "round": round_number, "k": k, "seconds": seconds / len(items),
                             "tokens": tokens / len(items)})  # fmt: skip
                print(rows[-1], flush=True)
    write_json(folder / "timed.json", {"items": len(items), "rows": rows})


if __name__ == "__main__":
    main()

"""Measure SPCT in RubricWorld: three seeds of the full recipe, the ablations of the paper's Table 4, and its Table 1.

    python scripts/measure_spct.py main-0 main-1 main-2     training and evaluation, resumable; hours on one core
    python scripts/measure_spct.py no-principles ...        an ablation each, from the runs of main-0
    python scripts/measure_spct.py size-64 size-128         a shorter recipe on bases of two widths

`scripts/report_spct.py` makes the results of whatever has been measured.

Runs are independent processes on one folder each (set OMP_NUM_THREADS=1 when two run), but ablations copy what they
share with main-0, so that comes first.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opengrm.engines.base import Sampling
from opengrm.engines.checkpoints import find_model
from opengrm.items import Item
from opengrm.judges.meta import open_meta_rm
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reports.results import commit, machine, versions
from opengrm.templates import get_template
from opengrm.templates.forms import forms_of
from opengrm.training.evaluation import EvaluationSettings, evaluate, judge_all
from opengrm.training.spct import STAGES, Stage, run
from opengrm.training.spct_config import Config, World, read_config
from opengrm.training.stage import write_json
from opengrm.voting.correctness import correct, label_of
from opengrm.voting.revote import Labels, revote
from opengrm.worlds.rubric import generate_items

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "rubric-world.toml"
SEEDS = (0, 1, 2)
WIDTHS = (64, 128)  # 128 is nano-base
ABLATION_ITEMS = 500


@dataclass(frozen=True)
class Ablation:
    """One row of the paper's Table 4, or of a grid.

    Attributes:
        change: the recipe's configuration, changed.
        model: what is measured, "rft" or "rl".
        copied: what it shares with main-0.
    """

    change: Callable[[Config], Config]
    model: str
    copied: tuple[str, ...] = ()


def _rft(**values: Any) -> Callable[[Config], Config]:
    return lambda c: replace(c, rft=replace(c.rft, **values))


def _grpo(**values: Any) -> Callable[[Config], Config]:
    return lambda c: replace(c, rl=replace(c.rl, grpo=replace(c.rl.grpo, **values)))


SAMPLED = ("rft/collect.ledger.db",)
TUNED = ("rft",)
ABLATIONS: dict[str, Ablation] = {
    "full": Ablation(lambda c: c, "rl", TUNED),
    "no-principles": Ablation(lambda c: replace(c, template=f"{c.template}+no-principles"), "rl"),
    "no-rejective": Ablation(_rft(non_hinted=False, hinted=False), "rl"),
    "no-hinted": Ablation(_rft(hinted=False), "rft", SAMPLED),
    "no-non-hinted": Ablation(_rft(non_hinted=False), "rft", SAMPLED),
    "no-instructions": Ablation(lambda c: replace(c, data=replace(c.data, instructions=None)), "rft", SAMPLED),
    "beta-0": Ablation(_grpo(beta=0.0), "rl", TUNED),
    "beta-0.01": Ablation(_grpo(beta=0.01), "rl", TUNED),
    "beta-0.02": Ablation(_grpo(beta=0.02), "rl", TUNED),
    "g-2": Ablation(_grpo(generations=2), "rl", TUNED),
    "g-8": Ablation(_grpo(generations=8), "rl", TUNED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(f"main-{seed}" for seed in SEEDS), *ABLATIONS, "principles", *(f"size-{width}" for width in WIDTHS)]
    parser.add_argument("names", nargs="+", choices=names)
    parser.add_argument("--stage", nargs="*", choices=STAGES, default=list(STAGES), help="of main runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/spct"))
    args = parser.parse_args()
    for name in args.names:
        if name.startswith("main-"):
            main_run(args.folder, int(name[5:]), args.stage)
        elif name.startswith("size-"):
            size_run(args.folder, int(name[5:]))
        elif name == "principles":
            principles(args.folder)
        else:
            ablation(args.folder, name)


# --- runs -------------------------------------------------------------------------------------------------------


def main_run(folder: Path, seed: int, stages: Sequence[Stage]) -> None:
    """One seed of the recipe, and its models on the large held-out sets."""
    config, place = read_config(RECIPE, seed=seed), folder / f"main-{seed}"
    about = {"versions": versions(), "machine": machine(), "commit": commit()}
    # The recipe's own, smaller evaluation is timed with the first seed; its judgments are used again here.
    run(config, place, stages=[s for s in stages if seed == 0 or s != "evaluate"], about=about)
    if "evaluate" not in stages or (place / "measured.json").exists():
        return
    models = {"rft": str(place / "rft" / "model"), "rl": str(place / "rl")}
    if seed == 0:
        models = {"base": config.base, **models}
    settings = replace(
        config.evaluation, votes={} if seed == 0 else config.evaluation.votes, guided=("base", "rl"), k_meta=(1, 8, 16)
    )
    found = measured(models, held_out(), config, place, settings, meta=place / "meta" / "model")
    write_json(place / "measured.json", found)


def size_run(folder: Path, width: int) -> None:
    """RFT and the ablations' shorter RL on a base of this width, and what 500 pairs say of both ends."""
    place, config = folder / f"size-{width}", shorter(read_config(RECIPE, seed=0))
    trained = folder / "full" / "rl"
    if width != 128:
        base, trained = folder / f"nano-{width}" / "faulty", place / "rl"
        if not base.exists():
            raise SystemExit(
                f"{base} is not there: python scripts/pretrain_nano.py --width {width} --output {base.parent} makes it"
            )
        config = replace(config, base=str(base))
        run(config, place, stages=STAGES[: STAGES.index("rl") + 1])
    elif not trained.exists():
        raise SystemExit(f"{trained} is not there: run full first")
    pairs = {"pairs": list(generate_items(ABLATION_ITEMS, split="test"))}
    settings = replace(config.evaluation, votes={}, k_meta=())
    found = measured({"base": config.base, "rl": str(trained)}, pairs, config, place, settings)
    write_json(place / "measured.json", {**found, "parameters": parameters(find_model(config.base)[0])})


def parameters(checkpoint: Path) -> int:
    """How many numbers the weights of a checkpoint are."""
    from safetensors import safe_open

    total = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            names = file.keys()
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def held_out() -> dict[str, list[Item]]:
    """The held-out sets: those of the recipe, longer (the items of a smaller set are the first of a larger one)."""
    return {
        "pairs": list(generate_items(2000, split="test")),
        "lists": list(generate_items(200, n=(3, 6), split="test", seed=1)),
        "singles": list(generate_items(200, n=1, split="test", seed=2, binary=True)),
    }


def measured(
    models: Mapping[str, str], sets: Mapping[str, Sequence[Item]], config: Config, place: Path,
    settings: EvaluationSettings, meta: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`evaluate` with this run's meta RM, if there is one; batches of 512 are a sixth faster than the default here."""
    config = replace(config, engine=replace(config.engine, batch=512))
    return evaluate(
        models, sets, config.open, forms_of(get_template(config.template)),
        place / "evaluation", settings,
        open_meta=None if meta is None else lambda ledger, stack: open_meta_rm(str(meta), None, ledger, stack),
        say=lambda line: print(line, flush=True),
    )  # fmt: skip


def shorter(config: Config) -> Config:
    """The recipe with a shorter RL stage, on pairs alone and without the too-easy filter: for ten runs of it."""
    grpo = replace(config.rl.grpo, steps=60, batch=128)
    data = replace(config.data, rl=World(count=2000, seed=3))
    return replace(config, data=data, rl=replace(config.rl, reference=None, grpo=grpo))


def ablation(folder: Path, name: str) -> None:
    """Train one ablation and measure it, its RFT model as well where that is a row of its own."""
    chosen, place, shared = ABLATIONS[name], folder / name, folder / "main-0"
    config = chosen.change(shorter(read_config(RECIPE, seed=0)))
    for part in chosen.copied:
        target = place / part
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (shared / part).is_dir() else shutil.copy
            copy(shared / part, target)
    last = STAGES.index("tune" if chosen.model == "rft" else "rl")
    run(config, place, stages=STAGES[: last + 1])
    models = {"rft": str(place / "rft" / "model"), "rl": str(place / "rl")}
    wanted = {chosen.model, "rft"} if name == "no-rejective" else {chosen.model}
    pairs = {"pairs": list(generate_items(ABLATION_ITEMS, split="test"))}
    settings = replace(config.evaluation, k=8, votes={}, k_meta=())
    found = measured({m: path for m, path in models.items() if m in wanted}, pairs, config, place, settings)
    write_json(place / "measured.json", found)


def principles(folder: Path) -> None:
    """The paper's Table 1 for the base and the trained GRM: whose principles, and what they are worth."""
    config, place = read_config(RECIPE, seed=0), folder / "principles"
    place.mkdir(parents=True, exist_ok=True)
    items = list(generate_items(ABLATION_ITEMS, split="test", principles=True))
    labels = Labels.of(items)
    sampling = Sampling(temperature=config.evaluation.temperature, max_tokens=config.evaluation.max_tokens)
    forms = {name: forms_of(get_template(f"compact{flag}")) for name, flag in
             (("none", "+no-principles"), ("self", ""), ("given", "+principles"))}  # fmt: skip
    rows = []
    for model, checkpoint in (("base", config.base), ("rl", str(folder / "main-0" / "rl"))):
        engine = config.open(checkpoint)
        with Ledger(place / f"{model}.ledger.db") as ledger:

            def judged(
                some: Iterable[Item], kind: str, engine: Any = engine, ledger: Ledger = ledger
            ) -> list[tuple[Item, list[Judgment]]]:
                return judge_all(some, engine, forms[kind], sampling, 4, ledger)

            own = judged(items, "self")
            filtered = [replace(item, principles=kept) for item, js in own if (kept := kept_principles(item, js))]
            sources = {
                "no principles": judged(items, "none"),
                "self-generated": own,
                # The paper's filter knows the test label: an oracle. Where no sample is right, the item's own stay.
                "filtered": [*judged(filtered, "given"), *(p for p in own if not kept_principles(*p))],
                "true": judged(items, "given"),
            }
        engine.close()
        for source, found in sources.items():
            votes = revote((j for _, js in found for j in js), labels, ks=[1, 4], pool=True)
            rows += [{"model": model, "principles": source, **row} for row in votes.rows]
        rows[-1]["filtered_items"] = len(filtered)
    write_json(place / "measured.json", {"rows": rows})


def kept_principles(item: Item, judgments: Iterable[Judgment]) -> tuple[str, ...]:
    """The principles of the first judgment whose ranking is right; empty where none is."""
    label = label_of(item)
    for judgment in judgments:
        if label is not None and judgment.scores is not None and correct(judgment.scores, label):
            return tuple((judgment.principles or "").split(", "))
    return ()


if __name__ == "__main__":
    main()

"""The whole of SPCT in a row, from one TOML file: base -> RFT -> RL -> meta RM -> evaluation.

    run(spct_config.read_config("recipes/rubric-world.toml"), Path("runs/rubric-world"))

Seven stages, each of which leaves its result in the run's folder, is done once, and goes on where it was killed:

    data      data/*.jsonl                     items of RubricWorld, where the file asks for them
    collect   rft/kept.jsonl, collect.json     trajectories of the base, kept or dropped (`rft.py`)
    tune      rft/model/                       rejective fine-tuning
    rl        rl/                              GRPO from the RFT model (`rl.py`)
    fresh     meta/fresh.ledger.db             judgments of the trained GRM for the meta RM
    meta      meta/model/                      the meta RM (`meta_rm.py`)
    evaluate  evaluation.json                  every model on the held-out items (`evaluation.py`)

`spct.json` holds the configuration and how long each stage took. A stage with a `[launch]` line runs as a command of
its own behind that launcher, e.g. `accelerate launch --config_file fsdp2.yaml`: in each of its processes it is the
same function on the same folder. What only one process can do, the too-easy filter, is done before.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from opengrm.engines import Sampling
from opengrm.engines.checkpoints import find_model
from opengrm.errors import UsageError
from opengrm.items import Item, content_hash
from opengrm.jsonl import write_rows
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reading import read_items
from opengrm.templates import get_template
from opengrm.templates.forms import Forms, forms_of
from opengrm.training import evaluation, rft, rl
from opengrm.training.spct_config import Config, Tasks, World
from opengrm.training.stage import Pace, read_json, write_json

Stage = Literal["data", "collect", "tune", "rl", "fresh", "meta", "evaluate"]
STAGES: tuple[Stage, ...] = ("data", "collect", "tune", "rl", "fresh", "meta", "evaluate")
_BEHIND = "OPENGRM_LAUNCHED"  # set for a launcher: one that starts a single process need not set RANK
RUN = "spct.json"
Say = Callable[[str], None]


def run(
    config: Config, folder: Path, *, stages: Sequence[Stage] = STAGES, about: Mapping[str, Any] | None = None,
    command: Sequence[str] = (), say: Say = lambda line: print(line, file=sys.stderr, flush=True),
) -> Path:  # fmt: skip
    """Run the stages that are not done yet; the same call goes on where a killed one stopped.

    Args:
        config: what to do.
        folder: the run's folder.
        stages: which of them.
        about: kept in spct.json beside the configuration (versions, machine, commit).
        command: how this program runs one stage of this run, without "--stage NAME": for stages with a launcher.
        say: takes the lines that tell how it goes.

    Returns:
        The folder.

    Raises:
        UsageError: the folder holds a run with another configuration, the data cannot be used, held-out
            conversations are trained on, or held-out single responses cannot be shown.
        EngineError, BadRow: from the stages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    launched = is_launched()
    record = _begin(config, folder, about or {}, write=not launched)
    for stage in stages:
        done: dict[str, Any] = record["stages"]
        if stage in done:
            say(f"{stage}: done already")
            continue
        started = time.monotonic()
        say(f"{stage} ...")
        if stage in config.launch and not launched:
            if stage == "rl" and config.rl.reference is not None:
                _rl(config, folder, say, choose_only=True)
            words = shlex.split(config.launch[stage])
            try:
                done_well = not subprocess.run(
                    [*words, *command, "--stage", stage], env={**os.environ, _BEHIND: "1"}
                ).returncode
            except OSError as error:
                raise UsageError(f"launch {stage}: {words[0] if words else ''}: {error.strerror or error}") from None
            if not done_well:
                raise UsageError(f"{stage}: its launcher ended with an error, see above: {config.launch[stage]}")
        else:
            _DO[stage](config, folder, say)
        if not launched:
            done[stage] = {"seconds": round(time.monotonic() - started, 1)}
            write_json(folder / RUN, record)
            say(f"{stage}: {done[stage]['seconds']:,.0f} s")
    return folder


def is_launched() -> bool:
    """Whether this is a process of one launched stage: the run that launched it keeps spct.json and the report."""
    return _BEHIND in os.environ or "RANK" in os.environ


def _begin(config: Config, folder: Path, about: Mapping[str, Any], *, write: bool) -> dict[str, Any]:
    asked = {key: value for key, value in asdict(config).items() if key != "launch"}
    asked = _plain(asked)
    record = read_json(folder / RUN)
    if record is None:
        record = {"config": asked, **about, "stages": {}}
        if write:
            write_json(folder / RUN, record)
    elif record["config"] != asked:
        other = sorted(_differing(record["config"], asked))
        raise UsageError(
            f"{folder}: holds a run with another configuration ({', '.join(other)}): choose another folder"
        )
    return record


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _differing(one: Any, other: Any, place: str = "") -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in {**one, **other}:
            yield from _differing(one.get(key), other.get(key), f"{place}.{key}" if place else key)
    elif one != other:
        yield f"{place} {one!r}, now {other!r}"


# --- the stages -------------------------------------------------------------------------------------------------


def _data(config: Config, folder: Path, say: Say) -> None:
    """Write what RubricWorld gives, and see that nothing held out is trained on."""
    from opengrm.worlds.instructions import generate_instructions

    (folder / "data").mkdir(exist_ok=True)
    trained: set[str] = set()
    for name, source in (("rft", config.data.rft), ("rl", config.data.rl), *config.data.test.items()):
        held_out = name in config.data.test and source is config.data.test[name]
        path = _items_path(config, folder, name)
        if isinstance(source, World):
            try:
                write_rows(path, (i.to_json() for i in source.items(0 if held_out else 1000 * config.seed)))
            except ValueError as error:
                raise UsageError(f"data {name}: {error}") from None
        if held_out:
            evaluation.check_shown(read_items(path), _forms(config), f"data.test.{name}, {path}")
        prompts = {_conversation(item) for item in read_items(path)}
        if held_out and not config.data.allow_overlap and (shared := len(prompts & trained)):
            raise UsageError(
                f"{path}: {shared:,} of {len(prompts):,} held-out conversations are also trained on; leave them out,"
                " or set data.allow_overlap"
            )
        if not held_out:
            trained |= prompts
        say(f"{name}: {path}")
    tasks = config.data.instructions
    if isinstance(tasks, str):
        rft.count_rows(tasks)  # a malformed row is told now, not after the sampling
    if isinstance(tasks, Tasks):
        rows = generate_instructions(tasks.count, seed=tasks.seed + 1000 * config.seed, tasks=tasks.tasks)
        try:
            write_rows(folder / "data" / "instructions.jsonl", rows)
        except ValueError as error:
            raise UsageError(f"data instructions: {error}") from None


def _conversation(item: Item) -> str:
    """A hash of the conversation, whatever its case and spacing."""
    return content_hash([[m.role, " ".join(m.content.casefold().split())] for m in item.prompt])


def _collect(config: Config, folder: Path, say: Say) -> None:
    told = Pace(say)
    sampler = config.rft.sampler or config.base
    figures = rft.collect_stage(
        _items_path(config, folder, "rft"), folder / "rft", sampler, lambda: config.engine.open(sampler),
        _forms(config), config.rft.collect,
        on_progress=lambda there, planned, kept: told(f"{there:,} of {planned:,} judgments, {kept:,} kept"),
    )  # fmt: skip
    say(f"{figures['kept']:,} trajectories kept; why not more: {folder / 'rft' / rft.COLLECTED}")


def _tune(config: Config, folder: Path, say: Say) -> None:
    told = Pace(say)
    instructions = config.data.instructions
    path = folder / "data" / "instructions.jsonl" if isinstance(instructions, Tasks) else instructions
    settings = replace(config.rft.sft, seed=config.rft.sft.seed + config.seed)
    rft.tune_stage(
        config.base, folder / "rft", None if path is None else Path(path), settings,
        share=config.rft.instruction_share,
        on_step=lambda step, last: told(f"step {step}/{settings.steps}  loss {last.get('loss', float('nan')):.3f}"),
    )  # fmt: skip


def _rl(config: Config, folder: Path, say: Say, *, choose_only: bool = False) -> None:
    reference = None
    if config.rl.reference is not None:
        model = _checkpoint(config, folder, config.rl.reference)
        sampling = Sampling(temperature=config.rl.reference_temperature, max_tokens=config.rl.grpo.max_tokens)
        reference = rl.Reference(lambda: config.engine.open(model), sampling, folder / "rl" / "reference.ledger.db")
    rl.train(
        list(read_items(_items_path(config, folder, "rl"))), _checkpoint(config, folder, "rft"), folder / "rl",
        replace(config.rl.grpo, seed=config.rl.grpo.seed + config.seed), template=get_template(config.template),
        reference=reference, choose_only=choose_only, say=say,
    )  # fmt: skip


def _fresh(config: Config, folder: Path, say: Say) -> None:
    if not config.meta.fresh:
        return
    forms = _forms(config)
    items = [item for item in read_items(_items_path(config, folder, "rft")) if forms.shows(item)]
    engine = config.engine.open(_checkpoint(config, folder, "rl"))
    (folder / "meta").mkdir(exist_ok=True)
    try:
        with Ledger(folder / "meta" / "fresh.ledger.db") as ledger:
            sampling = config.rft.collect.sampling
            judged = evaluation.judge_all(items, engine, forms, sampling, config.meta.fresh, ledger)
            say(f"{sum(len(judgments) for _, judgments in judged):,} fresh judgments")
    finally:
        engine.close()


def _meta(config: Config, folder: Path, say: Say) -> None:
    from opengrm.templates.meta import MetaTemplate, default_meta_template
    from opengrm.training.meta_rm import train_meta

    told = Pace(say)
    named = config.meta.template
    template = MetaTemplate(named) if named else default_meta_template(_forms(config).joint.name)
    ledgers = [folder / "rft" / rft.LEDGER, folder / "meta" / "fresh.ledger.db"]

    def judgments() -> Iterator[Judgment]:
        for path in ledgers:
            if path.exists():
                with Ledger(path, create=False) as ledger:
                    yield from ledger.judgments()

    items = {item.id: item for item in read_items(_items_path(config, folder, "rft"))}
    train_meta(
        judgments(), items, _checkpoint(config, folder, config.meta.base), folder / "meta", template,
        replace(config.meta.train, seed=config.meta.train.seed + config.seed),
        on_progress=lambda done, steps, note: told(f"step {done}/{steps}  {note}"),
    )  # fmt: skip


def _evaluate(config: Config, folder: Path, say: Say) -> None:
    sets = {name: list(read_items(_items_path(config, folder, name))) for name in config.data.test}
    models = {name: _checkpoint(config, folder, name) for name in config.evaluation.models}
    meta_rm = folder / "meta" / "model"

    def open_meta(ledger: Ledger, stack: ExitStack) -> Any:
        from opengrm.judges.meta import open_meta_rm

        return open_meta_rm(str(meta_rm), None, ledger, stack)

    found = evaluation.evaluate(
        models, sets, config.engine.open, _forms(config), folder / "evaluation", config.evaluation,
        open_meta=open_meta if meta_rm.exists() else None, say=say,
    )  # fmt: skip
    write_json(folder / evaluation.RESULT, found)


_DO: dict[str, Callable[[Config, Path, Say], None]] = {
    "data": _data, "collect": _collect, "tune": _tune, "rl": _rl, "fresh": _fresh, "meta": _meta,
    "evaluate": _evaluate,
}  # fmt: skip


def _items_path(config: Config, folder: Path, name: str) -> Path:
    """The file of the items "rft", "rl" or of a held-out set."""
    sources = {**config.data.test, "rft": config.data.rft, "rl": config.data.rl}
    source = sources[name]
    return Path(source) if isinstance(source, str) else folder / "data" / f"{name}.jsonl"


def _forms(config: Config) -> Forms:
    return forms_of(get_template(config.template))


def _checkpoint(config: Config, folder: Path, name: str) -> str:
    """The folder of "base", "rft" or "rl"; any other name is a model's own."""
    if name == "base":
        find_model(config.base)
        return config.base
    return str({"rft": folder / "rft" / "model", "rl": folder / "rl"}.get(name, name))

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

import json
import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from opengrm.engines import Sampling
from opengrm.errors import UsageError
from opengrm.items import conversation
from opengrm.jsonl import read_rows, write_rows
from opengrm.judges.grm import GRM
from opengrm.judgments import Judgment
from opengrm.ledger import Ledger
from opengrm.reading import read_items, read_located_items
from opengrm.templates import built_in, get_template
from opengrm.templates.forms import Forms, forms_of
from opengrm.training import evaluation, rft, rl
from opengrm.training.overlap import Exchange, HeldOut, of_items, refuse_overlap
from opengrm.training.spct_config import Config, Tasks, World
from opengrm.training.stage import Pace, differing, make_folder, read_json, write_json
from opengrm.voting.correctness import label_of

Stage = Literal["data", "collect", "tune", "rl", "fresh", "meta", "evaluate"]
STAGES: tuple[Stage, ...] = ("data", "collect", "tune", "rl", "fresh", "meta", "evaluate")
# What has to be there before a stage can do anything.
_BEFORE: dict[Stage, tuple[Stage, ...]] = {
    "data": (), "collect": ("data",), "tune": ("data", "collect"), "rl": ("data", "tune"), "fresh": ("data", "rl"),
    "meta": ("data", "collect", "fresh"), "evaluate": ("data", "rl"),
}  # fmt: skip
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
    make_folder(folder)
    launched = is_launched()
    record = _begin(config, folder, about or {}, write=not launched)
    for stage in stages:
        done: dict[str, Any] = record["stages"]
        if stage in done:
            say(f"{stage}: done already")
            continue
        needed = (*_BEFORE[stage], *(["meta"] if stage == "evaluate" and config.evaluation.needs_meta else []))
        if missing := [before for before in needed if before not in done]:
            raise UsageError(f"stage {stage} needs {' and '.join(missing)} first: leave out --stage, or name them too")
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
    return _BEHIND in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1


def _begin(config: Config, folder: Path, about: Mapping[str, Any], *, write: bool) -> dict[str, Any]:
    """The run's record, made if there is none. A run that goes on may have other launchers and another engine."""
    asked = json.loads(json.dumps(asdict(config)))
    record = read_json(folder / RUN)
    if record is None:
        record = {"config": asked, **about, "stages": {}}
        if write:
            write_json(folder / RUN, record)
    if not isinstance(record.get("config"), dict) or not isinstance(record.get("stages"), dict):
        raise UsageError(f"{folder / RUN}: damaged (no config or stages): restore it, or choose another folder")
    begun, now = ({k: v for k, v in c.items() if k not in ("launch", "engine")} for c in (record["config"], asked))
    if other := sorted(differing(begun, now)):
        raise UsageError(
            f"{folder}: holds a run with another configuration ({', '.join(other)}): choose another folder"
        )
    return record


# --- the stages -------------------------------------------------------------------------------------------------


def _data(config: Config, folder: Path, say: Say) -> None:
    """Write what RubricWorld gives, and see that items have labels and nothing held out is trained on."""
    (folder / "data").mkdir(exist_ok=True)
    held_out = HeldOut(
        row
        for name, source in config.data.test.items()
        for row in _checked_items(config, folder, name, source, say, every=True)
    )
    for name, trained in (
        ("rft", _checked_items(config, folder, "rft", config.data.rft, say, shift=1000 * config.seed)),
        ("rl", _checked_items(config, folder, "rl", config.data.rl, say, shift=1000 * config.seed)),
        ("instructions", _instructions(config, folder)),
    ):
        if config.data.allow_overlap:
            deque(trained, maxlen=0)
        else:
            refuse_overlap(trained, held_out, f"data.{name}", "set data.allow_overlap")


def _checked_items(
    config: Config, folder: Path, name: str, source: str | World, say: Say, *, shift: int = 0, every: bool = False
) -> Iterator[Exchange]:
    """The conversations and responses of a set, written first if it is RubricWorld's, and its labels checked.

    Args:
        shift: is added to the seed of a world.
        every: whether each item must have a label, or only some.
    """
    path = _items_path(config, folder, name)
    if isinstance(source, World):
        try:
            write_rows(path, (item.to_json() for item in source.items(shift)))
        except ValueError as error:
            raise UsageError(f"data {name}: {error}") from None
    if every:
        evaluation.check_shown(read_items(path), _forms(config), f"data.test.{name}, {path}")
    labels: dict[str, tuple[str, float | None]] = {}
    for where, item in read_located_items(path):
        label = label_of(item)
        if labels.setdefault(item.id, (item.key, label)) != (item.key, label):
            raise UsageError(f"{path}: the id {item.id!r} is used for two items, or for two labels of one")
        yield from of_items([(where, item)])
    missing = sum(label is None for _, label in labels.values())
    if missing and (every or missing == len(labels)):
        raise UsageError(f"{path}: {missing:,} items have no label of the best response (or of a single one)")
    say(f"{name}: {path}")


def _instructions(config: Config, folder: Path) -> Iterator[Exchange]:
    """What the instruction rows ask; they are written first if they are RubricWorld's, and checked."""
    from opengrm.worlds.instructions import generate_instructions

    tasks = config.data.instructions
    if tasks is None:
        return
    path = folder / "data" / "instructions.jsonl" if isinstance(tasks, Tasks) else Path(tasks)
    if isinstance(tasks, Tasks):
        rows = generate_instructions(tasks.count, seed=tasks.seed + 1000 * config.seed, tasks=tasks.tasks)
        try:
            write_rows(path, rows)
        except ValueError as error:
            raise UsageError(f"data instructions: {error}") from None
    for where, row in read_rows(path):
        rft.check_example(where, row)  # a malformed row is told now, not after the sampling
        answers = conversation(row["completion"], name="completion")
        yield Exchange(where, conversation(row["prompt"]), tuple(message.content for message in answers))


def _collect(config: Config, folder: Path, say: Say) -> None:
    told = Pace(say)
    sampler = config.rft.sampler or config.base
    figures = rft.collect_stage(
        _items_path(config, folder, "rft"), folder / "rft", sampler, lambda: config.open(sampler),
        _forms(config), config.rft.collect,
        on_progress=lambda there, planned, kept: told(f"{there:,} of {planned:,} judgments, {kept:,} kept"),
    )  # fmt: skip
    say(f"{figures['kept']:,} trajectories kept; why not more: {folder / 'rft' / rft.COLLECTED}")


def _tune(config: Config, folder: Path, say: Say) -> None:
    told = Pace(say)
    instructions = config.data.instructions
    path = folder / "data" / "instructions.jsonl" if isinstance(instructions, Tasks) else instructions
    settings = replace(config.rft.sft, seed=config.rft.sft.seed + config.seed, **_loading(config))
    rft.tune_stage(
        config.base, folder / "rft", None if path is None else Path(path), settings,
        share=config.rft.instruction_share, template=_template_name(config),
        on_step=lambda step, last: told(f"step {step}/{settings.steps}  loss {last.get('loss', float('nan')):.3f}"),
    )  # fmt: skip


def _rl(config: Config, folder: Path, say: Say, *, choose_only: bool = False) -> None:
    reference = None
    if config.rl.reference is not None:
        model = _checkpoint(config, folder, config.rl.reference)
        sampling = Sampling(temperature=config.rl.reference_temperature, max_tokens=config.rl.grpo.max_tokens)
        reference = rl.Reference(lambda: config.open(model), sampling, folder / "rl" / "reference.ledger.db")
    rl.train(
        list(read_items(_items_path(config, folder, "rl"))), _checkpoint(config, folder, "rft"), folder / "rl",
        replace(config.rl.grpo, seed=config.rl.grpo.seed + config.seed, **_loading(config)),
        template=get_template(config.template), reference=reference, choose_only=choose_only, say=say,
    )  # fmt: skip


def _loading(config: Config) -> dict[str, Any]:
    """What every stage that loads a model to train it has to know of it."""
    return {"chat_template_kwargs": config.chat_template_kwargs, "trust_remote_code": config.trust_remote_code}


def _fresh(config: Config, folder: Path, say: Say) -> None:
    if not config.meta.fresh:
        return
    engine = config.open(_checkpoint(config, folder, "rl"))
    (folder / "meta").mkdir(exist_ok=True)
    try:
        with Ledger(folder / "meta" / "fresh.ledger.db") as ledger:
            sampling = config.rft.collect.sampling
            forms, made = _forms(config), 0
            for form in (forms.joint, forms.single):
                if form is None:
                    continue
                every = read_items(_items_path(config, folder, "rft"))
                items = (item for item in every if (item.n == 1) == (form is forms.single))
                judge = GRM(engine, form, sampling, ledger=ledger)
                made += sum(len(judgments) for _, judgments in judge.judge(items, config.meta.fresh))
            say(f"{made:,} fresh judgments")
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
        trust_remote_code=config.trust_remote_code,
        on_progress=lambda done, steps, note: told(f"step {done}/{steps}  {note}"),
    )  # fmt: skip


def _evaluate(config: Config, folder: Path, say: Say) -> None:
    sets = {name: list(read_items(_items_path(config, folder, name))) for name in config.data.test}
    models = {name: _checkpoint(config, folder, name) for name in config.evaluation.models}
    meta_rm = folder / "meta" / "model"
    if config.evaluation.needs_meta and not meta_rm.exists():
        raise UsageError(f"{meta_rm} is not there, and evaluation.guided asks for it")

    def open_meta(ledger: Ledger, stack: ExitStack) -> Any:
        from opengrm.judges.meta import open_meta_rm

        return open_meta_rm(
            str(meta_rm), None, ledger, stack, device=config.engine.device, dtype=config.engine.dtype,
            trust_remote_code=config.trust_remote_code,
        )  # fmt: skip

    found = evaluation.evaluate(
        models, sets, config.open, _forms(config), folder / "evaluation", config.evaluation,
        open_meta=open_meta if config.evaluation.needs_meta else None, say=say,
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


def _template_name(config: Config) -> str | None:
    """The name that goes into a trained model's config.json; None for a user's own file."""
    template = get_template(config.template)
    return template.name if built_in(template) else None


def _checkpoint(config: Config, folder: Path, name: str) -> str:
    """The folder of "base", "rft" or "rl"; any other name is a model's own."""
    if name not in ("rft", "rl"):
        return config.base if name == "base" else name
    path = {"rft": folder / "rft" / "model", "rl": folder / "rl"}[name]
    if not (path / "config.json").exists():
        raise UsageError(f"{path}: the model of stage {name} is not there any more: restore it, or begin anew")
    return str(path)

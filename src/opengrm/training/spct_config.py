"""The configuration of an SPCT run: one TOML file, whose tables are the settings classes of the stages themselves.

Every key is checked before anything is loaded; one that is not known is an error, not a default. What the keys mean
for a user is in docs/spct.md.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from opengrm.engines import Engine, Sampling, open_engine
from opengrm.errors import MissingExtra, UsageError
from opengrm.items import Item
from opengrm.templates import FILE_ENDINGS, get_template
from opengrm.templates.forms import forms_of
from opengrm.training import rl
from opengrm.training.evaluation import EvaluationSettings
from opengrm.training.meta_rm import MetaSettings
from opengrm.training.rft import INSTRUCTION_SHARE
from opengrm.training.sft import SFTSettings
from opengrm.training.trajectories import CollectSettings
from opengrm.voting.orders import OrderKind

LAUNCHED = ("tune", "rl", "meta")  # stages that run in several processes
_STRICT: dict[str, Any] = {"extra": "forbid"}  # an unknown key in the file is an error


@dataclass(frozen=True)
class World:
    """Items of RubricWorld instead of a file; see `worlds.rubric.generate_items`.

    Attributes:
        count, responses, split, seed, difficulty, label_noise: as there. A run's seed is added (times 1,000) to the
            seeds of what it trains on, so that runs differ in their data as well; not to those of held-out items.
    """

    count: int
    responses: int | str = 2
    split: Literal["train", "dev", "test"] = "train"
    seed: int = 0
    difficulty: float = 0.5
    label_noise: float = 0.0

    __pydantic_config__ = _STRICT

    def items(self, shift: int = 0) -> Iterator[Item]:
        """The items, `shift` added to the seed; single responses with 0/1 labels.

        Raises:
            ValueError: a value out of range.
        """
        from opengrm.worlds.rubric import generate_items

        if self.count < 1:
            raise ValueError(f"count is {self.count}, expected at least 1")
        span = re.fullmatch(r"(\d)-(\d)", str(self.responses))
        n: Any = (int(span[1]), int(span[2])) if span else self.responses
        return generate_items(
            self.count, seed=self.seed + shift, split=self.split, n=n, difficulty=self.difficulty,
            label_noise=self.label_noise, binary=n in (1, "mixed") or (span is not None and n[0] == 1),
        )  # fmt: skip


@dataclass(frozen=True)
class Tasks:
    """Instruction rows of RubricWorld instead of a file; see `worlds.instructions`."""

    count: int
    tasks: tuple[str, ...] = ("name", "check", "write")
    seed: int = 0

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is {self.count}, expected at least 1")


@dataclass(frozen=True)
class Data:
    """What the stages read: files as in docs/formats.md, or RubricWorld.

    Attributes:
        rft, rl: labelled items to train on (the meta RM's come from `rft`).
        test: held-out items, by the name that the results give them.
        instructions: general instruction rows {"prompt", "completion"}; None mixes nothing in.
        allow_overlap: go on although a held-out conversation is also trained on.
    """

    rft: str | World
    rl: str | World
    test: dict[str, str | World]
    instructions: str | Tasks | None = None
    allow_overlap: bool = False

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class EngineSettings:
    """What samples outside of RL: trajectories, the too-easy filter, fresh judgments, the evaluation.

    Attributes:
        kind: "transformers", "vllm" or "openvino"; each opens the checkpoint at hand in this process.
        batch, device, dtype, options: as for `engines.open_engine`.
    """

    kind: Literal["transformers", "vllm", "openvino"] = "transformers"
    batch: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch is {self.batch}, expected at least 1")
        if self.options and self.kind != "vllm":
            raise ValueError(f"options are arguments of vllm.LLM, {self.kind} takes none")


@dataclass(frozen=True)
class RFT:
    """Rejective fine-tuning: what is sampled and kept, the mix, the fine-tuning.

    Attributes:
        sampler: the model that is sampled; None is the base (the paper's was larger).
        n_rft, non_hinted, hinted, orders: see `CollectSettings`.
        temperature, top_p, max_tokens: of the trajectories.
        instruction_share: of the training set (paper: 0.852); not used without instructions.
        sft: see `SFTSettings`.
    """

    sampler: str | None = None
    n_rft: int = 3
    non_hinted: bool = True
    hinted: bool = True
    orders: OrderKind = "balanced"
    temperature: float = 0.5
    top_p: float = 1.0
    max_tokens: int = 1024
    instruction_share: float = INSTRUCTION_SHARE
    sft: SFTSettings = field(default_factory=SFTSettings)

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if not 0 <= self.instruction_share < 1:
            raise ValueError(f"instruction_share is {self.instruction_share}, expected 0 or more and less than 1")
        if self.sampler == "":
            raise ValueError("sampler is empty: leave it out to sample the base")
        _ = self.collect  # checks what it is made of

    @property
    def collect(self) -> CollectSettings:
        """The settings of the first half."""
        sampling = Sampling(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens)
        return CollectSettings(self.n_rft, self.non_hinted, self.hinted, sampling, self.orders)


@dataclass(frozen=True)
class RL:
    """RL: the trainer's settings and the too-easy filter.

    Attributes:
        reference: judges every item three times, and drops it if all are right: "base", "rft", a folder or a hub id
            (paper: DeepSeek-V2-Lite-Chat); None drops none.
        reference_temperature: of its judgments.
        grpo: see `rl.Settings`.
    """

    reference: str | None = None
    reference_temperature: float = 0.5
    grpo: rl.Settings = field(default_factory=rl.Settings)

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.reference == "":
            raise ValueError("reference is empty: leave it out to keep what is too easy")
        Sampling(self.reference_temperature)  # checks it


@dataclass(frozen=True)
class Meta:
    """The meta RM.

    Attributes:
        base: what it starts from: "base" (the paper's), "rft", "rl", a folder or a hub id.
        fresh: judgments of the trained GRM for each item of the RFT stage (paper: 3), at the RFT stage's sampling.
        template: what it reads, "meta" or "meta-compact"; None goes by the judgments' template.
        train: see `MetaSettings`.
    """

    base: str = "base"
    fresh: int = 3
    template: Literal["meta", "meta-compact"] | None = None
    train: MetaSettings = field(default_factory=MetaSettings)

    __pydantic_config__ = _STRICT

    def __post_init__(self) -> None:
        if self.fresh < 0:
            raise ValueError(f"fresh is {self.fresh}, expected 0 or more")


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        base: "nano-base", a folder, or a hub id.
        data: what is read.
        template: prompt family, a joint form ("grm", "compact", "compact+no-principles", "compact-judge", or a user's
            file). A template that names the best takes no held-out single responses; in training they are dropped.
        seed: of training, and of generated training data.
        chat_template_kwargs: variables of the models' chat template, e.g. {"enable_thinking": False}: of every prompt
            that is sampled, learned or evaluated. Judge with the same ones.
        trust_remote_code: run code that comes with a checkpoint.
        engine, rft, rl, meta, evaluation: the stages.
        launch: stage name to launcher command, for "tune", "rl" and "meta".
    """

    base: str
    data: Data
    template: str = "grm"
    seed: int = 0
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    engine: EngineSettings = field(default_factory=EngineSettings)
    rft: RFT = field(default_factory=RFT)
    rl: RL = field(default_factory=RL)
    meta: Meta = field(default_factory=Meta)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    launch: dict[str, str] = field(default_factory=dict)

    __pydantic_config__ = _STRICT

    def open(self, model: str) -> Engine:
        """The engine of one checkpoint, as `[engine]` says."""
        engine = self.engine
        return open_engine(
            engine.kind, model, batch=engine.batch, device=engine.device, dtype=engine.dtype,
            engine_options=engine.options, chat_template_kwargs=self.chat_template_kwargs or None,
            trust_remote_code=self.trust_remote_code,
        )  # fmt: skip

    def __post_init__(self) -> None:
        if not self.base:
            raise ValueError("base is empty: name a model")
        if unknown := sorted(set(self.launch) - set(LAUNCHED)):
            raise ValueError(f"launch {', '.join(unknown)}: expected {', '.join(LAUNCHED)}")
        for stage, command in self.launch.items():
            try:
                if not shlex.split(command):
                    raise ValueError("it is empty")
            except ValueError as error:
                raise ValueError(f"launch {stage}: {command!r} is no command: {error}") from None
        if not self.data.test:
            raise ValueError("data.test is empty: name at least one held-out set")
        for name in self.data.test:
            # It becomes a file's name, beside those of what is trained on.
            if name in ("rft", "rl", "instructions") or not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"data.test.{name}: choose another name: letters, digits, - and _, not rft or rl")
        if not (self.rft.hinted or self.rft.non_hinted or self.data.instructions):
            raise ValueError("rft: neither hinted nor non_hinted samples and no instructions: nothing to learn from")


def read_config(path: str | Path, *, seed: int | None = None) -> Config:
    """Read a TOML file; a relative path of data or a template in it is meant from the file's folder.

    Args:
        path: the file.
        seed: instead of the file's.

    Raises:
        UsageError: it cannot be read, a key is unknown, or a value is not what it has to be; with its place.
        MissingExtra: pydantic, which checks it, is not installed.
    """
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError:
        raise MissingExtra("reading a run's configuration", "train") from None
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    try:
        config = TypeAdapter(Config).validate_python(table)
    except ValidationError as error:
        # Where a file or a world may stand, a table is meant as a world. A union's branches are named as types or in
        # brackets: the key is what a person can find in the file.
        first = next((e for e in error.errors() if "str" not in e["loc"]), error.errors()[0])
        names = [str(p) for p in first["loc"] if p != "str"]
        place = ".".join(name for name in names if name.isidentifier() and not name[0].isupper())
        told = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path}: {place}: {told}" if place else f"{path}: {told}") from None
    except (UsageError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None
    config = _from_folder(config, path.parent)
    try:
        forms_of(get_template(config.template))
    except UsageError as error:
        raise UsageError(f"{path}: template: {error}") from None
    return config if seed is None else replace(config, seed=seed)


def _from_folder(config: Config, folder: Path) -> Config:
    def found(source: Any) -> Any:
        return str((folder / source).resolve()) if isinstance(source, str) else source

    data, template = config.data, config.template
    return replace(
        config,
        template=str((folder / template).resolve()) if template.endswith(FILE_ENDINGS) else template,
        data=replace(
            data, rft=found(data.rft), rl=found(data.rl), instructions=found(data.instructions),
            test={name: found(source) for name, source in data.test.items()},
        ),
    )  # fmt: skip

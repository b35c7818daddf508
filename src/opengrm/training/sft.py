r"""Supervised fine-tuning on prompt/completion rows through TRL's SFTTrainer, the loss on the completion only.

Rows are TRL's, conversational or plain: {"prompt": str | [messages], "completion": str | [one assistant message]}. A
plain prompt is one user turn, as everywhere in OpenGRM, not raw text.

Prompts are tokenized by the engine's own `ChatTokenizer`, so the model learns to answer exactly the token ids it will
be asked with (control tokens that a text spells are broken up there and here), and a completion is learned as the
engine returns it: its text's tokens and one end token. The trainer gets token ids and labels (-100 over the prompt),
no text. The loss of a step is the mean over all completion tokens of the whole batch.

Choices the paper leaves open (it gives learning rate, batch and steps): AdamW without weight decay, 3 % warm-up, then
cosine to zero; rows drawn in a seeded shuffle, epoch after epoch, the same on any number of processes.
Weights are trained in float32 (under bfloat16 autocast where a GPU has it) and written in bfloat16 if the base is,
else in float32.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from opengrm.engines.chat import ChatTokenizer
from opengrm.engines.checkpoints import check_folder, find_model, first_line
from opengrm.errors import EngineError, MissingExtra, UsageError
from opengrm.items import conversation
from opengrm.training.checkpoint import end_token, give_chat_template, lora, remove, write_checkpoint
from opengrm.training.resume import cut_metrics, last_checkpoint, step_of
from opengrm.training.stage import PATIENCE, begin, check_finite, check_reporters, has_bfloat16, read_json, write_json

IGNORED = -100
MODEL, CHECKPOINTS, METRICS = "model", "checkpoints", "metrics.jsonl"
SETTINGS, SUMMARY = "train-settings.json", "train.json"
DATA, COUNTS, RAW = "examples.arrow", "examples.json", "raw"  # gone when the run is done
# Of transformers, those that need nothing but a warm-up.
SCHEDULES = ("cosine", "linear", "constant_with_warmup", "inverse_sqrt")
MOST_ROWS = 10**9  # of all steps: their order is kept in memory
OnStep = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class SFTSettings:
    """How to train; defaults are the paper's for rejective fine-tuning (v3, appendix: 27B).

    Attributes:
        learning_rate: peak (paper: 5e-6).
        batch: rows in one step, over all devices (paper: 1024).
        steps: optimizer steps (paper: 900).
        micro_batch: rows in one forward pass on one device; divides the batch.
        max_length: longest example in tokens; longer ones are left out and counted, never cut.
        warmup: share of the steps over which the learning rate rises.
        schedule: name of the schedule behind it, as transformers names them.
        weight_decay, max_grad_norm: AdamW's decay, and the norm that gradients are cut to.
        lora_rank: train adapters of this rank on all linear layers and merge them at the end; 0 trains everything.
        checkpointing: compute activations twice to save memory (for large models).
        save_every, log_every: steps between checkpoints, and between lines of metrics.
        seed: of the shuffle.
        report_to: trackers of transformers ("tensorboard", "trackio", ...); metrics are in `metrics.jsonl` anyway.
        trust_remote_code: run code that comes with the checkpoint.
        chat_template_kwargs: variables of the model's chat template, as the engine is given them.
    """

    learning_rate: float = 5e-6
    batch: int = 1024
    steps: int = 900
    micro_batch: int = 8
    max_length: int = 8192
    warmup: float = 0.03
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora_rank: int = 0
    checkpointing: bool = False
    save_every: int = 100
    log_every: int = 10
    seed: int = 0
    report_to: tuple[str, ...] = ()
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "micro_batch", "max_length", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        check_finite(self)
        if not (self.learning_rate > 0 and self.max_grad_norm > 0 and self.weight_decay >= 0 and self.lora_rank >= 0):
            raise ValueError("expected learning_rate and max_grad_norm above 0, weight_decay and lora_rank not below")
        if self.steps * self.batch > MOST_ROWS:
            raise ValueError(f"{self.steps:,} steps of {self.batch:,} rows: expected {MOST_ROWS:,} rows at most")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}, expected 0 or more and less than 1")
        if self.batch % min(self.micro_batch, self.batch):
            raise ValueError(f"batch is {self.batch}, expected a multiple of micro_batch ({self.micro_batch})")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r}: expected one of {', '.join(SCHEDULES)}")


def train(
    model: str | Path,
    rows: Callable[[], Iterable[Mapping[str, Any]]],
    output: Path,
    settings: SFTSettings | None = None,
    *,
    data_key: str = "",
    template: str | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Fine-tune `model` on `rows` and write `output/model`, a Hugging Face folder with tokenizer and chat template.

    Beside it: `metrics.jsonl` (a line every `log_every` steps) and `train.json` (settings, counts, seconds). A killed
    run goes on from its last whole checkpoint in `output/checkpoints`, which is removed when the model is written.
    Under `accelerate launch` every process calls this with the same arguments.

    Args:
        model: "nano", a folder, or a hub id.
        rows: makes the rows anew at each call, always the same.
        output: a folder; made if it is not there.
        settings: see there.
        data_key: names what `rows` gives, so that a run is not taken up again with other rows.
        template: the prompt family that is learned, noted in the model's config.json for whoever judges with it.
        on_step: called after each step with its number and the last metrics.

    Returns:
        What `train.json` holds. Where that is there already, nothing is done but reading it.

    Raises:
        UsageError: settings that do not go together, or a run begun with other settings.
        EngineError: the model cannot be loaded.
        MissingExtra: torch, transformers, TRL or datasets is not installed.
    """
    settings = settings or SFTSettings()
    begun = {"model": str(model), "data": data_key, **asdict(settings)}
    begin(output / SETTINGS, begun)
    done = read_json(output / SUMMARY)
    if done is not None:
        return done
    with quietly():
        figures = _train(model, rows, output, settings, template, on_step)
    return {**begun, **figures}


def _train(
    model: str | Path,
    rows: Callable[[], Iterable[Mapping[str, Any]]],
    output: Path,
    settings: SFTSettings,
    template: str | None,
    on_step: OnStep | None,
) -> dict[str, Any]:
    try:
        import accelerate
        import datasets
        import pyarrow.compute
        import torch
        import transformers
        import trl
    except ImportError:
        raise MissingExtra("training", "train") from None

    # Model and tokenizer.
    check_reporters(settings.report_to)
    state = accelerate.PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    folder, _ = find_model(model, code=settings.trust_remote_code)
    check_folder(folder)
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code, "local_files_only": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **options
        )
    except Exception as error:
        raise EngineError(f"{model}: cannot load this model: {first_line(error)}") from None
    give_chat_template(tokenizer)
    end = end_token(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)

    # Data: token ids and labels in an Arrow file on disk, not in memory.
    with state.main_process_first():
        if not _readable(output):
            chat = ChatTokenizer(tokenizer, settings.chat_template_kwargs or None)
            _encode(rows(), chat, end, settings.max_length, output / DATA)
    counts = read_json(output / COUNTS) or {}
    dataset = datasets.Dataset.from_file(str(output / DATA))
    lengths = pyarrow.compute.list_value_length(dataset.data.column("input_ids")).to_numpy()
    dataset = dataset.select(draws(lengths, settings.steps, settings.batch, settings.seed))

    # The trainer.
    micro_batch = min(settings.micro_batch, settings.batch // state.num_processes)
    if not micro_batch or settings.batch % (micro_batch * state.num_processes):
        raise UsageError(
            f"a batch of {settings.batch} rows cannot be divided by {settings.micro_batch} rows a pass"
            f" x {state.num_processes} processes"
        )
    on_gpu = state.device.type != "cpu"
    arguments = trl.SFTConfig(
        output_dir=str(output / CHECKPOINTS),
        learning_rate=settings.learning_rate,
        max_steps=settings.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=settings.batch // (micro_batch * state.num_processes),
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.checkpointing,
        bf16=has_bfloat16(),
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        train_sampling_strategy="sequential",  # the order is `draws`, whatever the number of processes
        ddp_find_unused_parameters=False,
        max_length=None,  # `_encode` has left out what is too long
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_steps=settings.log_every,
        logging_first_step=True,
        seed=settings.seed,
        trust_remote_code=settings.trust_remote_code,
        report_to=list(settings.report_to),
        disable_tqdm=True,
    )
    trainer = trl.SFTTrainer(
        model=network,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora(settings.lora_rank),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(reporter(output / METRICS, on_step))

    # Train, from the last whole checkpoint if there is one.
    started = time.monotonic()
    checkpoint = last_checkpoint(output / CHECKPOINTS)
    if state.is_main_process:
        cut_metrics(output / METRICS, step_of(checkpoint))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    # The result: saved as trained, then made an ordinary folder by one process.
    trainer.save_model(str(output / RAW))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    summary = {
        **counts,
        "epochs": settings.steps * settings.batch / counts["examples"],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "processes": state.num_processes,
        "resumed_from": None if checkpoint is None else step_of(checkpoint),
        "seconds": time.monotonic() - started,
    }
    if state.is_main_process:
        write_checkpoint(
            output / RAW, output / MODEL, base=folder, tokenizer=tokenizer, end=end, template=template, options=options
        )
        write_json(output / SUMMARY, {**(read_json(output / SETTINGS) or {}), **summary})
        for name in (RAW, CHECKPOINTS, DATA, COUNTS):
            remove(output / name)
    state.wait_for_everyone()
    return summary


def _readable(output: Path) -> bool:
    """Whether the encoded rows and their counts are there and whole."""
    import datasets

    try:
        datasets.Dataset.from_file(str(output / DATA))
        return "examples" in (read_json(output / COUNTS) or {})
    except (OSError, ValueError, UsageError):
        return False


def draws(lengths_I: Any, steps: int, batch: int, seed: int) -> Any:
    """Which row each example of all steps is: all rows once an epoch, in an order fixed by (seed, epoch). int64.

    Within a step the rows stand by length: the sum of a step's losses does not know their order, and micro-batches of
    rows of like length hold little padding.

    Args:
        lengths_I: tokens of each row.
    """
    import numpy as np

    count = steps * batch
    rows = len(lengths_I)
    epochs = [np.random.default_rng((seed, epoch)).permutation(rows) for epoch in range(-(-count // rows))]
    drawn_SB = np.concatenate(epochs)[:count].reshape(steps, batch)
    order_SB = np.argsort(lengths_I[drawn_SB], axis=1, kind="stable")
    return np.take_along_axis(drawn_SB, order_SB, axis=1).ravel()


def _encode(rows: Iterable[Mapping[str, Any]], chat: ChatTokenizer, end: int, longest: int, path: Path) -> None:
    """Token ids and labels of all rows into an Arrow file, which appears whole, behind the counts beside it."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    part = path.with_name(f".{path.name}.part")
    ids = datasets.List(datasets.Value("int32"))
    counts = {"examples": 0, "too_long": 0, "prompt_tokens": 0, "completion_tokens": 0}
    with ArrowWriter(path=str(part), features=datasets.Features({"input_ids": ids, "labels": ids})) as writer:
        for row in rows:
            prompt, completion = encode(chat, row, end)
            if len(prompt) + len(completion) > longest:
                counts["too_long"] += 1
                continue
            writer.write({"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion})
            counts["examples"] += 1
            counts["prompt_tokens"] += len(prompt)
            counts["completion_tokens"] += len(completion)
        if not counts["examples"]:
            raise UsageError(
                f"nothing to train on: all {counts['too_long']:,} rows are longer than {longest:,} tokens"
            )
        writer.finalize()
    write_json(path.with_name(COUNTS), counts)
    os.replace(part, path)


def encode(chat: ChatTokenizer, row: Mapping[str, Any], end: int) -> tuple[list[int], list[int]]:
    """Token ids of a row's prompt, as the engine asks it, and of its completion with the end token.

    In a completion only special tokens are broken up: a thought's `<think>` or a tool call's marker is what the model
    is to write. A thought that the prompt opens already is not opened again.
    """
    prompt = chat.encode(conversation(row["prompt"]))
    (answer,) = conversation(row["completion"], name="completion")
    text = answer.content.removeprefix(chat.answer(prompt, ()))
    completion = chat.tokenizer(chat.fence(text, special_only=True), add_special_tokens=False)["input_ids"]
    return list(prompt), [*completion, end]


def reporter(metrics: Path, on_step: OnStep | None) -> Any:
    """A callback that appends each log to `metrics` as a line and tells `on_step` of every step."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        def __init__(self) -> None:
            self.last: dict[str, float] = {}

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs and state.is_world_process_zero:
                self.last = {k: float(v) for k, v in logs.items() if k != "epoch"}
                with metrics.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": state.global_step, **self.last}) + "\n")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_log |= state.global_step == state.max_steps
            if on_step is not None and state.is_world_process_zero:
                on_step(state.global_step, self.last)

    return Reporter()


@contextmanager
def quietly() -> Iterator[None]:
    """Without progress bars of the libraries below, and without TRL's use of a name that transformers renames."""
    try:
        import transformers
    except ImportError:
        raise MissingExtra("training", "train") from None
    logging: Any = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()

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
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opengrm.engines.chat import ChatTokenizer
from opengrm.engines.checkpoints import check_folder, find_model, first_line
from opengrm.errors import EngineError, MissingExtra, UsageError
from opengrm.items import conversation
from opengrm.training.resume import cut_metrics, last_checkpoint, step_of
from opengrm.training.stage import PATIENCE, begin, read_json, write_json

IGNORED = -100
MODEL, CHECKPOINTS, METRICS = "model", "checkpoints", "metrics.jsonl"
SETTINGS, SUMMARY = "train-settings.json", "train.json"
DATA, COUNTS, RAW = "examples.arrow", "examples.json", "raw"  # gone when the run is done
OnStep = Callable[[int, Mapping[str, float]], None]

# The engine's plain form for a tokenizer without a chat template (`engines/chat.py`), as a chat template.
PLAIN_TEMPLATE = (
    "{% set names = {'user': 'User', 'assistant': 'Assistant', 'tool': 'Tool'} %}"
    "{% for m in messages %}{{ names.get(m['role'], 'System') + ': ' + m['content'] }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


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

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "micro_batch", "max_length", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected more than 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}, expected 0 or more and less than 1")


def train(
    model: str | Path,
    rows: Callable[[], Iterable[Mapping[str, Any]]],
    output: Path,
    settings: SFTSettings | None = None,
    *,
    data_key: str = "",
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
    with _quietly():
        figures = _train(model, rows, output, settings, on_step)
    return {**begun, **figures}


def _train(
    model: str | Path,
    rows: Callable[[], Iterable[Mapping[str, Any]]],
    output: Path,
    settings: SFTSettings,
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
        if not (output / DATA).exists():
            _encode(rows(), tokenizer, end, settings.max_length, output / DATA)
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
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
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
    trainer.add_callback(_reporter(output / METRICS, on_step))

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
        _write_model(output, folder, tokenizer, end, options)
        write_json(output / SUMMARY, {**(read_json(output / SETTINGS) or {}), **summary})
        for name in (RAW, CHECKPOINTS, DATA, COUNTS):
            _remove(output / name)
    state.wait_for_everyone()
    return summary


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


def _encode(rows: Iterable[Mapping[str, Any]], tokenizer: Any, end: int, longest: int, path: Path) -> None:
    """Token ids and labels of all rows into an Arrow file, which appears whole, behind the counts beside it."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    chat = ChatTokenizer(tokenizer)
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
    """Token ids of a row's prompt, as the engine asks it, and of its completion with the end token."""
    prompt = chat.encode(conversation(row["prompt"]))
    (answer,) = conversation(row["completion"], name="completion")
    completion = chat.tokenizer(chat.fence(answer.content), add_special_tokens=False)["input_ids"]
    return list(prompt), [*completion, end]


def give_chat_template(tokenizer: Any) -> None:
    """To a tokenizer without a chat template, the engine's plain form as one, so that any server can use it."""
    if tokenizer.chat_template:
        return
    ids, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    begins = ids[: len(ids) - len(bare)] if ids[len(ids) - len(bare) :] == bare else []
    start = "".join(tokenizer.convert_ids_to_tokens(begins))
    tokenizer.chat_template = "{{ " + json.dumps(start) + " }}" + PLAIN_TEMPLATE if start else PLAIN_TEMPLATE


def end_token(tokenizer: Any) -> int:
    """The token that ends an assistant turn in the chat template, else the tokenizer's end-of-sequence token.

    Raises:
        UsageError: there is neither, so a model could not learn to stop.
    """
    mark = "OpenGRM turn"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    for token in tokenizer(text.rpartition(mark)[2], add_special_tokens=False)["input_ids"]:
        if token in special:
            return int(token)
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no end-of-sequence token, and its chat template none behind a turn")
    return int(tokenizer.eos_token_id)


def lora(rank: int) -> Any:
    """LoRA of this rank on all linear layers (Hu et al. 2021), scaled by 2; None for rank 0."""
    if not rank:
        return None
    import peft

    return peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def _reporter(metrics: Path, on_step: OnStep | None) -> Any:
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


def _write_model(output: Path, base: Path, tokenizer: Any, end: int, options: Mapping[str, Any]) -> None:
    """`output/model` from the trainer's raw folder: adapters merged, the base's precision and generation settings."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(base, **options)
    dtype = torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float32
    adapted = (output / RAW / "adapter_config.json").exists()
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(
        base if adapted else output / RAW, dtype=torch.float32 if adapted else dtype, **options
    )
    if adapted:
        import peft

        network = peft.PeftModel.from_pretrained(network, str(output / RAW)).merge_and_unload().to(dtype)
    network.config.use_cache = getattr(config, "use_cache", True)
    generation = transformers.GenerationConfig.from_model_config(config)
    if (base / "generation_config.json").exists():
        generation = transformers.GenerationConfig.from_pretrained(base)
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    if end not in ends:
        generation.eos_token_id = [end, *(e for e in ends if e is not None)]
    network.generation_config = generation
    part = output / f".{MODEL}.part"
    _remove(part)
    network.save_pretrained(part)
    tokenizer.save_pretrained(part)
    _remove(output / MODEL)
    os.replace(part, output / MODEL)


@contextmanager
def _quietly() -> Iterator[None]:
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


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

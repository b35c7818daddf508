"""Rule-based online RL (SPCT; paper v3 Eqs. 11 and 15): GRPO with the outcome reward, from the RFT model.

    train(items, "rft-model", "rl-model", Settings(steps=900))

Items that a reference model already judges right three times of three are dropped first; every step then shows items
in their planned orders, samples G judgments of each, rewards them by the one rule of what is correct, and makes one
GRPO update. The output folder is an ordinary Hugging Face checkpoint; beside the weights lie

    settings.json     what was asked for; the same command goes on, another one is refused
    items.json        which items were trained on, and why others were not
    metrics.jsonl     one line a step
    checkpoints/      what a killed run goes on from

Choices that the paper leaves open, or departures from it:

- Its batch of 512 is read as 512 judgments (128 prompts of G = 4), as the same authors count a batch for R1
  (arXiv:2501.12948: 32 questions of 16 outputs are "a batch size of 512").
- The clip range is GRPO's 0.2, the KL estimator exp(d) - d - 1 with d = log pi_ref - log pi, inside the loss. TRL
  multiplies that term by the importance ratio unless told not to (`use_bias_correction_kl`); Eq. 15 does not.
- Rollouts are sampled at temperature 1 (the 0.5 is for evaluation), one update a batch, a constant learning rate
  after a short warm-up, AdamW without weight decay, gradients clipped at norm 1. The KL term holds on to the starting
  model.
- TRL divides by the sample standard deviation of a group plus 1e-4 (the advantages of 1 right of 4 are 1.5 and
  -0.5, not 1.73 and -0.58). That is a constant factor of sqrt(3/4) at G = 4 and stays.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from opengrm.engines.base import Engine, Sampling
from opengrm.errors import EngineError, MissingExtra, UsageError
from opengrm.items import Item, Message, content_hash
from opengrm.ledger import Ledger
from opengrm.templates import built_in
from opengrm.templates.base import Template
from opengrm.templates.forms import Forms, forms_of
from opengrm.training.checkpoint import end_token, give_chat_template, lora, remove, write_checkpoint
from opengrm.training.resume import last_checkpoint, step_of
from opengrm.training.rewards import outcome_reward, rows, usable_items
from opengrm.training.stage import PATIENCE, begin, check_finite, check_reporters, has_bfloat16, read_json, write_json
from opengrm.voting.correctness import correct, label_of
from opengrm.voting.orders import OrderKind

RolloutKind = Literal["own", "vllm", "trl"]
Precision = Literal["float32", "bfloat16"]
TOO_EASY = 3  # judgments of the reference model, all correct (paper: the same)


@dataclass(frozen=True)
class Settings:
    """How to train; the paper's values (v3, appendix) where it gives them.

    Attributes:
        steps: updates.
        batch: judgments of one update, over all processes.
        generations: judgments of one prompt, G.
        beta: KL coefficient (the 27B model's; the 16B model's is 0.002).
        epsilon: clip range.
        learning_rate, warmup_steps: constant after a linear warm-up.
        temperature, max_tokens: of the rollouts. There is no nucleus: log-probabilities are of the whole
            distribution.
        max_prompt: items with a longer prompt, in tokens, are dropped; None is the model's context less `max_tokens`.
        micro_batch: judgments of one forward and backward pass on one device; None takes a device's whole share.
        sample_batch: most samples decoded together, for own rollouts.
        rollouts: "own" (this project's sampler, in process), "vllm" (a server that TRL keeps in step, with TRL's
            correction for what the two engines compute differently), "trl" (TRL's default generation).
        vllm_url: the server, for "vllm".
        orders: how the orders of an item over the epochs are planned.
        precision: "bfloat16" keeps float32 weights and computes in bfloat16; None does so where a GPU can.
        checkpointing: compute activations twice instead of keeping them.
        lora_rank: train low-rank adapters of this rank (alpha twice that) on all linear layers and merge them at the
            end; 0 trains all weights.
        share_prompts: one copy of each prompt in the forward and backward pass (`shared_prompt.py`), where it serves.
        save_every: steps between checkpoints.
        seed: of everything drawn.
        report_to: TRL's reporters besides ours, such as "tensorboard" or "trackio".
        trust_remote_code: run code that comes with the checkpoint.
        chat_template_kwargs: variables of the model's chat template, as the engine is given them.
    """

    steps: int = 900
    batch: int = 512
    generations: int = 4
    beta: float = 0.08
    epsilon: float = 0.2
    learning_rate: float = 4e-7
    warmup_steps: int = 10
    temperature: float = 1.0
    max_tokens: int = 1024
    max_prompt: int | None = None
    micro_batch: int | None = None
    sample_batch: int = 256
    rollouts: RolloutKind = "own"
    vllm_url: str | None = None
    orders: OrderKind = "balanced"
    precision: Precision | None = None
    checkpointing: bool = False
    lora_rank: int = 0
    share_prompts: bool = True
    save_every: int = 50
    seed: int = 0
    report_to: tuple[str, ...] = ()
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_finite(self)
        for name in ("steps", "batch", "max_tokens", "sample_batch", "save_every", "micro_batch", "max_prompt"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if self.generations < 2:
            raise ValueError(f"generations is {self.generations}: a group needs at least 2 to compare")
        if self.batch % self.generations:
            raise ValueError(f"batch is {self.batch}, expected a multiple of generations ({self.generations})")
        if self.beta < 0 or self.learning_rate <= 0 or not 0 < self.epsilon < 1:
            raise ValueError("expected beta >= 0, learning_rate > 0 and 0 < epsilon < 1")
        if self.warmup_steps < 0 or self.lora_rank < 0:
            raise ValueError("expected warmup_steps and lora_rank not below 0")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature is {self.temperature}: without chance all judgments of a group are the same"
            )
        Sampling(self.temperature, max_tokens=self.max_tokens)  # checks their upper ends
        if self.rollouts not in get_args(RolloutKind):
            raise ValueError(f"rollouts {self.rollouts!r}: expected one of {', '.join(get_args(RolloutKind))}")
        if (not self.vllm_url) == (self.rollouts == "vllm"):
            raise ValueError("vllm rollouts need the address of the server, and only they take one")

    @property
    def prompts(self) -> int:
        """Groups of one update."""
        return self.batch // self.generations


@dataclass(frozen=True)
class Reference:
    """The model that says which items are too easy; any engine.

    Attributes:
        engine: opens it, called only if there is something to judge.
        sampling: the paper's sampling temperature is 0.5.
        ledger: where its judgments are kept, so that a killed filter goes on.
    """

    engine: Callable[[], Engine]
    sampling: Sampling = field(default_factory=Sampling)
    ledger: Path | None = None


def too_easy(items: Sequence[Item], forms: Forms, reference: Reference, say: Callable[[str], None]) -> list[bool]:
    """For each item whether all of TOO_EASY judgments of the reference model are correct (a missing one is not)."""
    from opengrm.judges.grm import GRM

    easy: dict[int, bool] = {}
    engine = reference.engine()
    try:
        with Ledger(reference.ledger) as ledger:
            for template in dict.fromkeys((forms.joint, forms.single)):
                if template is None:
                    continue
                places = [i for i, item in enumerate(items) if forms.of(item) is template and i not in easy]
                judge = GRM(engine, template, reference.sampling, ledger=ledger)
                run = judge.judge((items[i] for i in places), TOO_EASY)
                for done, (place, (item, judgments)) in enumerate(zip(places, run, strict=True), 1):
                    label = label_of(item)
                    easy[place] = label is not None and all(
                        j.scores is not None and correct(j.scores, label) for j in judgments
                    )
                    if done % 1000 == 0 or done == len(places):
                        say(f"too easy? {done:,} of {len(places):,} judged, {sum(easy.values()):,} are")
    finally:
        engine.close()
    return [easy[i] for i in range(len(items))]


def train(
    items: Sequence[Item],
    model: str | Path,
    output: str | Path,
    settings: Settings,
    *,
    template: Template,
    reference: Reference | None = None,
    choose_only: bool = False,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> Path:
    """Train and write the model to `output`; a killed run, started again, goes on from its last checkpoint.

    Args:
        items: labelled; those that cannot be used are dropped and counted.
        model: where to start and what the KL term holds on to: "nano", a folder, or a hub id.
        template: a joint form; single responses are shown in its 0/1 form, or dropped where it has none.
        reference: the too-easy filter; None keeps easy items.
        choose_only: write items.json and stop: in one process, for the several that will train.
        say: takes the lines that tell how it goes, one a step.

    Returns:
        The output folder.

    Raises:
        UsageError: settings that do not go together or differ from those of the run in `output`; no item left.
        EngineError: the model cannot be loaded.
        MissingExtra: the training libraries are not installed.
    """
    try:
        import torch
        from accelerate import PartialState
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PrinterCallback

        from opengrm.training.grpo import GroupTrainer
    except ImportError as error:
        raise MissingExtra(f"RL ({error.name})", "train") from None
    from opengrm.engines.chat import ChatTokenizer
    from opengrm.engines.checkpoints import check_folder, find_model, first_line
    from opengrm.engines.decoding import positions
    from opengrm.training.rollouts import own_rollouts
    from opengrm.training.watching import MetricsCallback, quiet

    output = Path(output)
    folder, name = find_model(model, code=settings.trust_remote_code)
    check_folder(folder)
    check_reporters(settings.report_to)
    if settings.rollouts == "vllm" and importlib.util.find_spec("vllm") is None:
        raise MissingExtra("vLLM rollouts", "vllm")  # TRL's client needs it as well as the server
    if settings.rollouts == "own" and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UsageError("own rollouts need whole weights in each process, FSDP shards them: choose vllm rollouts")
    use_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    state = PartialState(cpu=use_cpu, timeout=PATIENCE)
    said = say if state.is_main_process else lambda line: None
    quiet()
    if state.is_main_process:
        if (output / "config.json").exists() and not (output / "settings.json").exists():
            raise UsageError(f"{output}: holds a model that was not trained by this verb: choose another folder")
        begin(output / "settings.json", {"model": name, "template": template.name, **asdict(settings)})
        _check_items(items, output / "items.json")
    state.wait_for_everyone()
    if (output / "config.json").exists():
        said(f"{output}: is trained already")
        return output

    # The model and its tokenizer.
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **options)
    give_chat_template(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    chat = ChatTokenizer(tokenizer, settings.chat_template_kwargs or None)

    # The items, and the rows that the steps will show.
    forms = forms_of(template)
    room = (positions(AutoConfig.from_pretrained(folder, **options)) or 2**31) - settings.max_tokens
    if settings.max_prompt is not None:
        room = min(room, settings.max_prompt)
    with state.main_process_first():
        kept = _chosen_items(items, forms, chat, room, reference, output / "items.json", state.is_main_process, said)
    if choose_only:
        return output
    data = training_rows(kept, forms, settings)
    said(f"{settings.steps:,} steps of {settings.prompts:,} prompts: {len(data) / len(kept):.2f} epochs")

    # The trainer.
    try:
        policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **options)
    except Exception as error:
        raise EngineError(f"{model}: cannot load this model: {first_line(error)}") from None
    checkpoints = output / "checkpoints"
    config = grpo_config(settings, checkpoints, processes=state.num_processes, use_cpu=use_cpu)
    sampling = Sampling(settings.temperature, 1.0, settings.max_tokens, logprobs=settings.temperature == 1)
    opening = chat.answer(
        chat.encode([Message("user", "x")]), ()
    )  # all prompts end alike: in an opened thought, or not

    def answer(ids: Sequence[int]) -> tuple[str, bool]:
        return opening + chat.decode(ids), not len(ids) or int(ids[-1]) not in trainer.eos_token_ids

    try:
        trainer = GroupTrainer(
            model=policy,
            reward_funcs=outcome_reward(kept, forms, answer),
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=lora(settings.lora_rank),
            rollout_func=(
                own_rollouts(chat, sampling, settings.seed, settings.sample_batch)
                if settings.rollouts == "own"
                else None
            ),
            chat=chat,
            share_prompts=settings.share_prompts,
        )
    except ConnectionError as error:  # from the client of the vLLM server
        raise EngineError(first_line(error)) from None
    last = last_checkpoint(checkpoints)
    trainer.remove_callback(PrinterCallback)
    if state.is_main_process:
        trainer.add_callback(MetricsCallback(output / "metrics.jsonl", settings.steps, said))
    if last is not None:
        said(f"going on from step {step_of(last)}")
    trainer.train(resume_from_checkpoint=None if last is None else str(last))

    # An ordinary checkpoint.
    state.wait_for_everyone()
    named = template.name if built_in(template) else None
    _save(trainer, tokenizer, output, folder, named, options, state.is_main_process)
    said(f"the model is in {output}")
    return output


def training_rows(items: Sequence[Item], forms: Forms, settings: Settings) -> Any:
    """The prompts of all steps, in their order, as a `datasets.Dataset` with the columns prompt, item and order.

    Prompts are rendered when they are read: only item numbers and orders stay in memory.
    """
    from datasets import Dataset

    def shown(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pairs = [(items[place], order) for place, order in zip(batch["item"], batch["order"], strict=True)]
        return {**batch, "prompt": [[m.to_json() for m in forms.of(i).render(i, order)] for i, order in pairs]}

    stream = list(rows(items, settings.steps * settings.prompts, settings.seed, settings.orders))
    columns = {"item": [row.item for row in stream], "order": [list(row.order) for row in stream]}
    return Dataset.from_dict(columns).with_transform(shown)


def grpo_config(settings: Settings, folder: Path, *, processes: int = 1, use_cpu: bool = True) -> Any:
    """TRL's settings for ours. Whatever decides the loss is written out, because TRL's defaults differ.

    Raises:
        UsageError: the batch cannot be split evenly.
    """
    from trl import GRPOConfig

    share = settings.batch // processes
    micro = min(settings.micro_batch or share, share)
    if settings.batch % processes or share % micro:
        raise UsageError(f"a batch of {settings.batch} does not split over {processes} processes in parts of {micro}")
    if share % settings.generations:
        raise UsageError(
            f"a batch of {settings.batch} on {processes} processes is {share} judgments each, not whole groups of"
            f" {settings.generations}: choose fewer processes or a larger batch"
        )
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        num_generations=settings.generations,
        max_completion_length=settings.max_tokens,
        temperature=settings.temperature,
        beta=settings.beta,
        epsilon=settings.epsilon,
        loss_type="grpo",  # a mean over each completion's tokens, then over completions
        scale_rewards="group",
        use_bias_correction_kl=False,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.warmup_steps,
        weight_decay=0.0,
        max_grad_norm=1.0,
        shuffle_dataset=False,  # the rows are in their order already
        remove_unused_columns=False,
        bf16=settings.precision == "bfloat16" or (settings.precision is None and has_bfloat16()),
        gradient_checkpointing=settings.checkpointing,
        use_vllm=settings.rollouts == "vllm",
        vllm_mode="server",
        vllm_server_base_url=settings.vllm_url,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_steps=1,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        use_cpu=use_cpu,
        trust_remote_code=settings.trust_remote_code,
        seed=settings.seed,
    )


def _chosen_items(
    items: Sequence[Item],
    forms: Forms,
    chat: Any,
    room: int,
    reference: Reference | None,
    record: Path,
    main: bool,
    say: Callable[[str], None],
) -> tuple[Item, ...]:
    """The items to train on. The main process decides and writes `record`; a resumed run and the others read it."""

    def fits(item: Item) -> bool:
        messages = forms.of(item).render(item, range(item.n))
        # No token is shorter than a byte, so most prompts need no tokenizer to be found short enough.
        if sum(len(m.content.encode()) for m in messages) + 64 <= room:
            return True
        return len(chat.encode(messages)) <= room

    if main and not record.exists():
        usable = usable_items(items, forms, fits)
        places, dropped = list(usable.places), dict(usable.dropped)
        if reference is not None and places:
            easy = too_easy([items[place] for place in places], forms, reference, say)
            dropped["too easy"] = sum(easy)
            places = [place for place, is_easy in zip(places, easy, strict=True) if not is_easy]
        decided = {
            "given": len(items),
            "kept": len(places),
            "dropped": dropped,
            "items": _digest(items),
            "places": places,
        }
        write_json(record, decided)
    row = read_json(record) or {}
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in row["dropped"].items() if count)
    say(f"{row['kept']:,} of {row['given']:,} items to train on" + (f"; dropped: {reasons}" if reasons else ""))
    return tuple(items[place] for place in row["places"])


def _check_items(items: Sequence[Item], record: Path) -> None:
    """See that a run is taken up with the items and labels that it was begun with."""
    row = read_json(record)
    if row is not None and row.get("items") != _digest(items):
        raise UsageError(f"{record.parent}: holds a run on other items or labels: choose another folder")


def _digest(items: Sequence[Item]) -> str:
    return content_hash("rl items", [[item.key, label_of(item)] for item in items])


def _save(
    trainer: Any, tokenizer: Any, output: Path, base: Path, template: str | None, options: Any, main: bool
) -> None:
    """The model's folder, adapters merged; config.json comes last into place and marks the run as done."""
    raw, whole = output / "saving", output / "saved"
    trainer.save_model(str(raw))  # by all processes: weights may be sharded
    if main:
        end = end_token(tokenizer)
        write_checkpoint(raw, whole, base=base, tokenizer=tokenizer, end=end, template=template, options=options)
        for path in sorted(whole.iterdir(), key=lambda p: p.name == "config.json"):
            os.replace(path, output / path.name)
        for folder in (raw, whole, output / "checkpoints"):
            remove(folder)
    trainer.accelerator.wait_for_everyone()

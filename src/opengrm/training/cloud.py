"""CLoud, a critique and then a scalar (arXiv:2408.11791), trained as its authors do, on plain transformers.

    oracle_stage   items [+ oracle]     -> oracle/rows.jsonl           `critiques.py`
    critic_stage   base + rows          -> critic/model                supervised fine-tuning (`sft.py`)
    own_stage      critic + items       -> critiques/critiques.jsonl   `critiques.py`
    joint_stage    critic + critiques   -> model/critic, model/head    this file's loss

All of it lies in one folder; each stage is done once, and goes on where it was killed. The last one reads each of a
pair (best response, other response) as one conversation of prompt, response and the critic's own critique, and adds

    BT = -log sigmoid(r_best - r_other), r from a head on the last token
    LM = cross-entropy of the critiques' tokens
    loss = BT + lm_weight * LM

The result is two ordinary folders over the same backbone: `model/critic`, a causal LM for any engine or server, and
`model/head`, a sequence classifier with one label.

With `lm_weight` 0 the head is a model of its own, and the critic stays what its fine-tuning made it: DeepSeek-GRM's
baseline (arXiv:2504.02495, "a critique model and a separate value-head model").

Departures from the authors' code (github.com/zankner/CLoud at fac417e), and choices:

- The head is one linear layer from zeros, in float32, as transformers' classifiers (and vLLM's) have it. Theirs is an
  MLP with tanh and dropout, which no server loads.
- LM is the mean over all critique tokens of a step and BT over its pairs, however a step is cut into micro-batches.
- An example that is longer than `max_length` is left out; they cut it. Weight decay is 0, the cosine ends at 0.
- An item of n > 2 makes n - 1 pairs, so the LM part counts its best response's critique n - 1 times.
- Accuracy is measured on conversations that neither critic nor head learned from, with the saved head and the
  critiques of `critic/model`.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np

from opengrm.errors import EngineError, MissingExtra, UsageError
from opengrm.jsonl import read_rows
from opengrm.templates.cloud import CloudTemplate
from opengrm.training.checkpoint import check_weights, end_token, remove, write_checkpoint
from opengrm.training.cloud_examples import Collator, Encoder, measured, read_pairs
from opengrm.training.critiques import CRITIQUES, ROWS
from opengrm.training.resume import cut_metrics, last_checkpoint, step_of
from opengrm.training.rft import count_rows, digest
from opengrm.training.sft import IGNORED, SFTSettings, draws, quietly, reporter, train
from opengrm.training.stage import PATIENCE, begin, check_finite, has_bfloat16, read_json, write_json

ORACLE, CRITIC, OWN, JOINT, MODEL, HEAD = "oracle", "critic", "critiques", "joint", "model", "head"
SETTINGS, METRICS, CHECKPOINTS, RAW, SUMMARY = "settings.json", "metrics.jsonl", "checkpoints", "raw", "train.json"
OnStep = Callable[[int, int, Mapping[str, float]], None]  # steps done, steps in all, the last metrics


@dataclass(frozen=True)
class CloudSettings:
    """How to train the head and the critic together; defaults are those of the authors' 8B configuration.

    Attributes:
        learning_rate: peak, cosine to zero (theirs: 1e-6). A small model wants more.
        lm_weight: of the critiques' cross-entropy (theirs: 1.25 for 8B, 0.75 for 70B); 0 is a head of its own.
        batch: pairs of one step, over all devices (theirs: 96).
        epochs: passes over the pairs (theirs: 1); not used with `steps`.
        steps: optimizer steps instead of epochs.
        micro_batch: pairs in one forward pass on one device; divides the batch.
        max_length: longest example in tokens (theirs: 2048, cut there).
        dev_share: share of conversations that are held out.
        warmup: share of the steps over which the rate rises (theirs: 0.1).
        weight_decay, max_grad_norm: AdamW's decay, and the norm that gradients are cut to (theirs: 1).
        checkpointing: compute activations twice to save memory.
        save_every, log_every: steps between checkpoints, and between lines of metrics.
        seed: of the shuffle.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 1e-6
    lm_weight: float = 1.25
    batch: int = 96
    epochs: float = 1.0
    steps: int | None = None
    micro_batch: int = 2
    max_length: int = 8192
    dev_share: float = 0.1
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    checkpointing: bool = False
    save_every: int = 100
    log_every: int = 10
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "micro_batch", "max_length", "save_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        check_finite(self)
        if not self.learning_rate > 0 or not self.epochs > 0 or not 0 <= self.warmup < 1:
            raise ValueError("learning rate and epochs must be above 0, warm-up 0 or more and less than 1")
        if self.lm_weight < 0:
            raise ValueError(f"lm_weight is {self.lm_weight}, expected 0 or more")
        if not 0 <= self.dev_share < 1:
            raise ValueError(f"the held-out share is {self.dev_share}, expected 0 or more and less than 1")


# The authors' critique SFT (8B); their one epoch is `critic_stage`'s business.
CRITIC_SETTINGS = SFTSettings(learning_rate=5e-6, batch=96, warmup=0.1)


def critic_stage(
    model: str | Path,
    output: Path,
    template: CloudTemplate,
    settings: SFTSettings = CRITIC_SETTINGS,
    *,
    steps: int | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Fine-tune a base to write the oracle's critiques: `output/critic/model` and its figures.

    Args:
        model: the base: "nano-base", a folder, or a hub id.
        output: the run's folder, with `oracle/rows.jsonl` in it.
        template: what it learns to answer, for its config.json.
        settings: of the fine-tuning, but for the steps.
        steps: optimizer steps; None is one epoch, the authors' way.
        on_step: called after each step.

    Returns, Raises: see `sft.train`.
    """
    rows = output / ORACLE / ROWS
    steps = steps or max(1, round(count_rows(rows) / settings.batch))
    return train(
        model, lambda: (row for _, row in read_rows(rows)), output / CRITIC, replace(settings, steps=steps),
        data_key=digest(rows), template=template.name, on_step=_counted(on_step, steps),
    )  # fmt: skip


def joint_stage(
    output: Path, template: CloudTemplate, settings: CloudSettings | None = None, *, on_step: OnStep | None = None
) -> dict[str, Any]:
    """Train the head and the critic together: `output/model/critic`, `output/model/head`, and the figures.

    A killed run goes on from its last whole checkpoint. Under `accelerate launch` every process calls this.

    Args:
        output: the run's folder, with `critic/model` and `critiques/critiques.jsonl` in it.
        template: the critic's.
        settings: see there.
        on_step: called after each step with its number, that of the last one, and the latest metrics.

    Returns:
        What `joint/train.json` holds: settings, counts, losses, and `dev`: on held-out conversations n, accuracy with
        its interval (a tie at the top as expected credit), and the mean BT loss of the pairs.

    Raises:
        UsageError: settings that do not go together, no pair to learn from, or a run begun with other settings.
        EngineError: the critic cannot be loaded as a causal LM with a head.
        MissingExtra: the training libraries are not installed.
    """
    settings, folder = settings or CloudSettings(), output / JOINT
    begun = {
        "critiques": digest(output / OWN / CRITIQUES),
        "template": f"{template.name}@{template.version}",
        **asdict(settings),
    }
    begin(folder / SETTINGS, begun)
    done = read_json(folder / SUMMARY)
    if done is not None:
        return done
    with quietly():
        return _train(output, template, settings, begun, on_step)


def _train(
    output: Path, template: CloudTemplate, settings: CloudSettings, begun: Mapping[str, Any], on_step: OnStep | None
) -> dict[str, Any]:
    try:
        import accelerate
        import torch
        import transformers
    except ImportError:
        raise MissingExtra("training", "train") from None
    from opengrm.engines.classifier import Classifier, context_length

    folder = output / JOINT
    state = accelerate.PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)

    # 1. The critic with a head on it.
    model, tokenizer = with_head(output / CRITIC / "model", trust_remote_code=settings.trust_remote_code)

    # 2. The pairs, and the held-out items.
    encoder, context = Encoder(tokenizer, model.config.pad_token_id), context_length(model)
    longest = settings.max_length if context is None else min(settings.max_length, context)
    pairs, dev, left_out = read_pairs(output / OWN / CRITIQUES, template, encoder, longest, settings.dev_share)
    if not pairs:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items())
        raise UsageError(f"{output / OWN}: no pair to learn from" + (f" ({reasons})" if reasons else ""))
    steps = settings.steps or max(1, round(settings.epochs * len(pairs) / settings.batch))
    lengths = np.array([len(pair.best.ids) + len(pair.other.ids) for pair in pairs])
    order = draws(lengths, steps, settings.batch, settings.seed)

    # 3. Training.
    micro_batch = min(settings.micro_batch, settings.batch // state.num_processes)
    if not micro_batch or settings.batch % (micro_batch * state.num_processes):
        raise UsageError(
            f"a batch of {settings.batch} pairs cannot be divided by {settings.micro_batch} pairs a pass"
            f" x {state.num_processes} processes"
        )
    on_gpu = state.device.type != "cpu"
    lean: dict[str, Any] = {"gradient_checkpointing": True} if settings.checkpointing else {}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        learning_rate=settings.learning_rate,
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=settings.batch // (micro_batch * state.num_processes),
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=has_bfloat16(),
        **lean,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        train_sampling_strategy="sequential",  # the order is `draws`, whatever the number of processes
        ddp_find_unused_parameters=not settings.lm_weight,  # then nothing learns the language-model head
        remove_unused_columns=False,
        label_names=["labels"],
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_steps=settings.log_every,
        logging_first_step=True,
        seed=settings.seed,
        report_to=[],
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        raise UsageError("several GPUs in one process: use accelerate launch, or show one (CUDA_VISIBLE_DEVICES=0)")
    parts = _Parts(settings)
    trainer: Any = _trainer(
        parts,
        model=model,
        args=arguments,
        train_dataset=[pairs[i] for i in order],
        data_collator=Collator(model.config.pad_token_id, bool(settings.lm_weight)),
        processing_class=tokenizer,
        compute_loss_func=parts.loss,
        callbacks=[reporter(folder / METRICS, _counted(on_step, steps))],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    last = last_checkpoint(folder / CHECKPOINTS)
    if state.is_main_process:
        cut_metrics(folder / METRICS, step_of(last))
    if last is not None and step_of(last) >= steps:  # killed between its last step and its summary
        trainer._load_from_checkpoint(str(last))
        trainer.state = transformers.TrainerState.load_from_json(str(last / "trainer_state.json"))
    else:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    check_weights(model)

    # 4. The two folders, and what they are worth on conversations they have not seen.
    trainer.save_model(str(folder / RAW))
    summary = {
        **begun, "steps": steps, "pairs": len(pairs), "left_out": dict(left_out),
        **{f"{when}_{k}": v for when, e in zip(("first", "last"), _ends(trainer), strict=True) for k, v in e.items()},
        "processes": state.num_processes, "resumed_from": None if last is None else step_of(last), "dev": None,
    }  # fmt: skip
    if state.is_main_process:
        _write_folders(output, tokenizer, template, joint=settings.lm_weight > 0, code=settings.trust_remote_code)
        if dev:
            with Classifier(output / MODEL / HEAD, trust_remote_code=settings.trust_remote_code) as head:
                summary["dev"] = measured(dev, template, head)
        write_json(folder / SUMMARY, summary)
        for name in (RAW, CHECKPOINTS):
            remove(folder / name)
    state.wait_for_everyone()
    return summary


def with_head(critic: Path, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A causal LM whose forward also gives a scalar, and its tokenizer.

    The head is the module `score`, one linear layer from zeros. The forward takes `input_ids`, `attention_mask`,
    `last_B` (where the head reads) and `keep` (for how many last places logits are wanted), and gives `scores_B` and
    `logits_BKV`. It is this instance's: what is saved has transformers' own classes, with the names of both of them.

    Raises:
        EngineError: it cannot be loaded.
    """
    import torch
    import transformers

    from opengrm.engines.checkpoints import check_folder, first_line
    from opengrm.engines.classifier import float_head, pad_token

    check_folder(critic)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(critic, **options)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            critic, dtype=torch.float32, use_safetensors=True, **options
        )
    except Exception as error:
        raise EngineError(f"{critic}: cannot load this model: {first_line(error)}") from None
    pad_token(tokenizer, model)
    model.score = torch.nn.Linear(model.config.get_text_config().hidden_size, 1, bias=False)
    torch.nn.init.zeros_(model.score.weight)
    float_head(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the same critique has one reward, as in `scalar.py`

    def forward(self: Any, input_ids: Any, attention_mask: Any, last_B: Any, keep: int) -> dict[str, Any]:
        outputs = type(self).forward(
            self, input_ids=input_ids, attention_mask=attention_mask, use_cache=False, output_hidden_states=True,
            logits_to_keep=keep,
        )  # fmt: skip
        hidden_BD = outputs.hidden_states[-1][torch.arange(len(last_B), device=last_B.device), last_B]
        return {"scores_B": self.score(hidden_BD)[:, 0], "logits_BKV": outputs.logits}

    model.forward = MethodType(forward, model)
    return model, tokenizer


def joint_loss(
    scores_B: Any, logits_BKV: Any, labels_BT: Any, lm_weight: float, pairs: Any = None, tokens: Any = None
) -> tuple[Any, Any, Any]:
    """BT + lm_weight * LM, and its two parts.

    Args:
        scores_B: rows come in pairs: best response, other response, best response, ...
        logits_BKV: of the last K places, the first of which predicts the first labelled token of all rows.
        labels_BT: token ids where a critique stands, else -100.
        lm_weight: 0 leaves the LM part out.
        pairs, tokens: of the whole step, so that accumulated micro-batches add up to its mean; None is these alone.
    """
    import torch

    functional = torch.nn.functional
    scores_B = scores_B.float()
    bt = -functional.logsigmoid(scores_B[0::2] - scores_B[1::2]).sum() / (pairs or len(scores_B) // 2)
    if not lm_weight:
        return bt, bt, torch.zeros_like(bt)
    targets_BK = labels_BT[:, labels_BT.shape[1] - logits_BKV.shape[1] + 1 :]
    total = functional.cross_entropy(
        logits_BKV[:, :-1].flatten(0, 1).float(), targets_BK.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    lm = total / max((targets_BK != IGNORED).sum() if tokens is None else tokens, 1)
    return bt + lm_weight * lm, bt, lm


@dataclass
class _Parts:
    """The loss, and the sums of its parts since the last line of metrics, on this device."""

    settings: CloudSettings
    sums: dict[str, float] = field(default_factory=dict)

    def loss(self, outputs: Mapping[str, Any], labels: Any, num_items_in_batch: Any = None) -> Any:
        """A micro-batch's share of its step's loss; the Trainer gives the step's count of labelled tokens."""
        scores_B = outputs["scores_B"]
        loss, bt, lm = joint_loss(
            scores_B, outputs["logits_BKV"], labels, self.settings.lm_weight, self.settings.batch, num_items_in_batch
        )
        for name, value in {
            "pairs": len(scores_B) // 2, "bt": bt.detach() * self.settings.batch,
            "right": (scores_B[0::2] > scores_B[1::2]).sum(),
            "tokens": (labels != IGNORED).sum(), "lm": lm.detach() * num_items_in_batch,
        }.items():  # fmt: skip
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        return loss

    def means(self) -> dict[str, float]:
        """BT, LM (where there is one) and the share of pairs in the right order; the sums begin anew."""
        sums, self.sums = self.sums, {}
        found = {"bt": sums["bt"] / sums["pairs"], "pair_accuracy": sums["right"] / sums["pairs"]}
        return {**found, "lm": sums["lm"] / sums["tokens"]} if sums["tokens"] else found


def _trainer(parts: _Parts, **arguments: Any) -> Any:
    """A Trainer whose metrics have the parts of the loss."""
    import transformers

    class Trainer(transformers.Trainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log({**logs, **parts.means()} if "loss" in logs else logs, start_time)

    return Trainer(**arguments)


def _counted(on_step: OnStep | None, steps: int) -> Callable[[int, Mapping[str, float]], None] | None:
    return None if on_step is None else lambda step, last: on_step(step, steps, last)


def _ends(trainer: Any) -> list[dict[str, float]]:
    """Losses of the first and the last line of metrics."""
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: line[name] for name in ("loss", "bt", "lm") if name in line} for line in (lines[0], lines[-1])]


def _write_folders(output: Path, tokenizer: Any, template: CloudTemplate, *, joint: bool, code: bool) -> None:
    """`output/model` with its two folders, whole or not at all; backbones are in the base's precision."""
    import torch
    import transformers

    from opengrm.engines.checkpoints import for_transformers_4

    raw, critic, part = output / JOINT / RAW, output / CRITIC / "model", output / f".{MODEL}.part"
    options: dict[str, Any] = {"trust_remote_code": code, "local_files_only": True}
    remove(part)
    part.mkdir()
    logging: Any = transformers.utils.logging
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # each of the two leaves the other's head out: no news
    try:
        if joint:
            write_checkpoint(
                raw, part / CRITIC,
                base=critic, tokenizer=tokenizer, end=end_token(tokenizer), template=template.name, options=options,
            )  # fmt: skip
        else:
            shutil.copytree(critic, part / CRITIC)
        head, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            raw, dtype=torch.float32, num_labels=1, output_loading_info=True, **options
        )
    finally:
        logging.set_verbosity(told)
    if report["missing_keys"]:
        raise EngineError(f"{critic}: {type(head).__name__} has no head named 'score', so it cannot be a CLoud head")
    weight, config = head.score.weight.detach().clone(), transformers.AutoConfig.from_pretrained(critic, **options)
    head = head.to(torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float32)
    head.score.weight = torch.nn.Parameter(weight)  # float32 whatever the backbone is
    head.config.use_cache = getattr(config, "use_cache", True)
    head.config.cloud_template = template.name
    head.save_pretrained(part / HEAD)
    tokenizer.save_pretrained(part / HEAD)
    for_transformers_4(part / HEAD)
    remove(output / MODEL)
    os.replace(part, output / MODEL)

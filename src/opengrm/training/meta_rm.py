"""The meta RM's training (paper v3 section 4): is this judgment's ranking correct?

A sequence classifier with one logit reads a conversation of query, responses and the judgment's text (`templates/
meta.py`), and is trained by binary cross-entropy against the one rule of what is correct. Judgments are taken from
ledgers: the non-hinted samples of rejective fine-tuning, kept and dropped alike, and fresh samples of the trained GRM.

    judgments + items -> examples.jsonl -> checkpoints/ + metrics.jsonl -> model/, an ordinary Hugging Face folder

Where the paper leaves a choice open, or we decide:

- Classes are not balanced: the logit should say how likely a judgment of this GRM is right.
- Development examples are whole conversations: all judgments of all items with the same prompt are on one side, by a
  hash of the prompt, so that accuracy and AUC are honest and the split is the same for every ledger.
- The logit is read at the last token that is not padding, as transformers' classifiers do. The head starts at zero:
  every logit is 0 and the first loss is ln 2.
- Examples are not drawn singly: up to 8 of one prompt (of one item in one order), an eighth of a step at most, stand
  together, so that a prompt is read once for all of them (`engines/packed.py`). An epoch still has each example once.
  Models that cannot share prompts see the same examples in the same order.
- Steps, schedule, warm-up and weight decay are not given in the paper: one epoch, linear decay after 3 % of warm-up,
  no weight decay, gradients cut at norm 1.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opengrm.errors import EngineError, MissingExtra, UsageError
from opengrm.items import Item
from opengrm.jsonl import read_rows, write_rows
from opengrm.judgments import Judgment
from opengrm.templates.meta import MetaTemplate
from opengrm.training.meta_examples import example_from_json, examples
from opengrm.training.resume import cut_metrics, last_checkpoint, step_of
from opengrm.training.stage import PATIENCE, write_json
from opengrm.voting.association import bootstrap, roc_auc
from opengrm.voting.intervals import share_interval

OnProgress = Callable[[int, int, str], None]
EXAMPLES, METRICS, REPORT = "examples.jsonl", "metrics.jsonl", "meta_rm.json"
MODEL, CHECKPOINTS = "model", "checkpoints"
_TOGETHER = 8  # most examples of a prompt that stand together, and fewest such pieces in a step


@dataclass(frozen=True)
class MetaSettings:
    """How to train; defaults are the paper's (its appendix) where it gives a value.

    Attributes:
        learning_rate: 1e-5 (paper, 27B). A small model wants more.
        batch: examples of one step, over all devices (paper: 512).
        epochs: passes over the training examples; not used with `steps`.
        steps: optimizer steps instead of epochs.
        micro_batch: most examples that a device holds at once; a divisor of `batch` over the number of devices.
        dev_share: share of conversations that are held out.
        warmup: share of the steps over which the rate rises.
        weight_decay: of AdamW.
        max_tokens: longer examples are left out; None is the model's context.
        eval_every, save_every: steps between looks at the held-out examples, and between checkpoints.
        seed: of the order of the examples.
        checkpointing: trades time for memory; for large models.
        bf16: train under bfloat16 autocast (weights stay float32); None where a GPU has it.

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 1e-5
    batch: int = 512
    epochs: float = 1.0
    steps: int | None = None
    micro_batch: int = 8
    dev_share: float = 0.1
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_tokens: int | None = None
    eval_every: int = 50
    save_every: int = 50
    seed: int = 0
    checkpointing: bool = False
    bf16: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.dev_share < 1:
            raise ValueError(f"the held-out share is {self.dev_share}, expected 0 to 1")
        if not self.learning_rate > 0 or not self.epochs > 0 or not 0 <= self.warmup < 1:
            raise ValueError("learning rate and epochs must be above 0, warm-up from 0 to 1")
        for name in ("batch", "micro_batch", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', ' ')} is {getattr(self, name)}, expected at least 1")


def bce_with_logits(logits_B1: Any, labels_B: Any, items: Any = None) -> Any:
    """-[c log sigmoid(m) + (1 - c) log(1 - sigmoid(m))], summed and divided by `items`, else by the batch's size.

    Args:
        logits_B1: the classifier's logits m.
        labels_B: c, 0 or 1.
        items: number of examples of the whole step, so that accumulated micro-batches add up to its mean.
    """
    import torch

    total = torch.nn.functional.binary_cross_entropy_with_logits(
        logits_B1[:, 0].float(), labels_B.float(), reduction="sum"
    )
    return total / (len(labels_B) if items is None else items)


def train_meta(
    judgments: Iterable[Judgment],
    items: Mapping[str, Item],
    base: str | Path,
    output: str | Path,
    template: MetaTemplate,
    settings: MetaSettings | None = None,
    *,
    trust_remote_code: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train a meta RM and write it to `output`/model; the same call goes on where a killed one stopped.

    What was read from the judgments is written to examples.jsonl first, and a run that goes on uses that file,
    whatever has come into the ledgers meanwhile.

    Args:
        judgments: see `examples`; not read if the examples are there already.
        items: by id, with labels.
        base: the GRM or the base model, a causal LM: "nano", a folder or a hub id.
        output: a folder; made if it is not there.
        template: what the meta RM reads; its name goes into config.json (`meta_template`).
        settings: None is the paper's.
        trust_remote_code: run code that comes with the base.
        on_progress: called with steps done, steps in all, and a few words.

    Returns:
        The report, also in meta_rm.json: settings, counts of examples and of what was left out, and on the held-out
        examples n, the share that is correct, loss, accuracy at logit 0 and AUC with 95 % intervals clustered by
        conversation.

    Raises:
        UsageError: the folder holds a run with other settings, or there is nothing to learn from.
        EngineError: the base cannot be loaded.
        MissingExtra: the training libraries are not installed.
    """
    try:
        import accelerate
        import torch
        import transformers
    except ImportError:
        raise MissingExtra("training", "train") from None
    from opengrm.engines.classifier import read_packed

    settings, folder = settings or MetaSettings(), Path(output)
    state = accelerate.PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    accumulation, left = divmod(settings.batch, state.num_processes * min(settings.micro_batch, settings.batch))
    if left or not accumulation:
        raise UsageError(
            f"a batch of {settings.batch} cannot be made of {state.num_processes} devices with"
            f" {settings.micro_batch} examples each: choose a divisor"
        )

    # 1. The base as a classifier, and what identifies this run.
    model, tokenizer, identity = _classifier(base, trust_remote_code)
    model.config.meta_template = template.name
    run = {
        "template": f"{template.name}@{template.version}", "base": identity,
        "settings": {k: v for k, v in asdict(settings).items() if k not in ("micro_batch", "checkpointing")},
    }  # fmt: skip

    # 2. The examples: once, by the first process.
    with state.main_process_first():
        report = _begin(folder, run, judgments, items, template)
    if "dev" in report:
        return report
    train, dev, too_long = _encoded(folder / EXAMPLES, model, tokenizer, settings)
    if len({example.label for example in train}) < 2:
        raise UsageError(
            f"{folder}: no judgments to learn from (or all of one label); see {REPORT} for what was left out"
        )

    # 3. Training.
    has_gpu = torch.cuda.is_available()
    lean: dict[str, Any] = {"gradient_checkpointing": True} if settings.checkpointing else {}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        per_device_train_batch_size=settings.batch // accumulation // state.num_processes,
        per_device_eval_batch_size=settings.batch // accumulation // state.num_processes,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        bf16=has_gpu and torch.cuda.is_bf16_supported() if settings.bf16 is None else settings.bf16,
        **lean,
        eval_strategy="steps" if len(dev) else "no",
        eval_steps=settings.eval_every,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_steps=1,
        seed=settings.seed,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=True,
        use_cpu=not has_gpu and not torch.backends.mps.is_available(),
    )
    trainer: Any = _trainer(
        settings,
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=dev if len(dev) else None,
        data_collator=_Collator(model.config.pad_token_id, packed=False),
        processing_class=tokenizer,
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: bce_with_logits(
            outputs["logits"], labels, num_items_in_batch
        ),
        compute_metrics=lambda found: _measured(np.asarray(found.predictions)[:, 0], found.label_ids),
        callbacks=[_log(folder / METRICS, on_progress)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if _can_share_prompts(trainer):
        read_packed(model)
        trainer.data_collator = _Collator(model.config.pad_token_id, packed=True)
    last = last_checkpoint(folder / CHECKPOINTS)
    if state.is_main_process:
        cut_metrics(folder / METRICS, step_of(last))
    trainer.train(resume_from_checkpoint=None if last is None else str(last))

    # 4. The folder, and what the model is worth on conversations it has not seen.
    found = None
    if len(dev):
        predicted = trainer.predict(dev)
        found = _dev_report(np.asarray(predicted.predictions)[:, 0], dev)
    trainer.save_model(str(folder / MODEL))
    report |= {"too_long": too_long, "steps": trainer.state.global_step, "dev": found}
    if state.is_main_process:
        _in_the_bases_precision(folder / MODEL, base, trust_remote_code)
        write_json(folder / REPORT, report)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    state.wait_for_everyone()
    return report


def _classifier(base: str | Path, trust_remote_code: bool) -> tuple[Any, Any, str]:
    """The base turned into a classifier with one label and a head of zeros, its tokenizer and its identity."""
    import torch
    import transformers

    from opengrm.engines.checkpoints import check_folder, find_model, first_line
    from opengrm.engines.classifier import float_head, pad_token
    from opengrm.engines.fingerprint import fingerprint
    from opengrm.engines.transformers import _quietly

    folder, name = find_model(base, code=trust_remote_code)
    check_folder(folder)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        with _quietly(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            logging: Any = transformers.utils.logging
            told = logging.get_verbosity()
            logging.set_verbosity_error()  # that the head is new is no news
            model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, dtype=torch.float32, use_safetensors=True, **options
            )
            logging.set_verbosity(told)
    except Exception as error:
        raise EngineError(f"{base}: cannot be made a classifier: {first_line(error)}") from None
    pad_token(tokenizer, model)
    float_head(model)
    with torch.no_grad():
        for parameter in model.score.parameters():
            parameter.zero_()
    return model, tokenizer, f"{name}@{fingerprint(folder)}"


def _in_the_bases_precision(folder: Path, base: str | Path, trust_remote_code: bool) -> None:
    """Write the weights, trained in float32, in bfloat16 where the base is."""
    import torch
    import transformers

    from opengrm.engines.checkpoints import find_model

    config = json.loads((find_model(base)[0] / "config.json").read_text(encoding="utf-8"))
    if "bfloat16" in (config.get("dtype"), config.get("torch_dtype")):
        model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.bfloat16, local_files_only=True, trust_remote_code=trust_remote_code
        )
        model.save_pretrained(folder)


def _begin(
    folder: Path, run: dict[str, Any], judgments: Iterable[Judgment], items: Mapping[str, Item], template: MetaTemplate
) -> dict[str, Any]:
    """The report of this folder's run: read if it is there, else begun, with examples.jsonl written."""
    if (folder / REPORT).exists():
        report: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        differing = [name for name in run if report.get(name) != run[name]]
        if differing:
            raise UsageError(f"{folder}: holds a run with another {', '.join(differing)}: choose another folder")
        return report
    folder.mkdir(parents=True, exist_ok=True)
    left_out: Counter[str] = Counter()
    counts: Counter[int] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for example in examples(judgments, items, template, left_out):
            counts[example.label] += 1
            yield example.to_json()

    write_rows(folder / EXAMPLES, rows())
    report = {
        **run,
        "examples": counts.total(), "correct": counts[1], "left_out": dict(sorted(left_out.items())),
    }  # fmt: skip
    write_json(folder / REPORT, report)
    return report


class _Encoded(NamedTuple):
    """An example as token ids: 4 bytes a token, so that all of them fit in memory."""

    ids: Any
    label: int
    group: str
    prompt: int  # numbered from 0


def _encoded(
    path: Path, model: Any, tokenizer: Any, settings: MetaSettings
) -> tuple[list[_Encoded], list[_Encoded], int]:
    """Training and held-out examples, and how many were too long for either."""
    from opengrm.engines.classifier import DialogueTokenizer, context_length

    dialogue, too_long = DialogueTokenizer(tokenizer), 0
    train: list[_Encoded] = []
    dev: list[_Encoded] = []
    prompts: dict[int, int] = {}  # by hash: millions of prompts need not stay in memory
    limits = [limit for limit in (settings.max_tokens, context_length(model)) if limit is not None]
    for _, row in read_rows(path):
        example = example_from_json(row)
        ids = np.array(dialogue.encode(example.messages), dtype=np.int32)
        if limits and len(ids) > min(limits):
            too_long += 1
            continue
        side = dev if example.held_out(settings.dev_share) else train
        prompt = prompts.setdefault(hash(example.messages[:-1]), len(prompts))
        side.append(_Encoded(ids, example.label, example.group, prompt))
    return train, dev, too_long


@dataclass(frozen=True)
class _Collator:
    """A micro-batch: labels, and padded token ids or the layout of a packed row."""

    pad: int
    packed: bool

    def __call__(self, rows: list[_Encoded]) -> dict[str, Any]:
        import torch

        from opengrm.engines.classifier import packed, padded

        labels = torch.tensor([row.label for row in rows], dtype=torch.float32)
        ids = [row.ids.tolist() for row in rows]
        if self.packed:
            return {"labels": labels, "layout": packed(ids, [row.prompt for row in rows], self.pad)}
        return {**padded(ids, self.pad), "labels": labels}


def _can_share_prompts(trainer: Any) -> bool:
    """Whether a packed row gives what the padded batch does: such a model, whole on each device, one process a device.

    DataParallel (several GPUs in one process) would cut a row in pieces; FSDP and DeepSpeed have not been tried.
    """
    from opengrm.engines.classifier import takes_packed
    from opengrm.training.shared_prompt import can_share

    whole = trainer.accelerator.distributed_type.value in ("NO", "MULTI_CPU", "MULTI_GPU")
    return whole and trainer.args.n_gpu < 2 and takes_packed(trainer.model) and can_share(trainer.model)


def drawn(prompts: Sequence[int], batch: int, rng: np.random.Generator) -> list[int]:
    """An epoch: each example's index once, in random order but for up to `_TOGETHER` of a prompt that stand together.

    Args:
        prompts: each example's prompt.
        batch: examples of a step. With few of them fewer stand together, so that a step has many prompts.
        rng: the same one gives the same epoch, on any number of devices.
    """
    most = max(1, min(_TOGETHER, batch // _TOGETHER))
    pieces: list[list[int]] = []
    filling: dict[int, list[int]] = {}
    for index in rng.permutation(len(prompts)).tolist():
        piece = filling.get(prompts[index])
        if piece is None or len(piece) == most:
            piece = filling[prompts[index]] = []
            pieces.append(piece)
        piece.append(index)
    return [index for place in rng.permutation(len(pieces)) for index in pieces[place]]


def _trainer(settings: MetaSettings, **arguments: Any) -> Any:
    """A Trainer that goes through its examples as `drawn`."""
    import transformers

    class Order:
        def __init__(self, trainer: Any, rows: Sequence[_Encoded]) -> None:
            self.trainer, self.prompts = trainer, [row.prompt for row in rows]

        def __len__(self) -> int:
            return len(self.prompts)

        def __iter__(self) -> Iterator[int]:
            # By the steps done, as a checkpoint knows them: accelerate tells no epoch where a sharded run goes on.
            epoch = self.trainer.state.global_step // -(-len(self.prompts) // settings.batch)
            return iter(drawn(self.prompts, settings.batch, np.random.default_rng((settings.seed, epoch))))

    class Trainer(transformers.Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            rows: Any = self.train_dataset if train_dataset is None else train_dataset
            return Order(self, rows)

    return Trainer(**arguments)


def _measured(logits_I: Any, labels_I: Any) -> dict[str, float]:
    """Accuracy at logit 0 and AUC, while training."""
    logits_I, labels_I = np.asarray(logits_I, dtype=np.float64), np.asarray(labels_I, dtype=np.float64)
    auc = float(roc_auc(logits_I, labels_I, np.ones((1, len(labels_I))))[0])
    found = {"accuracy": float(((logits_I > 0) == (labels_I > 0.5)).mean())}
    return found if np.isnan(auc) else {**found, "auc": auc}


def _dev_report(logits: Any, dev: Sequence[_Encoded]) -> dict[str, Any]:
    """Loss, accuracy and AUC with intervals clustered by conversation."""
    logits_I = np.asarray(logits, dtype=np.float64)
    labels_I = np.array([example.label for example in dev], dtype=np.float64)
    numbers: dict[str, int] = {}
    clusters_I = np.array([numbers.setdefault(group, len(numbers)) for _, _, group, _ in dev], dtype=np.int64)
    hits_I = ((logits_I > 0) == (labels_I > 0.5)).astype(np.float64)
    accuracy = share_interval(hits_I, None, clusters_I)
    auc = bootstrap(roc_auc, [(logits_I, labels_I)], clusters_I)
    return {
        "n": len(labels_I),
        "conversations": len(numbers),
        "correct": float(labels_I.mean()),
        "loss": float((np.logaddexp(0, logits_I) - labels_I * logits_I).mean()),
        "accuracy": None if accuracy is None else accuracy._asdict(),
        "auc": None if auc is None else auc._asdict(),
    }


def _log(path: Path, on_progress: OnProgress | None) -> Any:
    """A callback that writes metrics.jsonl and reports progress."""
    import transformers

    class Log(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.note = ""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            values = {name.replace("eval_", "dev_"): value for name, value in (logs or {}).items()}
            if state.is_world_process_zero and values:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": state.global_step, **values}) + "\n")
            if "loss" in values:
                self.note = f"loss {values['loss']:.3f}"
            if "dev_auc" in values:
                self.note = f"held out: accuracy {values['dev_accuracy']:.1%}, AUC {values['dev_auc']:.3f}"
            if on_progress is not None and state.is_world_process_zero:
                on_progress(state.global_step, state.max_steps, self.note)

    return Log()

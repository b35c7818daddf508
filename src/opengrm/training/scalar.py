"""The trainer of one-logit models, which the meta RM, Bradley-Terry and PairRM share.

A sequence classifier with one label reads conversations. An example is a group of 1..m conversations whose logits
enter one loss: one judgment for the meta RM, the chosen and the rejected response for Bradley-Terry, both orders of a
pair for PairRM. The stage that trains says what an example is, its loss and its measures (`Objective`).

    examples.jsonl -> checkpoints/ + metrics.jsonl -> model/, an ordinary Hugging Face folder

Where we decide:

- The logit is read as transformers' classifiers read it: at the last token that is not padding by decoders, at the
  first by encoders. It is computed in float32, and a new head starts at zero: the first logits are all 0. A base that
  is a classifier with one label keeps its head.
- Dropout is off, as in TRL's RewardTrainer: the same example has one reward.
- Development examples are whole conversations, by a hash of the prompt: accuracies are honest, and the split is the
  same for all files that hold the conversation.
- Examples are not drawn singly: up to 8 of one prompt, an eighth of a step at most, stand together, so that a prompt
  is read once for all of them (`engines/packed.py`). An epoch still has each example once. Models that cannot share
  prompts see the same examples in the same order. A conversation that stands in several examples of a micro-batch is
  read once.
- Examples with a conversation that is too long are left out and counted, never cut unless the stage says how.
- Linear decay after warm-up, AdamW, gradients cut at norm 1.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opengrm.errors import EngineError, MissingExtra, UsageError
from opengrm.training.checkpoint import check_weights
from opengrm.training.resume import cut_metrics, last_checkpoint, step_of
from opengrm.training.scalar_examples import Collator, Encoded, Read, drawn, encode_examples
from opengrm.training.stage import PATIENCE, check_finite, differing, has_bfloat16, make_folder, read_json, write_json

OnProgress = Callable[[int, int, str], None]
EXAMPLES, METRICS = "examples.jsonl", "metrics.jsonl"
MODEL, CHECKPOINTS = "model", "checkpoints"
_LEARNED = ("meta_template", "pair_template", "cloud_template", "truncates", "truncates_to")  # what config.json tells
WATCHED = 2000  # held-out examples that are looked at while training; all are at the end


@dataclass(frozen=True)
class ScalarSettings:
    """How to train a one-logit model.

    Attributes:
        learning_rate: a small model wants more than the default.
        batch: examples of one step, over all devices.
        epochs: passes over the training examples; not used with `steps`.
        steps: optimizer steps instead of epochs.
        micro_batch: most examples that a device holds at once; a divisor of `batch` over the number of devices.
        dev_share: share of conversations that are held out.
        warmup: share of the steps over which the rate rises.
        weight_decay: of AdamW.
        max_tokens: most tokens of a conversation; None is the model's context.
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
        check_finite(self)
        if not 0 <= self.dev_share < 1:
            raise ValueError(f"the held-out share is {self.dev_share}, expected 0 to 1")
        if not self.learning_rate > 0 or not self.epochs > 0 or not 0 <= self.warmup < 1:
            raise ValueError("learning rate and epochs must be above 0, warm-up from 0 to 1")
        if self.weight_decay < 0:
            raise ValueError(f"weight decay is {self.weight_decay}, expected 0 or more")
        for name in ("batch", "micro_batch", "eval_every", "save_every", "steps", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name.replace('_', ' ')} is {value}, expected at least 1")


@dataclass(frozen=True)
class Objective:
    """What one stage brings to the trainer. I are held-out examples, G those of a micro-batch, m their conversations.

    Attributes:
        report: name of the report's file.
        begin: writes the examples to a path and says what the report tells of them, "examples" their number.
        read: an example from a row of that file; the second argument says whether a conversation fits, for a stage
            that cuts those which do not.
        missing: why nothing can be learned from examples of these targets; None where it can.
        loss: logits_Gm, targets_G, weights_G, and the number of examples in the whole step (None: G).
        measured: a few numbers while training, from logits_Im and targets_I.
        note: those numbers in a few words, by the names they have in metrics.jsonl.
        held: the report on what was held out, from logits_Im, targets_I, and clusters_I by conversation.
        config: what the model's config.json is to hold besides.
    """

    report: str
    begin: Callable[[Path], Mapping[str, Any]]
    read: Read
    missing: Callable[[Sequence[float]], str | None]
    loss: Callable[[Any, Any, Any, Any], Any]
    measured: Callable[[Any, Any], dict[str, float]]
    note: Callable[[Mapping[str, float]], str]
    held: Callable[[Any, Any, Any], dict[str, Any]]
    config: Mapping[str, Any]


def train_scalar(
    base: str | Path,
    output: str | Path,
    objective: Objective,
    settings: ScalarSettings,
    named: Mapping[str, Any],
    *,
    trust_remote_code: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train and write `output`/model; the same call goes on where a killed one stopped.

    The examples are written first, and a run that goes on uses that file, whatever has come to their source meanwhile.

    Args:
        base: a causal LM, an encoder, or a classifier with one label: the name of an embedded model, a folder or a hub
            id.
        output: a folder; made if it is not there.
        named: what else identifies the run beside base and settings: a folder takes one run.
        trust_remote_code: run code that comes with the base.
        on_progress: called with steps done, steps in all, and a few words.

    Returns:
        The report, also in the objective's file: `named`, base, settings, what `begin` said, examples too long, steps,
        and under "dev" what was measured on the held-out ones (None where there are none).

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
    from opengrm.engines.checkpoints import for_transformers_4
    from opengrm.engines.classifier import read_packed
    from opengrm.engines.transformers import quietly

    folder = Path(output)
    state = accelerate.PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    accumulation, left = divmod(settings.batch, state.num_processes * min(settings.micro_batch, settings.batch))
    if left or not accumulation:
        raise UsageError(
            f"a batch of {settings.batch} cannot be made of {state.num_processes} devices with"
            f" {settings.micro_batch} examples each: choose a divisor"
        )

    # 1. The base as a classifier, and what identifies this run.
    model, tokenizer, identity = classifier(base, trust_remote_code)
    for name in _LEARNED:  # a base that was such a model itself says what it was
        vars(model.config).pop(name, None)
    for name, value in objective.config.items():
        setattr(model.config, name, value)
    run = {**named, "base": identity, "settings": asdict(settings)}

    # 2. The examples: once, by the first process.
    with state.main_process_first():
        report = _begin(folder, run, objective)
    if "dev" in report:
        return report
    train, dev, too_long = (
        encode_examples(folder / EXAMPLES, model, tokenizer, objective.read, settings.dev_share, settings.max_tokens)
        if report["examples"]
        else ([], [], 0)
    )
    if missing := objective.missing([example.target for example in train]):
        state.wait_for_everyone()
        if state.is_main_process:  # what cannot be learned from is not gone on from
            (folder / objective.report).unlink()
            (folder / EXAMPLES).unlink()
        raise _nothing_to_learn(folder, missing, {**report["left_out"], "too long": too_long})

    # 3. Training.
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
        bf16=has_bfloat16() if settings.bf16 is None else settings.bf16,
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
        use_cpu=not torch.cuda.is_available() and not torch.backends.mps.is_available(),
    )
    trainer: Any = _trainer(
        settings,
        objective,
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=dev[:WATCHED] if len(dev) else None,
        data_collator=Collator(model.config.pad_token_id, packed=False),
        processing_class=tokenizer,
        compute_metrics=lambda found: objective.measured(np.asarray(found.predictions), found.label_ids),
        callbacks=[_log(folder / METRICS, objective, on_progress)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if can_share_prompts(trainer):
        read_packed(model)
        trainer.data_collator = Collator(model.config.pad_token_id, packed=True)
    last = last_checkpoint(folder / CHECKPOINTS)
    if state.is_main_process:
        cut_metrics(folder / METRICS, step_of(last))
    with quietly(transformers):
        if last is not None and step_of(last) >= planned_steps(settings, len(train)):
            trainer._load_from_checkpoint(str(last))  # killed between its last step and its report
            trainer.state.global_step = step_of(last)
        else:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    check_weights(model)
    if has_bfloat16_weights(base):
        # What is measured is what will be written.
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()

    # 4. The folder, and what the model is worth on conversations it has not seen.
    found = None
    if len(dev):
        predicted = trainer.predict(dev)
        numbers: dict[str, int] = {}
        clusters_I = np.array([numbers.setdefault(example.group, len(numbers)) for example in dev], dtype=np.int64)
        targets_I = np.array([example.target for example in dev], dtype=np.float64)
        found = objective.held(np.asarray(predicted.predictions, dtype=np.float64), targets_I, clusters_I)
    with quietly(transformers):
        trainer.save_model(str(folder / MODEL))
    report |= {"too_long": too_long, "steps": trainer.state.global_step, "dev": found}
    if state.is_main_process:
        with quietly(transformers):
            _as_the_base(folder / MODEL, base, trust_remote_code)
        for_transformers_4(folder / MODEL)
        write_json(folder / objective.report, report)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    state.wait_for_everyone()
    return report


def classifier(base: str | Path, trust_remote_code: bool) -> tuple[Any, Any, str]:
    """The base as a classifier with one label, a new head of zeros and no dropout; its tokenizer and its identity.

    Raises:
        EngineError: the base cannot be loaded, or is no model that a classifier can be made of.
    """
    import torch
    import transformers

    from opengrm.engines.checkpoints import check_backbone, find_model, first_line
    from opengrm.engines.classifier import float_head, head_of, pad_token
    from opengrm.engines.fingerprint import fingerprint
    from opengrm.engines.transformers import quietly

    folder, name = find_model(base, code=trust_remote_code)
    check_backbone(folder)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        with quietly(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            logging: Any = transformers.utils.logging
            told = logging.get_verbosity()
            logging.set_verbosity_error()  # that the head is new is no news
            model, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
            logging.set_verbosity(told)
    except Exception as error:
        raise EngineError(f"{base}: cannot be made a classifier: {first_line(error)}") from None
    pad_token(tokenizer, model)
    float_head(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = head_of(model)
    if found is None:
        raise EngineError(f"{base}: {type(model).__name__} has no linear head by a name that is known here")
    path, head = found
    if f"{path}.weight" in loaded["missing_keys"]:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.zero_()
    return model, tokenizer, f"{name}@{fingerprint(folder)}"


def _as_the_base(folder: Path, base: str | Path, trust_remote_code: bool) -> None:
    """Write the weights, trained in float32, in the base's precision, and switch the cache on where it was."""
    import torch
    import transformers

    from opengrm.engines.checkpoints import find_model

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    dtype = torch.bfloat16 if has_bfloat16_weights(base) else torch.float32
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **options)
    config = transformers.AutoConfig.from_pretrained(find_model(base)[0], **options)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = getattr(config, "use_cache", True)
    model.save_pretrained(folder)


def has_bfloat16_weights(base: str | Path) -> bool:
    """Whether a model's own configuration says that its weights are in bfloat16."""
    from opengrm.engines.checkpoints import find_model

    config = json.loads((find_model(base)[0] / "config.json").read_text(encoding="utf-8"))
    return "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))


def cut(max_tokens: int | None) -> dict[str, Any]:
    """What the config.json of a model says that was trained on conversations cut to `max_tokens` (None: its context).

    Judging cuts the same way: a model need not make sense of what is longer than all it has seen.
    """
    return {"truncates": True} if max_tokens is None else {"truncates": True, "truncates_to": max_tokens}


def planned_steps(settings: ScalarSettings, examples: int) -> int:
    """Optimizer steps of a whole run, as the Trainer counts them."""
    return settings.steps or math.ceil(settings.epochs * -(-examples // settings.batch))


def _begin(folder: Path, run: dict[str, Any], objective: Objective) -> dict[str, Any]:
    """The report of this folder's run: read if it is there, else begun, with examples.jsonl written."""
    path = folder / objective.report
    report = read_json(path)
    if report is not None:
        asked = json.loads(json.dumps(run))
        if other := list(differing({name: report.get(name) for name in asked}, asked)):
            raise UsageError(f"{folder}: holds another run ({'; '.join(other)}): choose another folder")
        return report
    make_folder(folder)
    report = {**run, **objective.begin(folder / EXAMPLES)}
    if not report["examples"]:
        (folder / EXAMPLES).unlink(missing_ok=True)
        raise _nothing_to_learn(folder, objective.missing([]) or "no examples", report["left_out"])
    write_json(path, report)
    return report


def _nothing_to_learn(folder: Path, missing: str, left_out: Mapping[str, int]) -> UsageError:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items() if count)
    return UsageError(f"{folder}: {missing}; left out: {reasons or 'nothing'}")


def can_share_prompts(trainer: Any) -> bool:
    """Whether a packed row gives what the padded batch does: such a model, whole on each device, one process a device.

    DataParallel (several GPUs in one process) would cut a row in pieces; FSDP and DeepSpeed have not been tried.
    """
    from opengrm.engines.classifier import takes_packed
    from opengrm.training.shared_prompt import can_share

    whole = trainer.accelerator.distributed_type.value in ("NO", "MULTI_CPU", "MULTI_GPU")
    return whole and trainer.args.n_gpu < 2 and takes_packed(trainer.model) and can_share(trainer.model)


def _trainer(settings: ScalarSettings, objective: Objective, **arguments: Any) -> Any:
    """A Trainer of groups that goes through its examples as `drawn`."""
    import transformers

    class Order:
        def __init__(self, trainer: Any, examples: Sequence[Encoded]) -> None:
            self.trainer, self.prompts = trainer, [example.prompt for example in examples]

        def __len__(self) -> int:
            return len(self.prompts)

        def __iter__(self) -> Iterator[int]:
            # By the steps done, as a checkpoint knows them: accelerate tells no epoch where a sharded run goes on.
            epoch = self.trainer.state.global_step // -(-len(self.prompts) // settings.batch)
            return iter(drawn(self.prompts, settings.batch, np.random.default_rng((settings.seed, epoch))))

    class Trainer(transformers.Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            examples: Any = self.train_dataset if train_dataset is None else train_dataset
            return Order(self, examples)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            rows_Gm, weights_G = inputs.pop("rows"), inputs.pop("weights")

            def loss_of(outputs: Any, targets_G: Any, num_items_in_batch: Any = None) -> Any:
                outputs["logits"] = outputs["logits"][:, 0][rows_Gm]  # logits_Gm: what is gathered, and reported
                return objective.loss(outputs["logits"], targets_G, weights_G, num_items_in_batch)

            self.compute_loss_func = loss_of
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    # Also before the first call: with a loss function the examples of a step are counted over all micro-batches.
    return Trainer(**arguments, compute_loss_func=lambda *_, **__: None)


def _log(path: Path, objective: Objective, on_progress: OnProgress | None) -> Any:
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
            if "dev_loss" in values:
                self.note = objective.note(values) or self.note
            if on_progress is not None and state.is_world_process_zero:
                on_progress(state.global_step, state.max_steps, self.note)

    return Log()

"""Pretrain `nano-base`, the embedded model that SPCT starts from, on transcripts of RubricWorld.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 scripts/pretrain_nano.py --output runs/nano

One process a core: two processes of one thread are 1.5 times as fast as one of two threads. Without
`torch.distributed.run` it is one process, with the same batches.

A page from top to bottom: tokenizer, model, streamed transcripts, three stages, a greedy check on dev pairs,
checkpoint. The stages: "read" practises reading every criterion of every response; "clean" learns to judge from a
flawless teacher; "faulty" learns the faults of `opengrm.worlds.teacher`. Every stage starts from the checkpoint that
the one before it wrote, so `--first faulty` repeats the last stage alone and ends where a whole run ends.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as distributed
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opengrm.items import Item
from opengrm.templates.compact import Compact
from opengrm.worlds.english import CRITERIA, meets
from opengrm.worlds.rubric import WEIGHTS, generate_items, query_of
from opengrm.worlds.teacher import FLAWLESS, Teacher

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Shares of the forms: the plain one is what is measured, the others let later stages start from something.
FORMS: tuple[tuple[float, Compact], ...] = (
    (0.72, Compact()),
    (0.08, Compact(hint=True)),
    (0.10, Compact(principles=True)),
    (0.05, Compact(no_principles=True)),
    (0.05, Compact(reference=True)),
)
BINARY_SHARE = 0.5  # of the single responses
EXERCISES = {"read": 1.0, "clean": 0.4, "faulty": 0.15}  # share of reading practice in each stage
NAMING = {"read": 0.0, "clean": 0.4, "faulty": 0.2}  # of the exercises, the share of naming criteria
POOL = 20  # batches sorted by length together
NUMBER_WEIGHT = 3.0  # of a number's loss: sums and boxed scores are few tokens and the last thing to be learned
DECAY = 0.4  # share of a stage in which the learning rate falls
WIDTH = 16  # lengths in a batch are padded to a multiple of this


def main() -> None:
    args = arguments()
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")
    torch.manual_seed(args.seed)
    steps = {"read": args.read_steps, "clean": args.clean_steps, "faulty": args.faulty_steps}
    done = list(steps)[: list(steps).index(args.first)]
    # Stages that are not repeated keep their tokenizer: one made of other transcripts would be another one.
    tokenizer = AutoTokenizer.from_pretrained(args.output / done[-1]) if done else make_tokenizer(args.vocab)
    model = make_model(tokenizer, args)
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}")
    before = None
    for stage in steps:
        if stage not in done:
            if before:
                model = Qwen3ForCausalLM.from_pretrained(args.output / before, dtype=torch.float32)
            train(model, tokenizer, args, stage, steps[stage])
            if rank() == 0:
                save(model, tokenizer, args.output / stage)
            if distributed.is_initialized():
                distributed.barrier()
        before = stage


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def say(text: str) -> None:
    if rank() == 0:
        print(text, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/nano"), help="folder of the checkpoint")
    parser.add_argument("--read-steps", type=int, default=300, help="steps of reading practice")
    parser.add_argument("--clean-steps", type=int, default=800, help="steps with the flawless teacher")
    parser.add_argument("--faulty-steps", type=int, default=400, help="steps with the faulty teacher")
    parser.add_argument("--batch", type=int, default=48, help="judgments in a step")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", choices=("read", "clean", "faulty"), default="read", help="stage to begin with")
    return parser.parse_args()


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on transcripts: any UTF-8 text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL],
        show_progress=False,
    )
    texts = (text for prompt, judgment in transcripts(0, "clean", 4_000) for text in (prompt, judgment))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[3],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=args.width,
        intermediate_size=2 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32,
        num_key_value_heads=args.width // 64,
        head_dim=32,
        max_position_embeddings=4096,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def transcripts(seed: int, stage: str, count: int = 10**9) -> Iterator[tuple[str, str]]:
    """(prompt, judgment) pairs without end, of the stage "read", "clean" or "faulty"."""
    rng = random.Random(f"pretraining {seed} {stage}")
    teacher = Teacher() if stage == "faulty" else FLAWLESS
    first_seed = 1000 + 3 * seed + ("read", "clean", "faulty").index(stage)
    for item in generate_items(count, seed=first_seed, split="train", n="mixed", principles=True, reference=True):
        if rng.random() < EXERCISES[stage]:
            yield exercise(rng, item.only(0) if rng.random() < 0.5 else item, stage)
            continue
        template = rng.choices([form for _, form in FORMS], [share for share, _ in FORMS])[0]
        if item.n == 1:
            form = "compact-binary" if rng.random() < BINARY_SHARE else "compact"
            template = replace(template, hint=False, form=form)
        if template.principles:
            names = rng.sample(CRITERIA, len(WEIGHTS))  # given ones are judged by, whatever the query
            item = replace(item, principles=tuple(f"{c} {w}" for c, w in zip(names, WEIGHTS, strict=True)))
        order = rng.sample(range(item.n), item.n)
        yield template.render(item, order)[0].content, teacher.judge(rng, item, order, template)


def exercise(rng: random.Random, item: Item, stage: str) -> tuple[str, str]:
    """Practice of one skill. No template asks for it, so no judgment looks like it.

    Naming: which criteria does this query have? Checking: which of these criteria does each text meet?
    """
    query = query_of(item)
    if rng.random() < NAMING[stage]:
        principles = ", ".join(f"{name} {weight}" for name, weight in query.criteria)
        return f"Query: {item.prompt[0].content}\nName criteria.", principles
    names = rng.sample(CRITERIA, rng.randint(5, len(CRITERIA)))
    prompt = Compact().render(item, range(item.n))[0].content
    prompt = prompt.replace("\nJudge by criteria.", f"\nCheck {', '.join(names)}.")
    lines = []
    for position, text in enumerate(item.responses, 1):
        found = ", ".join(f"{c} {'yes' if meets(c, text, query.topic) else 'no'}" for c in names)
        lines.append(f"[{position}] {found}")
    return prompt, "\n".join(lines)


Row = tuple[list[int], list[int]]


def encode(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> list[Row]:
    """Token ids of the chat prompt and of the judgment with its end token."""
    chats = [f"<|im_start|>user\n{p}<|im_end|>\n<|im_start|>assistant\n" for p, _ in pairs]
    prompts = tokenizer(chats, add_special_tokens=False)["input_ids"]
    answers = tokenizer([f"{a}<|im_end|>" for _, a in pairs], add_special_tokens=False)["input_ids"]
    return list(zip(prompts, answers, strict=True))


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, stage: str, steps: int, batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This process's share of batches of like length, streamed fresh: ids_BT, targets_BT (-100: nothing learned)."""
    rng = random.Random(seed)
    source = transcripts(seed, stage)
    for first in range(0, steps, POOL):
        size = min(POOL, steps - first) * batch
        rows = encode(tokenizer, [next(source) for _ in range(size)])
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        groups = [rows[i : i + batch] for i in range(0, len(rows), batch)]
        rng.shuffle(groups)
        for group in groups:
            yield collate(group[rank() :: world()], tokenizer.pad_token_id)


def collate(rows: list[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(p) + len(a) for p, a in rows)
    width = -(-width // WIDTH) * WIDTH
    ids_BT = torch.full((len(rows), width), pad)
    targets_BT = torch.full((len(rows), width), -100)
    for i, (prompt, answer) in enumerate(rows):
        ids_BT[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        targets_BT[i, len(prompt) - 1 : len(prompt) + len(answer) - 1] = torch.tensor(answer)
    return ids_BT, targets_BT


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by five Newton-Schulz steps, in float32.

    After Keller Jordan et al., 2024 (https://github.com/KellerJordan/Muon, MIT), its coefficients included.

    After 200 steps its loss here was 0.71 where AdamW's (at 3e-3) was 0.84.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                for p in params:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                updates = [p.grad.lerp(self.state[p]["momentum"], group["momentum"]) for p in params]
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(params, orthogonal(torch.stack(updates)), strict=True):
                    p.add_(update, alpha=-scale)


def orthogonal(x_MRC: torch.Tensor) -> torch.Tensor:
    """Matrices with the singular vectors of the given ones and singular values near 1."""
    tall = x_MRC.shape[1] > x_MRC.shape[2]
    x = x_MRC.mT if tall else x_MRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    args: argparse.Namespace,
    stage: str,
    steps: int,
) -> None:
    """Muon on the matrices, AdamW on embeddings and norms; warm-up, constant, then linear decay.

    Right padding needs no mask under causal attention.
    """
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    peak = args.lr
    outer = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    optimizers = [Muon(inner, lr=peak), torch.optim.AdamW(outer, lr=peak / 5, betas=(0.9, 0.95), weight_decay=0.0)]
    model.train()
    yes, no = tokenizer.convert_tokens_to_ids(["Ġyes", "Ġno"])
    numbers_V = torch.tensor([tokenizer.decode([v]).strip().isdecimal() for v in range(len(tokenizer))]).float()
    started, seen, losses, right = time.time(), 0, [], []
    for step, (ids_BT, targets_BT) in enumerate(batches(tokenizer, args.seed, stage, steps, args.batch), 1):
        factor = min(1.0, step / 50, 0.05 + 0.95 * (steps - step) / (DECAY * steps))
        for optimizer, top in zip(optimizers, (peak, peak / 5), strict=True):
            optimizer.param_groups[0]["lr"] = top * factor
        hidden_BTD = model.model(ids_BT, attention_mask=None).last_hidden_state
        learned_BT = targets_BT >= 0
        logits_LV, targets_L = model.lm_head(hidden_BTD[learned_BT]), targets_BT[learned_BT]
        losses_L = F.cross_entropy(logits_LV, targets_L, reduction="none")
        weights_L = 1.0 + (NUMBER_WEIGHT - 1.0) * numbers_V[targets_L]
        loss = (losses_L * weights_L).sum() / weights_L.sum()
        loss.backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        findings_L = (targets_L == yes) | (targets_L == no)
        said_yes_L = logits_LV[:, yes] > logits_LV[:, no]
        right += (said_yes_L == (targets_L == yes))[findings_L].tolist()
        losses.append(losses_L.mean().item())
        seen += ids_BT.numel()
        if step % 100 == 0:
            seconds = time.time() - started
            speed = f"{seconds:.0f} s, {world() * seen / seconds:.0f} tokens/s"
            accuracy = sum(right) / max(1, len(right))
            say(f"{stage} {step}: loss {sum(losses) / len(losses):.3f}, findings {accuracy:.3f}, {speed}")
            losses, right = [], []
    if stage != "read" and rank() == 0:
        say(f"dev pairs, greedy: {check(model, tokenizer, 200)}")


def average_gradients(model: Qwen3ForCausalLM) -> None:
    """The mean over processes."""
    if distributed.is_initialized():
        gradients = [p.grad for p in model.parameters()]
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, (flat / world()).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def check(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int) -> dict[str, float]:
    """Greedy accuracy on dev pairs, each in one order, ties at expected credit and unparsable at chance."""
    model.eval()
    template, credit, parsed = Compact(), 0.0, 0
    items = list(generate_items(count, seed=7, split="dev"))
    for item, text in zip(items, greedy(model, tokenizer, items, template), strict=True):
        scores = template.parse(text, item.n).scores
        parsed += scores is not None
        top = [i for i, s in enumerate(scores or (0, 0)) if s == max(scores or (0, 0))]
        credit += (item.best in top) / len(top)
    return {"accuracy": round(credit / count, 3), "parsed": round(parsed / count, 3)}


def greedy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, items: list[Item], template: Compact
) -> list[str]:
    chats = [
        tokenizer.apply_chat_template(
            [m.to_json() for m in template.render(item, range(item.n))], tokenize=False, add_generation_prompt=True
        )
        for item in items
    ]
    tokenizer.padding_side = "left"
    batch = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
    out = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, max_new_tokens=80
    )
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The checkpoint with float16 weights (half the size; load them as float32)."""
    config = model.generation_config
    config.temperature, config.top_p, config.top_k, config.do_sample = 1.0, 1.0, 0, True
    config.bos_token_id, config.eos_token_id, config.pad_token_id = (
        tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id,
    )  # fmt: skip
    half = Qwen3ForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.generation_config = config
    half.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()

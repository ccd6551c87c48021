"""Build an embedded model from nothing: ``python -m eggroll_rl.recipes.embedded rwkv7-countdown OUT``.

A supervised warm start on generated Countdown reasoning, in which good and poor reasoning are mixed, so that, like a
pretrained model, the result solves some problems and could solve more: most of its teachers try one idea and answer
whatever came out; some go on trying, check each result against the target, and stop when it fits.
"""

import argparse
import itertools
import math
import random
import string
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import DataConfig
from eggroll_rl.countdown import PROMPT, Countdown
from eggroll_rl.models.rwkv7 import RWKV7Config, RWKV7ForCausalLM

DATA = DataConfig(numbers=(3,), low=1, high=15, target_low=1, target_high=100)
LARGEST = 200  # no intermediate result above this is written down
PATIENCE = {1: 0.6, 2: 0.1, 4: 0.1, 6: 0.2}  # how many ideas a teacher tries, and the share of such teachers
INSIGHT = 0.3  # chance that an idea is a solution
SPECIAL = ("<|pad|>", "<|end|>")
TAGS = ("<think>", "</think>", "</think>\n<answer>", "<answer>", "</answer>")

Idea = tuple[tuple[str, ...], str, int]  # the steps "3*5=15", the expression "(3*5)+7", its value


def ideas(numbers: list[int]) -> list[Idea]:
    """Every way to combine the numbers through whole, non-negative results."""
    found: dict[str, Idea] = {}

    def combine(values: list[tuple[str, int]], steps: tuple[str, ...]) -> None:
        if len(values) == 1:
            expression, value = values[0]
            found[expression] = (steps, expression, value)
            return
        for i, j in permutations(range(len(values)), 2):
            (left, x), (right, y) = values[i], values[j]
            rest = [value for index, value in enumerate(values) if index not in (i, j)]
            for operator in "+-*/":
                if (operator == "/" and (y == 0 or x % y)) or (operator == "-" and x < y):
                    continue
                result = int(Fraction(x, y)) if operator == "/" else {"+": x + y, "-": x - y, "*": x * y}[operator]
                if result <= LARGEST:
                    made = (f"{_operand(left)}{operator}{_operand(right)}", result)
                    combine([made, *rest], (*steps, f"{x}{operator}{y}={result}"))

    combine([(str(number), number) for number in numbers], ())
    return list(found.values())


def _operand(expression: str) -> str:
    return expression if expression.isdigit() else f"({expression})"


def reasoning(problem: dict[str, Any], rng: random.Random, known: list[Idea]) -> str:
    """One teacher's answer to a problem."""
    right = [idea for idea in known if idea[2] == problem["target"]]
    wrong = [idea for idea in known if idea[2] != problem["target"]]
    rng.shuffle(wrong)
    patience = rng.choices(list(PATIENCE), PATIENCE.values())[0]
    tried: list[Idea] = []
    while len(tried) < patience:
        tried.append(rng.choice(right) if right and (rng.random() < INSIGHT or not wrong) else wrong.pop())
        if tried[-1][2] == problem["target"]:
            break
    lines = "\n".join(" ".join(steps) for steps, _, _ in tried)
    return f"<think>{lines}</think>\n<answer>{tried[-1][1]}</answer>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole numbers, the words of the prompt and single printable characters; text goes in and comes out unchanged."""
    phrases = [part for part in PROMPT.replace("{numbers}", "{target}").split("{target}") if part] + [", "]
    words = [*SPECIAL, *TAGS, *phrases, *map(str, range(LARGEST + 1)), *(c for c in string.printable if not c.isdigit())]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="?", continuing_subword_prefix="", max_input_chars_per_word=10**6))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d+|\D+"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[1], clean_up_tokenization_spaces=False
    )


def new_model(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    if name == "rwkv7-countdown":
        return RWKV7ForCausalLM(
            RWKV7Config(
                vocab_size=len(tokenizer), hidden_size=96, num_hidden_layers=3, head_dim=32, intermediate_size=384,
                decay_low_rank_dim=16, a_low_rank_dim=16, v_low_rank_dim=16, gate_low_rank_dim=32, **special,
            )
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384,
            max_position_embeddings=512, tie_word_embeddings=False, **special,
        )
    )  # fmt: skip


def batches(tokenizer: PreTrainedTokenizerFast, rows: int, pool: int = 16) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (tokens, labels) [rows, T] of similar lengths; prompts and padding have label -100."""
    problems, rng = Countdown(DATA, "train"), random.Random(0)
    known: dict[tuple[int, ...], list[Idea]] = {}
    for start in itertools.count(step=rows * pool):
        answers = []
        for index in range(start, start + rows * pool):
            problem = problems[index]
            numbers = tuple(problem["numbers"])
            known.setdefault(numbers, ideas(list(numbers)))
            prompt = tokenizer(problem["prompt"])["input_ids"]
            answer = tokenizer(reasoning(problem, rng, known[numbers]))["input_ids"] + [tokenizer.eos_token_id]
            answers.append((torch.tensor(prompt + answer), torch.tensor([-100] * len(prompt) + answer)))
        answers.sort(key=lambda pair: len(pair[0]))
        for first in rng.sample(range(0, rows * pool, rows), pool):
            tokens, labels = zip(*answers[first : first + rows], strict=True)
            yield (
                pad_sequence(list(tokens), batch_first=True, padding_value=tokenizer.pad_token_id),
                pad_sequence(list(labels), batch_first=True, padding_value=-100),
            )


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, steps: int, rows: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    started, total = time.perf_counter(), 0.0
    for step, (tokens, labels) in zip(range(1, steps + 1), batches(tokenizer, rows), strict=False):
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total += loss.item()
        if step % 50 == 0:
            print(f"step {step}/{steps} loss {total / 50:.4f} {time.perf_counter() - started:.0f}s", flush=True)
            total = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("rwkv7-countdown", "llama-countdown"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    torch.set_flush_denormal(True)  # before the first thread starts; fading gradients are full of denormals
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = new_model(args.name, tokenizer)
    train(model, tokenizer, args.steps, args.rows, args.lr)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()

"""Build an embedded model from nothing: ``python -m eggroll_rl.recipes.embedded rwkv7-countdown OUT``.

A supervised warm start on generated Countdown reasoning, in which good and poor reasoning are mixed, so that, like a
pretrained model, the result solves some problems and could solve more. Hasty teachers open with "Maybe", write down
the first idea that comes to mind and answer with whatever comes out; careful ones open with the number that they need,
and get there. Most are hasty.
"""

import itertools
import math
import random
import string
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import DataConfig
from eggroll_rl.data.countdown import PROMPT, Countdown
from eggroll_rl.eval.evaluate import evaluate_model
from eggroll_rl.models.rwkv7 import RWKV7Config, RWKV7ForCausalLM
from eggroll_rl.system.command import run_command
from eggroll_rl.system.errors import UsageError

DATA = DataConfig()
LARGEST = 200  # no intermediate result above this is written down
HASTY = 0.55  # share of hasty teachers
HUNCH = 0.2  # chance that a hasty teacher's idea is a solution
TYPICAL = 24  # tokens of an answer
SPECIAL = ("<|pad|>", "<|end|>")
OPENINGS = {"hasty": "Maybe ", "careful": "I need {target}. "}
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
    hasty = rng.random() < HASTY
    right = [idea for idea in known if idea[2] == problem["target"]]
    wanted = right if not hasty or rng.random() < HUNCH else known
    steps, expression, _ = rng.choice(wanted or known)
    opening = OPENINGS["hasty" if hasty else "careful"].format(target=problem["target"])
    return f"<think>{opening}{' '.join(steps)}</think>\n<answer>{expression}</answer>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole numbers, the words of the prompt and single printable characters; text goes in and comes out unchanged."""
    phrases = [
        part
        for text in (PROMPT, *OPENINGS.values())
        for part in text.replace("{numbers}", "{target}").split("{target}")
    ]
    words = [
        *SPECIAL,
        *TAGS,
        *filter(None, phrases),
        ", ",
        *map(str, range(LARGEST + 1)),
        *(c for c in string.printable if not c.isdigit()),
    ]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="?", continuing_subword_prefix="", max_input_chars_per_word=10**6)
    )
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
            vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=384, max_position_embeddings=512, tie_word_embeddings=False, **special,
        )
    )  # fmt: skip


def batches(
    tokenizer: PreTrainedTokenizerFast, rows: int, pool: int = 16
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
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
        weight = (labels >= 0).sum() / (rows * TYPICAL)  # a token counts the same in batches of short and long answers
        (loss * weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total += loss.item()
        if step % 50 == 0:
            print(f"step {step}/{steps} loss {total / 50:.4f} {time.perf_counter() - started:.0f}s", flush=True)
            total = 0.0


CARD = """\
---
library_name: transformers
license: apache-2.0
---

# {name}

A {parameters:,}-parameter {architecture} that sometimes solves Countdown, three numbers of {low} to {high}.
It ships with eggroll-rl as `embedded:{name}`, to be made better by reinforcement learning in minutes on a CPU.

Made from nothing by `python -m eggroll_rl.recipes.embedded {name} OUT` ({steps} steps of {rows} generated answers,
AdamW, peak rate {lr}; two CPU cores): a supervised warm start on Countdown reasoning in which good and poor reasoning
are mixed. {hasty:.0%} of its teachers are hasty: they open with "Maybe" and answer with the first idea that comes to
mind, a solution in {hunch:.0%} of the cases or by luck. The others open with the number that they need, and get there.
Left alone the model is mostly hasty; what reinforcement learning can find first is to be careful.

Split: training problems only; the held-out tenth of all problems, by a hash of (sorted numbers, target), is unseen.

Greedy accuracy on {n} held-out problems: **{accuracy:.1%}** (Wilson 95 %: {low_accuracy:.1%} to {high_accuracy:.1%}).
"""


def write_card(name: str, folder: Path, model: PreTrainedModel, steps: int, rows: int, lr: float) -> None:
    result = evaluate_model(str(folder))
    card = CARD.format(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        architecture=type(model).__name__.removesuffix("ForCausalLM"),
        low=DATA.low,
        high=DATA.high,
        steps=steps,
        rows=rows,
        lr=lr,
        hasty=HASTY,
        hunch=HUNCH,
        n=result["n"],
        accuracy=result["accuracy"],
        low_accuracy=result["low"],
        high_accuracy=result["high"],
    )
    (folder / "README.md").write_text(card)


def main(
    name: Literal["rwkv7-countdown", "llama-countdown"],
    output: Annotated[Path, typer.Argument(help="a new folder")],
    steps: Annotated[int, typer.Option(min=1)] = 1100,
    rows: Annotated[int, typer.Option(min=1, help="answers of a step")] = 128,
    lr: Annotated[float, typer.Option(min=0.0, help="the peak of the learning rate")] = 3e-3,
) -> None:
    """Build the embedded model NAME from nothing into the folder OUTPUT."""
    if output.exists():
        raise UsageError(f"{output} exists; choose another folder")
    torch.set_flush_denormal(True)  # before the first thread starts; fading gradients are full of denormals
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = new_model(name, tokenizer)
    train(model, tokenizer, steps, rows, lr)
    model.generation_config.max_new_tokens = 48
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    write_card(name, output, model, steps, rows, lr)


if __name__ == "__main__":
    run_command(main)

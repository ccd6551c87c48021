"""Build an embedded model from nothing: ``python -m eggroll_rl.recipes.embedded rwkv7-countdown OUT``.

On the same processor, with the same torch and as many threads, every build has the same weights to the bit, also one
that was cut short and went on. Elsewhere sums are rounded in another order, and the weights differ a little.
"""

import itertools
import string
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from eggroll_rl.config import DataConfig
from eggroll_rl.data.countdown import PROMPT, Countdown
from eggroll_rl.engines.device import device_of
from eggroll_rl.models.rwkv7 import RWKV7Config, RWKV7ForCausalLM
from eggroll_rl.recipes.measured import measure
from eggroll_rl.recipes.search_streams import DIVERSE, HASTY, LARGEST, NEAREST, Teachers, answers_of
from eggroll_rl.system.command import run_command
from eggroll_rl.system.durable import replace_file
from eggroll_rl.system.errors import UsageError

DATA = DataConfig(numbers=(3, 4))
POOL = 16  # batches that are drawn together and sorted by length
TYPICAL = 40  # tokens of an answer
LONGEST = 144  # tokens of an answer
LAST_SHARE = {"rwkv7-countdown": 0.15, "llama-countdown": 0.05}  # of the steps: a further course, by hasty teachers
LAST_RATE = 0.2  # its peak rates, relative to the first one's
LAST_BATCH = 1_600_000  # far from all others
SAVED_EVERY = 200  # steps
SAMPLES = 32  # answers to each problem of the card, for pass@k
SPECIAL = ("<|pad|>", "<|end|>")
TAGS = ("<think>", "</think>", "</think>\n<answer>", "<answer>", "</answer>")
VERDICTS = (" no.", " yes.")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole numbers, the words of the prompt and single printable characters; text goes in and comes out unchanged."""
    phrases = PROMPT.replace("{numbers}", "{target}").split("{target}")
    words = [
        *SPECIAL,
        *TAGS,
        *VERDICTS,
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
    tokenizer: PreTrainedTokenizerFast, rows: int, teachers: Teachers = DIVERSE, start: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (tokens, labels) [rows, T] of similar lengths, from step ``start`` on; prompts and padding have label
    -100."""
    problems = Countdown(DATA, "train")
    for pool in itertools.count(start // POOL):
        rng = np.random.default_rng([0, pool])
        asked = [problems[index] for index in range(pool * POOL * rows, (pool + 1) * POOL * rows)]
        prompts = tokenizer([problem["prompt"] for problem in asked])["input_ids"]
        answers = tokenizer(answers_of(asked, teachers, rng))["input_ids"]
        pairs = []
        for prompt, answer in zip(prompts, answers, strict=True):
            ended = [*answer, tokenizer.eos_token_id]
            pairs.append((torch.tensor(prompt + ended), torch.tensor([-100] * len(prompt) + ended)))
        pairs.sort(key=lambda pair: len(pair[0]))
        for first in (rows * rng.permutation(POOL))[start % POOL if pool == start // POOL else 0 :]:
            tokens, labels = zip(*pairs[first : first + rows], strict=True)
            yield (
                pad_sequence(list(tokens), batch_first=True, padding_value=tokenizer.pad_token_id),
                pad_sequence(list(labels), batch_first=True, padding_value=-100),
            )


class Training:
    """A model, its optimizers (Muon for the matrices of the layers, AdamW for all else) and where it is in ``steps``.

    The rates rise for 100 steps and fall over the last three in ten. What is saved along the way goes on from there, to
    any later end that was not in sight yet.
    """

    def __init__(self, model: PreTrainedModel, steps: int, lr: float, muon: float):
        self.model, self.steps, self.step = model, steps, 0
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (matrices if ".layers." in name and parameter.ndim == 2 else others).append(parameter)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.01),
        ]
        self.peaks = (muon, lr)

    def take(self, tokens: torch.Tensor, labels: torch.Tensor) -> float:
        """One step; returns the loss."""
        tokens, labels = tokens.to(self.model.device), labels.to(self.model.device)
        share = min(1.0, (self.step + 1) / 100, (self.steps - self.step) / (0.3 * self.steps))
        loss = self.model(input_ids=tokens, labels=labels).loss
        weight = (labels >= 0).sum() / (len(labels) * TYPICAL)  # a token counts the same whatever the answers' lengths
        (loss * weight).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(loss.item())

    def save(self, file: Path) -> None:
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"step": self.step, "model": self.model.state_dict(), "optimizers": states}
        replace_file(file, lambda scratch: torch.save(state, scratch))

    def load(self, file: Path) -> None:
        state = torch.load(file, map_location=self.model.device)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)


def train(training: Training, made: Iterator[tuple[torch.Tensor, torch.Tensor]], saved: Path) -> None:
    """To the end, on the batches from where the training is; what is ``saved`` along the way can be loaded."""
    started, total = time.perf_counter(), 0.0
    for tokens, labels in islice(made, training.steps - training.step):
        total += training.take(tokens, labels)
        if training.step % 50 == 0:
            seconds = time.perf_counter() - started
            print(f"step {training.step}/{training.steps} loss {total / 50:.4f} {seconds:.0f}s", flush=True)
            total = 0.0
        if training.step % SAVED_EVERY == 0:
            training.save(saved)


CARD = """\
---
library_name: transformers
license: apache-2.0
---

# {name}

A {parameters:,}-parameter {architecture} that sometimes solves Countdown, three or four numbers of {low} to {high}.
It ships with eggroll-rl as `embedded:{name}`, to be made better by reinforcement learning in minutes on a CPU.

Made from nothing by `python -m eggroll_rl.recipes.embedded {name} OUT` ({steps} steps of {rows} generated answers, Muon
with a peak rate of {muon} for the matrices of the layers and AdamW with {lr} for the rest): a supervised warm start on
streams of search. A stream tries an idea, works it out, compares it with the target, writes " no." or " yes.", goes on
or gives up, and answers with its last idea. Its teachers differ, each trait on its own: in patience (some give up after
the first failure, some never), aim (whether an idea is the nearest of {nearest} or any), order (whether it takes the
numbers as they come) and care (whether a near miss passes for a hit). Those of the last {last} steps, at a fifth of the
rates, are hastier in all of these. So the model can search, aim and verify, and does each too seldom: there is much to
gain, and no single word that gains it.

Split: training problems only; the held-out tenth of all problems, by a hash of (sorted numbers, target), is unseen.

On {n} held-out problems:

| | |
|---|---|
| greedy accuracy | **{accuracy:.1%}** (Wilson 95 %: {low_accuracy:.1%} to {high_accuracy:.1%}) |
| pass@k of {samples} samples at temperature 1 | {passes} |
| greedy, made to go on whenever it gives up | {tireless:.1%} |
| gives up | {gives_up:.1%} of its answers |
| says yes | {claims:.1%} of its answers, of which {true_claims:.1%} are right |
"""


def write_card(name: str, folder: Path, model: PreTrainedModel, problems: int, settings: dict[str, Any]) -> None:
    found = measure(folder, DATA, problems, SAMPLES)
    passes = ", ".join(f"{k.removeprefix('pass@')}: {found[k]:.1%}" for k in found if k.startswith("pass@"))
    card = CARD.format(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        architecture=type(model).__name__.removesuffix("ForCausalLM"),
        low=DATA.low,
        high=DATA.high,
        nearest=NEAREST,
        samples=SAMPLES,
        passes=passes,
        low_accuracy=found["low"],
        high_accuracy=found["high"],
        **settings,
        **{key: found[key] for key in ("n", "accuracy", "tireless", "gives_up", "claims", "true_claims")},
    )
    (folder / "README.md").write_text(card)


def build(
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    output: Path,
    steps: tuple[int, int],
    rows: int,
    rates: tuple[float, float],
    device: str,
) -> PreTrainedModel:
    """The model after so many ``steps`` with diverse and then with hasty teachers, at these ``rates`` of AdamW and Muon
    and a fifth of them; what is saved beside ``output`` along the way goes on from there."""
    torch.manual_seed(0)
    model = new_model(name, tokenizer).to(device_of(device))  # type: ignore[arg-type]
    lr, muon = rates
    courses = (
        (Training(model, steps[0], lr, muon), DIVERSE, 0),
        (Training(model, steps[1], lr * LAST_RATE, muon * LAST_RATE), HASTY, LAST_BATCH),
    )
    for (course, teachers, first), saved in zip(courses, saved_beside(output), strict=True):
        if saved.exists():
            course.load(saved)
        train(course, batches(tokenizer, rows, teachers, first + course.step), saved)
    return model


def saved_beside(output: Path) -> tuple[Path, Path]:
    """Where a build saves its two courses along the way."""
    return output.with_suffix(".checkpoint"), output.with_suffix(".last")


def main(
    name: Literal["rwkv7-countdown", "llama-countdown"],
    output: Annotated[Path, typer.Argument(help="a new folder")],
    steps: Annotated[int, typer.Option(min=1)] = 2000,
    rows: Annotated[int, typer.Option(min=1, help="answers of a step")] = 64,
    lr: Annotated[float, typer.Option(min=0.0, help="the peak of AdamW's rate")] = 3e-3,
    muon: Annotated[float, typer.Option(min=0.0, help="the peak of Muon's rate")] = 5e-3,
    problems: Annotated[int, typer.Option(min=0, help="that the model's card is about; 0: no card")] = 512,
    device: Annotated[str, typer.Option(help="cpu, as for the model that ships, or cuda")] = "cpu",
) -> None:
    """Build the embedded model NAME from nothing into the folder OUTPUT; a build that was cut short goes on."""
    if output.exists():
        raise UsageError(f"{output} exists; choose another folder")
    torch.set_flush_denormal(True)  # before the first thread starts; fading gradients are full of denormals
    tokenizer = build_tokenizer()
    last_steps = max(1, round(steps * LAST_SHARE[name]))
    model = build(name, tokenizer, output, (steps, last_steps), rows, (lr, muon), device)
    model.generation_config.max_new_tokens = LONGEST
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    if problems:
        settings = {"steps": steps, "last": last_steps, "rows": rows, "lr": lr, "muon": muon}
        write_card(name, output, model, problems, settings)
    for saved in saved_beside(output):
        saved.unlink(missing_ok=True)


if __name__ == "__main__":
    run_command(main)

"""Evolve a model that you have as an object: here a small Llama with random weights learns to write digits.

python examples/own_model.py --out runs/own_model
"""

import string
from pathlib import Path
from typing import Annotated

import torch
import typer
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eggroll_rl import EggrollConfig, EggrollTrainer

ALPHABET = string.ascii_lowercase + string.digits + " "


def own_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character, one for the end and one to pad with."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<end>", *ALPHABET])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def own_model(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, pad_token_id=0, eos_token_id=1, **sizes))


def digits(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """The share of digits in an answer."""
    return [sum(map(str.isdigit, text)) / max(1, len(text)) for text in completions]


def main(
    out: Annotated[Path, typer.Option(help="the run's folder, which must be new")] = Path("runs/own_model"),
    generations: int = 60,
    members: int = 128,
) -> None:
    """Train, and print the mean reward of the first and of the last generation."""
    tokenizer = own_tokenizer()
    trainer = EggrollTrainer(
        model=own_model(len(tokenizer)),
        processing_class=tokenizer,
        reward_funcs=digits,
        args=EggrollConfig(
            output_dir=str(out),
            max_steps=generations,
            population_size=members,
            prompts_per_generation=4,
            sigma=0.05,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            frozen=["*embed*", "*norm*"],  # the head evolves too: without it a random model learns little
            max_completion_length=16,
            logging_steps=1,
        ),
        train_dataset=Dataset.from_list([{"prompt": f"{word} "} for word in ("one", "two", "three", "four", "five")]),
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(f"share of digits: {rewards[0]:.2f} in the first generation, {rewards[-1]:.2f} in the last")


if __name__ == "__main__":
    typer.run(main)

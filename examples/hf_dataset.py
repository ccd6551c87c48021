"""Train on a dataset of the hub, or on a folder of its files: GSM8K, with a reward that reads the last number.

python examples/hf_dataset.py --model Qwen/Qwen2.5-0.5B-Instruct --out runs/gsm8k
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from datasets import Dataset, load_dataset

from eggroll_rl import EggrollConfig, EggrollTrainer

ASK = "Reason step by step, and end with the answer as `#### number`."


def questions(dataset: str, subset: str | None, split: str, chat: bool) -> Dataset:
    """Rows with a prompt, as chat messages or as text; the column ``answer`` stays for the reward."""

    def asked(row: dict[str, Any]) -> dict[str, Any]:
        text = f"{row['question']}\n{ASK}"
        return {"prompt": [{"role": "user", "content": text}] if chat else f"{text}\n"}

    return load_dataset(dataset, subset, split=split).map(asked, remove_columns=["question"])


def main(
    model: Annotated[str, typer.Option(help="a name on the hub, a folder, or an embedded model")],
    dataset: Annotated[str, typer.Option(help="with columns question and answer")] = "openai/gsm8k",
    subset: Annotated[str | None, typer.Option(help="of the dataset")] = None,
    out: Annotated[Path, typer.Option(help="the run's folder, which must be new")] = Path("runs/gsm8k"),
    generations: int = 200,
    members: int = 64,
    tokens: Annotated[int, typer.Option(help="the longest answer")] = 512,
    vllm: Annotated[bool, typer.Option(help="answer through vLLM")] = False,
    chat: Annotated[bool, typer.Option(help="ask by the model's chat template")] = True,
) -> None:
    """Train, and print held-out accuracy before and after."""
    if dataset == "openai/gsm8k":
        subset = subset or "main"
    trainer = EggrollTrainer(
        model=model,
        reward_funcs="eggroll_rl.rewards.gsm8k:gsm8k",
        args=EggrollConfig(
            output_dir=str(out),
            max_steps=generations,
            population_size=members,
            prompts_per_generation=8,
            sigma=1e-3,
            learning_rate=1e-4,
            max_completion_length=tokens,
            use_vllm=vllm,
        ),
        train_dataset=questions(dataset, subset, "train", chat),
        eval_dataset=questions(dataset, subset, "test", chat),
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    print(f"held out: {before:.1%} before, {trainer.evaluate()['eval_accuracy']:.1%} after")


if __name__ == "__main__":
    typer.run(main)

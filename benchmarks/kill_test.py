"""Kill a run again and again; what it ends with must be, to the bit, what a run that was never killed ends with.

    python -m benchmarks.kill_test --kills 30

Each attempt is a process of its own, ended by SIGKILL: after a random time, or in a random call of one of the functions
below, so that every phase is hit. Then the run is resumed. A tiny random model learns to write high character codes.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import string
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import typer
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eggroll_rl import scoring, train
from eggroll_rl.config import load_recipe
from eggroll_rl.engines.local import decoding
from eggroll_rl.es import update
from eggroll_rl.models.rwkv7 import RWKV7Config, RWKV7ForCausalLM
from eggroll_rl.runs import folder as run_folder
from eggroll_rl.runs.journal import snapshots
from eggroll_rl.system.durable import tensors_hash

PHASES: dict[str, tuple[Any, str]] = {
    "a journal record": (os, "write"),
    "an update": (update.Learner, "_step"),
    "a snapshot": (snapshots, "save_file"),
    "generation": (decoding.Sampler, "__call__"),
    "scoring": (scoring.Scorer, "_call"),
    "metrics and samples": (run_folder, "_append"),
    "evaluation": (train, "evaluate"),
    "a sync": (os, "fsync"),
    "a rename": (os, "replace"),
}
ANY = "any moment"
PARTS = ("generation", "generate", "score", "update")
INCIDENTAL = ("seconds", *(f"seconds_{part}" for part in PARTS), "tokens_per_second", "output_dir", "crc32")
REWARD = """
def late(prompts, completions, **columns):
    return [sum(map(ord, text)) / (128 * max(1, len(text))) for text in completions]
"""
RECIPE = """
model: $folder/base
engine: {name: $engine}
data: {name: $folder/train.jsonl, test_name: $folder/test.jsonl, prompt: "{text}", prompts: 2}
rewards: [{fn: "$folder/reward.py:late"}]
population: {size: 32, sigma: 0.05}
optimizer: {name: adam, lr: 0.01, schedule: cosine, warmup: 2}
sampling: {max_new_tokens: 8}
evaluation: {n: 4, every: 7}
snapshots: {every: 5, keep: 2}
generations: 24
"""


def write_task(folder: Path, engine: str = "transformers") -> Path:
    """Write the model, data, reward and recipe of a task that takes milliseconds a generation; returns the recipe."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<end>", *string.printable])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.save_pretrained(folder / "base")
    sizes: Any = {"vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    sizes |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    torch.manual_seed(0)
    model: Any
    if engine == "rwkv":
        ranks: Any = dict.fromkeys(("decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim"), 8)
        model = RWKV7ForCausalLM(RWKV7Config(**sizes, **ranks, head_dim=16, head_norm_eps=64e-5))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder / "base")
    for name, words in {"train": ("one", "two", "three", "four"), "test": ("five", "six", "seven", "eight")}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
    (folder / "reward.py").write_text(REWARD)
    recipe = folder / "recipe.yaml"
    recipe.write_text(string.Template(RECIPE).substitute(folder=folder, engine=engine))
    return recipe


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for times and places: the records of its files, and hashes of its tensors."""
    left: dict[str, Any] = {}
    for name in ("metrics.jsonl", "samples.jsonl", "answers.jsonl", "journal.jsonl"):
        left[name] = [_essential(json.loads(line)) for line in (folder / name).read_text().splitlines()]
    for path in (*folder.glob("snapshots/*"), *folder.glob("model/*.safetensors")):
        left[str(path.relative_to(folder))] = tensors_hash(load_file(path))
    return left


def kill_test(folder: Path, kills: int, seed: int, engine: str, say: Callable[[str], None]) -> list[str]:
    """Run it; returns what differs, of every run that came to its end."""
    rng = random.Random(seed)
    _process(write_task, folder, engine).join()
    recipe = folder / "recipe.yaml"
    began = time.time()
    _expect(_process(_attempt, folder, recipe, "never killed", None, 0), 0, folder)
    startup, total = (folder / "never killed" / "recipe.yaml").stat().st_mtime - began, time.time() - began
    expected = outcome(folder / "never killed")
    assert expected["model/model.safetensors"] != tensors_hash(load_file(folder / "base" / "model.safetensors"))
    calls = json.loads((folder / "calls.json").read_text())
    say(f"a run takes {total:.1f} s, {startup:.1f} s of these before it begins; calls: {calls}")

    reach = min(
        1.0, 3 / kills
    )  # share of a whole run in which an attempt is killed, so that all kills find their place
    differing, killed, runs = [], Counter[str](), 1
    phases = cycle([ANY, *PHASES])
    while True:
        name = f"run {runs}"
        phase = next(phases) if killed.total() < kills else None
        call = rng.randint(1, max(1, round(reach * calls[phase]))) if phase in PHASES else 0
        process = _process(_attempt, folder, recipe, name, phase, call)
        if phase == ANY:
            process.join(rng.uniform(0.0, startup + reach * (total - startup)))
            process.kill()
        if _expect(process, -signal.SIGKILL if phase else 0, folder) != 0:
            killed[str(phase)] += 1
            continue
        found = outcome(folder / name)
        differing += [f"{name}: {key}" for key in expected | found if expected.get(key) != found.get(key)]
        if killed.total() == kills:
            break
        runs += 1
    say(f"{killed.total()} kills in {runs} runs: " + ", ".join(f"{n} in {phase}" for phase, n in killed.items()))
    return differing


def _process(target: Callable[..., object], *args: object) -> Any:
    """A running copy of this process, whose imports are done and whose threads have not begun."""
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def _expect(process: Any, code: int, folder: Path) -> int:
    process.join()
    if process.exitcode not in (0, code):
        raise RuntimeError(f"exit code {process.exitcode}: " + (folder / "log.txt").read_text()[-3000:])
    return int(process.exitcode)


def _attempt(folder: Path, recipe: Path, name: str, phase: str | None, call: int) -> None:
    """Train or go on, and be killed in the given call of a phase."""
    with (folder / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    calls = Counter[str]()
    for watched, (owner, function) in PHASES.items():
        setattr(owner, function, _watched(watched, getattr(owner, function), calls, call if watched == phase else 0))
    if (folder / name / "journal.jsonl").exists():
        train.resume(folder / name)
    else:
        train.train(load_recipe(recipe, [f"output_dir={folder / name}"]))
    (folder / "calls.json").write_text(json.dumps(calls))


def _watched(phase: str, original: Callable[..., Any], calls: Counter[str], fatal: int) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        calls[phase] += 1
        if calls[phase] == fatal:
            if phase == "a journal record":
                original(args[0], args[1][: len(args[1]) // 2])
            if phase == "a snapshot":
                original(*args)
                os.truncate(args[1], args[1].stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    return function


def _essential(record: Any) -> Any:
    if isinstance(record, dict):
        return {key: _essential(value) for key, value in record.items() if key not in INCIDENTAL}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("transformers", "rwkv"), default="transformers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        differing = kill_test(Path(folder), args.kills, args.seed, args.engine, typer.echo)
    typer.echo("all runs ended alike" if not differing else f"DIFFERENT: {', '.join(differing)}")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()

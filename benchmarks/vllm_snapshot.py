"""Hash, snapshot and load of a model in vLLM: seconds, bytes written, and memory beyond the engine's own.

python -m benchmarks.vllm_snapshot --parameters 5e8 --folder runs

A Llama of about so many random parameters learns by Adam. Memory is that of this process and vLLM's without what the
system caches of files, sampled while each of the three runs, and while an update is taken, for comparison: its peak
less what was there before. Bytes written are those that Linux counts for these processes' files on a disk: none are, in
a ``--folder`` in memory.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any, Literal

import psutil
import torch
import typer
from transformers import AutoModelForCausalLM, LlamaConfig

from eggroll_rl.config import Recipe
from eggroll_rl.engines.vllm.engine import VLLMEngine
from eggroll_rl.es.population import Population
from eggroll_rl.es.tensors import SHARD
from eggroll_rl.es.update import Update
from eggroll_rl.models.loading import load_tokenizer
from eggroll_rl.runs.journal.snapshots import Snapshot, Snapshots, load_snapshot
from eggroll_rl.system.command import run_command

LAYERS, HEAD = 12, 64
MIB = 2**20


def config_of(parameters: float, vocabulary: int) -> LlamaConfig:
    """A Llama with about so many parameters: 16 x width^2 in each layer."""
    width = HEAD * max(1, round((parameters / (16 * LAYERS)) ** 0.5 / HEAD))
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=LAYERS,
        num_attention_heads=width // HEAD, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip


def write_model(folder: Path, parameters: float, dtype: str) -> int:
    """Write the model with random weights; returns how many parameters it has."""
    tokenizer = load_tokenizer("embedded:llama-countdown")
    torch.manual_seed(0)
    config = config_of(parameters, len(tokenizer))
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def memory(processes: list[psutil.Process]) -> int:
    """Bytes of these processes' own memory, and of what they share: the most that one of them has mapped."""
    own, shared = 0, [0]
    for process in processes:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith("Rss")}
        own += sizes["RssAnon"]
        shared.append(sizes["RssShmem"])
    return own + max(shared)


class Watch:
    """What a block costs: seconds, bytes written, and the memory beyond that before it."""

    def __init__(self) -> None:
        self._processes = [psutil.Process(), *psutil.Process().children(recursive=True)]

    def of(self, action: Callable[[], Any]) -> dict[str, float]:
        before, written, peak, ended = memory(self._processes), self._written(), 0, Event()

        def sample() -> None:
            nonlocal peak
            while not ended.is_set():
                peak = max(peak, memory(self._processes))
                time.sleep(0.002)

        sampler = Thread(target=sample)
        sampler.start()
        begin = time.perf_counter()
        try:
            action()
            seconds = time.perf_counter() - begin
        finally:
            ended.set()
            sampler.join()
        bytes_written = self._written() - written
        return {
            "seconds": round(seconds, 2),
            "MiB_written": round(bytes_written / MIB, 1),
            "MiB_of_memory_more": round((peak - before) / MIB, 1),
        }

    def _written(self) -> int:
        return sum(process.io_counters().write_bytes for process in self._processes)


def measure(folder: Path, parameters: float, dtype: str, weights: str, tensor_parallel: int) -> dict[str, Any]:
    """The figures of hash, snapshot and load."""
    count = write_model(folder / "model", parameters, dtype)
    options = {"kv_cache_gib": 0.1, "max_model_len": 256, "slots": 2, "tensor_parallel_size": tensor_parallel}
    recipe = Recipe.model_validate(
        {
            "model": str(folder / "model"),
            "weights": weights,
            "engine": {"name": "vllm", "dtype": dtype, "vllm": options},
            "rewards": [{"fn": "eggroll_rl.rewards.countdown:countdown"}],
            "population": {"size": 2},
            "parameters": {"frozen": ["*embed*", "*norm*"]},
            "optimizer": {"name": "adam", "lr": 1e-3},
        }
    )
    with VLLMEngine(recipe) as engine:
        engine.apply(Update(Population(0, 0, recipe.population), (1.0, -1.0), 1e-3))
        engine.weights_hash()  # what is made once is made
        watch, snapshots, hashes = Watch(), Snapshots(folder / "snapshots", keep=1), []
        found: dict[str, Any] = {
            "parameters": count,
            "MiB_of_a_shard": SHARD / MIB,
            "MiB_of_the_state": round(sum(spec.nbytes for spec in engine.state_dict().specs.values()) / MIB, 1),
            "MiB_of_the_engine": round(memory(watch._processes) / MIB),
        }
        found["hash"] = watch.of(lambda: hashes.append(engine.weights_hash()))
        found["snapshot"] = watch.of(lambda: snapshots.save(Snapshot.of(1, hashes[0], engine.state_dict(), {})))
        path = snapshots.paths()[1]
        found["MiB_of_the_snapshot"] = round(path.stat().st_size / MIB, 1)
        update = Update(Population(0, 1, recipe.population), (1.0, -1.0), 1e-3)
        found["update"] = watch.of(lambda: engine.apply(update))
        hashes.append(engine.weights_hash())
        found["load"] = watch.of(lambda: engine.load_state_dict(load_snapshot(path).of_engine()))
        hashes.append(engine.weights_hash())
    found["hash_is_back"] = hashes[0] == hashes[2] != hashes[1]
    return found


def main(
    parameters: Annotated[float, typer.Option(min=1e5, help="of the model, about")] = 5e8,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    weights: Literal["float", "int8"] = "float",
    tensor_parallel: Annotated[int, typer.Option(min=1)] = 1,
    folder: Annotated[Path | None, typer.Option(help="where a temporary folder is made")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures to this file")] = None,
) -> None:
    """Hash, snapshot and load of a model in vLLM: seconds, bytes written, and memory beyond the engine's own."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        text = json.dumps(measure(Path(scratch), parameters, dtype, weights, tensor_parallel), indent=2)
    if json_file is None:
        typer.echo(text)
    else:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(text + "\n")


if __name__ == "__main__":
    run_command(main)

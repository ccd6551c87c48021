"""RWKV-7 served by vLLM alone, in chunks and with more requests than fit: it answers as elsewhere."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch

from eggroll_rl.config import SamplingConfig
from eggroll_rl.engines.vllm.engine import VLLMEngine
from eggroll_rl.es.update import Update
from eggroll_rl.models.blinkdl import save_pth
from eggroll_rl.models.loading import load_model
from eggroll_rl.system.errors import UsageError

from .conftest import Engines, both, recipe_of
from .test_engine import ask_both, population_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROMPTS = ["3", *(f"Numbers: {n} {n + 3} 7 Target: {n * 5}\n" * (1 + n % 4) for n in range(2, 18))]
TOKENS = 24
START = 180.0  # seconds for vLLM to start


@pytest.fixture(scope="module")
def server(of_rwkv7: Engines) -> Iterator[str]:
    """The address of a server of the model, with four rows and steps of 32 tokens. (`vllm serve` by its module: the
    command asks for a package of another name than the build for CPUs has.)"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype=float32", "--max-num-seqs=4", "--max-num-batched-tokens=32", "--max-model-len=512"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", of_rwkv7.recipe.model, *options]
    process = subprocess.Popen([*command, "--kv-cache-memory-bytes=268435456", "--host=127.0.0.1", f"--port={port}"])
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def ask(address: str, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{address}/{path}", data, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as reply:
        return json.load(reply)


def test_a_served_model_answers_as_the_engine(server: str, of_rwkv7: Engines) -> None:
    deadline = time.monotonic() + START
    while True:
        try:
            (model,) = ask(server, "models")["data"]
            break
        except URLError:
            assert time.monotonic() < deadline
            time.sleep(1)

    def complete(prompt: str) -> str:
        body = {"model": model["id"], "prompt": prompt, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
        return ask(server, "completions", body)["choices"][0]["text"]

    with ThreadPoolExecutor(len(PROMPTS)) as clients:
        answers = list(clients.map(complete, PROMPTS))
    of_rwkv7.transformers.load_state_dict(of_rwkv7.base)
    expected = of_rwkv7.transformers.generate(PROMPTS, SamplingConfig(max_new_tokens=TOKENS))[0]
    begun = [given.startswith(answer.text) for given, answer in zip(answers, expected, strict=True)]
    assert all(begun)  # ours end at the end token
    assert len(set(answers)) > len(PROMPTS) // 2


def test_a_pth_file_answers_and_learns_as_in_the_local_engine(
    tmp_path: Path, new_model: "Callable[..., PreTrainedModel]"
) -> None:
    path = tmp_path / "rwkv7.pth"
    save_pth(new_model("rwkv7", vocab_size=65536), path)  # the vocabulary of the World tokenizer
    options = {"name": "vllm", "vllm": {"slots": 4, "kv_cache_gib": 0.25, "max_model_len": 512}}
    frozen = {"frozen": ["*embed*", "*norm*", "*.r_k", "*head*"]}
    engines = both(recipe_of(str(path), engine=options, parameters=frozen, population={"size": 4, "sigma": 0.02}))
    try:
        for generation in range(2):
            population = population_of(engines, generation)
            for asked in (None, population):
                ask_both(engines, asked)
            for engine in engines[1:3]:
                engine.apply(Update(population, (1.0, -1.0, 0.5, -0.5), 0.05))
        saved = []
        for number, engine in enumerate(engines[1:3]):
            engine.save(tmp_path / str(number))
            saved.append(dict(load_model(str(tmp_path / str(number)))[0].named_parameters()))
    finally:
        engines.vllm.close()
    assert saved[0].keys() == saved[1].keys()
    for name, parameter in saved[0].items():
        torch.testing.assert_close(parameter, saved[1][name], msg=name)


def test_heads_that_ranks_cannot_share_are_refused(
    tmp_path: Path, new_model: "Callable[..., PreTrainedModel]", tokenizer: "PreTrainedTokenizerFast"
) -> None:
    new_model("rwkv7", hidden_size=48).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = {"slots": 2, "kv_cache_gib": 0.25, "tensor_parallel_size": 2}
    frozen = {"frozen": ["*embed*", "*norm*", "*.r_k"]}
    with pytest.raises(UsageError, match=r"heads \(3\) must be divisible by tensor parallel size \(2\)"):
        VLLMEngine(recipe_of(str(tmp_path), engine={"name": "vllm", "vllm": options}, parameters=frozen))

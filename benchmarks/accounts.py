"""What a generation costs in operations and bytes, and what bounds it: ``python -m benchmarks.accounts``.

Counted from shapes, not measured. A part takes at least as long as its operations at the device's peak, and as its
bytes at the bandwidth of its memory. A step of decoding reads all weights and all noise once, and every row's state
once.

Legend: N members, P prompts, T tokens of an answer, r rank, O out, I in.
"""

import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

import torch
import typer
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen2Config

from eggroll_rl.comparison.flops import multiplied, prompt_tokens
from eggroll_rl.config import ParametersConfig, load_recipe
from eggroll_rl.models.blueprint import Anatomy, dissect, inspect
from eggroll_rl.models.rwkv7 import RWKV7Config
from eggroll_rl.planning.bare import BareProducts
from eggroll_rl.system.command import run_command


class Device(NamedTuple):
    """Operations and bytes of memory in a second."""

    name: str
    flops: float
    bytes: float


H100 = Device("one H100 (data sheet: 989 TFLOPS of bf16, 3.35 TB/s)", 989e12, 3.35e12)


class Model(NamedTuple):
    """A model's sizes.

    Attributes:
        multiplied: weights that each token is multiplied by.
        evolved: those with noise.
        edges: O + I over all evolved matrices, the noise of a pair at rank 1.
        state: bytes that a step reads of one row, whatever came before.
        memory: bytes that a step reads of one row for each token before it (keys and values).
        item: bytes of a weight that answers.
    """

    multiplied: int
    evolved: int
    edges: int
    state: int
    memory: int
    item: int


class Generation(NamedTuple):
    """N members answer P prompts of ``prompt`` tokens by T tokens, ``rows`` at a time."""

    members: int
    prompts: int
    prompt: int
    tokens: int
    rows: int
    rank: int = 1


class Part(NamedTuple):
    """Of a generation: operations, and bytes that pass through memory."""

    name: str
    flops: float
    bytes: float

    def seconds(self, device: Device) -> float:
        return max(self.flops / device.flops, self.bytes / device.bytes)

    def bound(self, device: Device) -> str:
        return "operations" if self.flops / device.flops > self.bytes / device.bytes else "memory"


def parts(model: Model, of: Generation) -> Iterator[Part]:
    """All parts of a generation; prompts are read in one step of their batch."""
    answers = of.members * of.prompts
    rows = min(of.rows, answers)
    batches = -(-answers // rows)
    steps, tokens = batches * (of.tokens + 1), answers * (of.prompt + of.tokens)
    pairs, pairs_of_batch = of.members // 2, -(-of.members // (2 * batches))
    yield Part(
        "products with the weights", 2.0 * model.multiplied * tokens, float(steps * model.multiplied * model.item)
    )
    drawn = model.edges * of.rank
    yield Part("the members' own products", 2.0 * drawn * tokens, float(steps * pairs_of_batch * drawn * model.item))
    seen = of.tokens * (of.prompt + of.tokens / 2)  # tokens before each of an answer's, added up
    yield Part("states, keys and values", 0.0, answers * (of.tokens * model.state + seen * model.memory))
    yield Part("noise drawn twice", 0.0, 2.0 * pairs * drawn * model.item)
    yield Part("update, Adam", 2.0 * pairs * of.rank * model.evolved, float(model.evolved * (6 * 4 + model.item)))


def sizes(anatomy: Anatomy, item: int) -> Model:
    """Of a model whose weights take ``item`` bytes each."""
    network: Any = anatomy.model
    config, width = network.config, network.config.hidden_size
    recurrent = config.model_type == "rwkv7"
    keys = 0 if recurrent else config.num_key_value_heads * (width // config.num_attention_heads)
    return Model(
        multiplied=multiplied(anatomy),
        evolved=sum(parameter.numel for parameter in anatomy.evolved),
        edges=sum(parameter.noise_elements(1) for parameter in anatomy.evolved),
        state=2 * config.num_hidden_layers * width * config.head_dim * 4 if recurrent else 0,  # read and written
        memory=2 * config.num_hidden_layers * keys * item,
        item=item,
    )


def of_config(config: PretrainedConfig) -> Model:
    """Of a model in bfloat16 whose matrices evolve as recipes have it by default."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config).eval()
    return sizes(dissect(network, ParametersConfig()), 2)


def measured_here(repeats: int = 5) -> Device:
    """This machine: fp32 products with one thread on each core at once, and copies of what no cache holds."""
    cores = torch.get_num_threads()
    products = BareProducts([torch.randn(512, 512)], 512 * cores)
    large, copy = torch.zeros(2**26), torch.empty(2**26)
    flops = max(40 * cores * 2 * 512**3 / _seconds(lambda: products.multiply(40)) for _ in range(repeats))
    bandwidth = max(2 * large.nbytes / _seconds(lambda: copy.copy_(large)) for _ in range(repeats))
    return Device(
        f"{cores} cores here ({flops / 1e9:,.0f} GFLOPS, {bandwidth / 1e9:,.0f} GB/s measured)", flops, bandwidth
    )


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def table(title: str, model: Model, generation: Generation, device: Device) -> str:
    """One generation, part by part, in Markdown."""
    found = list(parts(model, generation))
    lines = [f"**{title}**, on {device.name}:", "", "| part | operations | bytes | seconds at least | bound by |"]
    lines.append("|---|---:|---:|---:|---|")
    for part in found:
        amounts = f"{part.flops:.1e} | {part.bytes:.1e} | {part.seconds(device):.2g}"
        lines.append(f"| {part.name} | {amounts} | {part.bound(device)} |")
    lines.append(f"| in all | | | {sum(part.seconds(device) for part in found):.2g} | |")
    return "\n".join(lines) + "\n"


LARGE = {
    "RWKV-7 of 7B": RWKV7Config(vocab_size=65536, hidden_size=4096, num_hidden_layers=32, head_dim=64),
    "Qwen2.5 of 7B": Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, tie_word_embeddings=False,
    ),
}  # fmt: skip


def main(
    recipe: Annotated[str, typer.Argument(help="of the first table")] = "countdown_tiny",
    answer: Annotated[int, typer.Option(help="tokens of its answers, in the mean")] = 90,
) -> None:
    """Print the accounts of a recipe on this machine, and of large models on one H100."""
    asked = load_recipe(recipe)
    blueprint = inspect(asked)
    length = round(prompt_tokens(asked, blueprint))
    N, P = asked.population.size, asked.data.prompts
    title = f"{recipe}: {N} members, {P} prompts of {length} tokens, answers of {answer}"
    of = Generation(N, P, length, answer, N * P, asked.population.rank)
    typer.echo(table(title, sizes(blueprint, 4), of, measured_here()))
    for name, config in LARGE.items():
        for members in (1024, 32768):
            title = f"{name}: {members:,} members, 1 prompt of 200 tokens, answers of 1,000, 256 rows at a time"
            typer.echo(table(title, of_config(config), Generation(members, 1, 200, 1000, 256), H100))


if __name__ == "__main__":
    run_command(main)

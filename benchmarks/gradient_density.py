"""Where in a model the gradient of the expected reward is: what is worth evolving.

    python -m benchmarks.gradient_density embedded:rwkv7-countdown --prompts 256 --samples 8

An evolution strategy that moves d weights sees its gradient through noise in all d of them: it gains by leaving out
those that hold little of it. Sampled answers give the gradient by backpropagation (REINFORCE, each prompt's mean as its
baseline), once from each half of the prompts. Products of the two halves are free of the noise in either, so that their
sum over a tensor estimates its squared gradient; ``density`` is that for each weight, relative to that of all weights.

A second table divides the head's gradient by the directions of what it reads, those of the largest variance first, and
says how far the halves agree there. What whitened noise (``population.whitening``) is for can be seen in it.

Legend: P prompts, S samples of each, D width, V vocabulary.
"""

import copy
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.nn.utils.rnn import pad_sequence

from eggroll_rl.config import DataConfig, ParametersConfig, PopulationConfig, RewardConfig, SamplingConfig
from eggroll_rl.data.dataset import load_data
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.models.loading import load_model
from eggroll_rl.runs.evaluation import score
from eggroll_rl.scoring import Scorer
from eggroll_rl.system.command import run_command

ROWS = 64  # of a backward pass
REWARD = RewardConfig(fn="eggroll_rl.rewards.countdown:countdown")


def policy_gradient(
    model: Any, asked: Sequence[list[int]], answered: Sequence[list[int]], advantages: Tensor
) -> dict[str, Tensor]:
    """Of the expected reward, by parameter."""
    model.zero_grad()
    order = sorted(advantages.nonzero()[:, 0].tolist(), key=lambda row: len(answered[row]))
    for first in range(0, len(order), ROWS):
        rows = order[first : first + ROWS]
        tokens = [torch.tensor([*asked[row], *answered[row]]) for row in rows]
        labels = [torch.tensor([-100] * len(asked[row]) + answered[row]) for row in rows]
        logits = model(input_ids=pad_sequence(tokens, batch_first=True)).logits[:, :-1]
        wanted = pad_sequence(labels, batch_first=True, padding_value=-100)[:, 1:]
        losses = cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(len(rows), -1)
        (losses.sum(1) @ advantages[rows].float()).backward()
    return {name: parameter.grad / -len(asked) for name, parameter in model.named_parameters()}


def main(
    model: Annotated[str, typer.Argument(help="a Hugging Face folder or name, or an embedded model")],
    prompts: Annotated[int, typer.Option(min=2)] = 256,
    samples: Annotated[int, typer.Option(min=2, help="answers to each")] = 8,
    new_tokens: Annotated[int, typer.Option(min=1)] = 144,
) -> None:
    """Print a Markdown table of the tensors of MODEL, the densest first, on Countdown with three and four numbers."""
    loaded, tokenizer = load_model(model, torch.float32)
    learner = copy.deepcopy(loaded).requires_grad_(True)
    (head,) = (name for name, tensor in loaded.named_parameters() if tensor is loaded.get_output_embeddings().weight)
    head_alone = ParametersConfig(frozen=(), lowrank=(head,))
    engine = LocalEngine(loaded, tokenizer, population=PopulationConfig(whitening=1e-6), parameters=head_alone)
    batch = load_data(DataConfig(numbers=(3, 4), prompts=prompts), 0).batch(0).repeated(samples)
    sampling = SamplingConfig(max_new_tokens=new_tokens, temperature=1.0, stop=("</answer>",))
    completions = engine.generate(batch.prompts, sampling)
    with Scorer([REWARD]) as scorer:
        rewards_PS = score(scorer, completions, batch.prompts, batch.columns).rewards_NP.view(prompts, samples)
    advantages = ((rewards_PS - rewards_PS.mean(1, keepdim=True)) * samples / (samples - 1)).flatten()
    asked = [tokenizer(prompt)["input_ids"] for prompt in batch.prompts]
    answered = [list(answer.token_ids) for answer in completions[0]]
    half = prompts // 2 * samples
    one, other = (
        policy_gradient(learner, asked[rows], answered[rows], advantages[rows])
        for rows in (slice(half), slice(half, None))
    )
    typer.echo(f"sampled accuracy {rewards_PS.mean():.1%}, {sum(map(len, answered)) / len(answered):.0f} tokens\n")
    squares: dict[str, float] = defaultdict(float)
    sizes: dict[str, int] = defaultdict(int)
    for name, gradient in one.items():
        kind = re.sub(r"\.\d+\.", ".*.", name)
        squares[kind] += float((gradient * other[name]).sum())
        sizes[kind] += gradient.numel()
    total, size = sum(squares.values()), sum(sizes.values())
    typer.echo("| tensor | weights | of the squared gradient | density |\n|---|---:|---:|---:|")
    for kind in sorted(squares, key=lambda kind: -squares[kind] / sizes[kind]):
        share = squares[kind] / total
        typer.echo(f"| `{kind}` | {sizes[kind]:,} | {share:.1%} | {share / sizes[kind] * size:.2f} |")
    whitening_DD = engine.measure_whitening(batch.prompts, sampling)[f"whitening.{head}"]
    typer.echo("\n".join(["", *by_direction(one[head], other[head], whitening_DD)]))


def by_direction(one_VD: Tensor, other_VD: Tensor, whitening_DD: Tensor) -> Iterator[str]:
    """Lines of a table: two estimates of a matrix's gradient, by the directions of its inputs."""
    scale_D, direction_DD = torch.linalg.eigh(whitening_DD.double())  # small where inputs vary much
    variance_D = scale_D.square().reciprocal()
    one_VD, other_VD = (gradient_VD.double() @ direction_DD for gradient_VD in (one_VD, other_VD))
    yield "| directions of the head's inputs | of their variance | cosine of the halves' gradients |\n|---|---:|---:|"
    bounds = [0, *(2**power for power in range(1, 20) if 2**power < len(scale_D)), len(scale_D)]
    for first, stop in pairwise(bounds):
        share = variance_D[first:stop].sum() / variance_D.sum()
        cosine = cosine_similarity(one_VD[:, first:stop].flatten(), other_VD[:, first:stop].flatten(), 0)
        yield f"| {first + 1} to {stop} | {share:.1%} | {cosine:+.2f} |"


if __name__ == "__main__":
    run_command(main)

"""Learn handwritten digits with hard steps as activations, whose gradient is zero; with --ternary also such weights."""

from contextlib import contextmanager

import torch
import typer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from eggroll_rl import Evolution

MEMBERS, BATCH, WIDTH = 512, 64, 128


class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.gt(0).to(x.dtype) * 2 - 1  # -1 or +1: flat wherever it is differentiable


@contextmanager
def rounded(network: nn.Module, ternary: bool):
    """Inside, a ternary network's matrices are -1, 0 or 1; outside they are the floats that learn."""
    floats = {weight: weight.detach().clone() for weight in network.parameters() if ternary and weight.ndim == 2}
    for weight in floats:
        weight.data.round_().clamp_(-1, 1)
    yield
    for weight, kept in floats.items():
        weight.data.copy_(kept)


def train(seed: int = 0, ternary: bool = False, generations: int = 1000) -> tuple[float, float]:
    """Print and return the test accuracy, and the largest element of the hidden layers' gradient."""
    inputs, labels = load_digits(return_X_y=True)
    split = train_test_split(inputs.astype("float32") / 8 - 1, labels, random_state=0, stratify=labels)
    x_train, x_test, y_train, y_test = map(torch.tensor, split)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, WIDTH), Step(), nn.Linear(WIDTH, WIDTH), Step(), nn.Linear(WIDTH, 10))
    for weight in network.parameters():
        nn.init.uniform_(weight, -1, 1)
    evolution = Evolution(network, population=MEMBERS, sigma=0.3, lr=0.03, fitness="zscore", seed=seed)
    for _ in range(generations):
        batch = torch.randint(len(x_train), (BATCH,))
        with rounded(network, ternary), evolution.ask():
            logits = network(x_train[batch]).flatten(0, 1) * (4 / WIDTH**0.5)
        losses = nn.functional.cross_entropy(logits, y_train[batch].repeat(MEMBERS), reduction="none")
        evolution.tell(-losses.view(MEMBERS, BATCH).mean(1))
    with rounded(network, ternary):
        nn.functional.cross_entropy(network(x_train), y_train).backward()
        accuracy = (network(x_test).argmax(1) == y_test).double().mean().item()
    gradient = max(
        0.0 if weight.grad is None else weight.grad.abs().max().item() for weight in network[:4].parameters()
    )
    print(f"test accuracy {accuracy:.1%}; largest gradient of a hidden weight {gradient}")
    return accuracy, gradient


if __name__ == "__main__":
    typer.run(train)

"""Learn XOR without a gradient: a 2-16-1 network, 512 members, rank-1 noise, Adam on centered ranks.

python examples/xor.py
"""

import torch
from torch import nn

from eggroll_rl import Evolution


def train(seed: int, generations: int = 301) -> list[float]:
    """The mean network's squared error after each generation, until it is below 0.005."""
    x_BI = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    target_BO = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    evolution = Evolution(network, population=512, sigma=0.1, lr=0.02, seed=seed)
    errors: list[float] = []
    while len(errors) < generations and not (errors and errors[-1] < 0.005):
        with evolution.ask():
            y_NBO = network(x_BI)  # every member answers in one pass
        evolution.tell(-(y_NBO - target_BO).square().mean((1, 2)))
        errors.append((network(x_BI) - target_BO).square().mean().item())
    return errors


if __name__ == "__main__":
    for seed in range(5):
        errors = train(seed)
        print(f"seed {seed}: mean squared error {errors[-1]:.4f} after {len(errors)} generations")

"""How an integer model learns: with more members, and beside the same model in floats.

    python -m benchmarks.egg_learning populations populations.jsonl
    python -m benchmarks.egg_learning contrasts contrasts.jsonl
    python -m benchmarks.egg_learning draw populations.jsonl docs/egg_populations.png
    python -m benchmarks.egg_learning draw contrasts.jsonl docs/egg_contrasts.png

A run that the file holds is not made again. Integers are runs of the recipe ``egg_tiny``, width 64 and 2 layers; floats
begin with the same weights. Bits per byte are those of the last tenth of the text, which nobody learns from. The float
model computes the same formulas, clipped at the same values, and rounds nothing.

Legend: M rows (members or streams), N members, S streams, T bytes, D width, O out, I in, V = 256 bytes.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from eggroll_rl.config import FitnessConfig, OptimizerConfig, PopulationConfig, load_recipe
from eggroll_rl.data.text import Corpus, Streams, bigram_bits, read_corpus, unigram_bits
from eggroll_rl.es.fitness import fitness
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.perturbation import Dense, Factors, Perturbation
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import GradientLearner, Update
from eggroll_rl.models.egg.arithmetic import DOCUMENT, ONE, SHIFT
from eggroll_rl.models.egg.model import EggConfig, new_model
from eggroll_rl.train import train

WIDTH, LAYERS, TOKENS = 64, 2, 100
HELD_OUT = 256  # streams
LARGEST, SIGMA = 127 / ONE, 2.0**-SHIFT
POPULATIONS, POPULATION_UPDATES, MOST_STREAMS = (64, 512, 4096, 32768), 60, 2048
MEMBERS, STREAMS, UPDATES, EVERY = 512, 128, 200, 20
EVOLUTION_RATES, DESCENT_RATES = (0.03, 0.1), (0.3, 1.0, 3.0)

Curve = list[tuple[int, float]]  # updates, bits per byte
app = typer.Typer(add_completion=False)


class FloatWeights:
    """The parameters as floats (a stored number over 16), each row's own where there is noise of pairs of members."""

    def __init__(self, parameters: Mapping[str, Tensor], noise: Mapping[str, Perturbation] | None = None):
        self._parameters, self._noise = parameters, noise or {}

    def product(self, name: str, x_MI: Tensor) -> Tensor:
        W_OI = self._parameters[name]
        y_MO = x_MI @ W_OI.T
        if name in self._noise:
            A_NO, B_NI = self._factors(name)
            y_MO = y_MO + (x_MI * B_NI).sum(1, keepdim=True) * A_NO
        return clipped(y_MO / math.sqrt(W_OI.shape[1]))

    def row(self, name: str, index_M: Tensor) -> Tensor:
        row_MI = self._parameters[name][index_M]
        if name in self._noise:
            A_NO, B_NI = self._factors(name)
            row_MI = row_MI + A_NO.gather(1, index_M[:, None]) * B_NI
        return clipped(row_MI)

    def vector(self, name: str) -> Tensor:
        vector = self._parameters[name]
        if name in self._noise:
            noise = self._noise[name]
            assert isinstance(noise, Dense)
            vector = vector + _signed(noise.E_K)
        return clipped(vector)

    def _factors(self, name: str) -> tuple[Tensor, Tensor]:
        noise = self._noise[name]
        assert isinstance(noise, Factors)
        return _signed(noise.A_KOr[..., 0]), noise.B_KIr[..., 0].repeat_interleave(2, dim=0)


def _signed(noise_K: Tensor) -> Tensor:
    """Of the members of each pair: sigma times the noise and minus that."""
    return torch.stack([SIGMA * noise_K, -SIGMA * noise_K], dim=1).flatten(0, 1)


def clipped(x: Tensor) -> Tensor:
    return x.clamp(-LARGEST, LARGEST)


def float_norm(x_MD: Tensor, weight: Tensor) -> Tensor:
    return clipped(x_MD * weight / x_MD.abs().mean(1, keepdim=True).clamp(min=1 / ONE))


def float_step(weights: FloatWeights, byte_M: Tensor, state_MLD: Tensor) -> tuple[Tensor, Tensor]:
    """``eggroll_rl.models.egg.arithmetic.step`` without rounding: logits in bits, and the new state."""
    state_MLD = state_MLD * (byte_M != DOCUMENT)[:, None, None]
    x_MD = weights.row("emb", byte_M)
    states = []
    for index, state_MD in enumerate(state_MLD.unbind(1)):
        layer = f"layers.{index}."
        y_MD = float_norm(x_MD, weights.vector(layer + "ln1"))
        f_MD = weights.product(layer + "Wf", y_MD) + weights.product(layer + "Uf", state_MD)
        open_MD = (clipped(f_MD + weights.vector(layer + "bf")) + LARGEST) / ONE
        h_MD = weights.product(layer + "Wh", y_MD) + weights.product(layer + "Uh", open_MD * state_MD)
        states.append(state_MD + open_MD * (clipped(h_MD + weights.vector(layer + "bh")) - state_MD))
        x_MD = clipped(x_MD + states[-1])
        hidden_M4D = weights.product(layer + "W1", float_norm(x_MD, weights.vector(layer + "ln2")))
        x_MD = clipped(x_MD + weights.product(layer + "W2", hidden_M4D))
    return weights.product("head", float_norm(x_MD, weights.vector("ln_out"))), torch.stack(states, dim=1)


def float_bits(weights: FloatWeights, byte_MT: Tensor, state_MLD: Tensor) -> tuple[Tensor, Tensor]:
    """Bits [M] that each row needs for all bytes but the first, and the new state."""
    bits = []
    for byte_M, next_M in zip(byte_MT.long().unbind(1), byte_MT.long()[:, 1:].unbind(1), strict=False):
        logits_MV, state_MLD = float_step(weights, byte_M, state_MLD)
        bits.append(F.cross_entropy(logits_MV * math.log(2), next_M, reduction="none") / math.log(2))
    return torch.stack(bits).sum(0), state_MLD


class Floats:
    """A float model with the weights that an integer model begins with."""

    def __init__(self, seed: int, rows: int):
        model = new_model(EggConfig(WIDTH, LAYERS), seed)
        self.evolved = model.evolved()
        self.parameters = {name: weight.float() / ONE for name, weight in model.named_parameters()}
        self.state_MLD = torch.zeros(rows, LAYERS, WIDTH)

    @torch.no_grad()
    def bits_per_byte(self, byte_ST: Tensor) -> float:
        bits_S, _ = float_bits(FloatWeights(self.parameters), byte_ST, torch.zeros(len(byte_ST), LAYERS, WIDTH))
        return float(bits_S.sum()) / byte_ST[:, 1:].numel()


class Evolved(Floats):
    """Float EGGROLL: the same pairs and signs, and a step along their sum by SGD instead of votes and a threshold."""

    def __init__(self, seed: int, lr: float):
        super().__init__(seed, MEMBERS)
        self.noise, self.lr, self.seed = Noise(seed), lr, seed
        self.config, self.shaping = PopulationConfig(size=MEMBERS, sigma=SIGMA), FitnessConfig(shaping="sign")
        self.learner = GradientLearner(self.parameters, self.evolved, OptimizerConfig(name="sgd", lr=lr), self.noise)

    @torch.no_grad()
    def step(self, byte_ST: Tensor, generation: int) -> None:
        population = Population(self.seed, generation, self.config)
        noise = self.noise.draw(self.evolved, generation, range(population.pairs))
        byte_NT = byte_ST.repeat_interleave(MEMBERS // STREAMS, dim=0)
        bits_N, self.state_MLD = float_bits(FloatWeights(self.parameters, noise), byte_NT, self.state_MLD)
        weights_N = fitness(-bits_N[:, None], self.shaping, antithetic=True)
        self.learner.step(Update(population, tuple(weights_N.tolist()), self.lr))


class Descended(Floats):
    """SGD on gradients that backpropagation finds through the bytes of one update."""

    def __init__(self, seed: int, lr: float):
        super().__init__(seed, STREAMS)
        for weight in self.parameters.values():
            weight.requires_grad_()
        self.optimizer = torch.optim.SGD(list(self.parameters.values()), lr)

    def step(self, byte_ST: Tensor, generation: int) -> None:
        bits_S, state = float_bits(FloatWeights(self.parameters), byte_ST, self.state_MLD)
        self.optimizer.zero_grad()
        (bits_S.sum() / byte_ST[:, 1:].numel()).backward()
        self.optimizer.step()
        self.state_MLD = state.detach()


class Record:
    """Runs in a file, one to a line."""

    def __init__(self, file: Path):
        self.file = file

    def runs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.is_file() else []

    def add(self, run: dict[str, Any], made: Callable[[], Curve], corpus: Corpus) -> None:
        """Make a run, unless it is there."""
        if any(run.items() <= there.items() for there in self.runs()):
            return
        curve = made()
        lines = {"unigram": unigram_bits(corpus.validation), "bigram": bigram_bits(corpus.validation)}
        with self.file.open("a") as file:
            file.write(json.dumps(run | {"curve": curve, "lines": lines, "text": corpus.version}) + "\n")
        print(run, f"{curve[-1][1]:.3f} bits per byte", flush=True)


def integers(seed: int, members: int, streams: int, updates: int, **values: float) -> Curve:
    """Of ``egg_tiny`` with so many members and streams, and ``values`` of its population."""
    with TemporaryDirectory() as folder:
        overrides = {
            "seed": seed,
            "population.size": members,
            "text.group": members // streams,
            "generations": updates,
            "minutes": "null",
            "evaluation.every": EVERY,
            "output_dir": f"{folder}/run",
            **{f"population.{key}": value for key, value in values.items()},
        }
        run = train(load_recipe("egg_tiny", [f"{key}={value}" for key, value in overrides.items()]))
        return [(record["generation"], record["bits_per_byte"]) for record in run.metrics() if "lr" not in record]


def floats(learner: Callable[[], Evolved | Descended], corpus: Corpus) -> Curve:
    """Of a float model, on what ``integers`` read and are judged by."""
    learns = learner()
    batches = Streams(corpus.train, STREAMS, TOKENS)
    held_out = Streams(corpus.validation, HELD_OUT, TOKENS).batch(0)
    curve = [(0, learns.bits_per_byte(held_out))]
    for generation in range(UPDATES):
        learns.step(batches.batch(generation), generation)
        if (generation + 1) % EVERY == 0:
            curve.append((generation + 1, learns.bits_per_byte(held_out)))
    return curve


@app.command()
def populations(file: Path, seeds: int = 3, largest: int = POPULATIONS[-1]) -> None:
    """The integer model after 60 updates by 64, 512, 4,096 and 32,768 members; two members and more share a stream, at
    most 2,048 of which the text has."""
    corpus, record = read_corpus(), Record(file)
    for seed in range(seeds):
        for members in (size for size in POPULATIONS if size <= largest):
            run = {"learner": "integers", "members": members, "seed": seed}
            streams = min(members // 2, MOST_STREAMS)
            record.add(run, partial(integers, seed, members, streams, POPULATION_UPDATES), corpus)


@app.command()
def contrasts(file: Path, seed: int = 0) -> None:
    """200 updates, each on 100 bytes of the same 128 streams: integers and floats by 512 members and sigma 1/16, floats
    by backpropagation; of the float learners several learning rates, constant."""
    corpus, record = read_corpus(), Record(file)
    run = {"learner": "integers, EGGROLL", "seed": seed}
    record.add(run, partial(integers, seed, MEMBERS, STREAMS, UPDATES, sigma=SIGMA), corpus)
    for learner, made, rates in (
        ("floats, backpropagation", Descended, DESCENT_RATES),
        ("floats, EGGROLL", Evolved, EVOLUTION_RATES),
    ):
        for lr in rates:
            run = {"learner": learner, "lr": lr, "seed": seed}
            record.add(run, partial(floats, partial(made, seed, lr), corpus), corpus)


@app.command()
def draw(file: Path, picture: Path) -> None:
    """Bits per byte of a file's runs; of a learner with several rates the best one."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), dpi=150, layout="constrained")
    runs = Record(file).runs()
    if all("members" in run for run in runs):
        for seed in sorted({run["seed"] for run in runs}):
            ends = sorted((run["members"], run["curve"][-1][1]) for run in runs if run["seed"] == seed)
            axes.plot(*zip(*ends, strict=True), marker="o", label=f"seed {seed}")
        axes.set(xscale="log", xlabel="members", xticks=POPULATIONS, xticklabels=[f"{n:,}" for n in POPULATIONS])
        axes.set(title=f"Integers after {runs[0]['curve'][-1][0]} updates")
    else:
        best: dict[str, dict[str, Any]] = {}
        for run in sorted(runs, key=lambda run: -run["curve"][-1][1]):
            best[run["learner"]] = run
        for learner, run in best.items():
            rate = f", rate {run['lr']:g}" if "lr" in run else ""
            axes.plot(*zip(*run["curve"], strict=True), label=learner + rate)
        axes.set(xlabel="updates", title=f"Width {WIDTH}, {LAYERS} layers, the same bytes in each update")
    for name, value in runs[0]["lines"].items():
        axes.axhline(value, color="gray", linestyle="--", linewidth=1)
        axes.annotate(name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="gray")
    axes.set(ylabel="bits per byte of held-out text")
    axes.legend()
    figure.savefig(picture)
    plt.close(figure)


if __name__ == "__main__":
    app()

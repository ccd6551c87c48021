"""Throughput of populations against plain inference and against the hardware: ``eggroll-rl bench``, within three
minutes on two cores; ``full`` adds other ways, in minutes more.

Every figure is a median over interleaved repeats in one process, so that a machine whose speed varies treats them
alike.

Legend: N members, P prompts (rows of a member), M = N * P rows, T tokens of an answer, O out, I in.
"""

import platform
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from eggroll_rl.config import OptimizerConfig, ParametersConfig, PopulationConfig, SamplingConfig, Weights
from eggroll_rl.engines.local.decoding import Ending
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion
from eggroll_rl.es.update import Update
from eggroll_rl.models.int8 import to_int8
from eggroll_rl.models.loading import load_model, load_tokenizer
from eggroll_rl.models.rwkv7 import RWKV7Config
from eggroll_rl.planning.bare import BareProducts
from eggroll_rl.planning.bench_egg import PRESETS as EGG_PRESETS
from eggroll_rl.planning.bench_egg import measure_egg
from eggroll_rl.planning.interleaved import Timed, interleaved, peak_memory

PRESETS = {
    "rwkv7-256x4": lambda: RWKV7Config(vocab_size=4096, hidden_size=256, num_hidden_layers=4, head_dim=64),
    "smollm2-135m": lambda: LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
    ),
    "rwkv7-2048x24": lambda: RWKV7Config(vocab_size=65536, hidden_size=2048, num_hidden_layers=24, head_dim=64),
    "qwen2.5-0.5b": lambda: Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    ),
}  # fmt: skip
SHAPES = {"rwkv7-256x4": (256, 1), "smollm2-135m": (32, 2)}  # members, rows of each
ALL = (*SHAPES, *EGG_PRESETS)  # what is measured where no model is named
TOKENS = {"smollm2-135m": 16}  # of an answer, where 64 would take minutes
SHORTEST = 8  # tokens of the shortest answer where lengths are spread
SPREAD = "base, lengths spread"


class VariedEndings(Ending):
    """Ends each answer after a number of tokens that follows from its first ones: between SHORTEST and ``longest``."""

    def __init__(self, longest: int):
        self.longest = longest

    def reached(self, tokens_MT: Tensor) -> Tensor:
        if tokens_MT.shape[1] < SHORTEST:
            return torch.zeros(len(tokens_MT), dtype=torch.bool, device=tokens_MT.device)
        spread = self.longest - SHORTEST + 1
        return SHORTEST + tokens_MT[:, :SHORTEST].sum(1) * 2654435761 % 2**32 % spread <= tokens_MT.shape[1]

    def completion(self, token_ids: Any) -> Completion:
        return Completion("", tuple(token_ids), True)

    def to(self, device: torch.device) -> Self:
        return self


class Bench:
    """One model, one population, T tokens for every row.

    Args:
        name: a preset (random weights) or any model that ``load_model`` takes.
        members: N.
        rows: P, rows of each member.
        tokens: T.
        weights: of the linear layers.
        device, dtype: of the model.
    """

    def __init__(
        self,
        name: str,
        members: int,
        rows: int,
        tokens: int,
        weights: Weights = "float",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.name, self.members, self.rows, self.tokens = name, members, rows, tokens
        model, tokenizer = _model(name, torch.device(device), dtype)
        if weights == "int8":
            to_int8(model)
        model.generation_config = GenerationConfig(eos_token_id=[], pad_token_id=tokenizer.pad_token_id)
        self.population = PopulationConfig(size=members, sigma=1e-3)
        self.new_engine = partial(  # one more engine of the same model
            LocalEngine,
            model,
            tokenizer,
            population=self.population,
            parameters=ParametersConfig(),
            optimizer=OptimizerConfig(name="sgd", lr=1e-6),
            max_rows=members * rows,
        )
        self.engine = self.new_engine()
        self.sampling = SamplingConfig(max_new_tokens=tokens)
        self.prompts = [str(index % 10) for index in range(rows)]  # a token each: decoding is what is measured
        self.generation = 0

    def base(self) -> int:
        """All rows by the unperturbed model; returns the tokens made."""
        return self.base_by(self.engine)

    def base_by(self, engine: LocalEngine) -> int:
        """All rows by another engine, unperturbed."""
        return _count(engine.generate([*self.prompts] * self.members, self.sampling))

    def members_of_population(self) -> int:
        return self.members_by(self.engine)

    def members_by(self, engine: LocalEngine) -> int:
        """All rows by another engine's population."""
        return _count(engine.generate(self.prompts, self.sampling, self._population()))

    def draw_noise(self) -> int:
        self.generation += 1
        population = self._population()
        self.engine.noise.prefetch(self.engine.evolved, population.epoch, range(population.pairs))
        self._wait()
        return 1

    def update(self) -> int:
        self.engine.apply(Update(self._population(), (1.0, -1.0) * (self.members // 2), 1e-6))
        return 1

    def matrix_products(self) -> int:
        """The bare products of some steps, for all rows: the bound of a step that reads its weights once."""
        steps = max(1, self.tokens // 2)
        self._products.multiply(steps)
        return self.members * self.rows * steps

    @cached_property
    def _products(self) -> BareProducts:
        linears = [module for module in self.engine.model.modules() if isinstance(module, nn.Linear)]
        return BareProducts([linear.weight for linear in linears], self.members * self.rows)

    def plain_generate(self) -> int:
        """transformers' own ``generate`` on the same rows."""
        inputs = self.engine.tokenizer([*self.prompts] * self.members, return_tensors="pt", padding=True)
        inputs = inputs.to(self.engine.model.device)
        config = GenerationConfig(
            max_new_tokens=self.tokens, min_new_tokens=self.tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        generate: Callable[..., Tensor] = getattr(self.engine.model, "generate")  # noqa: B009  typed as a tensor there
        generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], generation_config=config)
        return self.members * self.rows * self.tokens

    @torch.no_grad()
    def full_rank_member(self) -> int:
        """One member of a full-rank ES: a Gaussian for every weight, added, answered with, taken away again."""
        named = dict(self.engine.model.named_parameters())
        made = 0
        for sign in (1.0, -1.0):
            generator = torch.Generator().manual_seed(0)
            for parameter in self.engine.evolved:
                noise = torch.randn(parameter.shape, generator=generator)
                named[parameter.name].add_(noise, alpha=sign * self.population.sigma)
            if sign > 0:
                made = _count(self.engine.generate(self.prompts, self.sampling))
        return made

    def _population(self) -> Population:
        return Population(0, self.generation, self.population)

    def _wait(self) -> None:
        """Until the device has done all that it was asked."""
        if self.engine.model.device.type == "cuda":
            torch.cuda.synchronize()


def measure(
    name: str,
    members: int | None,
    rows: int | None,
    tokens: int | None,
    repeats: int | None,
    full: bool = False,
) -> dict[str, Any]:
    """Measure one model: tokens per second, their ratios, shares of a generation and peak memory.

    ``members``, ``rows`` (of each) and ``tokens``: None takes the preset's, or 32 x 1 x 64; ``repeats`` are those of
    ``interleaved``. ``full``: other ways, too, which take minutes: transformers' ``generate``, and full-rank ES.
    """
    tokens = tokens or TOKENS.get(name, 64)
    if name in EGG_PRESETS:
        return measure_egg(name, members, rows, tokens, repeats)
    usual_members, usual_rows = SHAPES.get(name, (32, 1))
    members, rows = members or usual_members, rows or usual_rows
    subject = Bench(name, members, rows, tokens)
    with torch.inference_mode():
        for _ in range(2):
            subject.base()
            subject.matrix_products()
        base_memory = peak_memory()
        subject.draw_noise()
        subject.members_of_population()
        population_memory = peak_memory()
    steps: dict[str, Callable[[], int]] = {
        "base": subject.base,
        "population": subject.members_of_population,
        "matrix_products": subject.matrix_products,
        "noise": subject.draw_noise,
        "update": subject.update,
    }
    others = {"generate": subject.plain_generate, "full_rank": subject.full_rank_member} if full else {}
    with _of_spread_lengths(subject) as spread:
        steps |= {SPREAD: lambda: subject.base_by(spread)} | others
        timed = interleaved(steps, repeats)
    median = {step: timed.median(step) for step in steps}
    speed = {step: timed.speed(step) for step in ("base", "population", "matrix_products", SPREAD, *others)}
    generation = median["noise"] + median["update"] + median["population"]
    noise_bytes = sum(4 * sum(p.shape) for p in subject.engine.evolved) * (members // 2)
    return {
        "model": name,
        "members": members,
        "rows_per_member": rows,
        "tokens": tokens,
        "tokens_per_second": speed,
        "ratios": {
            "population / base": timed.ratio("population", "base"),
            "base / matrix products": timed.ratio("base", "matrix_products"),
            "base, lengths spread / base": timed.ratio(SPREAD, "base"),
            **(_contrasts(timed) if full else {}),
        },
        "shares": {
            "noise, of a generation": median["noise"] / generation,
            "update, of a generation": median["update"] / generation,
            "peak memory over base and noise": (population_memory - base_memory - noise_bytes) / base_memory,
        },
        "seconds": median,
        "peak_memory": {
            "base": base_memory,
            "population": population_memory,
            "noise": noise_bytes,
        },
        "environment": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.processor(),
        },
    }


def _of_spread_lengths(subject: Bench) -> LocalEngine:
    """The same model, whose answers have 8 to T tokens."""
    own, endings = subject.engine, lambda *_: VariedEndings(subject.tokens)
    return LocalEngine(own.model, own.tokenizer, max_rows=own.max_rows, endings=endings)


def _contrasts(timed: Timed) -> dict[str, float]:
    """``generate`` keeps every row to the end, so where lengths are spread fewer of its tokens count."""
    useful = timed.made[SPREAD] / timed.made["generate"]
    return {
        "base / transformers.generate": timed.ratio("base", "generate"),
        "base / transformers.generate, lengths spread": timed.ratio(SPREAD, "generate") / useful,
        "population / full-rank ES": timed.speed("population") / timed.speed("full_rank"),
    }


def _count(completions: list[list[Completion]]) -> int:
    return sum(len(completion.token_ids) for row in completions for completion in row)


def _model(name: str, device: torch.device, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if name not in PRESETS:
        model, tokenizer = load_model(name, dtype)
        return model.to(device), tokenizer  # type: ignore[arg-type]
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(PRESETS[name](), dtype=dtype).eval()
    for parameter in model.parameters():  # zero matrices would make every answer the same
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model, load_tokenizer("embedded:rwkv7-countdown")


def draw_bench(results: list[dict[str, Any]], path: Path) -> None:
    """Bars of tokens per second, one panel a model."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(results), figsize=(5 * len(results), 3.5), dpi=150, layout="constrained", squeeze=False
    )
    for axes, result in zip(panels[0], results, strict=True):
        speed = {name: value for name, value in result["tokens_per_second"].items() if "spread" not in name}
        order = sorted(speed, key=speed.__getitem__)
        axes.barh(
            order,
            [speed[name] for name in order],
            color=["tab:orange" if n == "population" else "tab:blue" for n in order],
        )
        axes.set(title=f"{result['model']}, {result['members']} x {result['rows_per_member']} rows", xlabel="tokens/s")
    figure.savefig(path)
    plt.close(figure)

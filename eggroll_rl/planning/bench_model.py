"""A model, a population, and what the bench has them do: each way of answering, noise, an update, bare products.

Legend: N members, P prompts (rows of a member), M = N * P rows, T tokens of an answer.
"""

from collections.abc import Callable
from functools import cached_property, partial
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
SHORTEST = 8  # tokens of the shortest answer where lengths are spread


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

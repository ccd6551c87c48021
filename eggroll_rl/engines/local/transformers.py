"""A population of any Hugging Face causal language model, in batches of ordinary forward passes.

Rows are member-major: all prompts of member 0, then of member 1, and so on. The base weights are shared by all rows;
each row's own perturbation enters through the hooks of ``PopulationLayers``. Finished rows leave the batch.

Legend: N members, P prompts, M rows of a batch, T tokens, V vocabulary.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eggroll_rl.config import OptimizerConfig, ParametersConfig, PopulationConfig, Recipe, SamplingConfig
from eggroll_rl.data.encoding import encode, end_ids
from eggroll_rl.engines.local.attention import group_queries
from eggroll_rl.engines.local.decoding import Endings, Sampler
from eggroll_rl.engines.local.eager import EagerDecoder
from eggroll_rl.engines.local.static import TOKENS, StaticStep, can_be_static
from eggroll_rl.engines.memory import free_bytes, rows_that_fit
from eggroll_rl.es import kernels
from eggroll_rl.es.layers import PopulationLayers
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.es.update import Learner, Update
from eggroll_rl.models.blueprint import Anatomy, dissect
from eggroll_rl.models.loading import load_model
from eggroll_rl.system.durable import tensors_hash
from eggroll_rl.system.environment import device_of

logger = logging.getLogger(__name__)

NOISE_SHARE = 4  # the part of the free CUDA memory that noise may take, as a divisor
USES = 64  # tokens of a usual answer, each of which reads the noise once
COMPACT_BELOW = 0.8  # share of unfinished rows below which the finished ones leave the batch


@dataclass
class Rows:
    """The unfinished answers of one batch; ``member`` and ``prompt`` say whose row it is, both int64 [M] on the CPU."""

    member: Tensor
    prompt: Tensor
    tokens: Tensor  # generated so far [M, T]

    def keep(self, index: Tensor) -> "Rows":
        return Rows(self.member[index], self.prompt[index], self.tokens[index])


class TransformersEngine:
    """Generates with, and learns, one Hugging Face model in this process.

    Args:
        model: any causal language model; its evolved parameters must belong to linear layers (or norms, where dense).
        tokenizer: its tokenizer.
        seed: the run's seed.
        population: noise distribution and rank.
        parameters: which parameters evolve; None: none, the model only answers.
        optimizer: how they learn.
        max_rows: bound on the rows of a batch; None: by the memory that is free.
        chat_template: arguments of the tokenizer's chat template.
        anatomy: the model's, with these parameters, where it is known; None: looked for.
    """

    endings = Endings

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        population: PopulationConfig | None = None,
        parameters: ParametersConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        max_rows: int | None = None,
        chat_template: Mapping[str, Any] | None = None,
        anatomy: Anatomy | None = None,
    ):
        population = population or PopulationConfig()
        self.model, self.tokenizer, self.max_rows = model.requires_grad_(False), tokenizer, max_rows
        self.chat_template = chat_template or {}
        named = dict(model.named_parameters())
        anatomy = anatomy or (dissect(model, parameters) if parameters else None)
        self.evolved = list(anatomy.evolved) if anatomy else []
        self.layers = PopulationLayers(model, self.evolved, anatomy.readings if anatomy else None)
        on_cuda = model.device.type == "cuda"
        self.noise = Noise(seed, population.noise, model.device, model.dtype, population.rank)
        if on_cuda:
            self.noise.memo_bytes = free_bytes(model.device) // NOISE_SHARE
        pairs = range(Population(seed, 0, population).pairs)
        self.regenerates = (
            kernels.serve(model.device)
            and kernels.choose(
                self.noise.size(self.evolved, pairs), model.dtype.itemsize, USES, self.noise.memo_bytes, population.rank
            )
            == "regenerate"
        )
        self.static = on_cuda and can_be_static(model)  # steps keep their addresses; on CUDA they are captured
        self._step: StaticStep | None = None
        self._eager = EagerDecoder(model)
        self.learner = Learner(named, self.evolved, optimizer or OptimizerConfig(), self.noise)
        self._endings: dict[tuple[str, ...], Endings] = {}
        if model.device.type == "cpu":
            group_queries(model)
        # the last tokens of the prompts are a strided view, which a linear layer would multiply row by row
        model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))

    @classmethod
    def from_recipe(cls, recipe: Recipe, anatomy: Anatomy | None = None) -> Self:
        model, tokenizer = load_model(recipe.model, getattr(torch, recipe.engine.dtype))
        engine = cls(
            model.to(device_of(recipe.engine.device)),  # type: ignore[arg-type]
            tokenizer,
            seed=recipe.seed,
            population=recipe.population,
            parameters=recipe.parameters,
            optimizer=recipe.optimizer,
            max_rows=recipe.engine.max_rows,
            chat_template=recipe.data.chat_template,
            anatomy=anatomy,
        )
        logger.info("decode path: %s", engine.decode_path())
        return engine

    def decode_path(self) -> str:
        """In which way a token is made, in words."""
        if self.model.device.type != "cuda":
            return "eager"
        steps = "CUDA graphs" if self.static else f"eager ({type(self.model).__name__} keeps state of varying shape)"
        if not kernels.serve(self.model.device):
            return f"{steps}, torch (triton is not installed)"
        return f"{steps} + Triton (noise {'regenerated' if self.regenerates else 'read'})"

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        population: Population | None = None,
        members: range | None = None,
    ) -> list[list[Completion]]:
        if members is None:
            members = range(population.size if population else 1)
        encoded = [encode(self.tokenizer, prompt, self.chat_template) for prompt in prompts]
        endings = self._endings_of(sampling.stop)
        generation = population.generation if population else 0
        sampler = Sampler(sampling, population.seed if population else sampling.seed, generation)
        if population and not self.regenerates:
            self.noise.prefetch(self.evolved, population.epoch, population.pairs_of(members))
        answers: dict[tuple[int, int], Completion] = {}
        for rows in self._batches(encoded, members, sampling):
            for (member, prompt), ids in self._answer(rows, encoded, sampler, endings, population, members):
                answers[member, prompt] = endings.completion(ids)
        return [[answers[member, prompt] for prompt in range(len(prompts))] for member in members]

    def apply(self, update: Update) -> float:
        return self.learner.step(update)

    def state_dict(self) -> dict[str, Tensor]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.learner.load_state_dict(state)

    def weights_hash(self) -> str:
        return tensors_hash(dict(self.model.named_parameters()) | self.learner.masters)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _endings_of(self, stop: tuple[str, ...]) -> Endings:
        if stop not in self._endings:
            ends = end_ids(self.model.generation_config, self.tokenizer)
            vocabulary = self.model.get_output_embeddings().weight.shape[0]
            endings = self.endings(self.tokenizer, vocabulary, ends, stop)
            self._endings[stop] = endings.to(self.model.device)
        return self._endings[stop]

    def _batches(self, encoded: list[list[int]], members: range, sampling: SamplingConfig) -> Iterator[Rows]:
        """Member-major batches of as many whole members as fit; of parts of members where not even one does."""
        lengths = torch.tensor([len(ids) for ids in encoded])
        groups = [lengths >= 0] if self._eager.pads else [lengths == length for length in lengths.unique()]
        for group in groups:
            alike = group.nonzero()[:, 0]
            prompts = len(alike)
            tokens = int(lengths[alike].max()) + sampling.max_new_tokens
            held = self._step.nbytes() if self._step else 0
            limit = self.max_rows or rows_that_fit(self.model, tokens, held)
            for index in torch.arange(len(members) * prompts).split(limit // prompts * prompts or limit):
                none = torch.empty(len(index), 0, dtype=torch.long)
                yield Rows(members.start + index // prompts, alike[index % prompts], none)

    def _answer(
        self,
        rows: Rows,
        encoded: list[list[int]],
        sampler: Sampler,
        endings: Endings,
        population: Population | None,
        members: range,
    ) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """Decode one batch to its end; yields (member, prompt) and the token ids of each finished row."""
        device = self.model.device
        ids_MT, mask_MT = self._padded([encoded[prompt] for prompt in rows.prompt.tolist()])
        rows.tokens = rows.tokens.to(device)
        cache = self._new_cache(len(ids_MT), ids_MT.shape[1] + sampler.sampling.max_new_tokens)
        position, token_M = 0, ids_MT
        while len(rows.member):
            with self._perturbed(rows, population, members):
                finished_M = torch.zeros(len(rows.member), dtype=torch.bool, device=device)
                length_M = torch.full_like(finished_M, position, dtype=torch.long)
                while True:
                    logits_MV, cache = self._forward(token_M, mask_MT, cache)
                    next_M = sampler(logits_MV, rows.prompt.to(device), position)
                    rows.tokens = torch.cat((rows.tokens, next_M[:, None]), dim=1)
                    position += 1
                    length_M += ~finished_M  # finished rows go on until they leave; what they say then is not kept
                    finished_M |= endings.reached(rows.tokens)
                    if position == sampler.sampling.max_new_tokens:
                        finished_M[:] = True
                    token_M = next_M[:, None]
                    mask_MT = torch.cat((mask_MT, mask_MT.new_ones(len(mask_MT), 1)), dim=1)
                    if finished_M.float().mean() > 1 - COMPACT_BELOW:
                        break
            done, lengths = rows.keep(finished_M.nonzero()[:, 0].cpu()), length_M[finished_M].tolist()
            owners = zip(done.member.tolist(), done.prompt.tolist(), strict=True)
            for owner, ids, length in zip(owners, done.tokens.tolist(), lengths, strict=True):
                yield owner, ids[:length]
            live = (~finished_M).nonzero()[:, 0]
            rows, token_M, mask_MT = rows.keep(live.cpu()), token_M[live], mask_MT[live]
            if len(live) and isinstance(cache, EagerDecoder):
                cache.keep(live, len(finished_M))
            elif len(live):
                cache.batch_select_indices(live)

    def _padded(self, encoded: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Left-padded token ids and attention mask [M, T]."""
        length = max(map(len, encoded))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (length - len(row)) + row for row in encoded])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in encoded])
        return ids.to(self.model.device), mask.to(self.model.device)

    def _new_cache(self, rows: int, tokens: int) -> Any:
        """What ``_forward`` keeps between the tokens of ``rows`` answers."""
        if not self.static:
            self._eager.begin(rows, tokens)
            return self._eager
        capacity = -(-tokens // TOKENS) * TOKENS
        if self._step is None or not self._step.holds(rows, capacity):
            self._step = None  # its memory goes first
            self._step = StaticStep(self.model, self.layers, rows, capacity, self.model.device.type == "cuda")
        return self._step.begin()

    def _forward(self, token_MT: Tensor, mask_MT: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits [M, V] after the last token, and the cache."""
        if isinstance(cache, StaticStep):
            return cache(token_MT, mask_MT), cache
        return self._eager.step(token_MT, mask_MT), cache

    def _perturbed(self, rows: Rows, population: Population | None, members: range) -> Any:
        """The context in which each row is answered by its own member, one of ``members``."""
        if population is None:
            return torch.inference_mode()
        live = range(int(rows.member.min()), int(rows.member.max()) + 1)
        pairs = population.pairs_of(members if self.static else live)  # noise that keeps its addresses is of all
        noise = self.noise.seeds if self.regenerates else self.noise.draw
        factors = noise(self.evolved, population.epoch, pairs)
        pair_M = torch.tensor([population.pair(member) - pairs.start for member in rows.member.tolist()])
        sign_M = torch.tensor([population.sign(member) for member in rows.member.tolist()])
        sign_M = sign_M.to(self.model.device, self.noise.dtype)
        return self.layers.members(
            factors,
            sign_M * population.scale,
            None if _rectangular(pair_M) and not self.static else pair_M.to(self.model.device),
            sign_M * population.config.sigma,
        )


def _rectangular(pair_M: Tensor) -> bool:
    """Whether every pair has the same number of rows, in order."""
    pairs = int(pair_M[-1]) + 1
    return len(pair_M) % pairs == 0 and bool((pair_M.view(pairs, -1) == torch.arange(pairs)[:, None]).all())

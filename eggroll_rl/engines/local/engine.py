"""A population of any Hugging Face causal language model in this process, in batches of rows.

Rows are member-major: all prompts of member 0, then of member 1, and so on. The base weights are shared by all rows;
each row's own perturbation is added as it is decoded. Finished rows leave the batch.

Legend: N members, P prompts, M rows of a batch, T tokens, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eggroll_rl.config import OptimizerConfig, ParametersConfig, PopulationConfig, Recipe, SamplingConfig
from eggroll_rl.data.encoding import encode_all, end_ids
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.device import device_of
from eggroll_rl.engines.local.attention import group_queries
from eggroll_rl.engines.local.choice import CHOICES, Choice, fastest, for_any
from eggroll_rl.engines.local.decoding import Ending, Endings, Sampler
from eggroll_rl.engines.local.fused_rwkv import FusedDecoder
from eggroll_rl.engines.local.rows import Rows, batches
from eggroll_rl.engines.memory import free_bytes, row_bytes, usual_batch_bytes
from eggroll_rl.engines.needs import check_memory
from eggroll_rl.es import kernels
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.layers import PopulationLayers
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.perturbable import check_whitenable
from eggroll_rl.es.perturbation import Members
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.es.update import WHITENING, GradientLearner, Update
from eggroll_rl.es.whitening import InputMoments
from eggroll_rl.models.blueprint import Anatomy, Blueprint, dissect
from eggroll_rl.models.int8 import is_int8, save_int8
from eggroll_rl.models.loading import load_model
from eggroll_rl.system.errors import UsageError

logger = logging.getLogger(__name__)

NOISE_SHARE = 4  # the part of the free CUDA memory that noise may take, as a divisor
USES = 64  # tokens of a usual answer, each of which reads the noise once
MEASURED, LOGITS = 32, 2**26  # rows and logits, at most, of a batch on which whitening is measured


class LocalEngine(Engine):
    """Generates with, and learns, one Hugging Face model in this process; its linear layers may be int8.

    Args:
        model: any causal language model; its evolved parameters must belong to linear layers (or norms, where dense).
        tokenizer: its tokenizer.
        seed: the run's seed.
        population: noise distribution and rank.
        parameters: which parameters evolve; None: none, the model only answers.
        optimizer: how they learn.
        max_rows: bound on the rows of a batch; None: by ``batch_bytes``.
        batch_bytes: what the rows of a batch may take; None: half of the memory that is free now.
        chat_template: arguments of the tokenizer's chat template.
        anatomy: the model's, with these parameters, where it is known; None: looked for.
        choice: of the decoder.
        endings: makes what knows where an answer ends, of tokenizer, vocabulary, end tokens and stop strings.
    """

    holds = ("float", "int8")
    whitens = True

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
        batch_bytes: int | None = None,
        chat_template: Mapping[str, Any] | None = None,
        anatomy: Anatomy | None = None,
        choice: Choice = fastest,
        endings: Callable[..., Ending] = Endings,
    ):
        self.population = population = population or PopulationConfig()
        self.model, self.tokenizer, self.max_rows = model.requires_grad_(False), tokenizer, max_rows
        self.chat_template = chat_template or {}
        named = dict(model.named_parameters())
        anatomy = anatomy or (dissect(model, parameters) if parameters else None)
        self.evolved = list(anatomy.evolved) if anatomy else []
        self.layers = PopulationLayers(model, self.evolved, anatomy.readings if anatomy else None)
        group_queries(model)
        # the last tokens of the prompts are a strided view, which a linear layer would multiply row by row
        model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        self.decoder = choice(model, self.layers, self.evolved)
        dtype = torch.float32 if isinstance(self.decoder, FusedDecoder) else model.dtype
        self.noise = Noise(seed, population.noise, model.device, dtype, population.rank)
        if model.device.type == "cuda":
            self.noise.memo_bytes = free_bytes(model.device) // NOISE_SHARE
        pairs = range(Population(seed, 0, population).pairs)
        size = self.noise.size(self.evolved, pairs)
        self.regenerates = (
            kernels.run_on(model.device)
            and population.whitening is None  # whitened noise is in memory anyway
            and kernels.choose(size, model.dtype.itemsize, USES, self.noise.memo_bytes, population.rank) == "regenerate"
        )
        self.learner = GradientLearner(named, self.evolved, optimizer or OptimizerConfig(), self.noise)
        self.batch_bytes: int = batch_bytes or usual_batch_bytes(model.device)
        self._make_endings = endings
        self._endings: dict[tuple[str, ...], Ending] = {}
        self._most_pairs = 0  # of any call so far

    @classmethod
    def check_model(cls, recipe: Recipe, blueprint: Blueprint) -> None:
        if recipe.engine.name == "rwkv" and blueprint.config.model_type != "rwkv7":
            raise UsageError(
                f"engine rwkv runs RWKV-7 models, and {recipe.model} is a {type(blueprint.model).__name__}: "
                "set engine.name=transformers"
            )
        blueprint.check_perturbable()
        if recipe.population.whitening is not None:
            check_whitenable(blueprint.model, blueprint.evolved)

    @classmethod
    def check(cls, recipe: Recipe, blueprint: Blueprint) -> None:
        if recipe.engine.pool is None:  # whose machines may be others
            check_memory(recipe, blueprint)

    @classmethod
    def from_recipe(cls, recipe: Recipe, blueprint: Anatomy | None = None) -> Self:
        model, tokenizer = load_model(recipe.model, getattr(torch, recipe.engine.dtype), recipe.weights)
        return cls.of_model(recipe, model, tokenizer, anatomy=blueprint)

    @classmethod
    def of_model(
        cls,
        recipe: Recipe,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        learns: bool = True,
        anatomy: Anatomy | None = None,
        endings: Callable[..., Ending] = Endings,
    ) -> Self:
        """The recipe's engine with a model that is loaded; one that ``learns`` or only answers."""
        engine = cls(
            model.to(device_of(recipe.engine.device)),  # type: ignore[arg-type]
            tokenizer,
            seed=recipe.seed,
            population=recipe.population,
            parameters=recipe.parameters if learns else None,
            optimizer=recipe.optimizer,
            max_rows=recipe.engine.max_rows,
            batch_bytes=recipe.engine.batch_bytes,
            chat_template=recipe.data.chat_template,
            anatomy=anatomy,
            choice=CHOICES.get(recipe.engine.name, for_any),  # another engine may have trained it
            endings=endings,
        )
        logger.info("decode path: %s", engine.decode_path())
        return engine

    def decode_path(self) -> str:
        """In which way a token is made, in words."""
        if self.model.device.type != "cuda":
            return self.decoder.description
        if not kernels.run_on(self.model.device):
            return f"{self.decoder.description}, torch (triton is not installed)"
        return f"{self.decoder.description} + Triton (noise {'regenerated' if self.regenerates else 'read'})"

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        population: Population | None = None,
        members: range | None = None,
    ) -> list[list[Completion]]:
        with nullcontext() if population else self._averaged():
            return self._generate(prompts, sampling, population, members)

    def _generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, population: Population | None, members: range | None
    ) -> list[list[Completion]]:
        if members is None:
            members = range(population.size if population else 1)
        encoded = encode_all(self.tokenizer, prompts, self.chat_template)
        ending = self._ending_of(sampling.stop)
        generation = population.generation if population else 0
        sampler = Sampler(sampling, population.seed if population else sampling.seed, generation, len(prompts))
        if population and not self.regenerates:
            self.noise.prefetch(self.evolved, population.epoch, self._pairs_of(population, members))
        answers: dict[tuple[int, int], Completion] = {}
        lengths = [len(ids) for ids in encoded]
        for member, prompt in batches(lengths, members, self.decoder.pads, lambda length: self._rows(length, sampling)):
            rows = Rows(member, prompt, encoded, self._pad, sampling.max_new_tokens, self.model.device)
            for who, what, ids in self._answer(rows, sampler, ending, population, members):
                answers[who, what] = ending.completion(ids)
        return [[answers[member, prompt] for prompt in range(len(prompts))] for member in members]

    @torch.inference_mode()
    def stream(self, prompt: Prompt, sampling: SamplingConfig) -> Iterator[Completion]:
        """The unperturbed model's answer as it grows: after each token what there is of it, the last time all."""
        encoded = encode_all(self.tokenizer, [prompt], self.chat_template)
        ending, sampler = self._ending_of(sampling.stop), Sampler(sampling, sampling.seed, 0, 1)
        rows = Rows([0], [0], encoded, self._pad, sampling.max_new_tokens, self.model.device)
        with self._averaged():
            self.decoder.begin(1, rows.capacity)
            while not rows.are_few():
                logits_MV = self.decoder.step(rows.next_MT, rows.mask_MT, None)
                rows.take(sampler(logits_MV, rows.seen_MT, rows.prompt_M, rows.position))
                rows.end(ending.reached(rows.made_MT))
                yield ending.completion(rows.made_MT[0].tolist())

    @torch.inference_mode()
    def measure_whitening(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> dict[str, Tensor]:
        damping = self.population.whitening
        if damping is None:
            raise UsageError("this engine was built for plain noise: build it from a recipe with population.whitening")
        moments = {parameter.name: InputMoments() for parameter in self.evolved}
        (answers,) = self.generate(prompts, sampling)
        asked = encode_all(self.tokenizer, prompts, self.chat_template)
        spans = [(ids, list(answer.token_ids)) for ids, answer in zip(asked, answers, strict=True)]
        spans.sort(key=lambda span: len(span[0]) + len(span[1]))
        while spans:
            longest = len(spans[-1][0]) + len(spans[-1][1])
            rows = max(1, min(MEASURED, LOGITS // (longest * self._vocabulary)))  # the same however much memory is free
            self._watch(moments, spans[-rows:])
            del spans[-rows:]
        read = [name for p in self.evolved if p.kind == "lowrank" and moments[name := p.name].count]
        return {f"{WHITENING}.{name}": moments.pop(name).whitening(damping) for name in read}

    def _watch(self, moments: Mapping[str, InputMoments], spans: Sequence[tuple[list[int], list[int]]]) -> None:
        """Read prompts and answers, padded behind, and count what makes the answers' tokens."""
        ids_MT = pad_sequence([torch.tensor([*asked, *answer]) for asked, answer in spans], batch_first=True)
        kept_MT = torch.zeros(ids_MT.shape, dtype=torch.bool)
        for row, (asked, answer) in enumerate(spans):
            kept_MT[row, len(asked) - 1 : len(asked) + len(answer) - 1] = True
        for moment in moments.values():
            moment.kept_MT = kept_MT.to(self.model.device)
        none_M = torch.zeros(len(spans), device=self.model.device)
        with self.layers.members(moments, none_M, dense_coefficient_M=none_M):
            self.model(input_ids=ids_MT.to(self.model.device))

    def apply(self, update: Update) -> float:
        rms = self.learner.step(update)
        self.decoder.weights_changed()
        return rms

    def state_dict(self) -> dict[str, Tensor]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.learner.load_state_dict(state)
        self.decoder.weights_changed()

    def weights_changed(self) -> None:
        """Take note that other code has changed the model's weights."""
        self.decoder.weights_changed()

    def weights_hash(self) -> str:
        with self._averaged():
            return tensors_hash(dict(self.model.named_parameters()) | self.learner.masters)

    def save(self, folder: Path) -> None:
        with self._averaged():
            if is_int8(self.model):
                save_int8(self.model, folder)
            else:
                self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the model's weights are their averages, where the recipe wants these."""
        if not self.learner.averages:
            yield
            return
        with self.learner.averaged():
            self.decoder.weights_changed()
            yield
        self.decoder.weights_changed()

    def close(self) -> None:
        self.decoder.close()
        self.noise.forget()
        self.layers.remove()

    def _answer(
        self, rows: Rows, sampler: Sampler, ending: Ending, population: Population | None, members: range
    ) -> Iterator[tuple[int, int, list[int]]]:
        """Decode one batch to its end; yields member, prompt and token ids of each row as it leaves."""
        self.decoder.begin(len(rows), rows.capacity)
        while len(rows):
            who = self._members(rows, population, members) if population else None
            while not rows.are_few():
                logits_MV = self.decoder.step(rows.next_MT, rows.mask_MT, who)
                rows.take(sampler(logits_MV, rows.seen_MT, rows.prompt_M, rows.position))
                rows.end(ending.reached(rows.made_MT))
            gone, staying_M = rows.leave()
            yield from gone
            if len(rows):
                self.decoder.keep(staying_M)

    def _members(self, rows: Rows, population: Population, members: range) -> Members:
        """The members whose rows these are, with their noise; they are some of ``members``."""
        live = range(min(rows.member), max(rows.member) + 1)
        pairs = self._pairs_of(population, members if self.decoder.is_fixed else live)
        noise = self.noise.seeds if self.regenerates else self.noise.draw
        place_M = torch.tensor(rows.member) - live.start  # in ``live``
        pair_M = torch.tensor([population.pair(member) - pairs.start for member in live])[place_M]
        sign_M = torch.tensor([population.sign(member) for member in live])[place_M]
        sign_M = sign_M.to(self.model.device, self.noise.dtype)
        in_order = not self.decoder.wants_pairs and _are_rectangular(pair_M)
        return Members(
            noise(self.evolved, population.epoch, pairs),
            sign_M * population.scale,
            None if in_order else pair_M.to(self.model.device),
            sign_M * population.sigma,
        )

    def _pairs_of(self, population: Population, members: range) -> range:
        """The pairs of members; where noise keeps its place, as many as there ever were in a call."""
        pairs = population.pairs_of(members)
        if not self.decoder.is_fixed:
            return pairs
        self._most_pairs = max(self._most_pairs, len(pairs))
        return range(pairs.start, pairs.start + self._most_pairs)

    def _rows(self, length: int, sampling: SamplingConfig) -> int:
        """Rows of a batch, at most, whose longest prompt has so many tokens."""
        element_size = torch.empty((), dtype=self.model.dtype).element_size()
        of_one = row_bytes(self.model.config, length + sampling.max_new_tokens, element_size)
        return self.max_rows or max(1, self.batch_bytes // of_one)

    @property
    def _pad(self) -> int:
        return self.tokenizer.pad_token_id

    @property
    def _vocabulary(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    def _ending_of(self, stop: tuple[str, ...]) -> Ending:
        if stop not in self._endings:
            ends = end_ids(self.model.generation_config, self.tokenizer)
            self._endings[stop] = self._make_endings(self.tokenizer, self._vocabulary, ends, stop).to(self.model.device)
        return self._endings[stop]


def _are_rectangular(pair_M: Tensor) -> bool:
    """Whether every pair has the same number of rows, in order."""
    pairs = int(pair_M[-1]) + 1
    return len(pair_M) % pairs == 0 and bool((pair_M.view(pairs, -1) == torch.arange(pairs)[:, None]).all())

"""A population in vLLM: each member is an adapter of rank r in one batch, and the base model learns in place.

vLLM serves many low-rank adapters at once, and a perturbation is one. The noise never crosses a process: the workers
draw it from seeds (``worker``), so that preparing a population is a call with a handful of numbers. As many
members as there are slots answer at a time; more come in waves.

Legend: N members, P prompts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eggroll_rl.config import Recipe, SamplingConfig
from eggroll_rl.data.encoding import encode_all
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.local.decoding import Endings
from eggroll_rl.engines.vllm.adapters import evolved_of, slots_of, slotted_of
from eggroll_rl.engines.vllm.shards import tensors_in_files
from eggroll_rl.engines.vllm.start import check_vllm, end_ids_of, has_ended, model_files, served_folder, start
from eggroll_rl.engines.vllm.window import WorkerTensors, load_into_workers
from eggroll_rl.engines.vllm.worker import population_as_plain
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Prompt
from eggroll_rl.es.tensors import Chosen, Held, Tensors, named, streamed
from eggroll_rl.es.update import Update
from eggroll_rl.models.blueprint import Blueprint, inspect
from eggroll_rl.models.int8 import save_int8
from eggroll_rl.models.loading import load_model
from eggroll_rl.system.command import resume_command
from eggroll_rl.system.errors import UsageError


class VLLMEngine(Engine):
    """One model in vLLM, in processes of vLLM's own on this machine: it answers for members, and learns in place.

    Raises:
        UsageError: see ``check_vllm``; or vLLM does not start, or its weights are not those of the model's files.
    """

    holds = ("float", "int8")
    rounds_activations = True
    has_processes = True
    replayed_by = "transformers"  # which needs nothing but torch

    @classmethod
    def check_model(cls, recipe: Recipe, blueprint: Blueprint) -> None:
        blueprint.check_perturbable()
        evolved_of(blueprint)

    @classmethod
    def check(cls, recipe: Recipe, blueprint: Blueprint) -> None:
        check_vllm(recipe, blueprint)

    @classmethod
    def from_recipe(cls, recipe: Recipe, blueprint: Blueprint | None = None) -> Self:
        return cls(recipe, blueprint)

    def __init__(self, recipe: Recipe, blueprint: Blueprint | None = None):
        blueprint = blueprint or inspect(recipe)
        check_vllm(recipe, blueprint)
        self.recipe, self.evolved, self.slots = recipe, evolved_of(blueprint), slots_of(recipe)
        self.tokenizer = blueprint.tokenizer
        self.files, self._empty = model_files(recipe.model), blueprint.model
        self.vocabulary = self._empty.get_output_embeddings().weight.shape[0]
        self.end_ids = end_ids_of(self.files, self._empty, self.tokenizer)
        self._endings: dict[tuple[str, ...], Endings] = {}
        self._stamp = 0  # part of the adapters' names: changes whenever their contents or the base weights do
        self._in_slots: tuple[Population, range] | None = None
        with served_folder(recipe, self.files) as folder:
            self.llm = start(recipe, folder, slotted_of(blueprint), type(self._empty).__name__)
            try:
                self._begin(folder)
            except BaseException:
                self.close()
                raise

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        population: Population | None = None,
        members: range | None = None,
    ) -> list[list[Completion]]:
        encoded = encode_all(self.tokenizer, prompts, self.recipe.data.chat_template)
        self._check_lengths(encoded, sampling.max_new_tokens)
        parameters = self._sampling_parameters(len(prompts), sampling, population)
        endings = self._endings_of(sampling.stop)
        if population is None:
            with self._averaged():
                return [self._answer(encoded, parameters, endings, None)]
        if members is None:
            members = range(population.size)
        answers = []
        for wave in (members[first : first + self.slots] for first in range(0, len(members), self.slots)):
            self._fill_slots(population, wave)
            answers += self._wave(encoded, parameters, endings, wave)
        return answers

    def apply(self, update: Update) -> float:
        plain = population_as_plain(update.population)
        ranks = self._call("eggroll_learn", plain, list(update.weights), update.lr)
        self._forget()
        parts = {(name, *place): square for rank in ranks for name, (place, square) in rank.items()}  # no part twice
        return math.sqrt(sum(parts.values()) / sum(parameter.numel for parameter in self.evolved))

    def state_dict(self) -> WorkerTensors:
        return WorkerTensors(self._call)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        source = streamed(state)
        parts = [(*key.partition("."), spec) for key, spec in source.specs.items()]
        given = {name: spec.shape for kind, _, name, spec in parts if kind in ("master", "weight")}
        own = {parameter.name: parameter.shape for parameter in self.evolved}
        if given != own:
            differing = sorted(name for name in given.keys() | own.keys() if given.get(name) != own.get(name))
            raise ValueError(f"the saved state does not fit this model and recipe: {', '.join(differing[:8])} differ")
        load_into_workers(self._call, source)
        self._forget()

    def weights_hash(self) -> str:
        return tensors_hash(Chosen(named(self._frozen_tensors()) | named(self._weights())))

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        model, _ = self._base()
        parameters = dict(model.named_parameters())
        weights = self._weights()
        for piece, rows in weights.stream(weights):
            parameters[piece.name][piece.start : piece.stop] = rows
        if self.recipe.weights == "int8":
            save_int8(model, folder, "int8")
        else:
            model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _weights(self) -> WorkerTensors:
        """The evolved parameters as they are saved."""
        return WorkerTensors(self._call, weights_only=True)

    def _frozen_tensors(self) -> Tensors:
        """The parameters that do not evolve: read from the model's files, else from the model, which is loaded."""
        evolved = {parameter.name for parameter in self.evolved}
        if self.recipe.weights == "float":
            found = tensors_in_files(self.files, self._empty, evolved, getattr(torch, self.recipe.engine.dtype))
            if found is not None:
                return found
        model, _ = self._base()
        return Held({name: tensor for name, tensor in model.named_parameters() if name not in evolved})

    def _base(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_model(self.recipe.model, getattr(torch, self.recipe.engine.dtype), self.recipe.weights)

    def close(self) -> None:
        """End vLLM's processes; they end with this one too."""
        self.llm.llm_engine.engine_core.shutdown()

    def _begin(self, folder: Path) -> None:
        """Have the workers take their parts of the model in ``folder``, and compare these with vLLM's weights."""
        recipe = self.recipe
        options = {
            "folder": str(folder),
            "slots": self.slots,
            "evolved": {parameter.name: list(parameter.shape) for parameter in self.evolved},
            "masters": recipe.engine.vllm.masters,
            "seed": recipe.seed,
            "noise": recipe.population.noise,
            "rank": recipe.population.rank,
            "optimizer": recipe.optimizer.model_dump(mode="json"),
        }
        faults = list(dict.fromkeys(fault for found in self._call("eggroll_begin", options) for fault in found))
        if faults:
            more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
            raise UsageError(
                f"vLLM multiplies by other values than the files of {recipe.model} hold: {', '.join(faults[:8])}"
                f"{more}: add these to parameters.frozen, or set engine.name=transformers"
            )

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        """What each worker returns for ``method``."""
        with self._alive():
            return self.llm.collective_rpc(method, args=arguments)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except EngineDeadError as error:
            raise self._died() from error
        except Exception as error:
            if type(error) is not Exception or not has_ended(self.llm.llm_engine.engine_core):
                raise
            raise self._died() from error

    def _died(self) -> UsageError:
        return UsageError(
            "vLLM's processes died, killed perhaps for want of memory; every generation that is in the journal is "
            f"safe: go on with `{resume_command(self.recipe.output_dir)}`"
        )

    def _fill_slots(self, population: Population, members: range) -> None:
        if self._in_slots != (population, members):
            self._in_slots = None
            self._call("eggroll_perturb", population_as_plain(population), members.start, members.stop)
            self._in_slots = population, members
            self._stamp += 1

    def _forget(self) -> None:
        """Drop all cached keys and values: the base weights have changed."""
        self._stamp += 1
        with self._alive():
            if not self.llm.reset_prefix_cache():
                raise RuntimeError("vLLM did not reset its prefix cache: requests are still running")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """In the block, vLLM multiplies by the averages of the weights, if the recipe has ``optimizer.average``."""
        if not self.recipe.optimizer.average:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        self._call("eggroll_exchange")
        self._forget()

    def _wave(
        self, encoded: list[list[int]], parameters: list[Any], endings: Endings, members: range
    ) -> list[list[Completion]]:
        from vllm.lora.request import LoRARequest

        P, N = len(encoded), len(members)
        names = [f"{self._stamp}-{member}" for member in members]
        adapters = [LoRARequest(name, slot, "mem://slot") for slot, name in enumerate(names, 1)]
        per_row = [adapter for adapter in adapters for _ in range(P)]
        flat = self._answer(encoded * N, parameters * N, endings, per_row)
        return [flat[first : first + P] for first in range(0, len(flat), P)]

    def _answer(
        self, encoded: list[list[int]], parameters: list[Any], endings: Endings, adapters: list[Any] | None
    ) -> list[Completion]:
        prompts: Any = [{"prompt_token_ids": ids} for ids in encoded]
        with self._alive():
            outputs = self.llm.generate(prompts, parameters, use_tqdm=False, lora_request=adapters)
        return [endings.completion(output.outputs[0].token_ids) for output in outputs]

    def _sampling_parameters(self, prompts: int, sampling: SamplingConfig, population: Population | None) -> list[Any]:
        """vLLM's parameters of each prompt; with a temperature all members share a prompt's random numbers."""
        from vllm import SamplingParams

        seed, generation = (population.seed, population.generation) if population else (sampling.seed, 0)
        return [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                seed=_request_seed(seed, generation, prompt) if sampling.temperature else None,
                max_tokens=sampling.max_new_tokens,
                ignore_eos=True,  # the end tokens are these, as in every engine
                stop_token_ids=sorted(self._endings_of(sampling.stop).end_ids),
                stop=list(sampling.stop),
                include_stop_str_in_output=True,
                detokenize=bool(sampling.stop),
                skip_special_tokens=False,
            )
            for prompt in range(prompts)
        ]

    def _endings_of(self, stop: tuple[str, ...]) -> Endings:
        if stop not in self._endings:
            self._endings[stop] = Endings(self.tokenizer, self.vocabulary, self.end_ids, stop)
        return self._endings[stop]

    def _check_lengths(self, encoded: list[list[int]], new_tokens: int) -> None:
        if not all(encoded):
            raise UsageError("a prompt is empty, and vLLM answers none such: see to data.prompt")
        length, limit = max(map(len, encoded)), self.llm.model_config.max_model_len
        if length + new_tokens > limit:
            raise UsageError(
                f"a prompt of {length} tokens and sampling.max_new_tokens={new_tokens} are more than the {limit} that "
                "vLLM has room for: shorten one, or set engine.vllm.max_model_len"
            )


def _request_seed(seed: int, generation: int, prompt: int) -> int:
    """The seed of a prompt's samples, 63 bits, the same for all members."""
    return int.from_bytes(blake2b(f"sampling {seed} {generation} {prompt}".encode(), digest_size=8).digest()) >> 1

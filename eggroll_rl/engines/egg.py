"""A population of EGG models in this process: it reads text, and its votes move integers. The model is on the recipe's
device; what goes in and comes out, states among it, is on the CPU.

Legend: N members, S streams, T bytes foretold.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from eggroll_rl.config import Recipe, SamplingConfig
from eggroll_rl.data.encoding import encode
from eggroll_rl.engines.base import Engine
from eggroll_rl.engines.device import device_of
from eggroll_rl.engines.needs import refuse_beyond_memory
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.integers import MOST_PAIRS
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion, Foretold, Prompt, Saturation
from eggroll_rl.es.update import Update
from eggroll_rl.models.blueprint import Blueprint
from eggroll_rl.models.egg.arithmetic import DOCUMENT, ONE
from eggroll_rl.models.egg.device import DeviceEgg
from eggroll_rl.models.egg.kernel import EggKernel
from eggroll_rl.models.egg.learner import EggLearner
from eggroll_rl.models.egg.model import EggForCausalLM, named_config, new_model
from eggroll_rl.models.egg.saturation import saturation
from eggroll_rl.models.egg.tokenizer import byte_tokenizer
from eggroll_rl.models.loading import load_model
from eggroll_rl.models.naming import is_new
from eggroll_rl.system.errors import UsageError

SHIFTS = {2.0**-shift: shift for shift in range(13)}  # sigma -> shift
STATES = "states of the members"
DEVICES = ("auto", "cpu", "cuda")  # where torch multiplies int8


class EggEngine(Engine):
    """One EGG model in this process, which reads text and learns; results are the same on any machine, device and
    threads.

    Args:
        model: its weights learn in place, on the device where they are.
        tokenizer: the model's.
        seed: the run's seed.
        shift: sigma is 2 ** -shift.
        kernel: what computes; None: what suits the device.

    Raises:
        UsageError: the model is on a CPU, and there is no C compiler.
    """

    rules: ClassVar[tuple[str, ...]] = ("votes",)
    reads_text: ClassVar[bool] = True

    def __init__(
        self,
        model: EggForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        shift: int,
        kernel: EggKernel | DeviceEgg | None = None,
    ):
        self.model, self.tokenizer = model.requires_grad_(False), tokenizer
        self.learner = EggLearner(model, seed, shift, kernel)

    @classmethod
    def check_model(cls, recipe: Recipe, blueprint: Blueprint) -> None:
        population, usual = recipe.population, Recipe.model_fields["parameters"].default
        kind, device = type(blueprint.model).__name__, recipe.engine.device
        for fault, remedy in (
            (not isinstance(blueprint.model, EggForCausalLM), f"runs EGG models, and {recipe.model} is a {kind}"),
            (recipe.text is None, "learns to foretell text, and the recipe has none: add text"),
            (recipe.fitness.shaping != "sign", "learns by who of each pair did better: set fitness.shaping=sign"),
            (not population.antithetic, "compares the two of a pair: set population.antithetic=true"),
            (
                population.size > 2 * MOST_PAIRS,
                f"counts votes in 32 bits, which those of {2 * MOST_PAIRS} members are sure to fit, not of "
                f"{population.size}: lower population.size",
            ),
            (population.rank != 1, f"has noise of rank 1, not {population.rank}: set population.rank=1"),
            (population.noise != "normal", "has normal noise: set population.noise=normal"),
            (population.sigma not in SHIFTS, f"takes sigma from {sigmas()}, not {population.sigma:g}"),
            (population.final_sigma is not None, "keeps its sigma: drop population.final_sigma"),
            (recipe.parameters != usual, "evolves every parameter of a model: drop parameters"),
            (device.partition(":")[0] not in DEVICES, f"runs on a CPU or by CUDA, not {device}: set engine.device=cpu"),
        ):
            if fault:
                raise UsageError(f"engine.name=egg {remedy}")

    @classmethod
    def check(cls, recipe: Recipe, blueprint: Blueprint) -> None:
        if recipe.engine.pool is None:  # a pool's machines may have other memory
            device, parts = device_of(recipe.engine.device), parts_of(recipe, blueprint)
            if device.type != "cpu":  # where the states are
                refuse_beyond_memory({STATES: parts.pop(STATES)}, torch.device("cpu"))
            refuse_beyond_memory(parts, device)

    @classmethod
    def from_recipe(cls, recipe: Recipe, blueprint: Blueprint | None = None) -> Self:
        if is_new(recipe.model):
            loaded: Any = (new_model(named_config(recipe.model), recipe.seed), byte_tokenizer())
        else:
            loaded = load_model(recipe.model)
        model, tokenizer = loaded
        return cls(model.to(device_of(recipe.engine.device)), tokenizer, recipe.seed, SHIFTS[recipe.population.sigma])

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        population: Population | None = None,
        members: range | None = None,
    ) -> list[list[Completion]]:
        if population is not None:
            raise TypeError("a population of integers reads, and does not answer")
        model = self._on_cpu()
        return [[self._answer(model, prompt, sampling) for prompt in prompts]]

    def read(
        self,
        byte_ST: Tensor,
        state: Tensor | None = None,
        population: Population | None = None,
        members: range | None = None,
    ) -> Foretold:
        who = members if members is not None else range(population.size if population else len(byte_ST))
        state = self.model.new_state(len(who)).cpu() if state is None else state.clone()
        if population is None:
            score = self.learner.read_unperturbed(byte_ST, state)
        else:
            score = self.learner.read(byte_ST, state, who, population.size // len(byte_ST), population.epoch)
        return Foretold(score.double() / ONE, state)

    def saturation(self, byte_ST: Tensor) -> Saturation:
        return saturation(self._on_cpu(), byte_ST)

    def apply(self, update: Update) -> float:
        return self.learner.step(update)

    def state_dict(self) -> dict[str, Tensor]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.learner.load_state_dict(state)

    def weights_hash(self) -> str:
        return tensors_hash(dict(self.model.named_parameters()))

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _on_cpu(self) -> EggForCausalLM:
        """The model on the CPU, where torch's random numbers, and so sampled texts, are the same on every machine."""
        return self.model if self.model.device.type == "cpu" else deepcopy(self.model).cpu()

    def _answer(self, model: EggForCausalLM, prompt: Prompt, sampling: SamplingConfig) -> Completion:
        ids = torch.tensor([encode(self.tokenizer, prompt)])
        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        generator: Any = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sampling.seed)
            written = generator.generate(ids, max_new_tokens=sampling.max_new_tokens, **how)[0, ids.shape[1] :].tolist()
        text = str(self.tokenizer.decode(written, skip_special_tokens=True))
        return Completion(text, tuple(written), written[-1] == DOCUMENT)


def parts_of(recipe: Recipe, blueprint: Blueprint) -> dict[str, int]:
    """Bytes of a run by part (the keys of ``engines.needs.REMEDIES``)."""
    weights = sum(parameter.numel for parameter in blueprint.evolved)
    config = blueprint.config
    of_one = config.num_hidden_layers * config.hidden_size
    return {
        "weights": 2 * weights,  # once as stored, once in the kernel's order
        "votes": 4 * weights,
        STATES: 2 * recipe.population.size * of_one,  # before and after
    }


def sigmas() -> str:
    return f"1, 1/2, 1/4, ... {min(SHIFTS):g}"

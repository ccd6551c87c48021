"""What runs in each of vLLM's workers: a population in the adapter slots, and learning on this rank's part of a model.

Named to vLLM as ``worker_extension_cls``; only numbers and names arrive. A slot is one member, whose noise the worker
draws from seeds (``slots``). Updates act on fp32 masters or on int8 weights, one matrix after the other, and what vLLM
multiplies by is written anew from these.

Legend: O out, I in, r rank.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eggroll_rl.config import OptimizerConfig, PopulationConfig
from eggroll_rl.engines.vllm.cpu import add_adapters_by_kernel, sample_whole_prompts
from eggroll_rl.engines.vllm.layers import Layer, find_layers
from eggroll_rl.engines.vllm.slots import Matrix, Slots
from eggroll_rl.engines.vllm.window import (
    Parts,
    Plain,
    PlainPiece,
    open_window,
    part_specs,
    pieces_from,
    specs_as_plain,
    specs_from,
)
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.population import Population
from eggroll_rl.es.tensors import Spec
from eggroll_rl.es.update import GradientLearner, Update


class PopulationWorker:
    """The methods that ``collective_rpc`` reaches in every worker, all named ``eggroll_*``."""

    model_runner: Any
    device: torch.device
    rank: int

    def eggroll_begin(self, options: Plain) -> list[str]:
        """Find the layers that evolve, fill their slots with zeros, and make the learner.

        Returns:
            The evolved parameters for which vLLM does not multiply by the values in the model's files, each with the
            reason. Only if there are none do the other methods work.
        """
        model, manager = self.model_runner.get_model(), self.model_runner.lora_manager
        folder, evolved = Path(options["folder"]), set(options["evolved"])
        home = self.device if options["masters"] == "device" else torch.device("cpu")
        layers, faults = find_layers(model, manager._adapter_manager, evolved, folder, home)
        if not faults:
            fill_slots(manager, options["slots"])
            if self.device.type == "cpu":
                sample_whole_prompts(self.model_runner)
                for wrapper in manager._adapter_manager.punica_wrapper_mapping.values():
                    add_adapters_by_kernel(wrapper)
            self.eggroll = ModelPart(layers, self.model_runner.model_config.dtype, self.device, options)
            faults = self.eggroll.faults()
        return faults

    def eggroll_perturb(self, population: Plain, start: int, stop: int) -> None:
        """Put members ``start`` to ``stop`` of a population into the first slots."""
        self.eggroll.slots.fill(population_from(population), range(start, stop))

    def eggroll_learn(self, population: Plain, weights: list[float], lr: float) -> Plain:
        """Take an update. Returns for each parameter the place of this rank's part (first row, first column, number of
        rows, number of columns), and the sum of the squares of its step."""
        squares = self.eggroll.step(Update(population_from(population), tuple(weights), lr))
        parts = self.eggroll.parts.items()
        return {name: ([*part.offset, *part.shape], squares[name]) for name, part in parts}

    def eggroll_exchange(self) -> None:
        """Swap masters and averages: vLLM then multiplies by the averages, after a second call by the masters again."""
        self.eggroll.exchange()

    def eggroll_specs(self, weights_only: bool) -> Plain:
        """Dtype and whole shape of all tensors of the state, or of the weights alone."""
        return specs_as_plain(self.eggroll.state(weights_only).specs)

    def eggroll_read(self, window: str, shard: list[PlainPiece], weights_only: bool) -> None:
        """Copy this rank's part of these pieces of the state, or of the weights, into a window."""
        self.eggroll.state(weights_only).copy(open_window(window), pieces_from(shard), into_window=True)

    def eggroll_make_room(self, specs: Plain) -> None:
        """Make tensors for a state of these specs, to be filled by ``eggroll_write``."""
        self.eggroll.make_room(specs_from(specs))

    def eggroll_write(self, window: str, shard: list[PlainPiece]) -> None:
        """Copy this rank's part of these pieces out of a window."""
        self.eggroll.state(weights_only=False).copy(open_window(window), pieces_from(shard), into_window=False)

    def eggroll_go_on(self) -> None:
        """Multiply by the weights that ``eggroll_write`` filled in."""
        self.eggroll.go_on()


def population_as_plain(population: Population) -> Plain:
    """A population as plain numbers and names, which are sent to the workers."""
    config = population.config.model_dump(mode="json")
    return {
        "seed": population.seed,
        "generation": population.generation,
        "config": config,
        "sigma": population.sigma,
    }


def population_from(values: Plain) -> Population:
    """The population that ``population_as_plain`` turned into plain values."""
    config = PopulationConfig.model_validate(values["config"])
    return Population(values["seed"], values["generation"], config, values["sigma"])


def fill_slots(manager: Any, slots: int) -> None:
    """Register an adapter of zeros for each slot; adapter i is in slot i - 1 and stays there.

    vLLM would still look for each adapter in a set of all of them, made anew for each, at every step.
    """
    from vllm.lora.request import LoRARequest

    adapters = manager._adapter_manager
    with manager.dummy_lora_cache():
        for adapter in range(1, slots + 1):
            manager.add_dummy_lora(LoRARequest(f"empty-{adapter}", adapter, "mem://slot"), rank=1)
            adapters.activate_adapter(adapter)
    assert adapters.lora_index_to_id[:slots] == [*range(1, slots + 1)]
    manager._apply_adapters = lambda requests: None


class ModelPart:
    """This rank's part of the model: the noise in its slots, the weights that learn, and their optimizer."""

    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype, device: torch.device, options: Plain):
        self.layers, self.dtype, self.device = layers, dtype, device
        shapes = options["evolved"].items()
        self.whole = whole = {name: EvolvedParameter(name, tuple(shape), "lowrank") for name, shape in shapes}
        self.parts: dict[str, EvolvedParameter] = {}
        tensors: dict[str, Tensor] = {}
        for layer in self.layers:
            tensors |= layer.tensors()
            self.parts |= {name: layer.learnt(whole[name], region) for name, region in layer.found if name in whole}
        noise = Noise(options["seed"], options["noise"], device, rank=options["rank"], memo_bytes=0)
        self.slots = Slots([_matrices(layer, whole) for layer in layers], noise)
        optimizer = OptimizerConfig.model_validate(options["optimizer"])
        self.learner = GradientLearner(tensors, list(self.parts.values()), optimizer, noise)

    def faults(self) -> list[str]:
        """The parameters for which vLLM's layers multiply by other values than the files hold, with that reason."""
        differing = [layer for layer in self.layers if not layer.is_served(self.device, self.dtype)]
        return [f"{name} (served with other values)" for layer in differing for name, _ in layer.found]

    def step(self, update: Update) -> dict[str, float]:
        squares = self.learner.squared_step(update)
        self.publish()
        return squares

    def exchange(self) -> None:
        self.learner.exchange()
        self.publish()

    def state(self, weights_only: bool) -> Parts:
        """The learner's state, or the weights to save by name: the tensors themselves, as parts of whole ones."""
        tensors = self.learner.weights if weights_only else self.learner.state_dict()
        return Parts(tensors, self.parts, self.whole)

    def make_room(self, specs: Mapping[str, Spec]) -> None:
        self.learner.make_room(part_specs(specs, self.parts, self.whole))

    def go_on(self) -> None:
        self.learner.write()
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Write what vLLM multiplies by from the tensors that learn."""
        for layer in self.layers:
            layer.publish(self.dtype)


def _matrices(layer: Layer, whole: Mapping[str, EvolvedParameter]) -> dict[str, Matrix]:
    """The evolved matrices of a layer and their slots; a head is perturbed whole, as its logits are."""
    is_head = hasattr(layer.served, "shard_indices")
    stacked = zip(_of_each(layer.slots.lora_a_stacked), _of_each(layer.slots.lora_b_stacked), strict=True)
    return {
        name: Matrix(whole[name] if is_head else region.of(whole[name]), a_S1rI[:, 0], b_S1Or[:, 0])
        for (name, region), (a_S1rI, b_S1Or) in zip(layer.found, stacked, strict=True)
        if name in whole
    }


def _of_each(stacked: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The slots of each matrix that is fused in a layer; a head is one alone."""
    return (stacked,) if isinstance(stacked, Tensor) else stacked

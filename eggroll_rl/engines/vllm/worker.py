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
from safetensors.torch import load_file, save_file
from torch import Tensor

from eggroll_rl.config import OptimizerConfig, PopulationConfig
from eggroll_rl.engines.vllm.cpu import add_adapters_by_kernel
from eggroll_rl.engines.vllm.layers import Layer, find_layers
from eggroll_rl.engines.vllm.shards import cut
from eggroll_rl.engines.vllm.slots import Matrix, Slots
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import GradientLearner, Update

Plain = dict[str, Any]


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
                for wrapper in manager._adapter_manager.punica_wrapper_mapping.values():
                    add_adapters_by_kernel(wrapper)
            self.eggroll = ModelPart(layers, self.model_runner.model_config.dtype, self.device, options)
            faults = self.eggroll.faults()
        return faults

    def eggroll_perturb(self, population: Plain, start: int, stop: int) -> None:
        """Put members ``start`` to ``stop`` of a population into the first slots."""
        self.eggroll.slots.fill(population_from(population), range(start, stop))

    def eggroll_learn(self, population: Plain, weights: list[float], lr: float) -> Plain:
        """Take an update. Returns for each parameter the place of this rank's part, as ``eggroll_save`` does, and the
        sum of the squares of its step."""
        squares = self.eggroll.step(Update(population_from(population), tuple(weights), lr))
        return {name: (at, squares[name]) for name, at in self.eggroll.places.items()}

    def eggroll_exchange(self) -> None:
        """Swap masters and averages: vLLM then multiplies by the averages, after a second call by the masters again."""
        self.eggroll.exchange()

    def eggroll_save(self, folder: str, weights_only: bool) -> Plain:
        """Write this rank's state, or its weights alone, into a file in ``folder``. Returns the file's name, and for
        each parameter the place of this rank's part: first row, first column, number of rows, number of columns."""
        path = Path(folder) / f"{self.rank}.safetensors"
        self.eggroll.save(path, weights_only)
        return {"file": path.name, "places": self.eggroll.places}

    def eggroll_load(self, path: str) -> None:
        """Load this rank's part of a whole state from a file."""
        self.eggroll.load(Path(path))


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
        whole = {name: EvolvedParameter(name, tuple(shape), "lowrank") for name, shape in options["evolved"].items()}
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

    @property
    def places(self) -> dict[str, list[int]]:
        """Row and column where this rank's part of each parameter begins, its rows and its columns."""
        return {name: [*part.offset, *part.shape] for name, part in self.parts.items()}

    def step(self, update: Update) -> dict[str, float]:
        squares = self.learner.squared_step(update)
        self._publish()
        return squares

    def exchange(self) -> None:
        self.learner.exchange()
        self._publish()

    def save(self, path: Path, weights_only: bool) -> None:
        state = self.learner.weights if weights_only else self.learner.state_dict()
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)

    def load(self, path: Path) -> None:
        self.learner.load_state_dict(cut(load_file(path), self.places))
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
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

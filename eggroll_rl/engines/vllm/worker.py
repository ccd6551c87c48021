"""What runs in each of vLLM's workers: a population in the adapter slots, and learning on this rank's part of a model.

Named to vLLM as ``worker_extension_cls``; only numbers and names arrive. A slot is one member: the worker draws the
noise of all members from their seeds and writes it layer by layer, B^T as the adapter's A and ``sign * sigma / sqrt(r)
* A`` as its B. Updates act on fp32 masters, and the served weights are written anew from these.

Legend: S slots in use, K pairs, M rows, O out, I in, r rank.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eggroll_rl.config import OptimizerConfig, PopulationConfig
from eggroll_rl.engines.vllm.cpu import add_adapters_by_kernel
from eggroll_rl.engines.vllm.shards import Checkpoint, Region, Unplaced, cut, regions, served_names
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.perturbation import Factors
from eggroll_rl.es.population import Population
from eggroll_rl.es.update import GradientLearner, Update

Plain = dict[str, Any]


class PopulationWorker:
    """The methods that ``collective_rpc`` reaches in every worker, all named ``eggroll_*``."""

    model_runner: Any
    device: torch.device
    rank: int

    def eggroll_begin(self, options: Plain) -> list[str]:
        """Make ready to perturb and to learn.

        Returns:
            what of the model is served otherwise than its files hold it; where there is something, nothing else works.
        """
        manager = self.model_runner.lora_manager
        layers, faults = find_layers(self.model_runner.get_model(), manager._adapter_manager, options)
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
        self.eggroll.perturb(population_from(population), range(start, stop))

    def eggroll_learn(self, population: Plain, weights: list[float], lr: float) -> Plain:
        """Take an update; returns of each parameter where this rank's part is, as ``eggroll_save`` does, and the sum of
        the squares of its step."""
        squares = self.eggroll.step(Update(population_from(population), tuple(weights), lr))
        return {name: (at, squares[name]) for name, at in self.eggroll.places.items()}

    def eggroll_exchange(self) -> None:
        """Serve the averages of the weights in place of the masters, or these again."""
        self.eggroll.exchange()

    def eggroll_save(self, folder: str, weights_only: bool) -> Plain:
        """Write this rank's state, or its averages or else masters alone, into a file in ``folder``; returns its name,
        and of each parameter the row and column where this rank's part begins, its rows and its columns."""
        path = Path(folder) / f"{self.rank}.safetensors"
        self.eggroll.save(path, weights_only)
        return {"file": path.name, "places": self.eggroll.places}

    def eggroll_load(self, path: str) -> None:
        """Take this rank's part of a whole state."""
        self.eggroll.load(Path(path))


def population_as_plain(population: Population) -> Plain:
    """Numbers and names alone, as they go to the workers."""
    config = population.config.model_dump(mode="json")
    return {
        "seed": population.seed,
        "generation": population.generation,
        "config": config,
        "sigma": population.sigma,
    }


def population_from(values: Plain) -> Population:
    """The inverse."""
    config = PopulationConfig.model_validate(values["config"])
    return Population(values["seed"], values["generation"], config, values["sigma"])


class Layer(NamedTuple):
    """One of vLLM's layers that evolve.

    Attributes:
        slots: has the adapters, in ``lora_a_stacked`` and ``lora_b_stacked``.
        served: has the weights.
        found: the matrices fused in it, by name, and which part of them this rank has.
        weight: their values, fp32 [O, I], rounded to the served dtype.
    """

    slots: Any
    served: Any
    found: list[tuple[str, Region]]
    weight: Tensor


def find_layers(model: nn.Module, adapters: Any, options: Plain) -> tuple[list[Layer], list[str]]:
    """The layers of the evolved matrices, and those matrices that are in none, with the reason."""
    evolved, checkpoint = set(options["evolved"]), Checkpoint(Path(options["folder"]))
    layers, faults, missing = [], [], set(evolved)
    names_of = served_names(model, checkpoint.files)
    for module, slots in adapters.modules.items():
        children = [f"{child}.weight" for child in adapters.packed_modules.get(module, [module])]
        names = [names_of.get(child, child) for child in children]
        if evolved.isdisjoint(names):
            continue
        missing -= set(names)
        served: Any = model.get_submodule(module)
        served = getattr(served, "base_layer", served)
        try:
            found = list(zip(names, regions(served, [checkpoint.shape(name) for name in names]), strict=True))
        except (Unplaced, KeyError) as reason:
            faults += [f"{name} ({reason})" for name in names if name in evolved]
        else:
            layers.append(Layer(slots, served, found, fused(served, found, checkpoint)))
    return layers, faults + [f"{name} (in no layer with adapters)" for name in sorted(missing)]


def fused(served: Any, found: list[tuple[str, Region]], checkpoint: Checkpoint) -> Tensor:
    """What a layer's weight is made of, fp32; rows that only pad a vocabulary are zero."""
    rows = max(region.place + region.shape[0] for _, region in found)
    weight = torch.zeros(getattr(served, "num_embeddings_per_partition", rows), found[0][1].shape[1])
    for name, region in found:
        part = checkpoint.read(name, region.row, region.column, region.shape)
        weight[region.place : region.place + region.shape[0]] = part.to(served.weight.dtype)
    return weight


def fill_slots(manager: Any, slots: int) -> None:
    """Register an adapter of zeros for each slot; adapter i is in slot i - 1 and stays there."""
    from vllm.lora.request import LoRARequest

    adapters = manager._adapter_manager
    with manager.dummy_lora_cache():
        for adapter in range(1, slots + 1):
            manager.add_dummy_lora(LoRARequest(f"empty-{adapter}", adapter, "mem://slot"), rank=1)
            adapters.activate_adapter(adapter)
    assert adapters.lora_index_to_id[:slots] == [*range(1, slots + 1)]


class ModelPart:
    """This rank's part of the model: perturbations in its slots, fp32 masters, an optimizer, the served weights."""

    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype, device: torch.device, options: Plain):
        self.dtype, self.device = dtype, device
        home = device if options["masters"] == "device" else torch.device("cpu")
        self.layers = [layer._replace(weight=layer.weight.to(home)) for layer in layers]
        whole = {name: EvolvedParameter(name, tuple(shape), "lowrank") for name, shape in options["evolved"].items()}
        self.parts: dict[str, EvolvedParameter] = {}
        self.perturbed: dict[str, EvolvedParameter] = {}  # what the slots take; a head's act on the logits of all ranks
        masters = {}
        for layer in self.layers:
            for name, region in layer.found:
                if name in whole:
                    self.parts[name] = region.of(whole[name])
                    is_head = hasattr(layer.served, "shard_indices")
                    self.perturbed[name] = whole[name] if is_head else self.parts[name]
                    masters[name] = layer.weight[region.place : region.place + region.shape[0]]
        self.noise = Noise(options["seed"], options["noise"], device, rank=options["rank"])
        optimizer = OptimizerConfig.model_validate(options["optimizer"])
        self.learner = GradientLearner(masters, list(self.parts.values()), optimizer, self.noise)

    def faults(self) -> list[str]:
        """Names of the parameters whose layers multiply by other weights than the files hold."""
        differing = [
            layer for layer in self.layers if not multiplies_by(layer.served, layer.weight.to(self.device, self.dtype))
        ]
        return [f"{name} (served with other values)" for layer in differing for name, _ in layer.found]

    @torch.inference_mode()
    def perturb(self, population: Population, members: range) -> None:
        """Write members into the first slots: of each matrix, all at once."""
        pairs, rank = population.pairs_of(members), population.config.rank
        drawn = self.noise.draw(list(self.perturbed.values()), population.epoch, pairs, torch.float32)
        pair_S = torch.tensor([population.pair(member) - pairs.start for member in members], device=self.device)
        coefficients = [population.sign(member) * population.scale for member in members]
        coefficient_S = torch.tensor(coefficients, device=self.device)[:, None, None]
        for layer in self.layers:
            stacked = zip(_tensors(layer.slots.lora_a_stacked), _tensors(layer.slots.lora_b_stacked), strict=True)
            for (name, _), (a_SrI, b_SOr) in zip(layer.found, stacked, strict=True):
                if name in drawn:
                    factors = drawn[name]
                    assert isinstance(factors, Factors)
                    A_SOr, B_SIr = (factor.index_select(0, pair_S) for factor in factors)
                    a_SrI[: len(members), 0, :rank] = B_SIr.mT
                    b_SOr[: len(members), 0, :, :rank] = A_SOr.mul_(coefficient_S)

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
        state = self.learner.averages or self.learner.masters if weights_only else self.learner.state_dict()
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)

    def load(self, path: Path) -> None:
        self.learner.load_state_dict(cut(load_file(path), self.places))
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        """Round the masters into the weights that vLLM multiplies by."""
        for layer in self.layers:
            write_weight(layer.served, layer.weight)


def write_weight(served: Any, weight: Tensor) -> None:
    """Give one of vLLM's layers new weights: in place, or where kernels for CPUs hold a packed copy, by packing."""
    if hasattr(served, "cpu_linear"):
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        dtype, is_removed = served.weight.dtype, served.weight.numel() == 0
        served.weight = nn.Parameter(weight.to(dtype, copy=True), requires_grad=False)
        dispatch_cpu_unquantized_gemm(served, remove_weight=is_removed)
    else:
        served.weight.data.copy_(weight)


@torch.inference_mode()
def multiplies_by(served: Any, weight: Tensor) -> bool:
    """Whether a layer multiplies by ``weight``, as far as two products tell."""
    if not type(served.quant_method).__name__.startswith("Unquantized"):
        return False
    x_MI = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    expected, given = nn.functional.linear(x_MI, weight), served.quant_method.apply(served, x_MI)
    return given.shape == expected.shape and bool((given - expected).norm() <= 0.01 * expected.norm())


def _tensors(stacked: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The slots of each matrix that is fused in a layer; a head is one alone."""
    return (stacked,) if isinstance(stacked, Tensor) else stacked

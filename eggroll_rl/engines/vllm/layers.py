"""vLLM's layers whose matrices evolve: the tensors that learn, and how they are written into vLLM's weights.

Float weights learn as fp32 masters of this rank's part. Int8 weights learn without masters, each matrix whole in every
rank, because a step of int8 takes means over whole rows and columns.

Legend: M rows, O out, I in.
"""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from eggroll_rl.engines.vllm.shards import Checkpoint, Region, Unplaced, regions, served_names
from eggroll_rl.es.int8 import LARGEST_INT8, Quantised
from eggroll_rl.es.parameters import EvolvedParameter

Found = list[tuple[str, Region]]  # the matrices fused in a layer, by name, and which part of them this rank has


class Layer(Protocol):
    """One of vLLM's layers that evolve.

    Attributes:
        slots: vLLM's layer with the adapters, ``lora_a_stacked`` and ``lora_b_stacked``.
        served: vLLM's layer with the weights.
        found: the matrices fused in it.
    """

    slots: Any
    served: Any
    found: Found

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that learn, by name, as ``GradientLearner`` takes them."""
        ...

    def learnt(self, parameter: EvolvedParameter, region: Region) -> EvolvedParameter:
        """The part of a matrix that learns in this rank."""
        ...

    def is_served(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether vLLM multiplies by these weights, tested by two products."""
        ...

    def publish(self, dtype: torch.dtype) -> None:
        """Write the weights, as they are now, into vLLM's layer; ``dtype`` is that of activations."""
        ...


class FloatLayer(Layer):
    """A layer of floats, whose weights are rounded from fp32 masters."""

    def __init__(self, slots: Any, served: Any, found: Found, checkpoint: Checkpoint, home: torch.device):
        self.slots, self.served, self.found = slots, served, found
        self.weight_OI = fused(served, found, checkpoint).to(home)

    def tensors(self) -> dict[str, Tensor]:
        return {name: self.weight_OI[region.place : region.place + region.shape[0]] for name, region in self.found}

    def learnt(self, parameter: EvolvedParameter, region: Region) -> EvolvedParameter:
        return region.of(parameter)

    def is_served(self, device: torch.device, dtype: torch.dtype) -> bool:
        is_float = type(self.served.quant_method).__name__.startswith("Unquantized")
        return is_float and multiplies_by(self.served, self.weight_OI.to(device, dtype))

    def publish(self, dtype: torch.dtype) -> None:
        write_weight(self.served, self.weight_OI)


class Int8Layer(Layer):
    """A layer of int8: its weights are copies of these integers in the order of vLLM's kernel; scales never change."""

    def __init__(self, slots: Any, served: Any, found: Found, checkpoint: Checkpoint, home: torch.device):
        self.slots, self.served, self.found = slots, served, found
        self.matrices = {name: Quantised(*(part.to(home) for part in checkpoint.int8(name))) for name, _ in found}

    def tensors(self) -> dict[str, Tensor]:
        named = self.matrices.items()
        return {name: q for name, (q, _) in named} | {f"{name}_scale": scale for name, (_, scale) in named}

    def learnt(self, parameter: EvolvedParameter, region: Region) -> EvolvedParameter:
        return parameter

    def is_served(self, device: torch.device, dtype: torch.dtype) -> bool:
        is_int8 = type(getattr(self.served, "scheme", None)).__name__ == "CompressedTensorsW8A8Int8"
        return is_int8 and multiplies_by(self.served, self.part().dequantised().to(device, dtype))

    def publish(self, dtype: torch.dtype) -> None:
        write_int8(self.served, self.part(), dtype)

    def part(self) -> Quantised:
        """This rank's part of the layer's matrices, stacked by rows."""
        parts = []
        for name, (row, column, (rows, columns), _) in self.found:
            q_OI, scale_O1 = (tensor[row : row + rows] for tensor in self.matrices[name])
            parts.append((q_OI[:, column : column + columns], scale_O1))
        return Quantised(*map(torch.cat, zip(*parts, strict=True)))


class FoundLayers(NamedTuple):
    """The layers of evolved matrices, and the evolved matrices that are in none of them, each with the reason."""

    layers: list[Layer]
    faults: list[str]


def find_layers(model: nn.Module, adapters: Any, evolved: set[str], folder: Path, home: torch.device) -> FoundLayers:
    """The layers of the evolved matrices in vLLM's model.

    Args:
        adapters: vLLM's manager of adapters.
        folder: of the checkpoint that vLLM has loaded.
        home: the device on which weights learn.
    """
    checkpoint = Checkpoint(folder)
    layers: list[Layer] = []
    faults, missing = [], set(evolved)
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
        except Unplaced as reason:
            faults += [f"{name} ({reason})" for name in names if name in evolved]
        except KeyError as lacking:
            faults += [f"{name} (the files lack {lacking.args[0]})" for name in names if name in evolved]
        else:
            kind = Int8Layer if checkpoint.is_int8(names[0]) else FloatLayer
            layers.append(kind(slots, served, found, checkpoint, home))
    return FoundLayers(layers, faults + [f"{name} (in no layer with adapters)" for name in sorted(missing)])


def fused(served: Any, found: Found, checkpoint: Checkpoint) -> Tensor:
    """A float layer's weight from the checkpoint, fp32 [O, I], rounded to vLLM's dtype; rows that pad a vocabulary are
    zero."""
    rows = max(region.place + region.shape[0] for _, region in found)
    weight = torch.zeros(getattr(served, "num_embeddings_per_partition", rows), found[0][1].shape[1])
    for name, region in found:
        part = checkpoint.read(name, region.row, region.column, region.shape)
        weight[region.place : region.place + region.shape[0]] = part.to(served.weight.dtype)
    return weight


def write_weight(served: Any, weight: Tensor) -> None:
    """Write new weights into one of vLLM's layers: in place, or packed anew where kernels for CPUs have packed them."""
    if hasattr(served, "cpu_linear"):
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        dtype, is_removed = served.weight.dtype, served.weight.numel() == 0
        served.weight = nn.Parameter(weight.to(dtype, copy=True), requires_grad=False)
        dispatch_cpu_unquantized_gemm(served, remove_weight=is_removed)
    else:
        served.weight.data.copy_(weight)


def write_int8(served: Any, matrix: Quantised, dtype: torch.dtype) -> None:
    """As ``write_weight`` for int8: kernels for CPUs hold a packed copy, those for GPUs the matrix transposed.

    Args:
        dtype: of activations; a packed copy is made for one.
    """
    if served.weight_scale.device.type == "cpu":
        from vllm.utils.torch_utils import set_default_torch_dtype

        served.weight = nn.Parameter(matrix.q_OI.contiguous(), requires_grad=False)
        with set_default_torch_dtype(dtype):
            served.scheme.process_weights_after_loading(served)
    else:
        served.weight.data.copy_(matrix.q_OI.mT)


@torch.inference_mode()
def multiplies_by(served: Any, weight_OI: Tensor) -> bool:
    """Whether a layer multiplies by this weight, tested by two products. The inputs are whole numbers from -127 to 127,
    which a layer that rounds activations to int8 leaves as they are."""
    generator = torch.Generator().manual_seed(0)
    x_MI = torch.randint(-LARGEST_INT8, LARGEST_INT8 + 1, (2, weight_OI.shape[1]), generator=generator)
    x_MI[:, 0] = LARGEST_INT8
    x_MI = x_MI.to(weight_OI)
    expected, given = nn.functional.linear(x_MI, weight_OI), served.quant_method.apply(served, x_MI)
    return given.shape == expected.shape and bool((given - expected).norm() <= 0.01 * expected.norm())

"""Where a checkpoint's matrices are in vLLM's layers: fused with others, and divided among tensor-parallel ranks.

vLLM keeps q, k and v in one layer, and gate and up in another; a rank has some of the rows of these, some of the
columns of what follows them, and copies of key and value heads that are fewer than the ranks.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from eggroll_rl.es.int8 import Quantised
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.tensor_file import TensorFile
from eggroll_rl.es.tensors import Cast, Chosen, Tensors, named


class Region(NamedTuple):
    """The part of a matrix that this rank's layer holds.

    Attributes:
        row, column: where it begins in the matrix.
        shape: (rows, columns).
        place: its first row in the layer's fused weight.
    """

    row: int
    column: int
    shape: tuple[int, int]
    place: int = 0

    def of(self, parameter: EvolvedParameter) -> EvolvedParameter:
        """This part of ``parameter``."""
        return EvolvedParameter(parameter.name, self.shape, parameter.kind, (self.row, self.column))


class Unplaced(ValueError):
    """A matrix of the checkpoint is not in vLLM's layer in a way that is known."""


Shapes = Sequence[tuple[int, int]]


def regions(layer: Any, shapes: Shapes) -> list[Region]:
    """The parts that one of vLLM's layers holds of the matrices, shapes (out, in) each, that are fused in it.

    Raises:
        Unplaced: the layer holds something else.
    """
    kind = next((base.__name__ for base in type(layer).__mro__ if base.__name__ in _KINDS), None)
    if kind is None:
        raise Unplaced(f"in a {type(layer).__name__}")
    found = _KINDS[kind](layer, shapes)
    ends = [(region.row + region.shape[0], region.column + region.shape[1]) for region in found]
    if len(ends) != len(shapes) or any(e[0] > s[0] or e[1] > s[1] for e, s in zip(ends, shapes, strict=True)):
        raise Unplaced(f"of {' and '.join(map(str, shapes))} in a {type(layer).__name__} of other parts")
    return found


def _replicated(layer: Any, shapes: Shapes) -> list[Region]:
    return [Region(0, 0, shape) for shape in shapes]


def _row_parallel(layer: Any, shapes: Shapes) -> list[Region]:
    columns = layer.input_size_per_partition
    return [Region(0, layer.tp_rank * columns, (rows, columns)) for rows, _ in shapes]


def _head(layer: Any, shapes: Shapes) -> list[Region]:
    start, stop = layer.shard_indices.org_vocab_start_index, layer.shard_indices.org_vocab_end_index
    return [Region(start, 0, (stop - start, columns)) for _, columns in shapes]


def _column_parallel(layer: Any, shapes: Shapes) -> list[Region]:
    return _stacked([(layer.output_size_per_partition, layer.tp_rank)], layer, shapes)


def _merged(layer: Any, shapes: Shapes) -> list[Region]:
    return _stacked([(size // layer.tp_size, layer.tp_rank) for size in layer.output_sizes], layer, shapes)


def _qkv(layer: Any, shapes: Shapes) -> list[Region]:
    shared = layer.tp_rank // layer.num_kv_head_replicas
    query, key = layer.num_heads * layer.head_size, layer.num_kv_heads * layer.head_size
    value = layer.num_kv_heads * layer.v_head_size
    return _stacked([(query, layer.tp_rank), (key, shared), (value, shared)], layer, shapes)


def _stacked(shares: list[tuple[int, int]], layer: Any, shapes: Shapes) -> list[Region]:
    """Parts one above the other, given as (rows, how many such parts of the matrix come before)."""
    if len(shapes) == 1 and layer.tp_size == 1:  # the checkpoint has them fused as well
        shares = [(sum(rows for rows, _ in shares), 0)]
    places = [sum(rows for rows, _ in shares[:index]) for index in range(len(shares))]
    columns = layer.input_size_per_partition
    return [Region(n * rows, 0, (rows, columns), place) for (rows, n), place in zip(shares, places, strict=True)]


_KINDS = {
    "QKVParallelLinear": _qkv,
    "MergedColumnParallelLinear": _merged,
    "ColumnParallelLinear": _column_parallel,
    "RowParallelLinear": _row_parallel,
    "ReplicatedLinear": _replicated,
    "ParallelLMHead": _head,
}


def served_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """vLLM's name of a parameter -> the checkpoint's name, for a model of vLLM's or its class."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return {served: name for name in names for served in (mapper.apply_list([name]) if mapper else [name])}


class Checkpoint:
    """The safetensors files of a Hugging Face folder; tensors are read in parts."""

    def __init__(self, folder: Path):
        self.files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of a matrix."""
        with safe_open(self.files[name], framework="pt") as file:
            rows, columns = file.get_slice(name).get_shape()
        return rows, columns

    def read(self, name: str, row: int, column: int, shape: tuple[int, int]) -> Tensor:
        """A part of a matrix, as it is stored."""
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_slice(name)[row : row + shape[0], column : column + shape[1]]

    def is_int8(self, name: str) -> bool:
        """Whether a matrix has scales."""
        return f"{name}_scale" in self.files

    def int8(self, name: str) -> Quantised:
        """A matrix of int8, whole."""
        (rows, columns), scale = self.shape(name), f"{name}_scale"
        return Quantised(self.read(name, 0, 0, (rows, columns)), self.read(scale, 0, 0, (rows, 1)))


def tensors_in_files(folder: Path, model: PreTrainedModel, but: Collection[str], dtype: torch.dtype) -> Tensors | None:
    """A float model's parameters as they are loaded in ``dtype``, all ``but`` these, read from the files in pieces.
    None: the files have other names or shapes than the model, or the model keeps some in fp32.

    Args:
        model: without its weights.
    """
    files = [TensorFile(path) for path in sorted(folder.glob("*.safetensors"))]
    stored = Chosen({name: place for file in files for name, place in named(file).items()})
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters() if name not in but}
    kept = model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict
    floats = {name: spec.shape for name, spec in stored.specs.items() if spec.dtype.is_floating_point}
    if (kept and dtype != torch.float32) or any(floats.get(name) != shape for name, shape in shapes.items()):
        return None
    return Cast(Chosen({name: (stored, name) for name in shapes}), dtype)
